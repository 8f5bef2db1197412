"""How long a video can be learnt from before memory ends: a training step of LVMAE against frames and decoder budget.

    python benchmarks/lvmae_memory.py run                    # every cell that is not there yet, ViT-B at 224 px and small
    python benchmarks/lvmae_memory.py run --size vit-b --frames 128 --ratio 0.15 --attention flash
    python benchmarks/lvmae_memory.py report                 # results/lvmae_memory.{json,md,png}

A cell is one step, forward and backward with one clip, in a process of its own: the time of the second step, the peak of its
resident memory (on a GPU: of what torch allocated), the multiplications of the decoder's forward pass. Attention is flash
(scaled_dot_product_attention), whose memory grows with the tokens, or materialised (its MATH backend, as in 2024 on TPUs), which
keeps every layer's scores. `--limit` is the address space that a cell may ask for: one that wants more ends there, not the
machine. Codes and importance are taken as stored already. Optimiser and weights (94 M for ViT-B) are the same in all cells and
left out.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from flops import counter
from torch.nn.attention import SDPBackend, sdpa_kernel

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pretrain import lvmae, masks  # noqa: E402
from pretrain.recipe import to_pixels  # noqa: E402
from pretrain.tokenizer import Config, Stage, Tokenizer  # noqa: E402
from vdmreason import store  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "lvmae_memory.json"
LINES = RESULTS.with_suffix(".jsonl")
RATIOS, FRAMES, SIZES, KERNELS = (
    (0.9, 0.5, 0.25, 0.15, 0.1),
    (128, 64, 32, 16),
    ("vit-b", "small"),
    ("flash", "materialised"),
)
OUT_OF_MEMORY = ("not enough memory", "can't allocate memory", "OutOfMemory", "MemoryError", "bad_alloc")
BACKEND = {"flash": SDPBackend.FLASH_ATTENTION, "materialised": SDPBackend.MATH}


def model_of(size: str) -> tuple[lvmae.LVMAE, int]:
    """The model without checkpointing, with a tokenizer that has its shape and no work to do, and the pictures' side."""
    config = lvmae.FLAVOURS[size]
    stub = Tokenizer(Config((Stage(4, 0, 2, config.patch), Stage(4, 0)), 4))
    return lvmae.LVMAE(config, stub), lvmae.RECIPES[size].side


def analytic(config: lvmae.Config, seen: int, asked: int) -> dict[str, float]:
    """What the decoder of `seen` + `asked` tokens must cost: 24 D^2 N + 4 N^2 D operations a layer and, of each layer's scores
    in fp32, 4 H N^2 bytes."""
    size, n = config.decoder, seen + asked
    return {
        "gflop": size.depth * (24 * size.width**2 * n + 4 * n**2 * size.width) / 1e9,
        "scores_gib": 4 * size.heads * n**2 / 2**30,
    }


def cell(size: str, frames: int, ratio: float, attention: str) -> dict[str, Any]:
    """One cell, in this process."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, side = model_of(size)
    model.to(device)
    config = model.config
    video = torch.randint(0, 256, (1, frames, side, side, 3), dtype=torch.uint8)
    grid = model.grid(to_pixels(video))
    total = grid[0] * grid[1] * grid[2]
    drawn = lvmae.draw(config, grid, range(1), 0)
    hidden = masks.complement(drawn.keep, total)
    count = hidden.shape[1] if ratio >= config.hidden else round(ratio * total)
    asked = hidden[:, torch.randperm(hidden.shape[1])[:count].sort().values].to(device)
    keep, target = drawn.keep.to(device), torch.rand(1, count, model.channels, device=device)
    pixels = to_pixels(video).to(device)
    saved: dict[int, int] = {}  # a tensor that two operations keep is there once

    def seen(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    def step() -> None:
        loss = model.loss(model.predict(pixels, keep, asked), target)
        loss.backward()
        model.zero_grad(set_to_none=True)

    # On a GPU in bf16: its flash kernel has no fp32.
    mixed = torch.autocast("cuda", torch.bfloat16) if device == "cuda" else contextlib.nullcontext()
    with sdpa_kernel(BACKEND[attention]), mixed:
        before = memory(device)
        seconds = 0.0
        for _ in range(2):
            began = time.monotonic()
            step()
            if device == "cuda":
                torch.cuda.synchronize()
            seconds = time.monotonic() - began
        peak = memory(device) - before
        with torch.no_grad(), counter() as counted:
            at = lvmae.coordinates(grid, device)[None]
            encoded = torch.zeros(1, keep.shape[1], config.encoder.width, device=device)
            model.decoder(encoded, lvmae.gather(at, keep), lvmae.gather(at, asked))
        # What one layer's attention keeps for the way back: with the scores materialised mostly these.
        block = model.decoder.blocks[0].attention
        x = torch.zeros(1, keep.shape[1] + count, config.decoder.width, device=device, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(seen, lambda tensor: tensor):
            block(x)
    return {
        "tokens": total, "seen": keep.shape[1], "asked": count, "side": side, "seconds": seconds, "peak_gib": peak,
        "layer_gib": sum(saved.values()) / 2**30, "gflop": counted.get_total_flops() / 1e9,
        **{f"analytic_{name}": value for name, value in analytic(config, keep.shape[1], count).items()},
        "machine": torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} CPU thread(s)",
    }  # fmt: skip


def memory(device: str) -> float:
    """The peak so far, GiB."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def run(given: argparse.Namespace) -> None:
    on = "cuda" if torch.cuda.is_available() else "cpu"
    known = {(r["size"], r["frames"], r["ratio"], r["attention"]) for r in rows() if r["device"] == on}
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    sizes, kernels = given.size or SIZES, given.attention or KERNELS
    for size, frames, ratio, kernel in itertools.product(sizes, given.frames or FRAMES, given.ratio or RATIOS, kernels):
        if (size, frames, ratio, kernel) in known:
            continue
        command = [sys.executable, __file__, "cell", size, str(frames), str(ratio), kernel, str(given.threads)]
        limit = int(given.limit * 2**30) if on == "cpu" else 0
        free = psutil.virtual_memory().available / 2**30

        def bound(limit: int = limit) -> None:
            if limit:
                resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            Path("/proc/self/oom_score_adj").write_text("1000")  # where memory ends, this ends and nothing else

        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, preexec_fn=bound)
        row = {"size": size, "frames": frames, "ratio": ratio, "attention": kernel, "device": on}
        row |= {"limit_gib": given.limit, "free_gib": free, "commit": commit.stdout.strip(), "torch": torch.__version__}
        if done.returncode == 0:
            row |= {"fits": True, **json.loads(done.stdout.splitlines()[-1])}
        elif done.returncode == -signal.SIGKILL or any(word in done.stderr for word in OUT_OF_MEMORY):
            row |= {"fits": False}
        else:
            sys.exit(f"{' '.join(command)}:\n{done.stderr[-2000:]}")
        with LINES.open("a") as file:
            file.write(json.dumps(row) + "\n")
        shown = ("size", "frames", "ratio", "attention", "fits", "seconds", "peak_gib", "layer_gib", "gflop")
        print({k: round(v, 3) if isinstance(v := row[k], float) else v for k in shown if k in row}, flush=True)


def rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in LINES.read_text().splitlines()] if LINES.exists() else []


def report() -> None:
    found = rows()
    if not found:
        raise SystemExit("no cells yet: run them first")
    table = {
        "command": "python benchmarks/lvmae_memory.py run && python benchmarks/lvmae_memory.py report",
        "cells": found,
    }
    store.write_json(RESULTS, table)
    text = markdown(found)
    RESULTS.with_suffix(".md").write_text(text)
    plot(found)
    print(text)


def markdown(found: list[dict[str, Any]]) -> str:
    machines = ", ".join(sorted({r["machine"] for r in found if r["fits"]}))
    limits = ", ".join(f"{x:g}" for x in sorted({r["limit_gib"] for r in found}))
    about = (
        f"One training step with one clip, {machines}, without optimiser. Peak: what the step adds to the process. A cell may "
        f'ask for {limits} GiB of address space; "no" wanted more than that, or than the machine had. GFLOP: a forward pass of '
        "the decoder as torch counts it, and by 24 D^2 N + 4 N^2 D a layer. Layer: what the attention of one of its layers "
        "keeps for the way back, beside its scores alone, 4 H N^2 bytes."
    )
    columns = ["frames", "decoded", "decoder tokens", "GFLOP (analytic)", "layer, flash GiB"]
    columns += [
        "layer, materialised GiB (scores)",
        "peak, flash GiB",
        "peak, materialised GiB",
        "time, materialised / flash",
    ]
    lines = [about]
    for size in SIZES:
        some = [r for r in found if r["size"] == size]
        if not some:
            continue
        side = next((r["side"] for r in some if r["fits"]), 0)
        lines += ["", f"**{size}**, {side} px", ""]
        lines += [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
        for frames, ratio in itertools.product(FRAMES, RATIOS):
            by = {r["attention"]: r for r in some if (r["frames"], r["ratio"]) == (frames, ratio)}
            if not by:
                continue
            one = next((r for r in by.values() if r["fits"]), None)
            flash, whole = by.get("flash"), by.get("materialised")

            def said(row: dict[str, Any] | None, key: str) -> str:
                return "" if row is None else f"{row[key]:.2f}" if row["fits"] else "no"

            tokens, cost, scores = ("", "", "")
            if one:
                tokens = f"{one['seen'] + one['asked']:,}"
                cost = f"{one['gflop']:.1f} ({one['analytic_gflop']:.1f})"
                scores = f" ({one['analytic_scores_gib']:.2f})"
            both = flash and whole and flash["fits"] and whole["fits"]
            ratio_ = f"{whole['seconds'] / flash['seconds']:.1f}" if both and flash and whole else ""
            share = "all hidden" if ratio == 0.9 else f"{ratio:.0%}"
            lines.append(
                f"| {frames} | {share} | {tokens} | {cost} | {said(flash, 'layer_gib')} | {said(whole, 'layer_gib')}{scores} | "
                f"{said(flash, 'peak_gib')} | {said(whole, 'peak_gib')} | {ratio_} |"
            )
    return "\n".join(lines) + "\n"


def plot(found: list[dict[str, Any]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    sizes = [size for size in SIZES if any(r["size"] == size for r in found)]
    figure, axes = plt.subplots(1, len(sizes), figsize=(5 * len(sizes), 3.6), layout="constrained", squeeze=False)
    for axis, size in zip(axes[0], sizes, strict=True):
        for (attention, style), (frames, colour) in itertools.product(
            (("flash", "-"), ("materialised", "--")), zip(FRAMES, ("C3", "C1", "C2", "C0"), strict=True)
        ):
            some = [
                r for r in found if (r["size"], r["frames"], r["attention"]) == (size, frames, attention) and r["fits"]
            ]
            some.sort(key=lambda r: r["ratio"])
            label = f"{frames} frames, {attention}"
            axis.plot(
                [100 * r["ratio"] for r in some],
                [r["peak_gib"] for r in some],
                style,
                marker="o",
                color=colour,
                label=label,
            )
        axis.set(title=size, xlabel="tokens decoded, %", ylabel="peak of a step, GiB", yscale="log")
    axes[0, -1].legend(fontsize=7)
    for suffix in (".png", ".svg"):
        figure.savefig(RESULTS.with_suffix(suffix), dpi=130)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    runs = commands.add_parser("run", help="measure the cells that are not there yet")
    runs.add_argument("--size", action="append", choices=SIZES)
    runs.add_argument("--frames", action="append", type=int, choices=FRAMES)
    runs.add_argument("--ratio", action="append", type=float, choices=RATIOS)
    runs.add_argument("--attention", action="append", choices=KERNELS)
    runs.add_argument("--threads", type=int, default=1)
    runs.add_argument(
        "--limit", type=float, default=24.0, help="GiB of address space that a cell may ask for; 0: no limit"
    )
    commands.add_parser("report", help="write the table and the plot")
    one = commands.add_parser("cell", help="one cell, in this process")
    for name, kind in (("size", str), ("frames", int), ("ratio", float), ("attention", str), ("threads", int)):
        one.add_argument(name, type=kind)
    given = parser.parse_args()
    if given.command == "run":
        run(given)
    elif given.command == "report":
        report()
    else:
        torch.set_num_threads(given.threads)
        print(json.dumps(cell(given.size, given.frames, given.ratio, given.attention)))


if __name__ == "__main__":
    main()
