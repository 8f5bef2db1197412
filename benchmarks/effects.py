"""What the studies of pretraining recipes share: labelled clips, what is read from a frozen encoder, trials that are kept as
they come, tables of means with intervals, and a plot.

A study is arms (an objective with one thing changed) times seeds. All arms see the same clips in the same order, and are read
by the same frozen heads. Lines of scale say what the numbers mean: an encoder that was trained on the labels themselves, one
that was never trained, and the pixels.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from filelock import FileLock
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pretrain import heads, loop, probe  # noqa: E402
from pretrain.recipe import to_pixels  # noqa: E402
from pretrain.scenes import CLASSES, Scene, scene  # noqa: E402
from pretrain.stored import Stored  # noqa: E402
from pretrain.targets import meters  # noqa: E402
from vdmreason import store  # noqa: E402

SEEDS = (0, 1, 2)
# Small, so that 100,000 clips are seen in a quarter of an hour of one core: with 32 pixels and half as many clips what was learnt
# could not be told from random weights (docs/log.md).
FRAMES, SIDE, TUBELET, PATCH = 8, 24, 2, 4
GRID = (4, 6, 6)
LABELLED = {"linear": 2000, "attentive": 250}  # labels a probe learns from
PICK, TEST = 500, 2000
EPOCHS = {"linear": 20, "attentive": 60}  # fewer labels, more often
RATES = (3e-2, 1e-2, 3e-3, 1e-3, 3e-4)
PROBED = 10**7  # the seed of the labelled clips: no pretraining draws them
HEADS = {"learn": 400, "pick": 200, "test": 600}  # clips for depth order and tracks
LINES = ("supervised", "random", "pixels")

Found = dict[str, Any]


def scenes(numbers: Iterable[int], seed: int) -> list[Scene]:
    return [scene(i, seed, FRAMES, SIDE) for i in numbers]


def clips(numbers: Iterable[int], seed: int) -> tuple[Tensor, dict[str, Tensor]]:
    """uint8 (B, F, H, W, 3) and labels."""
    made = scenes(numbers, seed)
    labels = {name: torch.tensor([s.labels[name] for s in made]) for name in CLASSES}
    return torch.from_numpy(np.stack([s.frames for s in made])), labels


# What is read


def read(encode: Callable[[Tensor], Tensor], seed: int, measure: bool = True, dense: bool = False) -> Found:
    """Scores of probes on `encode`, uint8 (B, F, H, W, 3) on the device -> (B, N, D); `dense` adds depth order and tracks."""
    most = max(LABELLED.values())
    numbers = [range(i, i + 100) for i in range(0, most + PICK + TEST, 100)]
    labelled = PROBED + 10 + seed  # other clips for every seed: the interval is over them too
    features = probe.features(
        lambda video: encode(video.to(device())), (clips(some, labelled) for some in numbers), len(numbers)
    )
    found: Found = {}
    if measure:
        found |= {name: value.item() for name, value in meters(features.tokens[:256], 2048).items()}
    pick, test = features.part(slice(most, most + PICK)), features.part(slice(most + PICK, None))
    for kind, count in LABELLED.items():
        pooled = [part.pooled() if kind == "linear" else part for part in (features.part(slice(count)), pick, test)]
        for label in CLASSES:
            score = probe.probe(kind, *pooled, label, seed=seed, epochs=EPOCHS[kind], rates=RATES)  # type: ignore[arg-type]
            found[f"{label}, {kind}"] = asdict(score)
    if dense:
        found |= read_dense(features.tokens, labelled, seed)
    return found


def read_dense(tokens: Tensor, labelled: int, seed: int) -> Found:
    ends = np.cumsum([0, *HEADS.values()])
    told = heads.truth(scenes(range(ends[-1]), labelled), TUBELET)
    parts = [(tokens[a:b], told.part(slice(a, b))) for a, b in itertools.pairwise(ends.tolist())]
    depth = heads.depth(*parts, GRID, seed=seed)
    track = heads.track(*parts, GRID, seed=seed)
    scores = {"depth pairs": depth["pairs"], "depth ranks": depth["ranks"], "track IoU": track["iou"]}
    return {
        **{name: {"accuracy": score} for name, score in scores.items()},
        "staying": heads.staying(parts[2][1])["iou"],
        "one rank": heads.one_rank(parts[2][1]),
    }


class Supervised(nn.Module):
    """An encoder trained on the labels through a linear layer on the mean of its tokens."""

    def __init__(self, encoder: nn.Module, width: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.heads = nn.ModuleDict({name: nn.Linear(width, n) for name, n in CLASSES.items()})

    def forward(self, video: Tensor, labels: dict[str, Tensor]) -> Tensor:
        pooled = self.encoder(to_pixels(video)).mean(1)
        return torch.stack([F.cross_entropy(head(pooled), labels[n]) for n, head in self.heads.items()]).sum()


def supervised(encoder: nn.Module, width: int, work: Path, seed: int, updates: int, batch: int) -> Found:
    """Train `encoder` on the labels; the log."""
    model = Supervised(encoder, width)

    def batch_at(step: int, share: loop.Share) -> dict[str, Any]:
        video, labels = clips(range(step * batch, (step + 1) * batch), seed)
        return {"video": video, "labels": labels}

    title = f"supervised, seed {seed}"
    return loop.fit(model, batch_at, work, updates=updates, schedule=loop.trapezoid(1e-3), title=title)


# A study


@dataclass
class Study:
    """`trial(arm, seed, updates)` runs one and gives what it found; `effects` name what is compared with what: (an arm, another,
    the paper's figure). `columns` are further read-outs than the probes', `numbers` what else stands in the table."""

    name: str
    arms: Sequence[str]
    effects: Mapping[str, tuple[str, str, str]]
    trial: Callable[[str, int, int], Found]
    updates: int
    about: str | Callable[[], str]
    classes: Mapping[str, int] = field(default_factory=lambda: dict(CLASSES))  # what is asked
    labelled: Mapping[str, int] = field(default_factory=lambda: dict(LABELLED))  # by what, and from how many labels
    lines_of_scale: Sequence[str] = LINES
    columns: Sequence[str] = ()
    numbers: Mapping[str, Callable[[Mapping[str, Any]], str]] = field(default_factory=dict)
    dim: Callable[[str], bool] = lambda arm: False  # arms that the plot marks
    # whether two trials of a seed may be paired: what grew from the same first stage
    akin: Callable[[Found, Found], bool] = lambda one, other: True
    keep: bool = False  # clips on the disk, for all arms

    @property
    def results(self) -> Path:
        return ROOT / "benchmarks" / "results" / f"{self.name}.json"

    @property
    def lines(self) -> Path:
        return self.results.with_suffix(".jsonl")

    @property
    def work(self) -> Path:
        return ROOT / "runs" / self.name

    @property
    def read_outs(self) -> list[str]:
        return [*(f"{label}, {kind}" for kind in self.labelled for label in self.classes), *self.columns]

    def folder(self, arm: str, seed: int, updates: int) -> Path:
        """Where an arm's training lies."""
        return self.work / f"{arm.replace(',', '').replace(' ', '-')}-{seed}-{updates}"

    def alone(self, folder: Path) -> FileLock:
        """One process at a time in a training that arms share: the second waits, and finds it done."""
        folder.mkdir(parents=True, exist_ok=True)
        return FileLock(folder / ".alone")

    def clips(self, render: Callable[[range], Tensor], total: int, **key: Any) -> Stored | None:
        """What `render` gives, uint8 (B, F, H, W, 3) named "video", each clip once for all arms, where clips are kept. `key` is
        all that they depend on."""
        if not self.keep:
            return None
        return Stored(self.work / "clips", key, total, lambda numbers: {"video": render(numbers)})

    def done(self) -> list[Found]:
        return [json.loads(line) for line in self.lines.read_text().splitlines()] if self.lines.exists() else []

    def run(self, arms: Sequence[str], seeds: Sequence[int], updates: int) -> None:
        made = {"commit": commit()}  # of the code that runs, which a later commit does not change
        # Seed by seed: after a third of the time there is a whole table.
        for seed, arm in itertools.product(seeds, arms):
            if any((t["arm"], t["seed"], t["updates"]) == (arm, seed, updates) for t in self.done()):
                continue
            began = time.process_time()
            found = {"arm": arm, "seed": seed, "updates": updates, **self.trial(arm, seed, updates)}
            found |= {"cpu_seconds": time.process_time() - began, **made}
            found |= {"machine": machine(), "torch": torch.__version__}
            with self.lines.open("a") as file:
                file.write(json.dumps(found) + "\n")
            print(arm, seed, {name: round(found[name]["accuracy"], 3) for name in self.read_outs if name in found})

    def report(self, updates: int) -> None:
        """Means over seeds with Student's interval, paired differences for the effects, and a plot."""
        trials = [t for t in self.done() if t["updates"] == updates]
        if not trials:
            raise SystemExit("no trials yet: run them first")
        rows: Found = {}
        for arm in (*self.lines_of_scale, *self.arms):
            some = [t for t in trials if t["arm"] == arm]
            if some:
                rows[arm] = {
                    c: probe.interval([t[c]["accuracy"] for t in some])
                    for c in self.read_outs
                    if all(c in t for t in some)
                }
                plain = [n for n, v in some[0].items() if isinstance(v, float) and all(n in t for t in some)]
                rows[arm] |= {name: probe.interval([t[name] for t in some]) for name in plain}
        effects: Found = {}
        for name, (one, other, paper) in self.effects.items():
            by = {arm: {t["seed"]: t for t in trials if t["arm"] == arm} for arm in (one, other)}
            both = sorted(by[one].keys() & by[other].keys())
            seeds = [s for s in both if self.akin(by[one][s], by[other][s])]
            if seeds:
                pairs = {
                    c: [(by[one][s][c], by[other][s][c]) for s in seeds]
                    for c in self.read_outs
                    if all(c in by[arm][s] for arm in (one, other) for s in seeds)
                }
                gains = {c: [a["accuracy"] - b["accuracy"] for a, b in both] for c, both in pairs.items()}
                effects[name] = {"paper": paper, "seeds": len(seeds)} | {
                    c: probe.interval(values) for c, values in gains.items()
                }
        table = {
            "command": f"python benchmarks/{self.name}.py run && python benchmarks/{self.name}.py report",
            "trials": len(trials),
            "of": len(SEEDS) * (len(self.arms) + len(self.lines_of_scale)),
            "commits": sorted({t["commit"] for t in trials}),
            "machine": sorted({t["machine"] for t in trials}),
            "updates": updates,
            "labels": dict(self.labelled),
            "chance": {name: 1 / count for name, count in self.classes.items()},
            "rows": rows,
            "effects": effects,
        }
        store.write_json(self.results, table)
        text = self.markdown(table)
        self.results.with_suffix(".md").write_text(text)
        self.plot(table)
        print(text)

    def markdown(self, table: Found) -> str:
        def cell(value: Mapping[str, float] | None, sign: str = "") -> str:
            if value is None:
                return ""
            middle = f"{100 * value['value']:{sign}.1f}"
            return middle if value["seeds"] < 2 else f"{middle} [{100 * value['low']:.0f}, {100 * value['high']:.0f}]"

        columns = [c for c in self.read_outs if any(c in row for row in table["rows"].values())]
        kinds = {c: c.partition(", ")[2] for c in columns}
        titles = [f"{c} ({self.labelled[k]})" if k else c for c, k in kinds.items()]
        about = self.about if isinstance(self.about, str) else self.about()
        chance = ", ".join(f"{n} {100 * c:.1f}" for n, c in table["chance"].items())
        lines = [
            f"{table['trials']} of {table['of']} trials, {table['updates']:,} updates each. Accuracy in %, mean "
            "over seeds [95 % interval, Student's t]; in brackets behind a read-out the labels that it learns from. "
            f"Chance: {chance}. {about}",
            "",
            f"| features | seeds | {' | '.join([*titles, *self.numbers])} |",
            "|---" * (len(titles) + len(self.numbers) + 2) + "|",
        ]
        for arm, row in table["rows"].items():
            cells = [cell(row.get(c)) for c in columns] + [said(row) for said in self.numbers.values()]
            lines.append(f"| {arm} | {row[self.read_outs[0]]['seeds']} | {' | '.join(cells)} |")
        lines += ["", "Differences in points, paired by seed:", ""]
        lines += [f"| effect | seeds | {' | '.join(columns)} | the paper's |", "|---" * (len(columns) + 3) + "|"]
        for name, effect in table["effects"].items():
            cells = [cell(effect.get(c), "+") for c in columns]
            lines.append(f"| {name} | {effect['seeds']} | {' | '.join(cells)} | {effect['paper']} |")
        return "\n".join(lines) + "\n"

    def plot(self, table: Found) -> None:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt

        arms, wide = list(table["rows"]), len(self.classes)
        tall = -(-len(self.read_outs) // wide)
        size = (4 * wide, 0.9 + tall * (0.9 + 0.19 * len(arms)))
        figure, axes = plt.subplots(tall, wide, figsize=size, sharey=True, layout="constrained", squeeze=False)
        for axis, column in zip(axes.flat, self.read_outs, strict=False):
            for place, arm in enumerate(arms):
                value = table["rows"][arm].get(column)
                if value is None:
                    continue
                middle, low, high = (100 * value[k] for k in ("value", "low", "high"))
                colour = "0.55" if arm in self.lines_of_scale else "C1" if self.dim(arm) else "C0"
                axis.plot([low, high], [place, place], color=colour, linewidth=2)
                axis.plot(middle, place, "o", color=colour)
            label, _, kind = column.partition(", ")
            if label in table["chance"]:
                axis.axvline(100 * table["chance"][label], color="0.8", linestyle="--", zorder=0)
            axis.set_title(f"{label}: {kind}, {self.labelled[kind]} labels" if kind else label, fontsize=10)
            axis.set_yticks(range(len(arms)), arms, fontsize=8)
        axes.flat[0].invert_yaxis()
        figure.supxlabel("accuracy, %; dashed: chance; bars: 95 % interval over seeds", fontsize=9)
        for suffix in (".png", ".svg"):
            figure.savefig(self.results.with_suffix(suffix), dpi=130)
        plt.close(figure)

    def main(self, about: str | None) -> None:
        parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
        commands = parser.add_subparsers(dest="command", required=True)
        runs = commands.add_parser("run", help="run the trials that are not there yet")
        runs.add_argument(
            "--arm", action="append", choices=(*self.lines_of_scale, *self.arms), help="only this; may be repeated"
        )
        runs.add_argument("--seed", action="append", type=int, help="only this; may be repeated")
        runs.add_argument("--updates", type=int, default=self.updates)
        runs.add_argument("--threads", type=int, default=1)
        runs.add_argument(
            "--keep-clips", action="store_true", help="render each clip once for all arms: gigabytes below runs/"
        )
        reports = commands.add_parser("report", help="write the table and the plot")
        reports.add_argument("--updates", type=int, default=self.updates)
        given = parser.parse_args()
        if given.command == "report":
            self.report(given.updates)
            return
        torch.set_num_threads(given.threads)
        self.keep = given.keep_clips
        self.run(given.arm or [*self.lines_of_scale, *self.arms], given.seed or list(SEEDS), given.updates)


def device() -> torch.device:
    """Where trainings run, and so what is read is computed."""
    return loop.processes().device


def machine() -> str:
    threads = f"{torch.get_num_threads()} CPU thread(s)"
    return f"{torch.cuda.get_device_name()}, {threads}" if torch.cuda.is_available() else threads


def commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()


def mean(row: Mapping[str, Any], name: str, digits: int = 0) -> str:
    """A number of a row for the table, "" where it has none."""
    return f"{row[name]['value']:.{digits}f}" if name in row else ""
