"""`vdmreason sweep ...`"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from tasks.base import UserError, suggest
from vdmreason import config
from vdmreason.launchers import HOPELESS, LAUNCHERS, Launcher, Local, Ray, Slurm, devices_here
from vdmreason.sweep.driver import cancel, run_sweep, status_lines
from vdmreason.sweep.sheet import folder_of, read
from vdmreason.sweep.trials import look, read_plan
from vdmreason.sweep.worker import DiskFull, work

app = typer.Typer(no_args_is_help=True, help="Many trials from one file, here or on a cluster, and one report.")

FileOrFolder = Annotated[Path, typer.Argument(help="The sweep's file, or its folder")]
Scale = Annotated[
    str,
    typer.Option(
        help="Which of the file's scales, such as small (shipped backbones) or paper; left out, they are listed"
    ),
]


@app.command("run")
def run_command(
    file: Annotated[Path, typer.Argument(help="protocols/structured.yaml")],
    scale: Scale = "",
    out: Annotated[Path | None, typer.Option(help="The folder (default: runs/sweeps/<name>-<scale>)")] = None,
    launcher: Annotated[str, typer.Option(help="local, slurm or ray: where workers run")] = "local",
    workers: Annotated[
        int | None, typer.Option(min=1, help="How many (default: one a GPU; without, half the cores)")
    ] = None,
    devices: Annotated[str | None, typer.Option(help="GPUs, as in 0,1 (default: all that are here)")] = None,
    slurm: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="slurm_partition=gpu; gpus_per_node=0 for none (default: 1)"),
    ] = None,
    gpus: Annotated[
        float | None, typer.Option(min=0, help="GPUs a worker, for ray (default: 1 where there are any)")
    ] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try again what failed")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print the plan")] = False,
) -> None:
    """Do all trials of a file. The same command goes on where it was stopped or killed; a changed file adds what is new.

    vdmreason sweep run protocols/structured.yaml --scale small --workers 2
    vdmreason sweep run protocols/arc.yaml --scale small --dry-run
    vdmreason sweep run protocols/structured.yaml --scale paper --launcher slurm --workers 16 --slurm slurm_partition=gpu
    """
    if launcher not in LAUNCHERS:
        raise UserError(f"--launcher {launcher}: unknown.{suggest(launcher, LAUNCHERS)} One of {', '.join(LAUNCHERS)}.")
    sweep = read(file, scale)
    folder = out or sweep.folder
    cards = [name for name in devices.split(",") if name] if devices is not None else devices_here()
    count = workers or usual_workers(cards)
    options = _options(slurm or [])

    def make(driver: str) -> Launcher:
        if launcher == "slurm":
            return Slurm(folder, count, options, driver)
        if launcher == "ray":
            return Ray(folder, count, gpus if gpus is not None else float(bool(cards)), driver)
        return Local(folder, count, cards, driver)

    run_sweep(sweep, folder, make, count, retry_failed, dry_run)


def usual_workers(cards: Sequence[str]) -> int:
    """How many workers where nobody says: one a GPU; without one, half the cores."""
    return len(cards) or min(8, max(1, (os.cpu_count() or 1) // 2))


def _options(given: Sequence[str]) -> dict[str, Any]:
    options = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UserError(f"--slurm {text}: must look like slurm_partition=gpu.")
        options[key] = config.value_of(value, f"--slurm {key}")
    return options


@app.command("status")
def status_command(path: FileOrFolder, scale: Scale = "") -> None:
    """Say where a sweep stands: what is done, running, failed and why, lost, damaged. Exit code 1 unless all is done.

    vdmreason sweep status runs/sweeps/structured-small
    """
    folder = folder_of(path, scale)
    print("\n".join(status_lines(folder)))
    if any(s.state != "done" for s in look(folder)):
        raise typer.Exit(1)


@app.command("cancel")
def cancel_command(path: FileOrFolder, scale: Scale = "") -> None:
    """Have all workers of a sweep stop after their update, on whatever machine. `sweep run` goes on from there.

    vdmreason sweep cancel runs/sweeps/structured-small
    """
    running = cancel(folder_of(path, scale))
    print(f"{running} trial{'s' * (running != 1)} running; each stops after its update, with a checkpoint")


@app.command("worker")
def worker_command(
    path: FileOrFolder,
    scale: Scale = "",
    part: Annotated[
        str, typer.Option(help="Such as 2/3: only the second of three parts, where no disk is shared")
    ] = "1/1",
    driver: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Do trials of a sweep until none is left: what every launcher starts, and what you can start anywhere yourself.

    vdmreason sweep worker runs/sweeps/structured-small

    On machines that share no disk: start `vdmreason sweep run FILE` once and interrupt it (Ctrl+C, not `cancel`), which
    makes the folder; copy it to each machine, let each do its part, and report on all:

    vdmreason sweep worker structured-small --part 2/3

    vdmreason report first/structured-small second/structured-small third/structured-small
    """
    folder = folder_of(path, scale)
    read_plan(folder)
    match = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", part)
    if not match or int(match[1]) > int(match[2]):
        raise UserError(f"--part {part}: say which of how many, such as 2/3.")
    try:
        print(f"{work(folder, driver, (int(match[1]), int(match[2])))} trials done by this worker", flush=True)
    except DiskFull as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(HOPELESS) from None


@app.command("report")
def report_command(
    path: FileOrFolder,
    scale: Scale = "",
    out: Annotated[Path | None, typer.Option(help="Where to write it (default: the sweep's report/)")] = None,
) -> None:
    """Write the report of what is done: a page, tables and figures.

    vdmreason sweep report runs/sweeps/structured-small
    """
    from vdmreason.report import report_sweep

    print(report_sweep(folder_of(path, scale), out))


@app.command("pack")
def pack_command(
    path: FileOrFolder,
    scale: Scale = "",
    out: Annotated[Path | None, typer.Option(help="The file (default: <sweep>.tar.xz here)")] = None,
) -> None:
    """Put what is finished into one small file: answers, results and where they come from, without adapters.

    vdmreason sweep pack runs/sweeps/structured-small
    """
    from vdmreason.parcel import pack

    file, done, trials = pack(folder_of(path, scale), out)
    print(f"{file}: {done} of {trials} trials, {file.stat().st_size / 1e6:.2f} MB")


@app.command("unpack")
def unpack_command(
    file: Annotated[Path, typer.Argument(help="What `sweep pack` wrote")],
    out: Annotated[Path | None, typer.Option(help="The sweep's folder (default: runs/sweeps/<name>-<scale>)")] = None,
) -> None:
    """Add what such a file holds to a sweep's folder, to report on it or to go on.

    vdmreason sweep unpack structured-small.tar.xz
    vdmreason sweep run runs/sweeps/structured-small/sweep.yaml --scale small      (does the rest)
    """
    from vdmreason.parcel import unpack

    folder, counts = unpack(file, out)
    words = {
        "added": "added", "there": "were there", "running": "are being worked on here", "unknown": "this sweep has not",
    }  # fmt: skip
    print(f"{folder}: " + ", ".join(f"{counts[key]} {said}" for key, said in words.items() if counts[key]))
