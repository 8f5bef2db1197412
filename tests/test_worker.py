"""The worker: answers from a process of its own, streams, cancels within a second, survives crashes."""

from __future__ import annotations

import hashlib
import io
import json
import os
import queue
import shutil
import signal
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fixture_runs import adapted

import tasks
from tasks.base import UserError
from vdmreason import config, store
from vdmreason.config import named_seed
from vdmreason.worker import KEEP, Answering, Stopped, Worker, _listen, pack, unpack

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


def said(answering: Answering, folder: Path) -> dict:
    """The last message of an answer, given in this process."""
    answering.out = io.StringIO()
    request = {"id": 1, "verb": "predict", "folder": str(folder), "task": TASK, "index": 1, "seed": 0}
    answering.handle(request)
    return json.loads(answering.out.getvalue().splitlines()[-1])


def test_a_full_device_is_cleared_of_the_others_and_asked_again(tmp_path: Path) -> None:
    import torch

    one, other = (adapted(tmp_path / f"{k}", "causal_lm", k) for k in range(2))
    answering = Answering(io.StringIO())
    first = said(answering, one)["text"]
    said(answering, other)
    arm = answering.arms[str(one)][2]
    answers, full = arm.predict, [True, False]

    def predict(*args):
        if full.pop(0):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return answers(*args)

    arm.predict = predict
    assert said(answering, one)["text"] == first and not full
    assert list(answering.arms) == [str(one)]

    full += [True, True]
    told = said(answering, one)["error"]
    assert "memory is too small" in told and "\n" not in told
    assert not answering.arms  # and the next answer finds all of the device
    del arm.predict
    assert said(answering, one)["text"] == first


def test_a_large_backbone_is_let_go_before_the_next_is_loaded(tmp_path: Path, monkeypatch) -> None:
    """A device may hold one of them; small ones stay beside it."""
    from vdmreason import predict
    from vdmreason.train import load_arm

    small = adapted(tmp_path, "causal_lm")
    tiny = load_arm(store.read_config(small), "cpu")
    tiny.detach()
    folders = []
    for name in ("one", "two"):
        base = tmp_path / "models" / name  # a folder in the published layout is taken for a published one
        tiny.model.save_pretrained(base)
        tiny.tokenizer.save_pretrained(base)
        run = config.resolve({"task": TASK, "n": 3, "family": "causal_lm", "flavour": str(base)})
        store.write_config(tmp_path / name, run)
        load_arm(run, "cpu").save(tmp_path / name / "adapter")
        folders.append(str(tmp_path / name))

    answering, gone = Answering(io.StringIO()), []
    answering.arm(str(small))
    model = weakref.ref(answering.arm(folders[0])[1].model)
    load = predict.load_adapted

    def watched(*args):
        gone.append(model() is None)
        return load(*args)

    monkeypatch.setattr(predict, "load_adapted", watched)
    answering.arm(folders[1])
    assert gone == [True] and list(answering.arms) == [str(small), folders[1]]
