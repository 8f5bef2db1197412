"""A sweep's folder in the contract's layout, made without a model: some trials done, one failed, one running, some waiting."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from fixture_runs import make_run

from vdmreason import config, jobs, store, sweep
from vdmreason.sweep import claims

SHEET: dict[str, Any] = {
    "name": "mazes",
    "tasks": ["maze/7x7", "life/B3S23"],
    "n": [10, 30, 100],
    "seeds": [0, 1, 2],
    "arms": {
        "video": {"family": "cogvideox", "flavour": "tiny"},
        "language": {"family": "causal_lm", "flavour": "tiny"},
    },
    "set": {"test": 6, "optim": {"updates": 4}},
}


def make_sweep(root: Path, undone: int = 4, failed: bool = True, running: bool = True, **changes: Any) -> Path:
    """runs/sweeps/<name>: all trials but the last `undone` are done; of these the first failed, and the next is running (in
    this process)."""
    sheet = {**SHEET, **changes}
    file = root / "sheets" / f"{sheet['name']}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(sheet, sort_keys=False))
    found = sweep.read(file)
    folder = root / "sweeps" / found.folder.name
    plan = sweep.write_plan(folder, found)
    entries = plan["trials"]
    for entry in entries[: len(entries) - undone]:
        finish(folder, entry)
    left = entries[len(entries) - undone :]
    if failed:
        entry = left.pop(0)
        failure = {"error": "RuntimeError: the loss is <not> finite", "final": True, "machine": False, "attempts": 1}
        store.write_json(folder / entry["folder"] / sweep.FAILED, {**failure, "log": "update 3\nloss <nan>\n"})
    if running:
        place = folder / left.pop(0)["folder"]
        place.mkdir(parents=True)
        (place / sweep.CLAIM).write_text(json.dumps({**claims.identity(), "token": "t", "driver": "d"}))
        store.write_json(place / "state.json", {"state": "running", "step": 3, "updates": 4})
    return folder


def finish(folder: Path, entry: dict[str, Any]) -> None:
    """Do a trial of the plan: the more examples, the more answers are right."""
    run, rng = entry["config"], np.random.default_rng(entry["seed"] + entry["n"])
    rate = min(
        0.95, (0.35 if run["family"] == "cogvideox" else 0.18) * np.log10(entry["n"]) / (3 if entry["control"] else 1)
    )
    right = [bool(rng.random() < rate) for _ in range(run["test"])]
    plain = {k: v for k, v in run.items() if k not in ("task", "family", "n", "seed", "flavour", "test")}
    made = make_run(
        folder / "trials",
        entry["task"],
        run["family"],
        right,
        entry["n"],
        entry["seed"],
        flavour=run["flavour"],
        **plain,
    )
    assert made == folder / entry["folder"]
    vouch(made)


def vouch(place: Path) -> None:
    """done.json over what lies there now."""
    about = {
        "host": socket.gethostname(),
        "commit": "c0ffee" + "0" * 34,
        "seconds": 75.0,
        "training": 60.0,
        "answering": 10.0,
    }
    store.write_json(place / sweep.DONE, {"sha256": sweep.hashes(place), **about})


__all__ = ["SHEET", "config", "finish", "jobs", "make_sweep", "vouch"]
