"""Run folders in the contract's layout, made without a model: true answers, damaged where a test wants a wrong one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import adapters
import tasks
from adapters import cogvideox
from tasks import text
from tasks.render import STYLES, read
from vdmreason import config, evaluate, store


def make_run(
    root: Path,
    task: str,
    family: str,
    right: list[bool],
    n: int = 30,
    seed: int = 0,
    seconds: float = 0.8,
    **changes: Any,
) -> Path:
    """A run that answered `len(right)` test examples, those marked right exactly, the others with a few wrong cells.

    The language arm's every second wrong answer is cut off, so that it cannot be parsed. The video arm's clip carries
    pixel noise, so that its certainty is below 1.
    """
    run = config.resolve(
        {"task": task, "n": n, "family": family, "seed": seed, "flavour": "tiny", "test": len(right), **changes}
    )
    folder = root / run.name
    store.write_config(folder, run)
    puzzle = tasks.get(run.tested)
    options = run.arm_options()
    module = adapters.family(family)
    rng = np.random.default_rng(seed)
    records, wrongs = [], 0
    for i, example in enumerate(config.test_examples(run)):
        proposed = example.answer.copy()
        if not right[i]:
            for _ in range(3):
                r, c = rng.integers(proposed.shape[0]), rng.integers(proposed.shape[1])
                proposed[r, c] = (proposed[r, c] + 1) % (max(2, int(example.answer.max()) + 1))
            wrongs += 1
        certainty, problem = None, ""
        if module.ARM == "video":
            answered = type(example)(example.question, proposed, example.canvas)
            clip = module.frame(answered, options).wanted.astype(np.int16)
            clip = np.clip(clip + rng.normal(0, 45, clip.shape), 0, 255).astype(np.uint8)
            raw = f"clips/{i:04d}.webp"
            store.write_clip(folder / raw, clip)
            reading = read(clip[-1], STYLES[options.style])
            certainty, proposed = reading.certainty.astype(float).round(3), reading.grid
        else:
            raw = text.write(proposed)
            if not right[i] and wrongs % 2 == 0:
                raw = raw[: len(raw) // 2] + "]]"
                try:
                    text.parse(raw)
                except tasks.UserError as error:
                    problem, proposed = str(error), None
        verdict = puzzle.check(proposed, example)
        records.append(
            {
                "i": i, "key": example.key, "question": example.question, "answer": example.answer,
                "canvas": list(example.canvas), "proposed": proposed, "certainty": certainty, "raw": raw,
                "problem": problem, "seconds": seconds, **evaluate.as_record(verdict, problem),
            }
        )  # fmt: skip
    store.write_lines(folder / "predictions.jsonl", records)
    train = tasks.examples(task, "train", run.n, seed)
    store.write_json(
        folder / "result.json",
        {
            "id": run.id, "run": config.to_dict(run), "scores": evaluate.score_records(records),
            "codec": evaluate.score([puzzle.check(e.answer, e) for e in config.test_examples(run)]),
            "provenance": store.provenance(run, train, "cpu", "0123456789abcdef"),
        },
    )  # fmt: skip
    return folder


def make_runs(root: Path) -> dict[str, Path]:
    """Two tasks, both arms. Maze: video right on 0 and 1, language on 1 and 2, none on 3."""
    pattern = {
        "cogvideox": [True, True, False, False, True, False],
        "causal_lm": [False, True, True, False, False, False],
    }
    runs = {f"maze-{family}": make_run(root, "maze/7x7", family, right) for family, right in pattern.items()}
    life = tasks.variants("life")[0]
    return runs | {f"life-{family}": make_run(root, life, family, right) for family, right in pattern.items()}


def draw(arm: Any, seed: int) -> None:
    """Weights that do something: fresh ones are the identity, whichever adapter they are of."""
    import torch

    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for weight in arm.trainable().values():
            weight.normal_(std=0.1)


def adapted(root: Path, family: str, weights: int = 0, **options: object) -> Path:
    """A run with LoRA weights on the tiny backbone that are drawn, and so change what it answers."""
    from vdmreason.train import load_arm

    if family == "cogvideox" and not (cogvideox.ZOO / "vae").exists():
        pytest.skip("the small video backbone, whose codec the tiny one uses, is not in pretrain/zoo")
    run = config.resolve({"task": "maze/7x7", "n": 3, "family": family, "flavour": "tiny", "options": options})
    folder = root / run.name
    store.write_config(folder, run)
    arm = load_arm(run, "cpu")
    draw(arm, weights)
    arm.save(folder / "adapter")
    return folder
