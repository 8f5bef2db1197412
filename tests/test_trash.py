"""Removed runs: moved whole, put back, never over something else, never from under a process; and zips from strangers."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fixture_runs import make_run
from typer.testing import CliRunner

from tasks.base import UserError
from vdmreason import jobs, library, store, sweep, trash
from vdmreason.__main__ import app

SHIPPED = Path(__file__).resolve().parent.parent / "adapters" / "zoo" / "maze-7x7--causal_lm--n300"
needs_zoo = pytest.mark.skipif(not SHIPPED.is_dir(), reason="the shipped adapters are not in this checkout")


@pytest.fixture(autouse=True)
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "runs"
    monkeypatch.setenv("VDMREASON_RUNS", str(root))
    return root


@pytest.fixture
def run(runs: Path) -> Path:
    folder = make_run(runs, "maze/7x7", "causal_lm", [True, False], n=3)
    store.write_state(folder, state="done", step=3, updates=3)
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_removed_and_put_back_is_the_same(runs: Path, run: Path) -> None:
    before = content(run)
    entry = trash.remove(run)
    assert not run.exists() and entry.was == run.name
    assert [r.name for r in trash.listing()] == [entry.name]
    assert entry.until == pytest.approx(time.time() + 7 * 24 * 3600, abs=60)
    assert trash.restore(entry.name) == run
    assert {k: v for k, v in content(run).items() if k != ".lock"} == before
    assert trash.listing() == [] and not list(trash.root().iterdir())


def test_a_deeper_run_goes_back_to_its_place(runs: Path) -> None:
    folder = make_run(runs / "sweeps" / "one" / "trials", "maze/7x7", "causal_lm", [True], n=3)
    entry = trash.remove(folder)
    shutil.rmtree(runs / "sweeps")
    assert trash.restore(entry.name) == folder and (folder / "config.yaml").is_file()


def test_every_finder_passes_over_what_was_removed(runs: Path, run: Path) -> None:
    assert store.find_runs(runs) == [run] and len(jobs.find(runs)) == 1
    trash.remove(run)
    assert store.find_runs(runs) == [] and jobs.find(runs) == [] and library.listing(runs) == ([], [])


def test_nothing_is_overwritten(runs: Path, run: Path) -> None:
    entry = trash.remove(run)
    run.mkdir()
    with pytest.raises(UserError, match="is there again, and nothing is overwritten"):
        trash.restore(entry.name)
    run.rmdir()
    assert trash.restore(entry.name) == run


def test_two_of_one_name_in_one_second(runs: Path, run: Path) -> None:
    copy = shutil.copytree(run, runs.parent / "copy")
    first = trash.remove(run)
    shutil.copytree(copy, run)
    second = trash.remove(run)
    assert first.name != second.name and len(trash.listing()) == 2


@needs_zoo
def test_what_stays(runs: Path, run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="ships with vdmreason and stays"):
        trash.remove(SHIPPED)
    outside = shutil.copytree(run, tmp_path / "outside")
    (runs / "link").symlink_to(outside)
    (runs / "plain").mkdir()
    for folder in (outside, runs / "link", runs, runs / ".." / "outside", runs / "plain", runs / "nothing"):
        with pytest.raises(UserError, match="is no run"):
            trash.remove(folder)
    assert outside.is_dir() and run.is_dir() and trash.listing() == []


def test_no_folder_is_moved_under_a_process(runs: Path, run: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        store.write_state(run, state="running", pid=process.pid, created=None)
        with pytest.raises(UserError, match="Stop it first"):
            trash.remove(run)
        inner = make_run(runs / "pair", "maze/7x7", "causal_lm", [True], n=3)
        store.write_state(runs / "pair", state="running", pid=process.pid, created=None)
        with pytest.raises(UserError, match="Stop it first"):  # an arm of a comparison that goes on
            trash.remove(inner)
    finally:
        process.kill()
        process.wait()
    store.write_state(run, state="done")
    with store.lock(run), pytest.raises(UserError, match="another process is working there"):
        trash.remove(run)
    assert run.is_dir() and trash.listing() == []


def test_no_sweep_is_moved_under_a_worker(runs: Path) -> None:
    """Its own state is that of its driver, who may be done while workers go on, here or elsewhere."""
    folder = runs / "sweeps" / "one"
    trial = make_run(folder / "trials", "maze/7x7", "causal_lm", [True], n=3)
    store.write_state(folder, state="done")
    mine = sweep.claim(trial)
    assert mine
    with pytest.raises(UserError, match="a worker is at it"):
        trash.remove(folder)
    mine.release()
    with store.lock(trial), pytest.raises(UserError, match="another process is working there"):
        trash.remove(folder)
    store.write_json(trial / sweep.CLAIM, {**mine.record, "pid": 2**22 + 1})  # of one that is gone
    assert trash.remove(folder).was == "sweeps/one"


@pytest.mark.parametrize("when", ["before the move", "after the move"])
def test_a_kill_in_between(runs: Path, run: Path, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    """The run is in one of the two places, whole; what else was left is cleared away."""
    real: Callable[..., None] = os.replace

    def killed(source: Path, to: Path) -> None:
        if Path(to).name != trash.RUN:
            return real(source, to)
        if when == "after the move":
            real(source, to)
        os._exit(9)

    child = os.fork()
    if child == 0:
        monkeypatch.setattr(os, "replace", killed)
        trash.remove(run)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert run.is_dir() == (when == "before the move")
    assert len(trash.listing()) == (0 if run.is_dir() else 1)
    for entry in trash.root().iterdir():
        os.utime(entry, (0, 0))
    trash.empty()
    if run.is_dir():
        assert not list(trash.root().iterdir())
    else:
        assert trash.restore(trash.listing()[0].name) == run


def test_a_week_later(runs: Path, run: Path) -> None:
    entry = trash.remove(run)
    assert trash.empty() == [] and trash.listing()
    note = trash.root() / entry.name / trash.NOTE
    note.write_text(json.dumps({"was": entry.was, "when": time.time() - trash.KEPT - 1}))
    assert trash.empty() == [entry.name] and not list(trash.root().iterdir())


def test_deleted_for_good(runs: Path, run: Path) -> None:
    entry = trash.remove(run)
    trash.delete(entry.name)
    assert not list(trash.root().iterdir())
    for name in (entry.name, "", "..", "../x", "/"):
        with pytest.raises(UserError, match="is not in the trash"):
            trash.delete(name)
        with pytest.raises(UserError, match="is not in the trash"):
            trash.restore(name)


def test_a_note_that_leads_out_is_not_followed(runs: Path, run: Path, tmp_path: Path) -> None:
    entry = trash.remove(run)
    for was in ("../stolen", str(tmp_path / "stolen"), "."):
        (trash.root() / entry.name / trash.NOTE).write_text(json.dumps({"was": was, "when": time.time()}))
        with pytest.raises(UserError, match="outside of"):
            trash.restore(entry.name)
    for note in ("{", "[]", "{}", '{"was": "x"}'):
        (trash.root() / entry.name / trash.NOTE).write_text(note)
        assert trash.listing() == []
    assert not (tmp_path / "stolen").exists()


def test_from_a_shell(runs: Path, run: Path) -> None:
    said = CliRunner().invoke(app, ["adapters", "remove", str(run)]).stdout
    name = said.split("restore ")[1].strip()
    assert not run.exists() and name in CliRunner().invoke(app, ["adapters", "restore"]).stdout
    assert run.name in CliRunner().invoke(app, ["adapters", "restore", name]).stdout
    assert run.is_dir() and "nothing was removed" in CliRunner().invoke(app, ["adapters", "restore"]).stdout


# ---------------------------------------------------------------------------------------------------------------------
# Zips


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    if not SHIPPED.is_dir():
        pytest.skip("the shipped adapters are not in this checkout")
    yield library.export(SHIPPED, tmp_path_factory.mktemp("out") / "maze.zip", answers=True)


def packed(path: Path, files: dict[str, bytes], base: Path | None = None) -> Path:
    """A zip of `files`, beside those of another zip."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        if base:
            with zipfile.ZipFile(base) as other:
                for info in other.infolist():
                    file.writestr(info.filename, other.read(info))
        for name, data in files.items():
            file.writestr(name, data)
    return path


def test_a_zip_there_and_back(exported: Path, runs: Path) -> None:
    names = set(zipfile.ZipFile(exported).namelist())
    assert {name.partition("/")[0] for name in names} == {"maze"} and not [n for n in names if "metrics" in n]
    assert library.missing(exported)[1] == []
    back = library.import_(exported)
    assert back.parent == runs and library.sha256(library.weights_of(back)) == library.sha256(
        library.weights_of(SHIPPED)
    )
    assert len(store.read_lines(back / "predictions.jsonl")) == 100
    assert store.read_json(back / "result.json")["provenance"]["imported"]
    assert back in [entry.folder for entry in library.listing(runs)[0]]
    with pytest.raises(UserError, match="nothing is overwritten"):
        library.import_(exported)


@pytest.mark.parametrize("name", ["../up.safetensors", "maze/../../x", "/etc/x", "a\\..\\b", "c:x"])
def test_names_that_lead_out(exported: Path, tmp_path: Path, runs: Path, name: str) -> None:
    with pytest.raises(UserError, match="may lead out of its folder"):
        library.import_(packed(tmp_path / "bad.zip", {name: b"x"}, exported))
    assert not runs.exists() and not (tmp_path / "up.safetensors").exists()


def test_what_else_a_zip_may_not_be(exported: Path, tmp_path: Path, runs: Path) -> None:
    link = zipfile.ZipInfo("maze/config.yaml")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as file:
        file.writestr(link, "/etc/passwd")
    bomb = packed(tmp_path / "bomb.zip", {"adapter_model.safetensors": bytes(300 << 20)})
    assert bomb.stat().st_size < 1 << 20
    many = packed(tmp_path / "many.zip", {f"clips/{i:05d}.webp": b"" for i in range(library.ZIP_FILES + 1)})
    pickle = packed(tmp_path / "pickle.zip", {"adapter_model.bin": b"\x80"})
    empty = packed(tmp_path / "empty.zip", {})
    torn = tmp_path / "torn.zip"
    torn.write_bytes(exported.read_bytes()[:-200])
    (tmp_path / "text.zip").write_text("not a zip")
    with pytest.warns(UserWarning):
        twice = packed(tmp_path / "twice.zip", {"maze/config.yaml": b"task: life/B3S23"}, exported)
    for path, words in (
        (tmp_path / "link.zip", "holds a link"), (bomb, "would unpack to"), (many, "files; an adapter"),
        (pickle, "pickled"), (empty, "holds no adapter"), (torn, "cut off"), (tmp_path / "text.zip", "is no zip"),
        (twice, "twice"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=words) as refused:
            library.import_(path)
        assert "\n" not in str(refused.value)
    assert not runs.exists()


def test_a_foreign_backbone(exported: Path, tmp_path: Path, runs: Path) -> None:
    """A bare LoRA is held against the backbone that it is said to be for, layer by layer."""
    folder = tmp_path / "bare"
    with zipfile.ZipFile(exported) as file:
        for name in ("adapter_model.safetensors", "adapter_config.json"):
            folder.mkdir(exist_ok=True)
            (folder / name).write_bytes(file.read(f"maze/{name}"))
    settings = json.loads((folder / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = "someone/else-7B"
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    qwen = {"family": "causal_lm", "flavour": "Qwen/Qwen3-4B-Instruct-2507", "task": "maze/7x7", "n": 300}
    with pytest.raises(UserError, match="was made for someone/else-7B, not for Qwen/Qwen3"):
        library.import_(folder, given=qwen)
    assert not runs.exists()
