"""What each part of NExT-Vid is good for, at small size on procedural video.

    python benchmarks/nextvid_effects.py run                     # every trial that is not there yet; a killed one resumes
    python benchmarks/nextvid_effects.py run --arm full --seed 0
    python benchmarks/nextvid_effects.py report                  # results/nextvid_effects.{json,md,png}

An arm is the objective with one thing changed; a trial is an arm and a seed. All arms see the same clips in the
same order (`pretrain/scenes.py`: two or three textured objects over a drifting texture), as many updates, and are read by
the same frozen probes: what the largest object is, how it moves, where it ends. Two lines give the scale: an encoder that
was never trained, and one trained on the labels themselves for as many updates. A third reads the pixels.

Masking, isolation and joint denoising are compared on the model without alignment, as in the paper's tables 4, 2 and 5; the
reference's average on the whole one, as in table 12, and on alignment alone, where nothing else holds the features up. What
is probed is the encoder that was trained, never its average, in every arm.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pretrain import loop, masks, nextvid, probe  # noqa: E402
from pretrain.loop import Share  # noqa: E402
from pretrain.scenes import CLASSES, scene  # noqa: E402
from pretrain.vit3d import Encoder, Size  # noqa: E402
from vdmreason import store  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "nextvid_effects.json"
LINES = RESULTS.with_suffix(".jsonl")
WORK = ROOT / "runs" / "nextvid_effects"

SEEDS = (0, 1, 2)
FRAMES, SIDE, GRID = 8, 32, (4, 8, 8)
BATCH, UPDATES, RATE = 32, 1500, 2.0  # RATE times the published learning rates
LABELLED = {"linear": 2000, "attentive": 250}  # labels a probe learns from
PICK, TEST = 500, 2000
EPOCHS = {"linear": 20, "attentive": 60}  # fewer labels, more often
RATES = (3e-2, 1e-2, 3e-3, 1e-3, 3e-4)
PROBED = 10**7  # the seed of the labelled clips: no pretraining draws them

# The published objective at a size where it needs help (docs/log.md): sines, the clean patch asked for, a shorter average.
FULL = nextvid.Config(
    Size(96, 4, 4),
    Size(96, 2, 4),
    Size(96, 2, 4),
    patch=4,
    sines=True,
    asked_for="clean",
    shift=4.0,
    flow=2.0,
    momentum=0.99,
    base=100.0,
)
GENERATE, ALIGN = replace(FULL, align=0.0), replace(FULL, flow=0.0)
ARMS: dict[str, nextvid.Config] = {
    "full": FULL,
    "no alignment": GENERATE,
    "no alignment, no masking": replace(GENERATE, masks=()),
    "no alignment, no masking, equal tokens": replace(GENERATE, masks=()),
    "no alignment, joint denoising": replace(GENERATE, frame_isolated=False),
    "no alignment, not isolated": replace(GENERATE, isolated=False),
    "no average": replace(FULL, momentum=0.0),
    "alignment alone": ALIGN,
    "alignment alone, no average": replace(ALIGN, momentum=0.0),
}
LINES_OF_SCALE = ("supervised", "random", "pixels")


def clips(numbers: range, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
    scenes = [scene(i, seed, FRAMES, SIDE) for i in numbers]
    labels = {name: torch.tensor([s.labels[name] for s in scenes]) for name in CLASSES}
    return torch.from_numpy(np.stack([s.frames for s in scenes])), labels


def batch_of(arm: str) -> int:
    """Clips an update. At equal tokens the encoder without masks sees as many tokens as the two masked passes together."""
    if "equal tokens" not in arm:
        return BATCH
    generator = nextvid.generator(0)
    kept = [masks.blocks(BATCH, GRID[1:], c, s, generator).shape[1] for _ in range(200) for c, s in FULL.masks]
    return max(1, round(BATCH * 2 * float(np.mean(kept)) / (GRID[1] * GRID[2])))


def pretrained(arm: str, seed: int, updates: int) -> tuple[nextvid.NextVid, dict[str, Any]]:
    config, batch = ARMS[arm], batch_of(arm)
    torch.manual_seed(seed)
    model = nextvid.NextVid(config)

    def batch_at(step: int, share: Share) -> dict[str, Any]:
        rows = share.rows(batch)
        video, _ = clips(range(step * BATCH + rows.start, step * BATCH + rows.stop), seed)
        drawn = nextvid.draw(config, model.target.width, GRID, batch, rows, 1, seed, step)
        return {"video": video, **drawn.batch(), "measure": step % 50 == 0}

    # All stages run at one length of clips here, and with one time and noise for a z (table 11 finds no difference).
    log = loop.fit(
        model,
        batch_at,
        WORK / f"{slug(arm)}-{seed}-{updates}",
        updates=updates,
        schedule=lambda step, total: nextvid.rates(step, total, RATE),
        weight_decay=0.04,
        decay_vectors=False,
        title=f"{arm}, seed {seed}",
    )
    return model, log


class Supervised(nn.Module):
    """The same encoder, trained on the labels through a linear layer on the mean of its tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = encoder()
        self.heads = nn.ModuleDict({name: nn.Linear(FULL.encoder.width, n) for name, n in CLASSES.items()})

    def forward(self, video: Tensor, labels: dict[str, Tensor]) -> Tensor:
        pooled = self.encoder(nextvid.to_pixels(video)).mean(1)
        return torch.stack([F.cross_entropy(head(pooled), labels[n]) for n, head in self.heads.items()]).sum()


def encoder() -> Encoder:
    return Encoder(FULL.encoder, FULL.patch, FULL.tubelet, pattern="frame-causal", positions="both", base=FULL.base)


def supervised(seed: int, updates: int) -> tuple[Encoder, dict[str, Any]]:
    torch.manual_seed(seed)
    model = Supervised()

    def batch_at(step: int, share: Share) -> dict[str, Any]:
        video, labels = clips(range(step * BATCH, (step + 1) * BATCH), seed)
        return {"video": video, "labels": labels}

    log = loop.fit(
        model,
        batch_at,
        WORK / f"supervised-{seed}-{updates}",
        updates=updates,
        schedule=loop.trapezoid(1e-3),
        title=f"supervised, seed {seed}",
    )
    return model.encoder, log


def trial(arm: str, seed: int, updates: int) -> dict[str, Any]:
    began = time.process_time()
    found: dict[str, Any] = {}
    if arm == "supervised":
        backbone, found["log"] = supervised(seed, updates)
    elif arm == "random":
        torch.manual_seed(seed)
        backbone = encoder()
    elif arm != "pixels":
        model, found["log"] = pretrained(arm, seed, updates)
        backbone = model.encoder
        found |= held_out(model) if ARMS[arm].flow else {}
    found["training_cpu_seconds"] = time.process_time() - began

    def encode(video: Tensor) -> Tensor:
        if arm == "pixels":
            return probe.raw_patches(video, FULL.tubelet, FULL.patch)
        return backbone(nextvid.to_pixels(video))

    most = max(LABELLED.values())
    numbers = [range(i, i + 100) for i in range(0, most + PICK + TEST, 100)]
    labelled = PROBED + 10 + seed  # other clips for every seed: the interval is over them too
    features = probe.features(encode, (clips(some, labelled) for some in numbers), len(numbers))
    if arm != "pixels":
        found |= {k: v.item() for k, v in nextvid.meters(features.tokens[:256], 2048).items()}
    pick, test = features.part(slice(most, most + PICK)), features.part(slice(most + PICK, None))
    for kind, count in LABELLED.items():
        pooled = [part.pooled() if kind == "linear" else part for part in (features.part(slice(count)), pick, test)]
        for label in CLASSES:
            score = probe.probe(kind, *pooled, label, seed=seed, epochs=EPOCHS[kind], rates=RATES)
            found[f"{label}, {kind}"] = asdict(score)
    return {"arm": arm, "seed": seed, "updates": updates, **found}


@torch.no_grad()
def held_out(model: nextvid.NextVid, count: int = 256) -> dict[str, float]:
    """On clips that no training draws, and for the last frame alone, so that no arm is told of it by another frame's noise:
    the error of the clean patch that the decoder guesses, with the past whole and with the past masked, the same places,
    times and noise for every arm; and how far a drawn last frame is from the true one, beside a copy of the frame before."""
    model.eval()
    video, _ = clips(range(count), PROBED + 1)
    pixels, last = nextvid.to_pixels(video), GRID[0] - 1
    clean, places = model.target.encode(pixels), GRID[1] * GRID[2]
    drawn = nextvid.draw(FULL, model.target.width, GRID, count, range(count), 4, PROBED)
    found = {}
    for name, keep in (("whole", None), ("masked", drawn.keeps[0])):
        asked = drawn.asked[0][:, -drawn.asked[0].shape[1] // last :]  # the places hidden by the first mask, last frame
        at = nextvid.gather(nextvid.coordinates(GRID)[None], asked)
        z = model.predict(model.context(pixels, keep), at, 0)
        wanted = nextvid.gather(clean, asked)
        noises, times = drawn.noises[0][:, :, -asked.shape[1] :], drawn.times[0][:, :, -1:]
        losses = [model.flow_loss(wanted, z, at, noises[k], times[k], 1) for k in range(4)]
        found[f"held_out_{name}"] = torch.stack(losses).mean().item()
    context = model.context(pixels[:, :, : -FULL.tubelet])
    tokens = model.next_frame(context, GRID[1:], last, 20, generator=nextvid.generator(PROBED))
    assert tokens.shape[1] == places
    guess = nextvid.to_uint8(model.target.decode(tokens, (1, *GRID[1:])).clamp(-1, 1)).float()
    true = video[:, -FULL.tubelet :].float()
    model.train()
    copy = video[:, -FULL.tubelet - 1 : -FULL.tubelet].float()
    return found | {
        "drawn_error": (guess - true).abs().mean().item(),
        "copy_error": (copy - true).abs().mean().item(),
    }


def slug(text: str) -> str:
    return text.replace(",", "").replace(" ", "-")


def done() -> list[dict[str, Any]]:
    return [json.loads(line) for line in LINES.read_text().splitlines()] if LINES.exists() else []


def run(arms: list[str], seeds: list[int], updates: int) -> None:
    made = {"commit": commit()}  # of the code that runs, which a later commit does not change
    for seed, arm in itertools.product(seeds, arms):  # seed by seed: after a third of the time there is a whole table
        if any((t["arm"], t["seed"], t["updates"]) == (arm, seed, updates) for t in done()):
            continue
        found = trial(arm, seed, updates)
        found |= made | {"machine": f"{torch.get_num_threads()} CPU thread(s)", "torch": torch.__version__}
        with LINES.open("a") as file:
            file.write(json.dumps(found) + "\n")
        print(
            arm, seed, {k: round(v["accuracy"], 3) for k, v in found.items() if isinstance(v, dict) and "accuracy" in v}
        )


def commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()


# What is compared with what, and what the paper found (average of its two read-outs, ImageNet-1K and SSv2, in points).
EFFECTS = {
    "masking, at equal updates": ("no alignment", "no alignment, no masking", "table 4: +44.0"),
    "masking, at equal encoder tokens": ("no alignment", "no alignment, no masking, equal tokens", "table 4: +44.0"),
    "alignment": ("full", "no alignment", "table 2: +2.6"),
    "averaged reference": ("full", "no average", "table 12: collapses without"),
    "averaged reference, alignment alone": ("alignment alone", "alignment alone, no average", "not in the paper"),
    "context isolation": ("no alignment", "no alignment, not isolated", "table 2: -2.0"),
    "frame-isolated denoising": ("no alignment", "no alignment, joint denoising", "table 5: +3.5"),
}
READ = [f"{label}, {kind}" for kind in LABELLED for label in CLASSES]


def report(updates: int) -> None:
    """Tables of means over seeds with Student's interval, paired differences for the effects, and a plot."""
    trials = [t for t in done() if t["updates"] == updates]
    if not trials:
        raise SystemExit("no trials yet: run them first")
    by_arm = {arm: [t for t in trials if t["arm"] == arm] for arm in (*LINES_OF_SCALE, *ARMS)}
    rows = {
        arm: {column: probe.interval([t[column]["accuracy"] for t in some]) for column in READ}
        | {
            name: probe.interval([t[name] for t in some])
            for name in ("deviation", "rank", "held_out_whole", "held_out_masked", "drawn_error", "copy_error")
            if all(name in t for t in some)
        }
        for arm, some in by_arm.items()
        if some
    }
    effects = {}
    for name, (one, other, paper) in EFFECTS.items():
        seeds = sorted({t["seed"] for t in by_arm[one]} & {t["seed"] for t in by_arm[other]})
        if seeds:
            found = {arm: {t["seed"]: t for t in by_arm[arm]} for arm in (one, other)}
            effects[name] = {"paper": paper} | {
                c: probe.interval([found[one][s][c]["accuracy"] - found[other][s][c]["accuracy"] for s in seeds])
                for c in READ
            }
    table = {
        "command": "python benchmarks/nextvid_effects.py run && python benchmarks/nextvid_effects.py report",
        "trials": len(trials),
        "of": len(SEEDS) * (len(ARMS) + len(LINES_OF_SCALE)),
        "commits": sorted({t["commit"] for t in trials}),
        "machine": sorted({t["machine"] for t in trials}),
        "updates": updates,
        "labels": LABELLED,
        "chance": {name: 1 / count for name, count in CLASSES.items()},
        "rows": rows,
        "effects": effects,
    }
    store.write_json(RESULTS, table)
    RESULTS.with_suffix(".md").write_text(markdown(table))
    plot(table)
    print(markdown(table))


def markdown(table: dict[str, Any]) -> str:
    def cell(value: dict[str, float] | None, scale: float = 100, sign: str = "") -> str:
        if value is None:
            return ""
        middle = f"{scale * value['value']:{sign}.1f}"
        return middle if value["seeds"] < 2 else f"{middle} [{scale * value['low']:.0f}, {scale * value['high']:.0f}]"

    heads = [f"{c} ({LABELLED[c.partition(', ')[2]]})" for c in READ]
    chance = ", ".join(f"{n} {100 * c:.1f}" for n, c in table["chance"].items())
    lines = [
        f"{table['trials']} of {table['of']} trials. Accuracy of frozen probes in %, mean over seeds [95 % interval, Student's "
        f"t]; in brackets behind a read-out the labels it learns from. Chance: {chance}. Small encoders, procedural video, "
        f"{table['updates']:,} updates.",
        "",
        f"| features | seeds | {' | '.join(heads)} | held-out error, past whole / masked | drawn error (a copy's) | rank |",
        "|---" * (len(heads) + 5) + "|",
    ]
    for arm, row in table["rows"].items():
        error = f"{row['drawn_error']['value']:.1f} ({row['copy_error']['value']:.1f})" if "drawn_error" in row else ""
        held = [f"{row[k]['value']:.4f}" for k in ("held_out_whole", "held_out_masked") if k in row]
        rank = f"{row['rank']['value']:.0f}" if "rank" in row else ""
        cells = " | ".join(cell(row[c]) for c in READ)
        lines.append(f"| {arm} | {row[READ[0]]['seeds']} | {cells} | {' / '.join(held)} | {error} | {rank} |")
    lines += ["", "Differences in points, paired by seed:", "", "| effect | " + " | ".join(READ) + " | the paper's |"]
    lines.append("|---" * (len(READ) + 2) + "|")
    for name, effect in table["effects"].items():
        lines.append(f"| {name} | " + " | ".join(cell(effect[c], sign="+") for c in READ) + f" | {effect['paper']} |")
    return "\n".join(lines) + "\n"


def plot(table: dict[str, Any]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    arms = list(table["rows"])
    figure, axes = plt.subplots(len(LABELLED), len(CLASSES), figsize=(12, 6.5), sharey=True, layout="constrained")
    for axis, column in zip(axes.flat, READ, strict=True):
        for place, arm in enumerate(arms):
            value = table["rows"][arm][column]
            middle, low, high = (100 * value[k] for k in ("value", "low", "high"))
            colour = "0.55" if arm in LINES_OF_SCALE else "C1" if "no masking" in arm else "C0"
            axis.plot([low, high], [place, place], color=colour, linewidth=2)
            axis.plot(middle, place, "o", color=colour)
        label, _, kind = column.partition(", ")
        axis.axvline(100 * table["chance"][label], color="0.8", linestyle="--", zorder=0)
        axis.set_title(f"{label}: {kind}, {LABELLED[kind]} labels", fontsize=10)
        axis.set_yticks(range(len(arms)), arms, fontsize=8)
    axes[0, 0].invert_yaxis()
    figure.supxlabel("accuracy, %; dashed: chance; bars: 95 % interval over seeds", fontsize=9)
    for suffix in (".png", ".svg"):
        figure.savefig(RESULTS.with_suffix(suffix), dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    runs = commands.add_parser("run", help="run the trials that are not there yet")
    runs.add_argument("--arm", action="append", choices=(*LINES_OF_SCALE, *ARMS), help="only this; may be repeated")
    runs.add_argument("--seed", action="append", type=int, help="only this; may be repeated")
    runs.add_argument("--updates", type=int, default=UPDATES)
    runs.add_argument("--threads", type=int, default=1)
    reports = commands.add_parser("report", help="write the table and the plot")
    reports.add_argument("--updates", type=int, default=UPDATES)
    given = parser.parse_args()
    if given.command == "report":
        report(given.updates)
        return
    torch.set_num_threads(given.threads)
    run(given.arm or [*LINES_OF_SCALE, *ARMS], given.seed or list(SEEDS), given.updates)


if __name__ == "__main__":
    main()
