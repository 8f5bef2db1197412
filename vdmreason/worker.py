"""Live answers from a process of their own, so that the page never loads torch and survives a model that crashes.

`python -m vdmreason.worker` reads one JSON object a line and answers in JSON lines:

    {"id", "verb": "predict", "folder", "task", "index", "seed", "question"}
                                                                    ->  {"id", "step", "steps", "clip" or "text"} ...
                                                                        {"id", "done": true, "grid", "certainty",
                                                                         "clip" or "text", "problem", "seconds", "device"}
    with "question" a grid of one's own in place of the example, else null
    {"id", "verb": "ping"}                                          ->  {"id", "done": true, "loaded": [folders]}
    {"id", "verb": "cancel"}   `id` of a predict                    ->  {"id", "done": true, "cancelled": true}

What goes wrong comes back as {"id", "done": true, "error": one line}. A clip is {"shape", "data": base64 of its bytes}.
`Worker` is the page's end: it starts the process when the first answer is wanted and again after a crash.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import queue
import subprocess
import sys
import threading
import time
import traceback
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from adapters.base import Cancelled
from tasks.base import Example, Grid, UserError, as_grid
from vdmreason import config, jobs, store
from vdmreason.config import Run, named_seed

KEEP = 4  # loaded arms, of which one may be published and so large; the one used longest ago is let go
PARTIALS_A_SECOND = 5.0
GLANCE = 0.1  # seconds between two looks whether an answer is still wanted
GRACE = 3.0  # seconds between a polite cancel and the end of the process, which has to load its models again


# ---------------------------------------------------------------------------------------------------------------------
# The page's end


class Stopped(UserError):
    """The answer was cancelled."""


class Turns:
    """A lock that is given in the order of asking; a plain one may let the same asker in again and again."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[threading.Event] = deque()

    def take(self, wanted: Callable[[], bool] = lambda: True) -> bool:
        """Wait for one's turn; False, without it, as soon as it is `wanted` no more."""
        mine = threading.Event()
        with self._lock:
            self._waiting.append(mine)
            if self._waiting[0] is mine:
                return True
        while not mine.wait(GLANCE):
            if not wanted():
                with self._lock:
                    if self._waiting[0] is not mine:
                        self._waiting.remove(mine)
                        return False
        return True

    def give(self) -> None:
        """Let the next one in. The giver need not be the thread that took."""
        with self._lock:
            self._waiting.popleft()
            if self._waiting:
                self._waiting[0].set()


class Worker:
    """One worker process, started when first needed. Answers are given one after another, in the order of asking."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}  # run folder -> how long its last answer took, without loading
        self._turn = Turns()
        self._ids = itertools.count(1)
        self._process: subprocess.Popen[str] | None = None
        self._messages: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._last_words: list[str] = []
        self._cancelled: set[str] = set()
        self._unsettled: int | None = None  # the request that the process still works on

    def predict(
        self, folder: Path, task: str, index: int, seed: int, owner: str = "", question: Grid | None = None
    ) -> Iterator[dict[str, Any]]:
        """Yields the answer as it forms, then the answer: a message with "done". Raises UserError and `Stopped`.

        `owner` names who asked, for `cancel`; whoever offers that calls `forget_cancel` before. A `question` of one's own takes
        the place of the task's example.
        """
        if not self._turn.take(lambda: owner not in self._cancelled):
            raise Stopped("Cancelled.")
        number = next(self._ids)
        try:
            if owner in self._cancelled:
                raise Stopped("Cancelled.")
            own = None if question is None else question.tolist()
            self._send(id=number, verb="predict", folder=str(folder), task=task, index=index, seed=seed, question=own)
            self._unsettled = number
            for message in self._answers(number, lambda: owner not in self._cancelled):
                if "error" in message:
                    raise UserError(message["error"])
                if "clip" in message:
                    message["clip"] = unpack(message["clip"])
                if message.get("done"):
                    self.seconds[str(folder)] = message["seconds"]
                yield message
        finally:
            if self._unsettled == number:  # whoever asked goes on; the next one waits until the process is free
                threading.Thread(target=self._settle, args=(number,), daemon=True).start()
            else:
                self._turn.give()

    def _settle(self, number: int) -> None:
        """Bring an answer that nobody wants any more to its end."""
        process = self._process
        assert process
        deadline = threading.Timer(GRACE, process.kill)
        deadline.daemon = True
        deadline.start()
        try:
            self._write(process, id=number, verb="cancel")  # never to a new one, which would have no answer to this
            for _ in self._answers(number):
                pass
        except UserError:
            pass  # it did not listen and was ended; the next answer starts a new one
        finally:
            deadline.cancel()
            self._turn.give()

    def forget_cancel(self, owner: str) -> None:
        """What the owner cancelled before is over. Not part of `predict`: one who is quick cancels before it has begun."""
        self._cancelled.discard(owner)

    def cancel(self, owner: str = "") -> None:
        """End the owner's answer, running or waiting: `predict` raises `Stopped` within a fifth of a second."""
        self._cancelled.add(owner)

    def ping(self) -> list[str]:
        """The run folders whose arms are loaded. Starts the process."""
        self._turn.take()
        try:
            number = next(self._ids)
            self._send(id=number, verb="ping")
            loaded: list[str] = [*self._answers(number)][-1]["loaded"]
            return loaded
        finally:
            self._turn.give()

    def close(self) -> None:
        """End the process."""
        if self._process and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._process = None

    def _send(self, **message: Any) -> None:
        self._write(self._started(), **message)

    def _write(self, process: subprocess.Popen[str], **message: Any) -> None:
        assert process.stdin
        try:
            process.stdin.write(json.dumps(message) + "\n")
            process.stdin.flush()
        except (BrokenPipeError, OSError) as error:
            raise UserError(self._obituary()) from error

    def _started(self) -> subprocess.Popen[str]:
        if self._process and self._process.poll() is None:
            return self._process
        messages: queue.Queue[dict[str, Any] | None] = queue.Queue()
        words: list[str] = []
        self._messages, self._last_words = messages, words
        # A worker beside a training gets one core, or both crawl.
        environment = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 2) // 2)), **jobs.environment()}
        self._process = process = subprocess.Popen(
            [sys.executable, "-m", "vdmreason.worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, encoding="utf-8", env=environment,
        )  # fmt: skip
        threading.Thread(target=_listen, args=(process.stdout, messages), daemon=True).start()
        threading.Thread(target=_overhear, args=(process.stderr, words), daemon=True).start()
        return process

    def _answers(self, number: int, wanted: Callable[[], bool] = lambda: True) -> Iterator[dict[str, Any]]:
        """What the process says to a request until it is done. Raises `Stopped` as soon as it is `wanted` no more, which leaves
        the request unsettled."""
        while True:
            if not wanted():
                raise Stopped("Cancelled.")
            try:
                message = self._messages.get(timeout=GLANCE)
            except queue.Empty:
                continue
            if message is None:
                assert self._process
                self._process.wait()  # its pipe closes a moment before it is gone
                self._unsettled = None
                raise UserError(self._obituary())
            if message["id"] != number:
                continue
            if message.get("done"):
                self._unsettled = None
            if message.get("cancelled"):
                raise Stopped("Cancelled.")
            yield message
            if message.get("done"):
                return

    def _obituary(self) -> str:
        code = self._process.wait() if self._process else 0
        if code == -9:
            return "The worker was ended by the system, most likely for want of memory. The next live run starts a new one."
        words = next((line for line in reversed(self._last_words) if line.strip()), "it left no message")
        return f"The worker stopped (exit code {code}: {words.strip()[:200]}). The next live run starts a new one."


def _listen(stream: TextIO, messages: queue.Queue[dict[str, Any] | None]) -> None:
    try:
        for line in stream:
            if line.startswith("{"):  # a library may print too
                messages.put(json.loads(line))
    except ValueError:  # killed in the middle of a line, or of a letter
        pass
    finally:
        messages.put(None)


def _overhear(stream: TextIO, words: list[str]) -> None:
    for line in stream:
        words.append(line)
        del words[:-50]


def pack(clip: np.ndarray) -> dict[str, Any]:
    """A clip, uint8 (F, H, W, 3), for a JSON line."""
    return {"shape": clip.shape, "data": base64.b64encode(np.ascontiguousarray(clip).tobytes()).decode()}


def unpack(packed: dict[str, Any]) -> np.ndarray:
    """The inverse of `pack`."""
    return np.frombuffer(base64.b64decode(packed["data"]), np.uint8).reshape(packed["shape"])


# ---------------------------------------------------------------------------------------------------------------------
# The worker's end


class Answering:
    """The loaded arms and the requests, one at a time; a second thread hears a cancel while an answer forms."""

    def __init__(self, out: TextIO) -> None:
        self.out = out
        self.arms: OrderedDict[str, tuple[tuple[int, int], Run, Any]] = OrderedDict()  # folder -> stamp, run, arm
        self.cancelled: set[int] = set()

    def say(self, **message: Any) -> None:
        self.out.write(json.dumps(message) + "\n")
        self.out.flush()

    def handle(self, request: dict[str, Any]) -> None:
        number = request["id"]
        try:
            if request["verb"] == "ping":
                self.say(id=number, done=True, loaded=list(self.arms))
            elif request["verb"] == "predict":
                own = request.get("question")
                self.predict(number, request["folder"], request["task"], request["index"], request["seed"], own)
            else:
                raise UserError(f"the worker knows predict, cancel and ping, not {request['verb']!r}")
        except Cancelled:
            self.say(id=number, done=True, cancelled=True)
        except UserError as error:
            self.say(id=number, done=True, error=str(error))
        except Exception as error:  # the page must hear of everything, and the process lives on
            traceback.print_exc()
            self.say(id=number, done=True, error=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")

    def arm(self, folder: str) -> tuple[Run, Any]:
        """A run and its backbone with its adapter, loaded once: another one may lie there later, trained anew or imported."""
        stamp = (0, 0)
        with contextlib.suppress(FileNotFoundError):  # `load_adapted` says what is missing
            found = (Path(folder) / "adapter").stat()
            stamp = found.st_ino, found.st_mtime_ns
        if folder not in self.arms or self.arms[folder][0] != stamp:
            import torch

            from vdmreason import predict

            self.arms.pop(folder, None)
            run = store.read_config(folder)
            if _published(run) and not torch.accelerator.is_available():
                self.let_go(
                    _published
                )  # before: of a GPU lack of room is an error that is met, here it ends the process
            self.arms[folder] = stamp, run, predict.load_adapted(run, Path(folder))
            while len(self.arms) > KEEP:
                self.arms.popitem(last=False)
        self.arms.move_to_end(folder)
        return self.arms[folder][1:]

    def let_go(self, unwanted: Callable[[Run], bool]) -> None:
        """Drop the loaded arms of runs that are `unwanted`, and give their memory back to the device."""
        from vdmreason.speed import tidy

        for folder in [folder for folder, (_, run, _) in self.arms.items() if unwanted(run)]:
            del self.arms[folder]
        tidy()

    def predict(self, number: int, folder: str, task: str, index: int, seed: int, question: Any = None) -> None:
        """Say an answer. Where the device has no room for it, once more with no other arm loaded."""
        from vdmreason.speed import out_of_memory

        try:
            return self._predict(number, folder, task, index, seed, question)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
        # out here, where the error holds no tensors of the first attempt any more
        own = self.arms.get(folder)
        self.let_go(lambda run: own is None or run is not own[1])
        try:
            return self._predict(number, folder, task, index, seed, question)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
        self.let_go(lambda run: True)  # what cannot answer is in the way of what could
        raise UserError(
            "The device's memory is too small for this answer. End what else runs there, such as a training, or ask a run of a "
            "smaller flavour."
        )

    def _predict(self, number: int, folder: str, task: str, index: int, seed: int, question: Any) -> None:
        from vdmreason.predict import attending

        run, arm = self.arm(folder)
        example = config.test_examples(_asked(run, task, seed), index + 1)[index]
        if question is not None:  # an arm frames an example; of this one only what is given will be looked at
            own = as_grid(question)
            rows, cols = (max(sides) for sides in zip(own.shape, example.canvas, strict=True))
            example = Example(own, own, (rows, cols))
        last = 0.0

        def watch(step: int, steps: int, partial: Callable[[], Any]) -> bool:
            nonlocal last
            if number in self.cancelled:
                return False
            if time.monotonic() - last > 1 / PARTIALS_A_SECOND:
                self.say(id=number, step=step, steps=steps, **raw(partial()))
                last = time.monotonic()
            return True

        if number in self.cancelled:
            raise Cancelled("Cancelled.")
        # `given` only, and the seed that the recorded answer had: the same question gets the same answer. A run that votes
        # is asked under the plain view alone here.
        with attending(run, arm):
            answer = arm.predict([arm.frame(example).given], [named_seed("answer", run.seed, index)], watch)[0]
        self.say(
            id=number, done=True, **raw(answer.raw), problem=answer.problem, seconds=answer.seconds,
            device=next(iter(arm.trainable().values())).device.type,
            grid=None if answer.grid is None else answer.grid.tolist(),
            certainty=None if answer.certainty is None else np.asarray(answer.certainty, float).round(3).tolist(),
        )  # fmt: skip


def _published(run: Run) -> bool:
    """Whether a run's backbone is a large one."""
    return config.flavour_of(run).published


def _asked(run: Run, task: str, seed: int) -> Run:
    """The run as if it were tested on a task under a seed: its own test examples where they are these."""
    if (run.tested, run.seed) == (task, seed):
        return run
    return replace(run, test_task=task, seed=seed, far_from=0, votes=1)


def raw(value: Any) -> dict[str, Any]:
    """What an arm wrote or drew, or a batch of one of it, as a part of a message."""
    if isinstance(value, str):
        return {"text": value}
    if isinstance(value, np.ndarray):
        return {"clip": pack(value[0] if value.ndim == 5 else value)}
    return raw(value[0])


def main() -> None:
    """Serve until stdin ends."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints goes to stderr, never between our lines
    answering = Answering(out)
    requests: queue.Queue[dict[str, Any] | None] = queue.Queue()

    def listen() -> None:
        for line in sys.stdin:
            request = json.loads(line)
            if request.get("verb") == "cancel":
                answering.cancelled.add(request["id"])
            else:
                requests.put(request)
        requests.put(None)

    threading.Thread(target=listen, daemon=True).start()
    while (request := requests.get()) is not None:
        answering.handle(request)


if __name__ == "__main__":
    main()
