"""Files appear whole or not at all, torn lines are forgotten, and a full disk loses nothing."""

from __future__ import annotations

import errno
import multiprocessing
import os
import subprocess
from pathlib import Path

import fake_family
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.base import UserError
from vdmreason import config, store
from vdmreason.sweep import claims


@pytest.fixture(autouse=True, scope="module")
def _families():
    with fake_family.installed():
        yield


def run_of(**changes):
    return config.resolve({"task": "life/B3S23", "n": 4, "family": "fake", **changes})


def test_lines_there_and_back(tmp_path) -> None:
    path = tmp_path / "a.jsonl"
    assert store.read_lines(path) == []
    with store.Lines(path) as lines:
        lines.write({"i": 0, "grid": np.zeros((2, 2), np.int8), "x": np.float32(0.5)})
    with store.Lines(path) as lines:
        lines.write({"i": 1})
    assert store.read_lines(path) == [{"i": 0, "grid": [[0, 0], [0, 0]], "x": 0.5}, {"i": 1}]


@given(whole=st.integers(0, 5), torn=st.binary(max_size=30))
def test_a_torn_last_line_is_ignored_then_cut_off(tmp_path_factory, whole: int, torn: bytes) -> None:
    path = tmp_path_factory.mktemp("torn") / "a.jsonl"
    path.write_bytes(b'{"i":1}\n' * whole + torn.replace(b"\n", b""))
    assert len(store.read_lines(path)) == whole
    with store.Lines(path) as lines:
        lines.write({"i": 2})
    assert store.read_lines(path) == [{"i": 1}] * whole + [{"i": 2}]


def test_a_long_torn_line_is_cut_off(tmp_path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"i":1}\n' + b"x" * 200_000)
    with store.Lines(path):
        pass
    assert path.read_bytes() == b'{"i":1}\n'


def test_a_damaged_line_in_the_middle_is_named(tmp_path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"i":1}\n{"i"\n{"i":2}\n')
    with pytest.raises(UserError, match="line 2"):
        store.read_lines(path)


@pytest.mark.parametrize("broken", ["os.fsync", "os.replace", "Path.write_text"])
def test_full_disk_leaves_the_old_file(tmp_path, monkeypatch, broken: str) -> None:
    path = tmp_path / "state.json"
    store.write_json(path, {"step": 1})

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    where = Path if broken.startswith("Path") else os
    monkeypatch.setattr(where, broken.split(".")[1], full)
    with pytest.raises(UserError, match="disk is full") as caught:
        store.write_json(path, {"step": 2})
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    assert store.read_json(path) == {"step": 1} and os.listdir(tmp_path) == ["state.json"]


def test_full_disk_during_a_line_keeps_the_lines_before(tmp_path, monkeypatch) -> None:
    path, write = tmp_path / "a.jsonl", os.write
    with store.Lines(path) as lines:
        lines.write({"i": 1})
        monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[: len(data) // 2]))  # a short write
        with pytest.raises(UserError, match="disk is full"):
            lines.write({"i": 2})
        monkeypatch.undo()
        lines.write({"i": 3})
    assert path.read_text() == '{"i":1}\n{"i":3}\n'


@pytest.fixture
def small_disk(tmp_path):
    """A real disk of 256 KiB, where this user may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_really_full_disk(small_disk) -> None:
    store.write_json(small_disk / "state.json", {"step": 1})
    with store.Lines(small_disk / "a.jsonl") as lines, pytest.raises(UserError, match="disk is full"):
        for i in range(10_000):
            lines.write({"i": i, "text": "x" * 1000})
    kept = store.read_lines(small_disk / "a.jsonl")
    assert [r["i"] for r in kept] == list(range(len(kept))) and len(kept) > 50
    with pytest.raises(UserError, match="disk is full"):
        store.write_json(small_disk / "state.json", {"step": 2, "much": "x" * 300_000})
    with pytest.raises(UserError, match="disk is full"), store.new_folder(small_disk / "adapter") as new:
        (new / "big").write_bytes(b"x" * 400_000)
    assert store.read_json(small_disk / "state.json") == {"step": 1}
    assert sorted(os.listdir(small_disk)) == ["a.jsonl", "state.json"]


def test_new_folder_is_whole_or_not_there(tmp_path) -> None:
    place = tmp_path / "adapter"
    with pytest.raises(RuntimeError), store.new_folder(place) as new:
        (new / "half").write_text("x")
        raise RuntimeError
    assert os.listdir(tmp_path) == []
    for text in ("one", "two"):
        with store.new_folder(place) as new:
            (new / "file").write_text(text)
        assert (place / "file").read_text() == text and os.listdir(tmp_path) == ["adapter"]


def test_two_who_make_one_folder_do_not_meet(tmp_path) -> None:
    """Each works in a folder of its own. The first that is whole stays, and the other is told so."""
    place = tmp_path / "adapter"
    place.mkdir()  # an empty one is no folder that is taken
    with pytest.raises(UserError, match="is there already"), store.new_folder(place, fresh=True) as late:
        (late / "file").write_text("late")
        with store.new_folder(place, fresh=True) as early:
            (early / "file").write_text("early")
        assert (late / "file").read_text() == "late"
    assert (place / "file").read_text() == "early" and os.listdir(tmp_path) == ["adapter"]


def _begin(place: str) -> None:
    with store.new_folder(place) as new:
        (new / "half").write_text("x")
        os._exit(9)


def test_what_a_killed_process_had_begun_is_cleared_away(tmp_path) -> None:
    other = multiprocessing.get_context("fork").Process(target=_begin, args=(str(tmp_path / "adapter"),))
    other.start()
    other.join()
    assert len(os.listdir(tmp_path)) == 1
    with store.new_folder(tmp_path / "adapter"):
        pass
    assert os.listdir(tmp_path) == ["adapter"]


def test_a_system_that_opens_no_folders(tmp_path, monkeypatch) -> None:
    """Windows."""
    real = os.open

    def refuses(path, *rest):
        if Path(path).is_dir():
            raise PermissionError(errno.EACCES, "no folder", str(path))
        return real(path, *rest)

    monkeypatch.delattr(os, "O_DIRECTORY")
    monkeypatch.setattr(os, "open", refuses)
    store.write_json(tmp_path / "a.json", 1)
    with store.new_folder(tmp_path / "b") as new:
        (new / "c").write_text("x")
    assert store.read_json(tmp_path / "a.json") == 1 and (tmp_path / "b" / "c").read_text() == "x"


def test_a_copy_of_a_checkpoint_is_none(tmp_path) -> None:
    for name in ("step-000100", "step-000020", "step-000100-copy", "step-"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert [path.name for path in store.checkpoints(tmp_path)] == ["step-000020", "step-000100"]


@pytest.mark.parametrize(
    ("files", "refused"),
    [
        ([], False), (["log.txt", "train.log", ".lock", "STOP"], False), (["state.json", "workers"], False),
        (["claim.json"], False), (["config.yaml", "thesis.tex"], False), (["README.md"], True), (["data", "log.txt"], True),
    ],
)  # fmt: skip
def test_a_folder_of_somebodys_own_is_no_run(tmp_path, files: list[str], refused: bool) -> None:
    for name in files:
        (tmp_path / name).touch()
    if refused:
        with pytest.raises(UserError, match=r"and no run\. Name a new folder with --out"):
            store.refuse_foreign(tmp_path, "--out")
    else:
        store.refuse_foreign(tmp_path, "--out")
    store.refuse_foreign(tmp_path / "nothing", "--out")


def test_a_kill_between_the_two_renames_is_repaired(tmp_path) -> None:
    (tmp_path / ".adapter.old").mkdir()
    (tmp_path / ".adapter.old" / "file").write_text("one")
    (tmp_path / ".adapter.new").mkdir()
    assert store.whole_folder(tmp_path / "adapter") == tmp_path / "adapter"
    assert (tmp_path / "adapter" / "file").read_text() == "one"
    assert store.whole_folder(tmp_path / "other") is None


def test_state_merges(tmp_path) -> None:
    assert store.read_state(tmp_path) == {}
    store.write_state(tmp_path, state="running", step=3)
    store.write_state(tmp_path, step=4)
    state = store.read_state(tmp_path)
    assert state["state"] == "running" and state["step"] == 4 and state["beat"] > 0


def test_damaged_json_is_one_line(tmp_path) -> None:
    (tmp_path / "state.json").write_text('{"step":')
    with pytest.raises(UserError, match="damaged"):
        store.read_state(tmp_path)


def test_config_in_the_folder(tmp_path) -> None:
    with pytest.raises(UserError, match="not a run's folder"):
        store.read_config(tmp_path)
    store.write_config(tmp_path, run_of())
    assert store.read_config(tmp_path) == run_of()


def test_find_runs(tmp_path) -> None:
    for name in ("a", "compare/b/fake-1", ".trash/c"):
        (tmp_path / name).mkdir(parents=True)
        store.write_config(tmp_path / name, run_of())
    assert sorted(store.find_runs(tmp_path)) == [tmp_path / "a", tmp_path / "compare/b/fake-1"]
    assert store.find_runs(tmp_path / "none") == []


def _hold(folder: str, ready, done) -> None:
    with store.lock(folder):
        ready.set()
        done.wait(20)


def test_one_process_a_folder(tmp_path) -> None:
    context = multiprocessing.get_context("fork")
    ready, done = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(str(tmp_path), ready, done))
    other.start()
    assert ready.wait(20)
    with pytest.raises(UserError, match="another process"), store.lock(tmp_path):
        pass
    other.kill()  # the lock goes with the process, however it ends
    other.join()
    with store.lock(tmp_path):
        pass


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_disk_without_locks_is_worked_on_and_said_so_once(tmp_path, monkeypatch, capsys, number: int) -> None:
    def refuses(*_):
        raise OSError(number, os.strerror(number))

    store._say_no_locks.cache_clear()
    monkeypatch.setattr(store.fcntl, "flock", refuses)
    for place in ("one", "two"):
        with store.lock(tmp_path / place):
            pass
    # a dead worker's trial is taken over there, too
    dead = {**claims.identity(), "pid": 2**22 + 1, "driver": "d", "token": "dead"}
    store.write_json(tmp_path / claims.CLAIM, dead)
    assert claims.claim(tmp_path, "d").mine()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: no file locks on this disk") and os.strerror(number) in line
    store._say_no_locks.cache_clear()

    number = errno.EIO  # anything else is an error
    with pytest.raises(OSError, match=os.strerror(errno.EIO)), store.lock(tmp_path):
        pass


def test_clips_there_and_back_to_the_bit(tmp_path) -> None:
    clip = np.random.default_rng(0).integers(0, 256, (9, 16, 24, 3), dtype=np.uint8)
    clip[1:4], clip[7] = clip[0], clip[6]  # equal neighbours are merged by the format
    store.write_clip(tmp_path / "clips" / "0000.webp", clip)
    assert np.array_equal(store.read_clip(tmp_path / "clips" / "0000.webp"), clip)
    still = np.repeat(clip[:1], 9, axis=0)
    store.write_clip(tmp_path / "b.webp", still)
    assert np.array_equal(store.read_clip(tmp_path / "b.webp"), still)
    (tmp_path / "c.webp").write_bytes(b"RIFF")
    with pytest.raises(UserError, match="not a clip"):
        store.read_clip(tmp_path / "c.webp")


def test_code_that_no_commit_has_is_not_clean(tmp_path, monkeypatch) -> None:
    """A family is used as soon as its file is there, so a file that git does not know makes numbers, too."""
    for words in (
        ["init", "-q"],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "--allow-empty", "-m", "x"],
    ):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    (tmp_path / "vdmreason").mkdir()
    monkeypatch.setattr(store, "__file__", str(tmp_path / "vdmreason" / "store.py"))
    asked = store.code.__wrapped__
    assert asked()[1] is False
    (tmp_path / "notes.txt").write_text("of no weight")
    assert asked()[1] is False
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "mine.py").write_text("VARIANTS = ()")
    assert asked()[1] is True


def test_provenance_says_where_a_number_comes_from() -> None:
    import tasks

    run = run_of()
    examples = tasks.examples(run.task, "train", run.n, run.seed)
    facts = store.provenance(run, examples, "cpu", "0123456789abcdef")
    assert facts["run"] == run.id and facts["seed"] == 0 and "numpy" in facts["libraries"] and facts["date"]
    assert facts["data"] == store.data_hash(examples) != store.data_hash(examples[::-1])
