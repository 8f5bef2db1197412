"""Parcels: what a sweep found travels as one file, and nothing else gets in with it."""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import shutil
import tarfile
from pathlib import Path

import pytest
from test_sweep import ONE, THREE, _families, _quick, places, planned, real_sheet, started, states, vdmreason

import adapters
from tasks.base import UserError
from vdmreason import parcel, predict, report, store, sweep

fixtures = (_families, _quick)  # pytest's, shared


def done(folder: Path) -> dict[str, tuple]:
    """The finished trials, by name: their answers and results."""
    whole = [place for place in places(folder) if sweep.is_done(place)]
    return {p.name: (store.read_lines(p / "predictions.jsonl"), store.read_json(p / "result.json")) for p in whole}


def of(members: dict[str, bytes], path: Path) -> Path:
    """A parcel with these members."""
    with tarfile.open(path, "w:xz") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def members_of(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        return {m.name: archive.extractfile(m).read() for m in archive}


def test_there_and_back_is_the_same_and_the_rest_is_done_there(tmp_path, monkeypatch) -> None:
    """A parcel of two thirds of a sweep, unpacked elsewhere, is two thirds of it; what is left is done there, and only that."""
    here = planned(tmp_path / "here", **THREE)
    sweep.work(here, part=(1, 3))
    sweep.work(here, part=(2, 3))
    file, packed, trials = parcel.pack(here, tmp_path / "file.tar.xz")
    assert (packed, trials) == (2, 3)
    there, counts = parcel.unpack(file, tmp_path / "there")
    assert counts == {"added": 2, "there": 0, "running": 0, "unknown": 0}
    assert states(there) == {"done": 2, "waiting": 1} and done(there) == done(here)
    assert not list(there.rglob("*.safetensors")) and not list(there.rglob("claim.json"))
    trained = started(monkeypatch)
    sweep.work(there)
    left = [s.entry["id"] for s in sweep.look(here) if s.state != "done"]
    assert trained == left and states(there) == {"done": 3}
    # and back: what is here stays, what is new is added, and both are the whole
    back, counts = parcel.unpack(parcel.pack(there, tmp_path / "back.tar.xz")[0], here)
    assert back == here and counts == {"added": 1, "there": 2, "running": 0, "unknown": 0}
    assert done(here) == done(there) and len(done(here)) == 3


def test_equal_results_make_equal_files(tmp_path) -> None:
    here = planned(tmp_path / "here", **ONE)
    sweep.work(here)
    one = parcel.pack(here, tmp_path / "one.tar.xz")[0]
    there, _ = parcel.unpack(one, tmp_path / "there")
    assert parcel.pack(there, tmp_path / "two.tar.xz")[0].read_bytes() == one.read_bytes()


def test_a_report_of_a_parcel_is_the_report_of_the_sweep(tmp_path) -> None:
    here = planned(tmp_path / "here", **THREE)
    sweep.work(here)
    there, _ = parcel.unpack(parcel.pack(here, tmp_path / "file.tar.xz")[0], tmp_path / "there")
    for folder in (here, there):
        report.report_sweep(folder, folder / "report")
    texts = [(folder / "report" / "report.json").read_text().replace(str(folder), "") for folder in (here, there)]
    assert texts[0] == texts[1]


def test_who_is_asked_without_an_adapter_says_where_it_is(tmp_path) -> None:
    here = planned(tmp_path / "here", **ONE)
    sweep.work(here)
    there, _ = parcel.unpack(parcel.pack(here, tmp_path / "file.tar.xz")[0], tmp_path / "there")
    with pytest.raises(UserError, match="stayed where it was trained"):
        predict.predict(places(there)[0])


def test_what_is_not_finished_or_damaged_stays_where_it_is(tmp_path) -> None:
    here = planned(tmp_path, **THREE)
    with pytest.raises(UserError, match="no trial is finished"):
        parcel.pack(here, tmp_path / "file.tar.xz")
    assert not (tmp_path / "file.tar.xz").exists()
    sweep.work(here)
    with (places(here)[0] / "predictions.jsonl").open("a") as lines:
        lines.write("{}\n")
    file, packed, trials = parcel.pack(here, tmp_path / "file.tar.xz")
    assert (packed, trials) == (2, 3)
    assert not any(places(here)[0].name in name for name in members_of(file))


def test_an_attempt_s_leavings_are_not_the_parcel_s(tmp_path) -> None:
    """A trial that was begun, or failed, where the parcel comes to: all of it is of another sitting."""
    here, there = planned(tmp_path / "here", **ONE), planned(tmp_path / "there", **ONE)
    sweep.work(here)
    (place,) = places(there)
    for name in ("checkpoints/step-000002", "adapter", ".adapter.old", "previews", "clips"):
        (place / name).mkdir(parents=True)
    for name in ("metrics.jsonl", "README.md", "predictions.jsonl"):
        (place / name).write_text("{}\n")
    store.write_json(place / sweep.FAILED, {"error": "no room", "final": True})
    assert states(there) == {"failed": 1}
    parcel.unpack(parcel.pack(here, tmp_path / "file.tar.xz")[0], there)
    assert states(there) == {"done": 1}
    assert {p.name for p in place.iterdir()} - {".lock"} == {*parcel.KEPT, "state.json"}


def test_what_was_cut_off_while_it_was_unpacked_is_answered_by_its_own_adapter(tmp_path, monkeypatch) -> None:
    """The parcel's answers without its word are nobody's: they are not taken for those of the adapter that is trained then."""
    here, there = planned(tmp_path / "here", **ONE), planned(tmp_path / "there", **ONE)
    sweep.work(here)
    (place,) = places(there)
    real = parcel._write

    def killed(path: Path, content: bytes) -> None:
        if path.name == "result.json":
            raise KeyboardInterrupt
        real(path, content.replace(b'"proposed":', b'"proposed": '))

    monkeypatch.setattr(parcel, "_write", killed)
    with pytest.raises(KeyboardInterrupt):
        parcel.unpack(parcel.pack(here, tmp_path / "file.tar.xz")[0], there)
    assert (place / "predictions.jsonl").exists() and not sweep.is_done(place)
    sweep.work(there)
    assert states(there) == {"done": 1} and b'"proposed": ' not in (place / "predictions.jsonl").read_bytes()


def test_what_was_cut_off_is_not_answered_for_a_lent_adapter_either(tmp_path, monkeypatch) -> None:
    """Of two trials of one training one is done here; the other's came in a parcel and its word did not."""
    asked = {**ONE, "axes": {"votes": [1, 2]}}
    here, there = planned(tmp_path / "here", **asked), planned(tmp_path / "there", **asked)
    sweep.work(here)
    file = parcel.pack(here, tmp_path / "file.tar.xz")[0]
    sweep.work(there)
    place = there / sweep.look(there)[1].entry["folder"]
    for path in (*parcel.KEPT, "state.json"):
        (place / path).unlink()
    shutil.rmtree(place / "adapter")
    real = parcel._write

    def killed(path: Path, content: bytes) -> None:
        if path.name == sweep.DONE:
            raise KeyboardInterrupt
        real(path, content.replace(b'"proposed":', b'"proposed": '))

    monkeypatch.setattr(parcel, "_write", killed)
    with pytest.raises(KeyboardInterrupt):
        parcel.unpack(file, there)
    assert b'"proposed": ' in (place / "predictions.jsonl").read_bytes() and not sweep.is_done(place)
    sweep.work(there)
    assert states(there) == {"done": 2} and b'"proposed": ' not in (place / "predictions.jsonl").read_bytes()


def test_an_unpacked_trial_that_is_told_otherwise_is_not_trained_again(tmp_path, monkeypatch) -> None:
    """Newer rules write result.json anew: the answers are still those that were packed, and so is who gave them."""
    here = planned(tmp_path / "here", **ONE)
    sweep.work(here)
    there, _ = parcel.unpack(parcel.pack(here, tmp_path / "file.tar.xz")[0], tmp_path / "there")
    (place,) = places(there)
    before, answers = store.read_json(place / sweep.DONE), (place / "predictions.jsonl").read_bytes()
    store.write_json(place / "result.json", {**store.read_json(place / "result.json"), "scores": {}})
    assert states(there) == {"damaged": 1}
    trained = started(monkeypatch)
    monkeypatch.setattr(store, "code", lambda: ("1" * 40, True))
    sweep.work(there)
    after = store.read_json(place / sweep.DONE)
    assert states(there) == {"done": 1} and not trained and (place / "predictions.jsonl").read_bytes() == answers
    assert {k: v for k, v in after.items() if k != "sha256"} == {k: v for k, v in before.items() if k != "sha256"}
    assert store.read_json(place / "result.json")["scores"]["exact"]


def test_an_adapter_that_stayed_elsewhere_is_not_counted_on(tmp_path) -> None:
    """Of two trials of one training one came in a parcel: the other trains, and the time left says so."""
    asked = {**ONE, "axes": {"votes": [1, 2]}}
    here = planned(tmp_path / "here", **asked)
    sweep.work(here)
    second = sweep.look(here)[1].entry
    (here / second["folder"] / sweep.DONE).unlink()
    there, _ = parcel.unpack(parcel.pack(here, tmp_path / "file.tar.xz")[0], tmp_path / "there")
    forecast = sweep.Forecast(there)
    forecast.learn(sweep.look(there))
    assert forecast.total([second])[0] == forecast.seconds(second["config"]) and not forecast.bytes


def test_who_works_on_a_trial_keeps_it(tmp_path) -> None:
    here, there = planned(tmp_path / "here", **ONE), planned(tmp_path / "there", **ONE)
    sweep.work(here)
    mine = sweep.claim(places(there)[0])
    assert mine
    counts = parcel.unpack(parcel.pack(here, tmp_path / "file.tar.xz")[0], there)[1]
    assert counts["running"] == 1 and not sweep.is_done(places(there)[0]) and mine.mine()


def test_another_sweep_s_folder_and_other_answers_are_refused_and_nothing_changes(tmp_path) -> None:
    here = planned(tmp_path / "here", **ONE)
    sweep.work(here)
    file = parcel.pack(here, tmp_path / "file.tar.xz")[0]
    other = planned(tmp_path / "other", **ONE, name="another")
    with pytest.raises(UserError, match="holds the sweep another"):
        parcel.unpack(file, other)
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "mine.tex").write_text("")
    with pytest.raises(UserError, match="is no sweep"):
        parcel.unpack(file, tmp_path / "papers")
    assert [p.name for p in (tmp_path / "papers").iterdir()] == ["mine.tex"]
    # the same trial, answered otherwise, and whole
    there = planned(tmp_path / "there", **THREE)
    shown, _ = parcel.unpack(file, there)
    (place,) = [p for p in places(there) if sweep.is_done(p)]
    answers = store.read_lines(place / "predictions.jsonl")
    answers[0]["proposed"] = [[9]]
    store.write_lines(place / "predictions.jsonl", answers)
    store.write_json(place / sweep.DONE, {**store.read_json(place / sweep.DONE), "sha256": sweep.hashes(place)})
    before = {p: p.read_bytes() for p in there.rglob("*") if p.is_file()}
    with pytest.raises(UserError, match="answers otherwise"):
        parcel.unpack(file, there)
    assert before == {p: p.read_bytes() for p in there.rglob("*") if p.is_file()}
    assert shown == there


def test_a_plan_that_has_fewer_trials_takes_only_its_own(tmp_path) -> None:
    here, there = planned(tmp_path / "here", **THREE), planned(tmp_path / "there", **ONE)
    sweep.work(here)
    counts = parcel.unpack(parcel.pack(here, tmp_path / "file.tar.xz")[0], there)[1]
    assert counts == {"added": 1, "there": 0, "running": 0, "unknown": 2}
    assert len(list((there / "trials").iterdir())) == 1


@pytest.mark.parametrize(
    "name",
    [
        "../escaped.txt",
        "/tmp/escaped.txt",
        "trials/../escaped/done.json",
        "trials/x/lora.safetensors",
        "plan.json/x",
        "a",
    ],
)
def test_nothing_else_gets_in(tmp_path, name: str) -> None:
    here = planned(tmp_path / "here", **ONE)
    sweep.work(here)
    members = members_of(parcel.pack(here, tmp_path / "file.tar.xz")[0])
    bad = of({**members, name: b"x"}, tmp_path / "bad.tar.xz")
    with pytest.raises(UserError, match="which its own plan has not"):
        parcel.unpack(bad, tmp_path / "there")
    assert not (tmp_path / "there").exists() and not list(tmp_path.rglob("escaped*"))


def changed(members: dict[str, bytes], **changes) -> dict[str, bytes]:
    """With other values in the plan's first trial."""
    plan = json.loads(members["plan.json"])
    plan["trials"][0] |= changes
    return {**members, "plan.json": json.dumps(plan).encode()}


def test_a_plan_says_nothing_but_where_its_trials_lie(tmp_path) -> None:
    """A worker would delete and write where a plan says: another folder, id or config than the run's own is refused."""
    here = planned(tmp_path / "here", **THREE)
    members = members_of(packed_one(here, tmp_path))
    for changes in (
        {"folder": "../victim"},
        {"folder": "trials/other"},
        {"id": "0" * 12},
        {"config": {}},
        {"config": 3},
        {"training": "another's"},  # whose adapter a trial would take
        {"seed": 7},
        {"task": "sudoku/4x4"},
        {"arm": ["video"]},
        {"set": 3},
    ):
        for kept in (changed(members, **changes), changed({"plan.json": members["plan.json"]}, **changes)):
            with pytest.raises(UserError):
                parcel.unpack(of(kept, tmp_path / "bad.tar.xz"), tmp_path / "there")
            assert not (tmp_path / "there").exists()


@pytest.mark.parametrize(
    "changes", [{"name": ".."}, {"name": ["a"]}, {"scale": 5}, {"dropped": 3}, {"dropped": [3]}, {"trials": 3}], ids=str
)
def test_a_plan_has_a_name(tmp_path, changes: dict) -> None:
    here = planned(tmp_path / "here", **THREE)
    members = members_of(packed_one(here, tmp_path))
    members["plan.json"] = json.dumps({**json.loads(members["plan.json"]), **changes}).encode()
    with pytest.raises(UserError, match="has no plan of a sweep"):
        parcel.unpack(of(members, tmp_path / "bad.tar.xz"), tmp_path / "there")
    assert not (tmp_path / "there").exists()


def packed_one(here: Path, tmp_path: Path) -> Path:
    sweep.work(here, part=(1, 3))
    return parcel.pack(here, tmp_path / "file.tar.xz")[0]


def vouched(members: dict[str, bytes], place: str, **files: bytes) -> dict[str, bytes]:
    """With other files of a trial, and a done.json that vouches for them."""
    new = {**members, **{f"{place}/{name}": content for name, content in files.items()}}
    said = {kind: hashlib.sha256(new[f"{place}/{kind}"]).hexdigest() for kind in sweep.VOUCHED}
    return {
        **new,
        f"{place}/done.json": json.dumps({**json.loads(members[f"{place}/done.json"]), "sha256": said}).encode(),
    }


def test_a_trial_s_files_are_its_own(tmp_path) -> None:
    """Another trial's files, one answer less or twice, a picture elsewhere: refused, though done.json vouches for them."""
    here = planned(tmp_path / "here", **THREE)
    sweep.work(here)
    members = members_of(parcel.pack(here, tmp_path / "file.tar.xz")[0])
    first, second = sorted({name.rpartition("/")[0] for name in members if "/" in name})[:2]
    answers = members[f"{first}/predictions.jsonl"]
    lines = answers.splitlines(keepends=True)
    other = {kind: members[f"{second}/{kind}"] for kind in parcel.KEPT[:-1]}

    def with_line(**changes) -> dict[str, bytes]:
        return {
            "predictions.jsonl": b"".join([json.dumps({**json.loads(lines[0]), **changes}).encode(), b"\n", *lines[1:]])
        }

    result = json.loads(members[f"{first}/result.json"])
    deep = b"[" * 10**5
    repeats = b"a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n"
    for files in (
        other,
        {"config.yaml": other["config.yaml"]},
        {"predictions.jsonl": b"".join(lines[1:])},
        {"predictions.jsonl": answers + lines[0]},
        with_line(raw="../../secret.webp"),
        with_line(seconds={"a": 1}),
        {"predictions.jsonl": answers.replace(b'"question"', b'"quest"')},
        {"predictions.jsonl": deep},
        {"result.json": deep},
        {"result.json": json.dumps({**result, "provenance": 7}).encode()},
        {"config.yaml": repeats},
        {"config.yaml": deep},
        {"predictions.jsonl": b"\xff" + answers},
        {"config.yaml": b"\xff"},
    ):
        bad = of(vouched(members, first, **files), tmp_path / "bad.tar.xz")
        with pytest.raises(UserError, match="no trial that its plan has"):
            parcel.unpack(bad, tmp_path / "there")
        assert not (tmp_path / "there").exists()
    word = {**json.loads(members[f"{first}/done.json"]), "training": "long"}
    with pytest.raises(UserError, match="no trial that its plan has"):
        parcel.unpack(
            of({**members, f"{first}/done.json": json.dumps(word).encode()}, tmp_path / "bad.tar.xz"),
            tmp_path / "there",
        )
    parcel.unpack(of(vouched(members, first), tmp_path / "good.tar.xz"), tmp_path / "there")


def test_bytes_are_kept(tmp_path) -> None:
    """Also line ends of another system: done.json vouches for bytes."""
    here = planned(tmp_path / "here", **ONE)
    sweep.work(here)
    (place,) = places(here)
    (place / "result.json").write_bytes((place / "result.json").read_bytes().replace(b"\n", b"\r\n"))
    store.write_json(place / sweep.DONE, {**store.read_json(place / sweep.DONE), "sha256": sweep.hashes(place)})
    there, _ = parcel.unpack(parcel.pack(here, tmp_path / "file.tar.xz")[0], tmp_path / "there")
    assert states(there) == {"done": 1}


def test_a_name_in_any_script_travels(tmp_path) -> None:
    puzzles = tmp_path / "Rätsel"
    puzzles.mkdir()
    pairs = [{"input": [[k, 0]], "output": [[0, k]]} for k in (1, 2, 3, 4)]
    (puzzles / "ä.json").write_text(json.dumps({"train": pairs[:3], "test": pairs[3:]}))
    asked = {
        "tasks": [str(puzzles / "ä.json")],
        "n": ["all"],
        "set": {"optim": {"updates": 1, "batch": 1}, "lora.rank": 2},
    }
    here = planned(tmp_path / "here", **{**ONE, **asked})
    sweep.work(here)
    there, counts = parcel.unpack(parcel.pack(here, tmp_path / "file.tar.xz")[0], tmp_path / "there")
    assert counts["added"] == 1 and states(there) == {"done": 1}


def test_a_fuller_parcel_is_not_lost(tmp_path) -> None:
    here, less = planned(tmp_path / "here", **THREE), planned(tmp_path / "less", **THREE)
    sweep.work(here)
    sweep.work(less, part=(1, 3))
    file = parcel.pack(here, tmp_path / "file.tar.xz")[0]
    whole = file.read_bytes()
    with pytest.raises(UserError, match="and 1 more, which"):
        parcel.pack(less, file)
    assert file.read_bytes() == whole
    (tmp_path / "folder").mkdir()
    assert parcel.pack(less, tmp_path / "folder")[0] == tmp_path / "folder" / "sweep.tar.xz"
    parcel.unpack(file, less)
    assert parcel.pack(less, file)[1] == 3


def test_a_parcel_does_not_take_the_place_of_other_answers(tmp_path) -> None:
    here = planned(tmp_path / "here", **ONE)
    sweep.work(here)
    file = parcel.pack(here, tmp_path / "file.tar.xz")[0]
    (place,) = places(here)
    answers = store.read_lines(place / "predictions.jsonl")
    answers[0]["proposed"] = [[9]]
    store.write_lines(place / "predictions.jsonl", answers)
    store.write_json(place / sweep.DONE, {**store.read_json(place / sweep.DONE), "sha256": sweep.hashes(place)})
    whole = file.read_bytes()
    with pytest.raises(UserError, match="answers otherwise there"):
        parcel.pack(here, file)
    assert file.read_bytes() == whole


@pytest.mark.timeout(60)
def test_a_header_does_not_hang_or_fill_the_memory(tmp_path, monkeypatch) -> None:
    """A size below nothing, which tarfile reads again and again; headers larger than a parcel may be."""
    size, check = slice(124, 136), slice(148, 156)
    header = bytearray(tarfile.TarInfo("plan.json").tobuf())
    header[size] = b"\xff" * 10 + b"\xfc\x00"  # base 256: -1024
    header[check] = b" " * 8
    header[check] = f"{sum(header):06o}".encode() + b"\0 "
    (tmp_path / "bad.tar.xz").write_bytes(lzma.compress(bytes(header) + bytes(10240 - len(header))))
    with pytest.raises(UserError):
        parcel.unpack(tmp_path / "bad.tar.xz", tmp_path / "there")
    monkeypatch.setattr(parcel, "MOST", 1 << 20)
    with tarfile.open(
        tmp_path / "large.tar.xz", "w:xz", format=tarfile.PAX_FORMAT, pax_headers={"comment": "0" * (2 << 20)}
    ):
        pass
    with pytest.raises(UserError, match="too large"):
        parcel.unpack(tmp_path / "large.tar.xz", tmp_path / "there")


def test_a_link_does_not_get_in(tmp_path) -> None:
    with tarfile.open(tmp_path / "bad.tar.xz", "w:xz") as archive:
        link = tarfile.TarInfo("plan.json")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(UserError, match="which is no file"):
        parcel.unpack(tmp_path / "bad.tar.xz", tmp_path / "there")


@pytest.mark.parametrize("how", ["cut", "edited", "text", "no plan", "stranger", "gone"])
def test_a_damaged_file_is_one_line_and_nothing_is_unpacked(tmp_path, how: str) -> None:
    here = planned(tmp_path / "here", **ONE)
    sweep.work(here)
    file = parcel.pack(here, tmp_path / "file.tar.xz")[0]
    members = members_of(file)
    answers = next(name for name in members if name.endswith("predictions.jsonl"))
    if how == "cut":
        file.write_bytes(file.read_bytes()[:-200])
    elif how == "edited":
        of({**members, answers: members[answers].replace(b'"i":0', b'"i":1')}, file)
    elif how == "text":
        file.write_text("no archive at all")
    elif how == "no plan":
        of({name: content for name, content in members.items() if name != "plan.json"}, file)
    elif how == "stranger":
        of({**members, "trials/other/done.json": b"{}"}, file)
    else:
        file.unlink()
    with pytest.raises(UserError) as error:
        parcel.unpack(file, tmp_path / "there")
    assert str(file) in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "there").exists()


@pytest.mark.skipif("causal_lm" not in adapters.families(), reason="not here")
def test_the_command_line(tmp_path) -> None:
    here = tmp_path / "here"
    sweep.write_plan(here, sweep.read(real_sheet(tmp_path, seeds=[0])))
    sweep.work(here)
    runs = {"VDMREASON_RUNS": str(tmp_path / "runs")}
    file = tmp_path / "file.tar.xz"
    packed = vdmreason("pack", str(here), "--out", str(file), **runs)
    assert packed.returncode == 0 and "1 of 1 trials" in packed.stdout and file.is_file(), packed.stderr
    came = vdmreason("unpack", str(file), **runs)
    assert came.returncode == 0 and "1 added" in came.stdout, came.stderr
    assert states(tmp_path / "runs" / "sweeps" / "little") == {"done": 1}
    bad = vdmreason("unpack", str(tmp_path / "none.tar.xz"), **runs)
    assert bad.returncode == 2 and bad.stderr.count("\n") == 1 and "no such file" in bad.stderr
