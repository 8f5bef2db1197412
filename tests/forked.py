"""Processes that have torch, peft and diffusers already, for tests that train in many.

To import them takes some six seconds of a core, more than most of these trainings. So one process imports them, and each of
the others is forked from it; else it is as `python -c` would be: its own environment, its own `__main__`, killed like any.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_FORKS = multiprocessing.get_context("forkserver")
_IMPORTED = ["torch", "peft", "accelerate", "numba", "diffusers.models.autoencoders", "transformers.models.qwen3"]
_FORKS.set_forkserver_preload(_IMPORTED)


class Process:
    """Runs `code` as `__main__`, with `words` behind sys.argv[0]; what it prints is in `said()`.

    Killed when it is let go of, as a test that fails in between does.
    """

    def __init__(self, code: str, *words: str, env: Mapping[str, str]) -> None:
        self._said = tempfile.NamedTemporaryFile(prefix="said-")
        self._process = _FORKS.Process(target=_main, args=(code, words, dict(env), self._said.name), daemon=True)
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float = 240) -> int:
        """Its exit code; a signal's is negative. Raises TimeoutError with what it said."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            self._process.kill()
            raise TimeoutError(f"still there after {timeout} s: {self.said()}")
        return self._process.exitcode

    def said(self) -> str:
        return Path(self._said.name).read_text()


def run(code: str, *words: str, env: Mapping[str, str], processes: int = 1) -> None:
    """In so many processes, as torchrun starts them. AssertionError with what they said, where one fails."""
    finish(start(code, *words, env=env, processes=processes))


def finish(started: Sequence[Process]) -> None:
    for process in started:
        assert process.wait() == 0, "".join(p.said() for p in started)[-3000:]


def start(code: str, *words: str, env: Mapping[str, str], processes: int) -> list[Process]:
    """So many processes that know of one another, as torchrun starts them."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    shared |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    ranks = (
        [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)] if processes > 1 else [{}]
    )
    return [Process(code, *words, env={**env, **rank}) for rank in ranks]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _main(code: str, words: tuple[str, ...], env: dict[str, str], said: str) -> None:
    os.environ.clear()
    os.environ.update(env)
    os.chdir(ROOT)
    sys.argv[:] = ["-c", *words]
    file = os.open(said, os.O_WRONLY | os.O_APPEND)
    for number in (1, 2):
        os.dup2(file, number)
    exec(compile(code, "<forked>", "exec"), {"__name__": "__main__"})
    if "WORLD_SIZE" in env:  # two that each take themselves for the only one give the right numbers, too
        import torch

        assert torch.distributed.get_world_size() == int(env["WORLD_SIZE"])
