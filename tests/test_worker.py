"""The worker: answers from a process of its own, streams, cancels within a second, survives crashes."""

from __future__ import annotations

import hashlib
import io
import os
import queue
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fixture_runs import adapted

import tasks
from tasks.base import UserError
from vdmreason import store
from vdmreason.config import named_seed
from vdmreason.worker import KEEP, Stopped, Worker, _listen, pack, unpack

TASK = "maze/7x7"


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    worker = Worker()
    yield worker
    worker.close()


def test_pack_and_unpack_are_inverse() -> None:
    clip = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 3)).astype(np.uint8)
    assert np.array_equal(unpack(pack(clip)), clip)


@pytest.mark.parametrize("family", ["cogvideox", "causal_lm"])
def test_a_live_answer_streams_and_equals_the_recorded_one(worker: Worker, tmp_path: Path, family: str) -> None:
    folder = adapted(tmp_path, family)
    messages = list(worker.predict(folder, TASK, 1, 0))
    final = messages[-1]
    assert final["done"] and final["device"]
    assert all("step" in message and ("clip" in message or "text" in message) for message in messages[:-1])
    assert len(messages) > 1, "nothing was shown while the answer formed"

    from vdmreason.predict import load_adapted

    run = store.read_config(folder)
    example = tasks.examples(TASK, "test", 2, 0)[1]
    arm = load_adapted(run, folder)
    answer = arm.predict([arm.frame(example).given], [named_seed("answer", 0, 1)])[0]
    if family == "cogvideox":
        assert np.abs(final["clip"].astype(int) - answer.raw.astype(int)).max() <= 1  # thread counts may differ
    else:
        assert final["text"] == answer.raw
    assert worker.seconds[str(folder)] > 0
    assert str(folder) in worker.ping()


@pytest.mark.parametrize("family", ["cogvideox", "causal_lm"])
def test_every_folder_answers_with_the_adapter_that_lies_in_it_now(worker: Worker, tmp_path: Path, family: str) -> None:
    """Asked in turn, also after others took its place, and after its adapter was replaced under its name."""
    folders = [adapted(tmp_path / f"{k}", family, k) for k in range(KEEP + 2)]

    def said(folder: Path) -> str:
        final = [*worker.predict(folder, TASK, 1, 0)][-1]
        return final["text"] if "text" in final else hashlib.sha256(final["clip"].tobytes()).hexdigest()

    first = {folder: said(folder) for folder in folders}
    assert len(set(first.values())) == len(folders)
    assert len(worker.ping()) == KEEP and {folder: said(folder) for folder in reversed(folders)} == first
    one, other = folders[:2]
    said(one)
    shutil.rmtree(one / "adapter")
    shutil.copytree(other / "adapter", one / "adapter")
    assert said(one) == first[other]


def test_an_error_comes_back_in_words_and_the_worker_lives(worker: Worker, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not a run's folder"):
        list(worker.predict(tmp_path, TASK, 0, 0))
    assert isinstance(worker.ping(), list)


def test_a_killed_worker_is_reported_and_comes_back(worker: Worker, tmp_path: Path) -> None:
    folder = adapted(tmp_path, "causal_lm")
    worker.ping()
    assert worker._process
    first = worker._process.pid
    answers = worker.predict(folder, TASK, 0, 0)
    next(answers)
    os.kill(first, signal.SIGKILL)
    with pytest.raises(UserError, match="ended by the system"):
        list(answers)
    assert worker.ping() == []
    assert worker._process and worker._process.pid != first


def test_a_line_that_was_cut_off_is_an_end() -> None:
    """A process killed while it writes leaves half a line, and whoever waits for its answer has to hear that it is gone."""
    for cut in ('{"id": 1, "clip": {"da', '{"id": 1, "text": "\\ud8'):
        messages: queue.Queue = queue.Queue()
        _listen(io.StringIO('{"id": 1}\n' + cut), messages)
        assert messages.get(timeout=1) == {"id": 1} and messages.get(timeout=1) is None


@pytest.mark.parametrize("deaf", [False, True])
def test_cancel_ends_an_answer_within_half_a_second(worker: Worker, tmp_path: Path, deaf: bool) -> None:
    """Also where the process does not listen, here because it is stopped: that one is replaced."""
    folder = adapted(tmp_path, "causal_lm")
    list(worker.predict(folder, TASK, 0, 0))  # the arm is loaded
    worker.forget_cancel("me")
    answers = worker.predict(folder, TASK, 1, 0, owner="me")
    next(answers)
    assert worker._process
    pid = worker._process.pid
    if deaf:
        os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    worker.cancel("someone else")
    worker.cancel("me")
    with pytest.raises(Stopped):
        list(answers)
    assert time.monotonic() - began < 0.5
    loaded = worker.ping()  # and it answers again
    assert (worker._process.pid != pid) == deaf and (str(folder) in loaded) != deaf


def test_an_answer_that_nobody_waits_for_is_given_up(worker: Worker, tmp_path: Path) -> None:
    """A visitor who closes the page leaves the process free for the next."""
    folder = adapted(tmp_path, "causal_lm")
    answers = worker.predict(folder, TASK, 0, 0)
    next(answers)
    answers.close()
    assert str(folder) in worker.ping()


def test_a_process_that_died_as_its_asker_left_holds_nobody_up(worker: Worker, tmp_path: Path) -> None:
    folder = adapted(tmp_path, "causal_lm")
    answers = worker.predict(folder, TASK, 0, 0)
    next(answers)
    assert worker._process
    worker._process.kill()
    worker._process.wait()
    answers.close()
    assert worker.ping() == []  # the next one is a new process's


def test_a_cancel_is_heard_before_the_answer_has_begun(worker: Worker, tmp_path: Path) -> None:
    """The page shows the button a moment before it asks the worker."""
    folder = adapted(tmp_path, "causal_lm")
    worker.forget_cancel("quick")
    worker.cancel("quick")
    with pytest.raises(Stopped):
        list(worker.predict(folder, TASK, 0, 0, owner="quick"))
    worker.forget_cancel("quick")
    assert [*worker.predict(folder, TASK, 0, 0, owner="quick")][-1]["done"]


def test_a_waiting_answer_can_be_cancelled(worker: Worker, tmp_path: Path) -> None:
    """It does not wait for the one before it."""
    folder = adapted(tmp_path, "causal_lm")
    first = worker.predict(folder, TASK, 0, 0, owner="first")
    next(first)
    ended: list[float] = []

    def wait() -> None:
        with pytest.raises(Stopped):
            list(worker.predict(folder, TASK, 1, 0, owner="second"))
        ended.append(time.monotonic())

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.2)
    began = time.monotonic()
    worker.cancel("second")
    thread.join(10)
    assert ended and ended[0] - began < 0.5
    assert [*first][-1]["done"]
