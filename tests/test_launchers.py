"""What a launcher asks of a cluster, and what the installation asks of a machine."""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import nullcontext
from pathlib import Path

import pytest

from tasks.base import UserError
from vdmreason import launchers

ROOT = Path(__file__).resolve().parent.parent


class Job:
    """A job of a cluster that ends when it is told to."""

    job_id = "7"

    class paths:
        stderr = "7.err"

    def __init__(self) -> None:
        self.ended = False
        self.failed: Exception | None = None

    def done(self) -> bool:
        return self.ended

    def exception(self) -> Exception | None:
        return self.failed


class Cluster:
    """What a launcher sees of submitit's executor."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []

    def batch(self) -> nullcontext[None]:
        return nullcontext()

    def submit(self, task: object) -> Job:
        self.jobs.append(Job())
        return self.jobs[-1]


def test_slurm_puts_a_worker_in_the_place_of_one_that_was_lost(tmp_path: Path) -> None:
    """While others are alive, too. One that ended well found nothing to do, and so would another."""
    pytest.importorskip("submitit")
    slurm = launchers.Slurm(tmp_path, 3, {"cluster": "debug"}, "")
    slurm._executor = cluster = Cluster()
    slurm.tend(9)
    slurm.tend(9)
    assert len(cluster.jobs) == slurm.alive() == 3
    cluster.jobs[0].ended, cluster.jobs[0].failed = True, RuntimeError("killed")
    for _ in range(3):
        slurm.tend(9)
    assert len(cluster.jobs) == 4 and slurm.alive() == 3
    for job in cluster.jobs[1:3]:
        job.ended = True
    for wanted in (9, 1, 0):
        slurm.tend(wanted)
    assert len(cluster.jobs) == 4 and slurm.alive() == 1
    cluster.jobs[3].ended = True
    slurm.tend(2)  # none is left, and trials are
    assert len(cluster.jobs) == 6


def test_what_sbatch_refuses_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    slurm = launchers.Slurm(tmp_path, 1, {"cluster": "debug"}, "")

    class Refusing(Cluster):
        def submit(self, task: object) -> Job:
            raise RuntimeError("sbatch: error: Invalid generic resource\n(gres) specification")

    slurm._executor = Refusing()
    with pytest.raises(UserError, match=r"^--launcher slurm: .*resource \(gres\).* --slurm gpus_per_node=0"):
        slurm.tend(1)


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        ({"slurm_partition": "gpu"}, {"gpus_per_node": 1}),
        ({"gpus_per_node": 2}, {"gpus_per_node": 2}),
        ({"slurm_gpus_per_node": 2}, {"gpus_per_node": 2}),
        ({"slurm_gres": "gpu:a100:1"}, {"gres": "gpu:a100:1"}),
        ({"slurm_gpus_per_task": 1}, {"gpus_per_task": 1}),
        ({"slurm_additional_parameters": {"gpus": 1}}, {}),
        ({"gpus_per_node": 0}, {}),
    ],
)
def test_a_worker_on_slurm_gets_a_gpu_unless_told_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, object], asked: dict[str, object]
) -> None:
    """By what submitit would ask of Slurm. It looks for srun, which is all that has to be there."""
    pytest.importorskip("submitit")
    srun = tmp_path / "srun"
    srun.write_text("#!/bin/sh\n")
    srun.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    found = launchers.Slurm(tmp_path, 1, options, "")._executor._executor.parameters
    assert {name: found[name] for name in ("gpus_per_node", "gpus_per_task", "gres") if name in found} == asked


@pytest.mark.parametrize(("wanted", "builds"), [("", ["torch==9.9+cpu", "torch==9.9"]), ("cuda", ["torch==9.9"])])
def test_a_login_node_may_take_the_build_for_gpus(tmp_path: Path, wanted: str, builds: list[str]) -> None:
    """The script itself, with a Python that writes down what it is asked to install."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "install.sh", tmp_path / "scripts")
    (tmp_path / "requirements.lock").write_text("torch==9.9\n")
    binaries = {name: tmp_path / name for name in (".venv/bin/python", "bin/uname", "bin/nvidia-smi")}
    says = ['echo "$@" >> asked; [ "$1" = -m ]', "echo Linux", "exit 1"]
    for path, text in zip(binaries.values(), says, strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
    env = {"PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}", "PYTHON": "true", "VDMREASON_TORCH": wanted}
    done = subprocess.run(["sh", "scripts/install.sh"], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    asked = (tmp_path / "asked").read_text().splitlines()
    assert [line.split()[-1] for line in asked if line.split()[-1].startswith("torch==")] == builds
    assert ("VDMREASON_TORCH=cuda" in done.stdout) == (not wanted)
