"""The first table: who learns more from n examples, the video arm or the language arm, and what did pretraining give?

    python benchmarks/first_table.py run                      # 36 short trials a backbone; stop and start it as you like
    python benchmarks/first_table.py run --family causal_lm   # one arm only: two processes, one core each
    python benchmarks/first_table.py report                   # results/first_table.{json,md,svg}
    python benchmarks/first_table.py ship                     # the pretrained n = 300 runs of seed 0 into adapters/zoo/

Tasks {maze 7x7, Game of Life, a colour-moving ARC-style rule (mirror)} x n {30, 300} x {the small backbones that ship} x
{pretrained, random init} x 3 seeds. Every trial is an ordinary run: `vdmreason train` would do the
same with its config.yaml. Runs lie in runs/first_table/<weights of the backbone>/. A finished trial is one line of
results/first_table.<family>.jsonl with every verdict in it, so that those that are done are not done again, here or on
another machine, unless the backbone that ships has changed.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import itertools
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from vdmreason import config, evaluate, library, store  # noqa: E402

TASKS = {"maze/7x7": "maze 7x7", "life/B3S23": "Game of Life 8x8", "colour_moves/mirror": "mirror the colours 8x8"}
FAMILIES = {"cogvideox": "video: CogVideoX", "nextvid": "video: NExT-Vid", "causal_lm": "language: Qwen3"}
INITS, NS, SEEDS = ("pretrained", "random"), (300, 30), (0, 1, 2)
UPDATES, BATCH, RANK, TEST = 400, 16, 32, 100
RATES = {"causal_lm": {"lr": 5e-3}}  # the preset when these trials were done; others are at theirs
RUNS = ROOT / "runs" / "first_table"
RESULTS = ROOT / "benchmarks" / "results"


def trials() -> list[config.Run]:
    """All of them, the larger n first and then seed by seed, so that a table with fewer of them is complete early."""
    axes = itertools.product(NS, SEEDS, INITS, TASKS, FAMILIES)
    return [
        config.resolve(
            {"task": task, "n": n, "seed": seed, "family": family, "flavour": "small", "init": init, "test": TEST,
             "lora": {"rank": RANK, "alpha": RANK}, "optim": {"updates": UPDATES, "batch": BATCH} | RATES.get(family, {})}
        )
        for n, seed, init, task, family in axes
    ]  # fmt: skip


@functools.cache
def weights(family: str) -> str:
    """Which weights the small backbone of a family has today: sha256 over its files, shortened."""
    digest = hashlib.sha256()
    for path in sorted((ROOT / "pretrain" / "zoo" / family).rglob("*.safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:8]


def folder_of(trial: config.Run) -> Path:
    return RUNS / weights(trial.family) / trial.name


def journal(family: str) -> Path:
    return RESULTS / f"first_table.{family}.jsonl"


def finished() -> dict[str, dict[str, Any]]:
    """The journals' lines that hold for today's backbones, by run id."""
    lines = (line for family in FAMILIES for line in store.read_lines(journal(family)))
    return {line["id"]: line for line in lines if line["weights"] == weights(line["family"])}


def run_all(family: str | None, threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    from vdmreason.predict import predict
    from vdmreason.train import train

    wanted = [t for t in trials() if family in (None, t.family)]
    known = finished()
    for number, trial in enumerate(wanted, start=1):
        if trial.id in known:
            continue
        print(f"trial {number} of {len(wanted)}: {trial.name}", flush=True)
        folder = folder_of(trial)
        arm = train(trial, folder)
        if not store.whole_folder(folder / "adapter"):
            sys.exit("stopped; the same command goes on from here")
        predict(folder, arm)
        write_down(trial)


def write_down(trial: config.Run) -> None:
    """A finished trial as one line of its arm's journal; lines of older backbones are dropped."""
    folder = folder_of(trial)
    result = store.read_json(folder / "result.json") or {}
    answers = store.read_lines(folder / "predictions.jsonl")
    line = {
        "id": trial.id, "name": trial.name, "family": trial.family, "weights": weights(trial.family),
        "seconds_per_answer": result["seconds_per_answer"],
        "seconds_per_update": float(np.median([m["seconds"] for m in store.read_lines(folder / "metrics.jsonl")])),
        **{key: result[key] for key in ("provenance", "baselines", "codec")},
        **{key: "".join(str(int(a[key])) for a in answers) for key in ("exact", "valid", "right")},
        "read": "".join(str(int(a["proposed"] is not None)) for a in answers),
        "cells": [round(a["cells"], 4) for a in answers],
    }  # fmt: skip
    lines = [old for old in store.read_lines(journal(trial.family)) if old["weights"] == line["weights"]]
    store.write_lines(journal(trial.family), [*(old for old in lines if old["id"] != trial.id), line])


def verdicts(line: dict[str, Any]) -> list[dict[str, Any]]:
    """A line's answers as `evaluate.rows` wants them."""
    answers = zip(line["exact"], line["valid"], line["right"], line["cells"], line["read"], strict=True)
    return [
        {"exact": e == "1", "valid": v == "1", "right": r == "1", "cells": c, "proposed": [] if read == "1" else None}
        for e, v, r, c, read in answers
    ]


def report() -> None:
    """Collect what is done; say how much that is."""
    known = finished()
    done = [trial for trial in trials() if trial.id in known]
    table = {
        "command": "python benchmarks/first_table.py run; python benchmarks/first_table.py report",
        "protocol": {
            "updates": UPDATES,
            "batch": BATCH,
            "test": TEST,
            "seeds": SEEDS,
            "lora": f"rank {RANK}, attention + mlp",
        },
        "trials_done": len(done),
        "trials": len(trials()),
        "rows": evaluate.rows([(t, verdicts(known[t.id]), known[t.id]) for t in done]),
        "answers": [journal(family).name for family in FAMILIES],
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "first_table.json").write_text(json.dumps(table, indent=1))
    (RESULTS / "first_table.md").write_text(markdown(table))
    plot(table)
    print(markdown(table))


def ship() -> None:
    """Copy what the page shows without training: adapter, answers, clips and scores of seed 0, without checkpoints."""
    zoo = ROOT / "adapters" / "zoo"
    for trial in trials():
        made = folder_of(trial)
        if (trial.seed, trial.n, trial.init) == (0, max(NS), "pretrained") and (made / "adapter").is_dir():
            folder = zoo / f"{config.slug(trial.task)}--{trial.family}--n{trial.n}"
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(made, folder, ignore=shutil.ignore_patterns("checkpoints", "log.txt", ".*", "lock"))
            for clip in folder.glob("clips/*.webp"):  # the answers were read from the raw frames; these are for people
                store.write_clip(clip, store.read_clip(clip), lossless=False)
            library.leave_card(folder)
            print(folder.relative_to(ROOT))


def cells(table: dict[str, Any], **wanted: Any) -> list[dict[str, Any]]:
    """The rows whose run has these values."""
    return [row for row in table["rows"] if all(row["run"][k] == v for k, v in wanted.items())]


def markdown(table: dict[str, Any]) -> str:
    lines = [
        f"{table['trials_done']} of {table['trials']} trials are done. Exact match in %, mean over seeds "
        "[95 % interval over seeds and test examples]; share of right cells behind it. "
        f"{UPDATES} LoRA updates of {BATCH}, rank {RANK}, {TEST} test examples a trial. The backbones are small and were "
        "pretrained by us on procedural video and plain text.",
        "",
        "| task | n | arm: backbone | pretrained | random init | copy the input | nearest example | codec ceiling |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for task, n, family in itertools.product(TASKS, sorted(NS), FAMILIES):
        rows = {init: cells(table, task=task, n=n, family=family, init=init) for init in INITS}
        if any(rows.values()):
            ceiling = max(row["codec"] for found in rows.values() for row in found)
            shown = " | ".join(_cell(rows[init]) for init in INITS)
            easy = next(row["baselines"] for found in rows.values() for row in found)
            trivial = " | ".join(f"{100 * easy[name]:.1f}" for name in evaluate.BASELINES)
            lines.append(f"| {TASKS[task]} | {n} | {FAMILIES[family]} | {shown} | {trivial} | {ceiling:.0%} |")
    return "\n".join(lines) + "\n"


def _cell(found: list[dict[str, Any]]) -> str:
    if not found:
        return "not run yet"
    row, exact = found[0], {k: 100 * v for k, v in found[0]["exact"].items()}
    seeds = "" if len(row["seeds"]) == len(SEEDS) else f", seeds {row['seeds']}"
    interval = f"{exact['value']:.1f} [{exact['low']:.1f}, {exact['high']:.1f}]"
    return f"{interval} ({row['cells']['value']:.1%} of cells{seeds})"


def plot(table: dict[str, Any]) -> None:
    """results/first_table.svg: exact match (filled) and right cells (open) against n, a panel a task."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(TASKS), figsize=(10.5, 3.4), sharey=True, layout="constrained")
    colours = {"cogvideox": "#c2410c", "nextvid": "#d99b16", "causal_lm": "#1d4ed8"}
    for panel, (task, title) in zip(panels, TASKS.items(), strict=True):
        for (family, arm), init in itertools.product(FAMILIES.items(), INITS):
            points = sorted(cells(table, task=task, family=family, init=init), key=lambda row: row["run"]["n"])
            if not points:
                continue
            x = [row["run"]["n"] for row in points]
            y, low, high = (np.array([100 * row["exact"][k] for row in points]) for k in ("value", "low", "high"))
            style = {"color": colours[family], "linestyle": "-" if init == "pretrained" else ":"}
            panel.errorbar(x, y, [y - low, high - y], marker="o" if init == "pretrained" else "x", capsize=3,
                           label=f"{arm}, {init}", **style)  # fmt: skip
        panel.set(title=title, xscale="log", xlabel="training examples n", ylim=(-3, 103), xticks=sorted(NS))
        panel.set_xticklabels([str(n) for n in sorted(NS)])
        panel.minorticks_off()
        panel.grid(alpha=0.25)
    panels[0].set_ylabel("exact match, %")
    panels[-1].legend(fontsize=8, frameon=False, loc="upper left")
    for ending in ("svg", "png"):
        figure.savefig(RESULTS / f"first_table.{ending}", dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "report", "ship"))
    parser.add_argument("--family", choices=tuple(FAMILIES), help="only this arm's trials")
    parser.add_argument("--threads", type=int, default=1, help="torch threads; one a process is fastest on few cores")
    arguments = parser.parse_args()
    if arguments.what == "run":
        run_all(arguments.family, arguments.threads)
    if arguments.what == "ship":
        ship()
    report()


if __name__ == "__main__":
    main()
