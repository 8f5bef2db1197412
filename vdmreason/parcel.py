"""A sweep's results as one file: to keep beside a paper, to send, to report on or go on from elsewhere.

    vdmreason sweep pack runs/sweeps/structured-small       # structured-small.tar.xz, a few kB a trial
    vdmreason sweep unpack structured-small.tar.xz          # runs/sweeps/structured-small, as far as it goes

In it are the plan and of each finished trial what a report reads: its config, answers, result and the word of done.json. Adapters
and loss curves stay where they are. Equal results make equal files, so that a parcel may lie in a repository. Needs no torch.
"""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks.base import UserError
from vdmreason import config, library, store, sweep

ENDING = ".tar.xz"
# done.json last: a trial that is cut off while it is unpacked does not count
KEPT = ("config.yaml", *sweep.VOUCHED, sweep.DONE)
MOST = 1 << 30  # bytes that a parcel may hold
# What reading raises where something is not as it should be
UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, RecursionError)
STAYS = {sweep.CLAIM, ".claim.lock", ".lock", "log.txt"}  # of a trial's folder when a parcel's trial takes its place

Members = dict[str, bytes]  # by name: "plan.json", "trials/<run>/done.json"


def pack(folder: Path, out: Path | None = None) -> tuple[Path, int, int]:
    """Write the parcel of a sweep's folder. (the file, finished trials in it, trials of the plan.)

    `out` is <folder's name>.tar.xz where it is left out, and lies in `out` where that is a folder. Raises UserError where no
    trial is finished, and where `out` is a parcel with a trial that would be lost.
    """
    folder = Path(folder)
    plan = sweep.read_plan(folder)
    trials = {entry["folder"]: _whole(folder / entry["folder"]) for entry in plan["trials"]}
    done = {place: files for place, files in trials.items() if files}
    if not done:
        raise UserError(f"{folder}: no trial is finished. `vdmreason sweep status` says where they stand.")
    name = folder.resolve().name + ENDING
    out = Path(name) if out is None else Path(out) / name if Path(out).is_dir() else Path(out)
    if out.exists():
        held = _packed(_read(out)[1])
        if lost := sorted(set(held) - set(done)):
            places = lost[0] + (f" and {len(lost) - 1} more" if len(lost) > 1 else "")
            raise UserError(
                f"{out}: holds {places}, which {folder} has not. Unpack it there first, or take another --out."
            )
        for place, files in held.items():
            if _answers(_lines(files)) != _answers(_lines(done[place])):
                raise UserError(
                    f"{out}: the same trial answers otherwise there than in {folder / place}. Take another --out."
                )
    members = {sweep.PLAN: json.dumps(plan, indent=1).encode()}
    if (folder / sweep.SHEET).is_file():
        members[sweep.SHEET] = (folder / sweep.SHEET).read_bytes()
    for kind in KEPT:  # by kind: what is alike lies together, and compresses to half
        members |= {f"{place}/{kind}": done[place][kind] for place in sorted(done)}
    with store.new_file(out) as temporary, tarfile.open(temporary, "w:xz", preset=6) as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)  # of nobody, of no day
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return out, len(done), len(trials)


def unpack(file: Path, folder: Path | None = None) -> tuple[Path, dict[str, int]]:
    """Add a parcel's trials to a sweep's folder, which is made where it is not there. (the folder, trials that are
    {"added", "there": finished here too, "running": not taken, for somebody works on them here, "unknown": not in this plan}.)

    `folder` is <runs>/sweeps/<name> where it is left out. Trials that are finished here stay as they are. Raises UserError for a
    file that is no parcel or damaged, for another sweep's folder, and where both hold different answers; then nothing is changed.
    """
    file = Path(file)
    plan, members = _read(file)
    name = sweep.folder_name(plan["name"], plan["scale"])
    folder = Path(folder) if folder is not None else store.runs_root() / "sweeps" / name
    here = store.read_json(folder / sweep.PLAN)
    if here is not None and (here["name"], here.get("scale", "")) != (plan["name"], plan["scale"]):
        other = sweep.folder_name(here["name"], here.get("scale", ""))
        raise UserError(f"{folder}: holds the sweep {other}, {file} holds {name}. Take another --out.")
    if here is None and folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder}: is there and is no sweep. Take another --out.")
    packed = _packed(members)
    for place, files in packed.items():
        mine = _whole(folder / place)
        if mine and _answers(_lines(mine)) != _answers(_lines(files)):
            raise UserError(
                f"{folder / place}: answers otherwise than the same trial in {file}. Remove that folder to take the "
                "parcel's, or unpack to another --out."
            )
    if here is None:
        store.write_json(folder / sweep.PLAN, plan)
        if sweep.SHEET in members:
            _write(folder / sweep.SHEET, members[sweep.SHEET])
    known = {entry["folder"] for entry in (here or plan)["trials"]}
    counts = {"added": 0, "there": 0, "running": 0, "unknown": 0}
    for place, files in packed.items():
        counts[_take(files, folder / place) if place in known else "unknown"] += 1
    return folder, counts


def _take(files: Mapping[str, bytes], place: Path) -> str:
    """Put one trial into a sweep, under its claim and in the place of whatever was begun there."""
    if sweep.is_done(place):
        return "there"
    if (mine := sweep.claim(place)) is None:
        return "running"
    try:
        with store.lock(place):
            if sweep.is_done(place):  # between the look and the claim
                return "there"
            store.clear(place, but=STAYS)
            store.write_state(place, state="done")
            for kind in KEPT:
                _write(place / kind, files[kind])
            return "added"
    finally:
        mine.release()


def _write(path: Path, content: bytes) -> None:
    """As it is: done.json vouches for bytes."""
    with store.new_file(path) as temporary:
        temporary.write_bytes(content)


def _whole(place: Path) -> dict[str, bytes]:
    """A finished trial's files, read once; {} where it does not count."""
    try:
        files = {kind: (place / kind).read_bytes() for kind in KEPT}
    except OSError:
        return {}
    return files if _vouched(files) else {}


def _vouched(files: Mapping[str, bytes]) -> bool:
    try:
        said = json.loads(files[sweep.DONE])["sha256"]
    except (ValueError, KeyError, TypeError):
        return False
    return bool(said == {kind: hashlib.sha256(files[kind]).hexdigest() for kind in sweep.VOUCHED})


def _lines(files: Mapping[str, bytes]) -> list[Any]:
    return [json.loads(line) for line in files["predictions.jsonl"].splitlines()]


def _answers(lines: list[Any]) -> list[Any]:
    return sorted((line["i"], json.dumps([line["question"], line["proposed"]])) for line in lines)


def _packed(members: Members) -> dict[str, dict[str, bytes]]:
    """Each trial's files, by its folder."""
    places = sorted({name.rpartition("/")[0] for name in members if "/" in name})
    return {place: {kind: members.get(f"{place}/{kind}", b"") for kind in KEPT} for place in places}


# ---------------------------------------------------------------------------------------------------------------------
# What may be in a parcel


def _read(file: Path) -> tuple[dict[str, Any], Members]:
    """(plan, all members) of a parcel, checked: nothing of it was written anywhere."""
    if not file.is_file():
        raise UserError(f"{file}: no such file.")
    members: Members = {}
    try:
        with lzma.open(file) as packed:
            whole = packed.read(MOST + 1)  # headers and all, before anything looks into it
        if len(whole) > MOST:
            raise UserError(f"{file}: is too large for a parcel.")
        with tarfile.open(fileobj=io.BytesIO(whole), mode="r:") as archive:
            for member in archive:
                if not member.isfile() or member.size < 0:
                    raise UserError(f"{file}: holds {member.name!r}, which is no file.")
                content = archive.extractfile(member)
                assert content is not None
                members[member.name] = content.read()
    except (tarfile.TarError, lzma.LZMAError, EOFError) as error:
        raise UserError(f"{file}: no parcel of a sweep, or cut off ({error}).") from error
    try:
        plan = json.loads(members[sweep.PLAN])
        for key, usual in (("scale", ""), ("dropped", [])):
            plan.setdefault(key, usual)
        _check_plan(plan)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    except UNREADABLE as error:
        raise UserError(f"{file}: has no plan of a sweep in it.") from error
    entries = {entry["folder"]: entry for entry in plan["trials"]}
    allowed = {sweep.PLAN, sweep.SHEET, *(f"{place}/{kind}" for place in entries for kind in KEPT)}
    if strangers := [name for name in members if name not in allowed]:
        raise UserError(f"{file}: holds {strangers[0]!r}, which its own plan has not.")
    for place, files in _packed(members).items():
        if not _vouched(files):
            raise UserError(f"{file}: {place} is not what its done.json vouches for. Have the file sent again.")
        try:
            _check_trial(files, entries[place])
        except (UserError, *UNREADABLE) as error:
            why = " ".join(str(error).split())
            raise UserError(f"{file}: {place} is no trial that its plan has ({why}).") from error
    return plan, members


def _check_plan(plan: Mapping[str, Any]) -> None:
    """The plan has a name, and every trial lies where, and is what, its config says."""
    texts = [plan["name"], plan["scale"], *plan["dropped"]]
    if not all(isinstance(text, str) for text in texts) or not sweep.folder_name(plan["name"], plan["scale"]).strip(
        "."
    ):
        raise ValueError("no name")
    for entry in plan["trials"]:
        wanted = sweep.Trial(config.resolve(entry["config"]), entry["arm"], entry["control"], entry["set"]).entry()
        said = {key: value for key, value in entry.items() if key in wanted and key != "config"}
        if not {"id", "folder"} <= set(said) or any(wanted[key] != value for key, value in said.items()):
            raise UserError(
                f"{entry['folder']}: this code reads the plan otherwise. Unpack with the code that packed it."
            )
        if not all(isinstance(entry[key], str) for key in ("arm", "control")):
            raise ValueError("no arm")


def _check_trial(files: Mapping[str, bytes], entry: Mapping[str, Any]) -> None:
    """The files are this trial's, its answers are whole, and what they name lies in the folder."""
    run = config.resolve(config.keys_of(files["config.yaml"].decode(), "config.yaml", ""))
    result = json.loads(files["result.json"])
    if not run.id == entry["id"] == result["id"]:
        raise ValueError("another trial's files")
    lines = _lines(files)
    if len(lines) != run.test or sorted(line["i"] for line in lines) != [*range(run.test)]:
        raise ValueError("an answer is missing, or stands twice")
    if any(library.names_a_clip_elsewhere(line) for line in lines):
        raise ValueError("a clip outside its folder")
    _answers(lines)  # they can be compared with others
    times = [json.loads(files[sweep.DONE]).get(key, 0) for key in ("seconds", "training", "answering")]
    if not all(isinstance(value, (int, float)) for value in (*times, *(line.get("seconds", 0) for line in lines))):
        raise ValueError("a time that is no number")
    if not all(isinstance(result.get(key, {}), dict) for key in ("provenance", "scores")):
        raise ValueError("a result that is none")
