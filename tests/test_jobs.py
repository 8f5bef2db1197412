"""A job's folder tells everyone the same story: running, stopped, done, failed, lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tasks.base import UserError
from vdmreason import jobs, store

# A worker as ours are: counts, beats, listens.
WORKER = """
import sys, time
from vdmreason import jobs
with jobs.working(sys.argv[1], updates=1000) as pen:
    print("hello from the worker", flush=True)
    for step in range(int(sys.argv[2])):
        time.sleep(0.02)
        pen.beat(step, 1000, 1.5, often=0)
        if pen.stop_wanted():
            raise jobs.Stopped
"""


def worker(folder: Path, steps: int = 100_000) -> list[str]:
    return [sys.executable, "-c", WORKER, str(folder), str(steps)]


def until(folder: Path, *states: str, seconds: float = 20) -> jobs.Status:
    deadline = time.monotonic() + seconds
    while (now := jobs.status(folder)).state not in states:
        assert time.monotonic() < deadline, f"still {now}: {jobs.log_tail(folder)}"
        time.sleep(0.02)
    return now


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "job"
    yield place
    if jobs.status(place).active:
        jobs.stop(place, grace=0.1)


def test_who_waits_waits_for_what_the_job_does_next_and_for_no_process_that_hangs(tmp_path, monkeypatch) -> None:
    """Between a training and its answers a job is done for a moment; one whose process never ends is done for good."""
    folder = tmp_path / "before"
    store.write_json(
        folder / jobs.JOB, {"kind": "train", "argv": [], "pid": os.getpid(), "created": jobs._created(os.getpid())}
    )
    store.write_state(folder, state="done")
    assert not jobs.status(folder).active and jobs._goes_on(folder)
    monkeypatch.setattr(jobs, "ENDING", -1.0)
    assert not jobs._goes_on(folder)
    monkeypatch.setattr(jobs, "ENDING", 60.0)
    store.write_state(folder, state="failed")
    assert not jobs._goes_on(folder)
    store.write_state(folder, state="done")
    store.write_json(folder / jobs.JOB, {"kind": "train", "argv": [], "pid": os.getpid(), "created": None})
    assert not jobs._goes_on(folder)


def test_runs_to_the_end(folder) -> None:
    assert jobs.status(folder).state == ""
    first = jobs.start("train", worker(folder, 5), folder)
    assert first.kind == "train" and first.active and first.pid
    now = until(folder, "done")
    assert now.error == "" and now.updates == 1000 and "hello from the worker" in jobs.log_tail(folder)


def test_another_process_sees_the_same_and_may_stop_it(folder) -> None:
    jobs.start("train", worker(folder), folder)
    here = until(folder, "running")
    code = "import sys, json; from vdmreason import jobs; s = jobs.status(sys.argv[1]); print(json.dumps([s.state, s.pid]))"
    seen = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    assert json.loads(seen.stdout) == ["running", here.pid]
    code = "import sys; from vdmreason import jobs; print(jobs.stop(sys.argv[1], grace=10).state)"
    seen = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    assert seen.stdout.strip() == "stopped" and jobs.status(folder).state == "stopped"
    assert not (folder / jobs.STOP).exists()


def test_kill_9_is_lost_and_can_be_resumed(folder) -> None:
    jobs.start("train", worker(folder), folder)
    pid = until(folder, "running").pid
    os.kill(pid, signal.SIGKILL)
    now = until(folder, "lost")
    assert now.error and not now.active
    again = jobs.resume(folder)
    assert again.active and again.pid != pid and until(folder, "running").error == ""


def test_a_number_used_again_is_not_the_job(folder) -> None:
    """Another process got the number of ours: same pid, another creation time."""
    store.write_state(folder, state="running", pid=os.getpid(), created=psutil.Process().create_time() - 3600)
    assert jobs.status(folder).state == "lost"
    store.write_state(folder, state="running", pid=os.getpid(), created=psutil.Process().create_time())
    assert jobs.status(folder).state == "running"
    store.write_state(folder, state="done")  # or the end of this test would stop the tests


@pytest.fixture
def elsewhere(folder):
    """A run that trains on another machine, and a process here that has its number by chance."""
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(99)"])
    there = {**jobs.identity(), "host": "another", "space": "boot pid:[1]", "pid": other.pid, "created": None}
    store.write_state(folder, state="running", step=3, **there)
    yield other
    other.kill()
    other.wait()


def silence(folder: Path, seconds: float) -> None:
    state, then = store.read_state(folder), time.time() - seconds
    store.write_json(folder / "state.json", {**state, "beat": then})
    os.utime(folder / "state.json", (then, then))


def test_a_run_of_another_machine_is_lost_when_it_is_silent(folder, elsewhere) -> None:
    elsewhere.kill()  # says nothing of it
    elsewhere.wait()
    assert jobs.status(folder).state == "running"
    with pytest.raises(UserError, match="already running on another, or was"):
        jobs.refuse_active(folder)
    silence(folder, 2 * jobs.SILENT)
    assert jobs.status(folder).state == "lost"
    os.utime(folder / "state.json")  # a long update: touched, and nothing new to write
    assert jobs.status(folder).state == "running"
    state = {k: v for k, v in store.read_state(folder).items() if k not in ("host", "space")}
    store.write_json(folder / "state.json", state)  # as it was written before hosts were
    assert jobs.status(folder).state == "lost"


@pytest.mark.skipif(not jobs._space(), reason="this system does not tell its boots apart")
@pytest.mark.parametrize(
    ("changed", "here"),
    [
        (lambda own: {}, True),  # as it was written before hosts were
        (lambda own: own | {"host": "renamed"}, True),
        (
            lambda own: own | {"space": "another-boot pid:[1]"},
            True,
        ),  # its machine was started anew: it is looked for, and gone
        (lambda own: own | {"host": "another", "space": "another-boot pid:[1]"}, False),
        (lambda own: own | {"space": own["space"].split(" ")[0] + " pid:[1]"}, False),  # another container
    ],
)
def test_where_a_process_would_be_seen(changed, here) -> None:
    assert jobs._is_here(changed(jobs.identity())) == here


def test_a_stop_that_was_meant_for_another_is_not_heard(folder) -> None:
    """One of an earlier day, which nobody heard, does not end what is begun by hand."""
    folder.mkdir(exist_ok=True)
    for age, stays in ((10**6, False), (0, True)):
        store.write_text(folder / jobs.STOP, "")
        os.utime(folder / jobs.STOP, (time.time() - age,) * 2)
        with jobs.working(folder):
            assert (folder / jobs.STOP).exists() == stays


def test_a_run_of_another_machine_is_asked_to_stop_and_no_signal_goes_astray(folder, elsewhere) -> None:
    silence(folder, 2 * jobs.SILENT)
    jobs.request_stop(folder)  # it seems lost, and may be at work
    assert (folder / jobs.STOP).exists()
    os.utime(folder / "state.json")
    assert jobs.stop(folder, grace=0.0).state == "stopping"
    assert elsewhere.poll() is None and (folder / jobs.STOP).exists()
    assert store.read_state(folder)["state"] == "running"  # that it stopped is its own to say
    (folder / jobs.STOP).unlink()
    store.write_state(folder, state="done")
    jobs.request_stop(folder)
    assert not (folder / jobs.STOP).exists()  # or the next one there would stop at once


def test_a_working_process_says_where_it_is_and_that_it_lives(folder, monkeypatch) -> None:
    monkeypatch.setattr(jobs, "BEAT", 0.02)
    with jobs.working(folder):
        assert jobs.identity().items() <= store.read_state(folder).items()
        silence(folder, 2 * jobs.SILENT)
        deadline = time.monotonic() + 5
        while jobs._since_heard(folder, store.read_state(folder)) > jobs.SILENT:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    silence(folder, 2 * jobs.SILENT)
    time.sleep(0.1)
    assert jobs._since_heard(folder, store.read_state(folder)) > jobs.SILENT  # nobody touches it after the end


def test_stop_escalates_when_nobody_listens(folder) -> None:
    deaf = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(99)"
    )
    jobs.start("train", [sys.executable, "-c", deaf], folder)
    while "deaf" not in jobs.log_tail(folder):
        time.sleep(0.02)
    pid = jobs.status(folder).pid or store.read_json(folder / jobs.JOB)["pid"]
    assert jobs.stop(folder, grace=0.3).state == "stopped"
    assert not jobs.is_alive(pid, None)


def test_request_stop_returns_at_once(folder) -> None:
    jobs.start("train", worker(folder), folder)
    until(folder, "running")
    assert jobs.request_stop(folder).state in ("stopping", "stopped")
    until(folder, "stopped")


def test_sigterm_is_a_wish_to_stop(folder) -> None:
    jobs.start("train", worker(folder), folder)
    os.kill(until(folder, "running").pid, signal.SIGTERM)
    assert until(folder, "stopped").error == ""


def test_what_goes_wrong_is_one_line(folder) -> None:
    code = "from tasks.base import UserError\nfrom vdmreason import jobs\nimport sys\n"
    code += "with jobs.working(sys.argv[1]):\n    raise UserError('lower the rate')"
    jobs.start("train", [sys.executable, "-c", code, str(folder)], folder)
    assert until(folder, "failed").error == "lower the rate"


def test_death_before_the_first_word_shows_the_log(folder) -> None:
    jobs.start("train", [sys.executable, "-c", "import no_such_library"], folder)
    assert "no_such_library" in until(folder, "failed").error
    with pytest.raises(UserError, match="cannot be started"):
        jobs.start("train", ["/no/such/program"], folder)
    assert jobs.status(folder).state == "failed"


def test_one_job_a_folder(folder) -> None:
    jobs.start("train", worker(folder), folder)
    with pytest.raises(UserError, match="already running"):
        jobs.start("train", worker(folder), folder)


def test_the_second_waits_for_the_first(folder, tmp_path) -> None:
    second, third = tmp_path / "second", tmp_path / "third"
    jobs.start("train", worker(folder), folder)
    until(folder, "running")
    waiting = jobs.start("train", worker(second, 3), second, after=folder)
    jobs.start("train", worker(third), third, after=folder)
    assert waiting.state == "queued"
    assert jobs.stop(third, grace=10).state == "stopped"  # a queued job can be taken back
    time.sleep(0.3)
    assert jobs.status(second).state == "queued" and jobs.status(folder).state == "running"
    jobs.stop(folder)
    assert until(second, "done").pid == waiting.pid  # the waiter became the worker


def test_find_and_no_job(folder, tmp_path) -> None:
    jobs.start("compare", worker(folder, 2), folder)
    until(folder, "done")
    assert [(s.folder, s.kind, s.state) for s in jobs.find(tmp_path)] == [(folder, "compare", "done")]
    with pytest.raises(UserError, match="not started as a job"):
        jobs.resume(tmp_path / "nothing")
    assert jobs.stop(tmp_path / "nothing").state == ""
