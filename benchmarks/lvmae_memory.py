"""How long a video can be learnt from before memory ends: a training step of LVMAE against frames and decoder budget.

    python benchmarks/lvmae_memory.py run                    # every cell that is not there yet, ViT-B at 224 px and small
    python benchmarks/lvmae_memory.py run --size vit-b --frames 128 --ratio 0.15 --attention flash
    python benchmarks/lvmae_memory.py report                 # results/lvmae_memory.{json,md,png}

A cell is one step, forward and backward with one clip, in a process of its own: the time of the fastest of three, the peak of its
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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
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
    """What the decoder of `seen` + `asked` tokens must cost: 24 D^2 N + 4 N^2 D operations a layer and, where each layer's scores
    are kept, 4 H N^2 bytes of them in fp32 and 4 N D of the scaled queries."""
    size, n = config.decoder, seen + asked
    return {
        "gflop": size.depth * (24 * size.width**2 * n + 4 * n**2 * size.width) / 1e9,
        "scores_gib": (4 * size.heads * n**2 + 4 * n * size.width) / 2**30,
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
        seconds = fastest(step, device)
        peak = memory(device) - before
        with torch.no_grad(), counter() as counted:
            at = lvmae.coordinates(grid, device)[None]
            encoded = torch.zeros(1, keep.shape[1], config.encoder.width, device=device)
            model.decoder(encoded, lvmae.gather(at, keep), lvmae.gather(at, asked))
        encoded.requires_grad_()

        def decode() -> None:
            model.decoder(encoded, lvmae.gather(at, keep), lvmae.gather(at, asked)).square().mean().backward()

        decoding = fastest(decode, device)
        # What one layer's attention keeps for the way back: with the scores materialised mostly these.
        block = model.decoder.blocks[0].attention
        x = torch.zeros(1, keep.shape[1] + count, config.decoder.width, device=device, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(seen, lambda tensor: tensor):
            block(x)
    return {
        "tokens": total, "seen": keep.shape[1], "asked": count, "side": side, "seconds": seconds, "peak_gib": peak,
        "decoder_seconds": decoding,
        "layer_gib": sum(saved.values()) / 2**30, "gflop": counted.get_total_flops() / 1e9,
        **{f"analytic_{name}": value for name, value in analytic(config, keep.shape[1], count).items()},
        "machine": torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} CPU thread(s)",
    }  # fmt: skip


def fastest(work: Callable[[], None], device: str, times: int = 3) -> float:
    """Seconds of the fastest time but the first, which warms up. (Other work on the machine only ever adds.)"""
    found = []
    for _ in range(1 + times):
        began = time.monotonic()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        found.append(time.monotonic() - began)
    return min(found[1:])


def memory(device: str) -> float:
    """The peak so far, GiB."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def run(given: argparse.Namespace) -> None:
    on = "cuda" if torch.cuda.is_available() else "cpu"
    # A cell that found no room is tried again where it may ask for more.
    known = {
        (r["size"], r["frames"], r["ratio"], r["attention"])
        for r in rows()
        if r["device"] == on and (r["fits"] or r["limit_gib"] >= given.limit)
    }
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    sizes, kernels = given.size or SIZES, given.attention or KERNELS
    for size, frames, ratio, kernel in itertools.product(sizes, given.frames or FRAMES, given.ratio or RATIOS, kernels):
        if (size, frames, ratio, kernel) in known and not given.again:
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
        row |= {
            "limit_gib": given.limit if limit else 0,
            "free_gib": free,
            "commit": commit.stdout.strip(),
            "torch": torch.__version__,
        }
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


def lines() -> list[dict[str, Any]]:
    return [json.loads(line) for line in LINES.read_text().splitlines()] if LINES.exists() else []


def rows() -> list[dict[str, Any]]:
    """The cells, each as it was measured last."""
    return list({(r["device"], r["size"], r["frames"], r["ratio"], r["attention"]): r for r in lines()}.values())


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
    about = (
        "One training step with one clip, without optimiser. Peak: what the step adds to the process. One that wanted more "
        'address space than it may ask for, or than the machine had, is said as ">", with what the cells of as many frames '
        "foretell. GFLOP: a forward pass of the decoder as torch counts it, and by 24 D^2 N + 4 N^2 D a layer. Scores: what the "
        "attention of one of its layers keeps for the way back when they are materialised, beyond flash; and analytic, "
        "4 H N^2 + 4 N D bytes. Times are ratios to 32 frames of which all is decoded, by flash: of the step, and of the "
        "decoder alone, forward and back."
    )
    columns = ["frames", "decoded", "decoder tokens", "GFLOP (analytic)", "scores a layer, GiB (analytic)"]
    columns += ["peak, flash GiB", "peak, materialised GiB", "time of a step, flash", "time of the decoder, flash"]
    columns += ["time of a step, materialised / flash"]
    said = [about]
    for device, size in itertools.product(("cpu", "cuda"), SIZES):
        some = [r for r in found if (r["device"], r["size"]) == (device, size)]
        if not some:
            continue
        side = next((r["side"] for r in some if r["fits"]), 0)
        machines = ", ".join(sorted({r["machine"] for r in some if r["fits"]}))
        precision = "bf16" if device == "cuda" else "fp32"
        said += ["", f"**{size}**, {side} px, {precision}, {machines}", ""]
        said += [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
        cells = {(r["frames"], r["ratio"], r["attention"]): r for r in some}
        # Times are compared that were taken alike: earlier lines are of the second step, later ones of the fastest of three.
        timed = {
            ("decoder_seconds" in r, r["frames"], r["ratio"], r["attention"]): r
            for r in lines()
            if (r["device"], r["size"], r["fits"]) == (device, size, True)
        }
        for frames, ratio in itertools.product(FRAMES, RATIOS):
            flash, whole = (cells.get((frames, ratio, kernel)) for kernel in KERNELS)
            one = next((r for r in (flash, whole) if r and r["fits"]), None)
            if not flash and not whole:
                continue
            share = "all hidden" if ratio == 0.9 else f"{ratio:.0%}"
            words = [str(frames), share]
            told = analytic(lvmae.FLAVOURS[size], one["seen"], one["asked"]) if one else {}
            words += (
                [f"{one['seen'] + one['asked']:,}", f"{one['gflop']:.1f} ({told['gflop']:.1f})"] if one else ["", ""]
            )
            both = flash and whole and flash["fits"] and whole["fits"]
            scores = f"{whole['layer_gib'] - flash['layer_gib']:.3g} " if both and flash and whole else ""
            words += [f"{scores}({told['scores_gib']:.3g})" if one else "", _peak(flash), _peak(whole, cells)]
            here, base = (frames, ratio, "flash"), (32, 0.9, "flash")
            words += [_ratio(timed, here, base, "seconds"), _ratio(timed, here, base, "decoder_seconds")]
            words.append(_ratio(timed, (frames, ratio, "materialised"), here, "seconds"))
            said.append(f"| {' | '.join(words)} |")
    return "\n".join(said) + "\n"


def _ratio(timed: dict[Any, dict[str, Any]], one: tuple[Any, ...], other: tuple[Any, ...], key: str) -> str:
    """How many times as long one cell takes as another."""
    for best_of_three in (True, False):
        a, b = timed.get((best_of_three, *one)), timed.get((best_of_three, *other))
        if a and b and key in a:
            return f"{a[key] / b[key]:.2f}"
    return ""


def _peak(row: dict[str, Any] | None, cells: dict[Any, dict[str, Any]] | None = None) -> str:
    """The peak of a cell. For one that had no room, what it could have had; where scores are materialised also a line through
    those that had room: what they take beyond flash, by the analytic size of the scores."""
    if row is None:
        return ""
    if row["fits"]:
        return f"{row['peak_gib']:.2f}"
    room = [gib for gib in (row["limit_gib"], row["free_gib"] if row["device"] == "cpu" else 0) if gib]
    said = f"> {min(room):.1f}" if room else "no"
    known, asked = [], None
    for (frames, ratio, kernel), cell in (cells or {}).items():
        flash = (cells or {}).get((frames, ratio, "flash"))
        if frames != row["frames"] or kernel != "materialised" or not flash or not flash["fits"]:
            continue
        scores = analytic(lvmae.FLAVOURS[row["size"]], flash["seen"], flash["asked"])["scores_gib"]
        if ratio == row["ratio"]:
            asked = scores, flash["peak_gib"]
        elif cell["fits"]:
            known.append((scores, cell["peak_gib"] - flash["peak_gib"]))
    if asked is None or len(known) < 2:
        return said
    slope, start = np.polyfit([scores for scores, _ in known], [more for _, more in known], 1)
    return f"{said} (about {asked[1] + slope * asked[0] + start:.1f})"


def plot(found: list[dict[str, Any]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    found = [r for r in found if r["device"] == "cpu"]
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
    runs.add_argument("--again", action="store_true", help="also cells that are there; what is measured last counts")
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
