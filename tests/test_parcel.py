"""Parcels: what a sweep found travels as one file, and nothing else gets in with it."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from test_sweep import ONE, THREE, _families, _quick, places, planned, started, states, vdmreason

from tasks.base import UserError
from vdmreason import parcel, report, store, sweep

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
    """A trial that was begun, or failed, where the parcel comes to: its losses and adapter are of another sitting."""
    here, there = planned(tmp_path / "here", **ONE), planned(tmp_path / "there", **ONE)
    sweep.work(here)
    (place,) = places(there)
    (place / "checkpoints" / "step-000002").mkdir(parents=True)
    (place / "adapter").mkdir()
    (place / "metrics.jsonl").write_text('{"step": 1}\n')
    store.write_json(place / sweep.FAILED, {"error": "no room", "final": True})
    assert states(there) == {"failed": 1}
    parcel.unpack(parcel.pack(here, tmp_path / "file.tar.xz")[0], there)
    assert states(there) == {"done": 1}
    assert {p.name for p in place.iterdir()} - {".lock"} <= set(parcel.KEPT)


def test_who_works_on_a_trial_keeps_it(tmp_path) -> None:
    here, there = planned(tmp_path / "here", **ONE), planned(tmp_path / "there", **ONE)
    sweep.work(here)
    mine = sweep.claim(places(there)[0])
    assert mine
    counts = parcel.unpack(parcel.pack(here, tmp_path / "file.tar.xz")[0], there)[1]
    assert counts["running"] == 1 and not sweep.is_done(places(there)[0]) and mine.mine


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
    with pytest.raises(UserError, match="different answers"):
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
    with pytest.raises(UserError, match="which no sweep's parcel has"):
        parcel.unpack(bad, tmp_path / "there")
    assert not (tmp_path / "there").exists() and not list(tmp_path.rglob("escaped*"))


def test_a_link_does_not_get_in(tmp_path) -> None:
    with tarfile.open(tmp_path / "bad.tar.xz", "w:xz") as archive:
        link = tarfile.TarInfo("plan.json")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(UserError, match="which no sweep's parcel has"):
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


def test_the_command_line(tmp_path) -> None:
    here = planned(tmp_path / "here", **ONE)
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
