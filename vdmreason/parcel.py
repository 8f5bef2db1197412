"""A sweep's results as one file: to keep beside a paper, to send, to report on or go on from elsewhere.

    vdmreason sweep pack runs/sweeps/structured-small       # structured-small.tar.xz, a few kB a trial
    vdmreason sweep unpack structured-small.tar.xz          # runs/sweeps/structured-small, as far as it goes

In it are the plan and of each finished trial what a report reads: its config, answers, result and the word of done.json. Adapters
and loss curves stay where they are. Equal results make equal files, so that a parcel may lie in a repository. Needs no torch.
"""

from __future__ import annotations

import io
import json
import lzma
import re
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tasks.base import UserError
from vdmreason import store, sweep

ENDING = ".tar.xz"
# done.json last: a trial that is cut off while it is unpacked does not count
KEPT = ("config.yaml", "state.json", "predictions.jsonl", "result.json", sweep.DONE)
MEMBER = re.compile(rf"({sweep.PLAN}|{sweep.SHEET}|trials/[\w.@+-]+/({'|'.join(map(re.escape, KEPT))}))", re.ASCII)


def pack(folder: Path, out: Path | None = None) -> tuple[Path, int, int]:
    """Write the parcel of a sweep's folder. (the file, finished trials in it, trials of the plan.)

    `out` is <folder's name>.tar.xz where it is left out. Raises UserError where no trial is finished.
    """
    folder = Path(folder)
    standings = sweep.look(folder)
    done = sorted(now.entry["folder"] for now in standings if now.state == "done")
    if not done:
        raise UserError(f"{folder}: no trial is finished. `vdmreason sweep status` says where they stand.")
    out = Path(out) if out is not None else Path(folder.resolve().name + ENDING)
    # by kind: what is alike lies together, and compresses to half
    names = [sweep.PLAN, sweep.SHEET, *(f"{place}/{name}" for name in KEPT for place in done)]
    with store.new_file(out) as temporary, tarfile.open(temporary, "w:xz", preset=9) as archive:
        for name in names:
            if (folder / name).is_file():
                content = (folder / name).read_bytes()
                member = tarfile.TarInfo(name)  # of nobody, of no day
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return out, len(done), len(standings)


def unpack(file: Path, folder: Path | None = None) -> tuple[Path, dict[str, int]]:
    """Add a parcel's trials to a sweep's folder, which is made where it is not there. (the folder, trials that are
    {"added", "there": finished here too, "running": not taken, for somebody works on them here, "unknown": not in this plan}.)

    `folder` is <runs>/sweeps/<name> where it is left out. Trials that are finished here stay as they are. Raises UserError for a
    file that is no parcel or damaged, for another sweep's folder, and where both hold different answers; then nothing is changed.
    """
    with _opened(Path(file)) as (inside, plan):
        name = sweep.folder_name(plan["name"], plan.get("scale", ""))
        folder = Path(folder) if folder is not None else store.runs_root() / "sweeps" / name
        here = store.read_json(folder / sweep.PLAN)
        if here is not None and (here["name"], here.get("scale", "")) != (plan["name"], plan.get("scale", "")):
            other = sweep.folder_name(here["name"], here.get("scale", ""))
            raise UserError(f"{folder}: holds the sweep {other}, {file} holds {name}. Take another --out.")
        if here is None and folder.exists() and any(folder.iterdir()):
            raise UserError(f"{folder}: is there and is no sweep. Take another --out.")
        known = {entry["folder"] for entry in (here or plan)["trials"]}
        packed = sorted(path.relative_to(inside).as_posix() for path in (inside / "trials").glob("*"))
        for place in packed:
            if not sweep.is_done(inside / place):
                raise UserError(f"{file}: {place} is not what its done.json vouches for. Have the file sent again.")
            if sweep.is_done(folder / place) and _answers(folder / place) != _answers(inside / place):
                raise UserError(f"{place}: {folder} and {file} hold different answers. Unpack to another --out.")
        if here is None:
            for name in (sweep.SHEET, sweep.PLAN):
                if (inside / name).is_file():
                    store.write_text(folder / name, (inside / name).read_text(encoding="utf-8"))
        counts = {"added": 0, "there": 0, "running": 0, "unknown": 0}
        for place in packed:
            counts[_take(inside / place, folder / place) if place in known else "unknown"] += 1
        return folder, counts


def _take(packed: Path, place: Path) -> str:
    """Move one trial into a sweep, under its claim."""
    if sweep.is_done(place):
        return "there"
    if (mine := sweep.claim(place)) is None:
        return "running"
    try:
        if sweep.is_done(place):  # between the look and the claim
            return "there"
        if (place / sweep.DONE).exists():
            sweep.set_aside(place)
        for name in ("checkpoints", "adapter", "clips"):  # of an attempt that this is not the end of
            shutil.rmtree(place / name, ignore_errors=True)
        for name in ("metrics.jsonl", sweep.FAILED):
            (place / name).unlink(missing_ok=True)
        for name in KEPT:
            if (packed / name).is_file():
                store.write_text(place / name, (packed / name).read_text(encoding="utf-8"))
        return "added"
    finally:
        mine.release()


def _answers(place: Path) -> list[Any]:
    return [(line["i"], line["question"], line["proposed"]) for line in store.read_lines(place / "predictions.jsonl")]


@contextmanager
def _opened(file: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """(a temporary folder with what the parcel holds, its plan). Only names that a parcel has are written anywhere."""
    if not file.is_file():
        raise UserError(f"{file}: no such file.")
    with tempfile.TemporaryDirectory() as temporary:
        inside = Path(temporary)
        try:
            with tarfile.open(file, "r:xz") as archive:
                for member in archive:
                    if not member.isfile() or not MEMBER.fullmatch(member.name) or "/../" in member.name:
                        raise UserError(f"{file}: holds {member.name!r}, which no sweep's parcel has.")
                    archive.extract(member, inside, filter="data")
        except (tarfile.TarError, lzma.LZMAError, EOFError) as error:
            raise UserError(f"{file}: no parcel of a sweep, or cut off ({error}).") from error
        try:
            plan = store.read_json(inside / sweep.PLAN)
            known = {str(entry["folder"]) for entry in plan["trials"]}
            str(plan["name"]), [entry["id"] for entry in plan["trials"]]
        except (UserError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise UserError(f"{file}: has no plan of a sweep in it.") from error
        strangers = [p.name for p in (inside / "trials").glob("*") if f"trials/{p.name}" not in known]
        if strangers:
            raise UserError(f"{file}: holds trials that its own plan has not, such as {strangers[0]}.")
        yield inside, plan
