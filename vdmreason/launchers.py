"""Who starts the workers of a sweep: this machine, Slurm, or Ray. All of them do the same trials in the same folder: a launcher
only starts `vdmreason sweep worker FOLDER` and counts what lives.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from tasks.base import UserError
from vdmreason import jobs, store

HOPELESS = 4  # the exit code of a worker that met a full disk
LAUNCHERS = ("local", "slurm", "ray")
PARENT = "VDMREASON_SWEEP_PARENT"  # the driver's process: its workers end with it


class Launcher(Protocol):
    """Starts workers and knows how many there are."""

    workers: int
    deaths: int  # workers that ended badly, so far
    hopeless: bool  # one of them said that no other would do better

    def tend(self, wanted: int) -> None:
        """Have up to `wanted` workers at work, and not more than `workers`."""

    def alive(self) -> int: ...

    def stop(self, hard: bool = False) -> None: ...

    def why(self) -> str:
        """The last words of a worker that ended badly."""
        ...


class Local:
    """Processes of this machine, each on a device of its own."""

    def __init__(
        self, folder: Path, workers: int, devices: Sequence[str], driver: str, command: Sequence[str] = ()
    ) -> None:
        self.folder, self.workers, self.devices, self.driver = folder, workers, list(devices), driver
        self.command = list(command) or [sys.executable, "-m", "vdmreason", "sweep", "worker"]
        self.deaths, self.hopeless, self._last = 0, False, folder
        self._seats: list[subprocess.Popen[bytes] | None] = [None] * workers

    def tend(self, wanted: int) -> None:
        for seat in range(self.workers):
            if self.alive() >= wanted:
                return
            if self._seats[seat] is None:
                self._seats[seat] = self._start(seat)

    def _start(self, seat: int) -> subprocess.Popen[bytes]:
        env = {**os.environ, "PYTHONUNBUFFERED": "1", PARENT: str(os.getpid())}
        if self.devices:
            env["CUDA_VISIBLE_DEVICES"] = self.devices[seat % len(self.devices)]
        # On a CPU sums depend on how many threads share them: one each, and results do not depend on the number of workers.
        threads = max(1, (os.cpu_count() or 1) // self.workers) if self.devices else 1
        env.setdefault("OMP_NUM_THREADS", str(threads))
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), env.get("PYTHONPATH", "")]))
        log = self._log(seat)
        with store.disk_errors(log):
            log.parent.mkdir(parents=True, exist_ok=True)
            with open(log, "ab") as out:
                return subprocess.Popen(
                    [*self.command, str(self.folder), "--driver", self.driver],
                    stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, env=env,
                    start_new_session=True,  # an interrupt is the driver's to pass on
                )  # fmt: skip

    def _log(self, seat: int) -> Path:
        return self.folder / "workers" / f"{socket.gethostname()}-{seat}.txt"

    def alive(self) -> int:
        for seat, process in enumerate(self._seats):
            if process is not None and process.poll() is not None:
                self.deaths += process.returncode != 0
                self.hopeless |= process.returncode == HOPELESS
                self._last = self._log(seat) if process.returncode else self._last
                self._seats[seat] = None
        return sum(process is not None for process in self._seats)

    def stop(self, hard: bool = False) -> None:
        for process in self._seats:
            if process is not None:
                (process.kill if hard else process.terminate)()

    def why(self) -> str:
        try:
            lines = self._last.read_text(errors="replace").split("\n")
        except OSError:
            return ""
        return f"{next((line for line in reversed(lines) if line.strip()), 'no word')} (all of it: {self._last})"


class Slurm:
    """Job arrays by submitit. `options` are submitit's and Slurm's, such as slurm_partition=gpu or slurm_time=240. Each worker
    gets one GPU, unless they name GPUs otherwise (gpus_per_node, slurm_gpus_per_task, slurm_gres); gpus_per_node=0 asks for none.

    A worker that hears submitit's signal (USR2), before its time limit or a preemption, goes back into the queue. For one that
    failed, or was killed, `tend` submits another; one that ended well (for want of trials, or on SIGTERM after its update) is
    not replaced before all have ended. Source: submitit 1.5, docs/examples.md."""

    def __init__(self, folder: Path, workers: int, options: Mapping[str, Any], driver: str) -> None:
        submitit = _library("submitit", "slurm")
        self.workers, self.driver, self.folder = workers, driver, folder
        self.deaths, self.hopeless, self._why, self._replaced = 0, False, "", 0
        given = {"name": "vdmreason", "timeout_min": 24 * 60, **options}
        cluster = given.pop("cluster", "slurm")  # submitit knows "local" and "debug" too
        named = [*options, *(options.get("slurm_additional_parameters") or ())]
        if cluster == "slurm" and not any(re.match("(slurm_)?(num_)?(gpus|gres|tres)", name) for name in named):
            given["gpus_per_node"] = 1  # Slurm by itself gives none
        if given.get("gpus_per_node") == 0:
            del given["gpus_per_node"]  # a cluster without GPUs may not know the word
        try:
            self._executor = submitit.AutoExecutor(folder=folder / "workers" / "slurm-%j", cluster=cluster)
            self._executor.update_parameters(**given)
        except (RuntimeError, NameError, ValueError) as error:  # no srun here; an option that submitit does not know
            raise UserError(f"--launcher slurm: {error}. Start it where srun is, or take --launcher local.") from error
        self._jobs: list[Any] = []

    def tend(self, wanted: int) -> None:
        alive = self.alive()
        missing = min(wanted, self.workers) - alive
        if (
            alive
        ):  # a trial of one that was killed counts as its own for a while: others would come, find nothing and go
            missing = min(missing, self.deaths - self._replaced)
        if missing <= 0:
            return
        task = Task(str(self.folder.absolute()), self.driver)
        try:
            with self._executor.batch():  # one array
                self._jobs += [self._executor.submit(task) for _ in range(missing)]
        except RuntimeError as error:  # sbatch refuses
            hint = "On a cluster without GPUs add --slurm gpus_per_node=0."
            raise UserError(f"--launcher slurm: {_one_line(error)} {hint}") from error
        self._replaced = self.deaths

    def alive(self) -> int:
        ended = [job for job in self._jobs if job.done()]
        for job in ended:
            error = job.exception()
            if error is not None:
                self.deaths, self._why = (
                    self.deaths + 1,
                    f"job {job.job_id}: {_one_line(error)} (see {job.paths.stderr})",
                )
        self._jobs = [job for job in self._jobs if job not in ended]
        return len(self._jobs)

    def stop(self, hard: bool = False) -> None:
        for job in self._jobs:
            job.cancel()

    def why(self) -> str:
        return self._why


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[-300:]


class Task:
    """`work` as submitit wants it: it can be sent, and says how to go on after a preemption."""

    def __init__(self, folder: str, driver: str) -> None:
        self.folder, self.driver = folder, driver

    def __call__(self) -> int:
        from vdmreason.sweep import work  # what a worker does is the sweep's; who starts it is not its business

        with contextlib.suppress(jobs.Stopped):
            return work(self.folder, self.driver)
        return 0

    def checkpoint(self) -> Any:
        return _library("submitit", "slurm").helpers.DelayedSubmission(Task(self.folder, self.driver))


class Ray:
    """Remote tasks of Ray Core, on the cluster that RAY_ADDRESS names or on this machine."""

    def __init__(self, folder: Path, workers: int, gpus: float, driver: str) -> None:
        if "RAY_ADDRESS" not in os.environ:
            # A cluster of our own, for as long as we live: Ray would leave a token and its habits in the home folder.
            os.environ.setdefault("RAY_AUTH_MODE", "disabled")
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        self._ray = _library("ray", "ray")
        self.workers, self.driver, self.folder = workers, driver, folder
        self.deaths, self.hopeless = 0, False
        if not self._ray.is_initialized():
            here = str(Path(__file__).parents[1])
            python_path = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH", "")]))
            runtime = {"env_vars": {"PYTHONPATH": python_path}}
            self._ray.init(include_dashboard=False, log_to_driver=False, configure_logging=False, runtime_env=runtime)
        self._remote = self._ray.remote(num_cpus=1, num_gpus=gpus, max_retries=0, max_calls=1)(_ray_work)
        self._tasks: list[Any] = []
        self._why = ""

    def tend(self, wanted: int) -> None:
        for _ in range(min(wanted, self.workers) - self.alive()):
            self._tasks.append(self._remote.remote(str(self.folder.absolute()), self.driver))

    def alive(self) -> int:
        if not self._tasks:
            return 0
        ended, self._tasks = self._ray.wait(self._tasks, num_returns=len(self._tasks), timeout=0)
        for task in ended:
            try:
                self._ray.get(task)
            except Exception as error:
                self.deaths, self._why = self.deaths + 1, _one_line(error)
        return len(self._tasks)

    def stop(self, hard: bool = False) -> None:
        for task in self._tasks:
            self._ray.cancel(task, force=hard)

    def why(self) -> str:
        return self._why


def _ray_work(folder: str, driver: str) -> int:
    return Task(folder, driver)()


def _library(name: str, extra: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(f"--launcher {extra}: {name} is not installed. pip install -e '.[{extra}]'") from None


def devices_here() -> list[str]:
    """The GPUs that this process may use, by the names that CUDA_VISIBLE_DEVICES takes. No torch."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name and name != "-1"]
    cards = Path("/proc/driver/nvidia/gpus")
    return [str(i) for i in range(len(list(cards.iterdir())))] if cards.is_dir() else []
