"""The one pretraining loop: a module whose forward is its loss, batches that are a pure function of the step.

Because batch, learning rate and noise are functions of the step, a run that was killed resumes from its newest
checkpoint and ends with the same weights, to the bit on a CPU.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

TIMED_UPDATES = 20  # how many updates are timed before minutes are turned into a number of updates


def lr_at(step: int, updates: int, peak: float, warmup: int = 100, decay: float = 0.4, floor: float = 0.02) -> float:
    """A trapezoid: linear warm-up, constant, linear decay over the last `decay` of all updates down to `floor * peak`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    start = updates * (1 - decay)
    if step < start:
        return peak
    return peak * (1 - (1 - floor) * min(1.0, (step - start) / max(1.0, updates - start)))


def fit(
    module: nn.Module,
    batch_at: Callable[[int], Mapping[str, Any]],
    folder: Path,
    *,
    updates: int | None = None,
    minutes: float | None = None,
    lr: float = 1e-3,
    warmup: int = 100,
    weight_decay: float = 0.01,
    betas: tuple[float, float] = (0.9, 0.95),
    clip: float = 1.0,
    decay: float = 0.4,
    checkpoint_minutes: float = 3.0,
    on_checkpoint: Callable[[int], None] | None = None,
    title: str = "",
) -> dict[str, Any]:
    """Train `module` and leave `metrics.jsonl`, `plan.json` and the newest checkpoint in `folder`.

    `module(**batch)` returns a scalar loss, or a dict with "loss" and further scalars to log. Give `updates`, or
    `minutes`: the first updates are timed, the number that fits is written to `plan.json`, and a resumed run keeps it.
    A non-finite loss stops the run and names the step. Returns the last metrics with `updates` and `seconds` spent.
    """
    folder.mkdir(parents=True, exist_ok=True)
    accelerator = Accelerator()
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(parameters.values(), lr=lr, betas=betas, weight_decay=weight_decay)
    step, spent = _resume(module, optimizer, list(parameters), folder)
    prepared, optimizer_ = accelerator.prepare(module, optimizer)

    plan = json.loads((folder / "plan.json").read_text()) if (folder / "plan.json").exists() else {}
    if updates is None and "updates" in plan and plan.get("minutes") == minutes:
        updates = plan["updates"]
    timing = updates is None  # the plan is made once the first updates have been timed
    total = updates if updates is not None else TIMED_UPDATES + 1
    _cut_metrics(folder / "metrics.jsonl", step)

    bar = tqdm(total=total, initial=step, desc=title, disable=not accelerator.is_main_process, mininterval=2.0)
    began = saved = time.monotonic()
    last: dict[str, Any] = {}
    while step < total:
        if timing and step == TIMED_UPDATES:
            seconds = (time.monotonic() - began) / max(1, step - 2)
            total, timing = max(TIMED_UPDATES + 1, int((minutes or 0) * 60 / seconds)), False
            _write_json(folder / "plan.json", {"updates": total, "minutes": minutes, "seconds_an_update": seconds})
            bar.total = total
            bar.refresh()
        rate = lr_at(step, total if not timing else 10**9, lr, warmup, decay)
        for group in optimizer.param_groups:
            group["lr"] = rate
        output = prepared(**batch_at(step))
        logs = output if isinstance(output, Mapping) else {"loss": output}
        loss: Tensor = logs["loss"]
        if not math.isfinite(loss.item()):
            raise FloatingPointError(f"The loss is {loss.item()} at update {step} (lr {rate:.2g}). Lower the rate.")
        accelerator.backward(loss)
        norm = accelerator.clip_grad_norm_(parameters.values(), clip)
        optimizer_.step()
        optimizer_.zero_grad(set_to_none=True)
        step += 1
        last = {"step": step, "lr": rate, "norm": float(norm), **{k: v.item() for k, v in logs.items()}}
        if accelerator.is_main_process:
            with (folder / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(last) + "\n")
        bar.update()
        bar.set_postfix(loss=f"{last['loss']:.4f}", refresh=False)
        if not sys.stderr.isatty() and step % 200 == 0 and accelerator.is_main_process:
            print(f"{title} {step}/{total} loss {last['loss']:.4f}", flush=True)
        if time.monotonic() - saved > checkpoint_minutes * 60 or step == total:
            if accelerator.is_main_process:
                _save(module, optimizer, list(parameters), folder, step, spent + time.monotonic() - began)
                if on_checkpoint:
                    on_checkpoint(step)
            saved = time.monotonic()
    bar.close()
    if not last and (folder / "metrics.jsonl").exists():  # the run had already ended
        last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    return {**last, "updates": step, "seconds": spent + time.monotonic() - began}


def _save(
    module: nn.Module, optimizer: torch.optim.Optimizer, names: list[str], folder: Path, step: int, seconds: float
) -> None:
    """Write `checkpoint/` beside the old one and swap the two: a kill at any moment leaves one that is whole."""
    fresh, current, old = (folder / n for n in ("checkpoint.new", "checkpoint", "checkpoint.old"))
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    weights = {n: t.detach().contiguous().clone() for n, t in module.state_dict().items()}
    save_file(weights, fresh / "model.safetensors")
    moments = {
        f"{names[i]}|{key}": value.detach().contiguous()
        for i, state in optimizer.state_dict()["state"].items()
        for key, value in state.items()
    }
    save_file(moments, fresh / "optimizer.safetensors")
    _write_json(fresh / "loop.json", {"step": step, "seconds": seconds})
    shutil.rmtree(old, ignore_errors=True)
    if current.exists():
        current.rename(old)
    fresh.rename(current)
    shutil.rmtree(old, ignore_errors=True)


def _resume(module: nn.Module, optimizer: torch.optim.Optimizer, names: list[str], folder: Path) -> tuple[int, float]:
    """Load the newest whole checkpoint into module and optimizer; returns its step and the seconds spent until then."""
    for place in (folder / "checkpoint", folder / "checkpoint.old"):
        if not (place / "loop.json").exists():
            continue
        module.load_state_dict(load_file(place / "model.safetensors"))
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in load_file(place / "optimizer.safetensors").items():
            name, moment = key.rsplit("|", 1)
            state.setdefault(names.index(name), {})[moment] = value
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
        loop = json.loads((place / "loop.json").read_text())
        return loop["step"], loop["seconds"]
    return 0, 0.0


def _cut_metrics(path: Path, step: int) -> None:
    """Drop the lines after the checkpoint (they will be written again) and a line torn by a kill."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (json.JSONDecodeError, KeyError):
            break
    path.write_text("".join(line + "\n" for line in kept))


def _write_json(path: Path, value: Any) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, indent=1))
    os.replace(temporary, path)
