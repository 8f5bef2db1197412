"""The one pretraining loop: a module whose forward is its loss, batches that are a pure function of the step.

Because batch, learning rate, noise and every other draw are functions of the step, a run that was killed resumes from its newest
checkpoint and ends with the same weights, to the bit on a CPU.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list, gather_object, send_to_device
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from pretrain.data import named_rng


class Stopped(Exception):
    """Someone asked a training to end: its checkpoint has all that was done."""


def never() -> bool:
    return False


stop_wanted: Callable[[], bool] = (
    never  # asked after every update; whoever starts a training may put another in its place
)
SKIPS = 20  # so many updates without a finite gradient in a row are no accident
TIMED_UPDATES = 20  # after so many updates minutes are turned into a number of updates
SLOW_UPDATES = 2  # the first ones, which are not timed
UNTIMED = 3000  # so many updates are assumed until then; a schedule that warms up over a share of them wants a number


def lr_at(step: int, updates: int, peak: float, warmup: int = 100, decay: float = 0.4, floor: float = 0.02) -> float:
    """A trapezoid: linear warm-up, constant, linear decay over the last `decay` of all updates down to `floor * peak`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    start = updates * (1 - decay)
    if step < start:
        return peak
    return peak * (1 - (1 - floor) * min(1.0, (step - start) / max(1.0, updates - start)))


def warm_cosine(step: int, updates: int, peak: float, warmup: float, floor: float = 0.0) -> float:
    """Linear warm-up over a share `warmup` of the updates, then a cosine down to `floor * peak`."""
    start = warmup * updates
    if step < start:
        return peak * (step + 1) / start
    done = min(1.0, (step - start) / max(1.0, updates - start))
    return peak * (floor + (1 - floor) * (1 + math.cos(math.pi * done)) / 2)


@dataclass(frozen=True)
class Share:
    """A process's part of every batch. All processes together see the batch that one alone would see."""

    rank: int = 0
    of: int = 1

    def rows(self, batch: int) -> range:
        if batch % self.of:
            raise ValueError(f"a batch of {batch} does not divide among {self.of} processes")
        each = batch // self.of
        return range(self.rank * each, (self.rank + 1) * each)

    def cut(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """This process's rows of tensors that were made for the whole batch."""
        rows = self.rows(len(next(iter(batch.values()))))
        return {name: value[rows.start : rows.stop] for name, value in batch.items()}


def mean_over_processes(count: Tensor) -> Tensor:
    """A count (), its mean over all processes. A sum divided by it and averaged over processes, as gradients are, is the mean
    over what all have counted; divided by each one's own count, what is seldom would weigh more where it is seldom."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return count
    total = count.float()
    torch.distributed.all_reduce(total)
    return total / torch.distributed.get_world_size()


BatchAt = Callable[[int, Share], Mapping[str, Any]]
# (step, updates) -> learning rate by leading part of a weight's name
Schedule = Callable[[int, int], Mapping[str, float]]


def trapezoid(lr: float, warmup: int = 100, decay: float = 0.4) -> Schedule:
    """`lr_at` for all weights."""
    return lambda step, updates: {"": lr_at(step, updates, lr, warmup, decay)}


CONSTANT_THEN_DOWN = trapezoid(1e-3)


def fit(
    module: nn.Module,
    batch_at: BatchAt,
    folder: Path,
    *,
    updates: int | None = None,
    minutes: float | None = None,
    schedule: Schedule = CONSTANT_THEN_DOWN,
    weight_decay: float = 0.01,
    decay_vectors: bool = True,
    spared: Sequence[str] = (),
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
    clip: float = 1.0,
    precision: Literal["no", "bf16"] = "no",
    settings: Mapping[str, Any] | None = None,
    ahead: bool = False,
    micro: int = 1,
    checkpoint_minutes: float = 3.0,
    on_checkpoint: Callable[[int], None] | None = None,
    bad: Mapping[str, str] | None = None,
    title: str = "",
) -> dict[str, Any]:
    """Train `module` and leave `metrics.jsonl`, `plan.json` and the newest checkpoint in `folder`.

    `module(**batch)` returns a scalar loss, or a dict with "loss" and further scalars to log; `module.after_step()`, if
    there is one, is called after every update. Give `updates`, or `minutes`: the first updates are timed, the number that
    fits is written to `plan.json`, and a resumed run keeps it. `decay_vectors=False` spares biases and norms from weight
    decay, `spared` weights whose name has one of these parts. Each of many processes gets its share of the
    same batches; `ahead` makes the next one in a thread; `micro` walks through a process's share in so many pieces, one after
    the other, where memory is short, for the same update.
    A folder that was begun with other `settings` is refused with a ValueError. `bad` is what could not be read, name -> why, as
    it grows: it is kept with the checkpoints, so that in the end all of it is told, of every process and every start.

    Where `stop_wanted` says so the update is the last: a checkpoint, then Stopped.

    An update whose loss or gradient is not finite is skipped by all processes and counted; SKIPS in a row stop the run.
    Returns the last metrics with `updates`, `skipped` and `seconds` spent, and `bad` where that was given.
    """
    folder.mkdir(parents=True, exist_ok=True)
    accelerator = Accelerator(mixed_precision=precision, cpu=processes().device.type == "cpu")
    pieces = accelerator.num_processes * micro
    shares = [Share(accelerator.process_index * micro + k, pieces) for k in range(micro)]
    if accelerator.is_main_process:
        check_settings(folder, settings or {})
    batches = _Ahead(batch_at, shares, ahead)
    groups = _groups(module, schedule(0, 1), weight_decay, decay_vectors, spared)
    names = [name for group in groups for name in group.pop("names")]
    optimizer = torch.optim.AdamW(groups, lr=1.0, betas=betas, eps=eps)
    step, spent, skipped, met = _resume(module, optimizer, names, folder)
    seed = torch.initial_seed()
    prepared, optimizer_ = accelerator.prepare(module, optimizer)
    parameters = [p for p in prepared.parameters() if p.requires_grad]

    updates = planned(folder, step, updates, minutes)
    first = step
    timing = updates is None  # the plan is made once some updates have been timed
    total = updates if updates is not None else first + TIMED_UPDATES + 1
    if accelerator.is_main_process:
        _cut_metrics(folder / "metrics.jsonl", step)

    bar = tqdm(total=total, initial=step, desc=title, disable=not accelerator.is_main_process, mininterval=2.0)
    began = saved = steady = time.monotonic()
    last: dict[str, Any] = {}
    in_a_row = 0
    while step < total:
        if step == first + SLOW_UPDATES:
            steady = time.monotonic()
        if timing and step == first + TIMED_UPDATES:
            seconds = (time.monotonic() - steady) / (TIMED_UPDATES - SLOW_UPDATES)
            fits = [max(total, int((minutes or 0) * 60 / seconds))]
            total, timing = broadcast_object_list(fits)[0], False
            if accelerator.is_main_process:
                _write_json(folder / "plan.json", {"updates": total, "minutes": minutes, "seconds_an_update": seconds})
            bar.total = total
            bar.refresh()
        rate = schedule(step, total if not timing else first + UNTIMED)
        for group in optimizer.param_groups:
            group["lr"] = rate[group["prefix"]]
        # What a module draws for itself, such as which blocks are passed over, on whatever device.
        torch.manual_seed(int(named_rng("update", seed, step, accelerator.process_index).integers(2**63)))
        found = []
        for number, batch in enumerate(batches(step, step + 1 < total and not timing), 1):
            # Gradients are averaged over processes once, with the last piece.
            with contextlib.nullcontext() if number == micro else accelerator.no_sync(prepared):
                output = prepared(**send_to_device(batch, accelerator.device))
                output = output if isinstance(output, Mapping) else {"loss": output}
                # Also where it is not finite: the other processes wait for these gradients.
                accelerator.backward(output["loss"] / micro)
            found.append({name: value.detach().float() for name, value in output.items()})
        logs = _over_processes(accelerator, found)
        norm = float(accelerator.clip_grad_norm_(parameters, clip))
        if math.isfinite(norm) and math.isfinite(logs["loss"]):
            optimizer_.step()
            in_a_row = 0
            if hasattr(module, "after_step"):
                module.after_step()
        else:
            skipped, in_a_row = skipped + 1, in_a_row + 1
            if in_a_row == SKIPS:
                raise FloatingPointError(
                    f"{SKIPS} updates in a row had no finite gradient, the last at step {step} (learning rate "
                    f"{rate['']:.2g}). Lower the rate, or look at the data."
                )
        optimizer_.zero_grad(set_to_none=True)
        step += 1
        last = {"step": step, "lr": rate[""], "norm": norm, **logs}
        if skipped:
            last["skipped"] = skipped
        if accelerator.is_main_process:
            with (folder / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(_finite(last)) + "\n")
        bar.update()
        bar.set_postfix(loss=f"{last['loss']:.4f}", refresh=False)
        if not sys.stderr.isatty() and step % 200 == 0 and accelerator.is_main_process:
            print(f"{title} {step}/{total} loss {last['loss']:.4f}", flush=True)
        ending = stop_wanted()
        due = time.monotonic() - saved > checkpoint_minutes * 60 or step == total or ending
        if accelerator.num_processes > 1:
            ending, due = broadcast_object_list([ending, due])  # the first process hears it for all, and has the clock
        if due:
            met = {name: why for some in gather_object([{**met, **(bad or {})}]) for name, why in some.items()}
            if accelerator.is_main_process:
                _save(module, optimizer, names, folder, step, spent + time.monotonic() - began, skipped, met)
                if on_checkpoint:
                    on_checkpoint(step)
            saved = time.monotonic()
        if ending and step < total:
            bar.close()
            batches.close()
            raise Stopped(f"stopped after update {step}")
    bar.close()
    batches.close()
    torch.manual_seed(seed)  # what follows finds the same whether or not updates were left to do
    accelerator.wait_for_everyone()
    if not last and (folder / "metrics.jsonl").exists():  # the run had already ended
        last = json.loads(((folder / "metrics.jsonl").read_text().splitlines() or ["{}"])[-1])
    log = {**last, "updates": step, "skipped": skipped, "seconds": spent + time.monotonic() - began}
    return log if bad is None else {**log, "bad": met}


def _groups(
    module: nn.Module, rates: Mapping[str, float], weight_decay: float, decay_vectors: bool, spared: Sequence[str]
) -> list[dict[str, Any]]:
    """The optimiser's groups: by the longest of the schedule's prefixes that a name starts with, and by weight decay."""
    groups: dict[tuple[str, float], dict[str, Any]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            prefix = max((p for p in rates if name.startswith(p)), key=len)
            decays = (decay_vectors or parameter.ndim > 1) and not any(part in name for part in spared)
            decay = weight_decay if decays else 0.0
            group = groups.setdefault(
                (prefix, decay), {"prefix": prefix, "weight_decay": decay, "params": [], "names": []}
            )
            group["params"].append(parameter)
            group["names"].append(name)
    return list(groups.values())


def processes() -> PartialState:
    """The processes of this start, this one's number among them, and its device. Raises ValueError where it was to be one of many
    and is alone."""
    # Untold that there is no GPU, each of torchrun's processes takes itself for the only one.
    state = PartialState(cpu=not torch.accelerator.is_available())
    # accelerate's launcher names a port where it was asked for more than one process, and on a CPU it starts one.
    alone = state.num_processes == 1 and state.device.type == "cpu"
    if alone and {"ACCELERATE_USE_CPU", "MASTER_PORT"} <= os.environ.keys():
        raise ValueError(
            "accelerate launch starts one process on a CPU, whatever --num_processes says: use torchrun --nproc-per-node 2 -m ..."
        )
    return state


def _over_processes(accelerator: Accelerator, found: Sequence[Mapping[str, Tensor]]) -> dict[str, float]:
    """The logged numbers as means over pieces and processes; not finite where one's is not."""
    means = torch.stack([torch.stack([piece[name] for piece in found]).mean() for name in found[0]])
    return dict(zip(found[0], accelerator.reduce(means, "mean").tolist(), strict=True))


class _Ahead:
    """Batches, piece by piece, the next of them made by a thread while this one is learned from. They are functions of the step,
    so when they are made is no matter."""

    def __init__(self, batch_at: BatchAt, shares: Sequence[Share], ahead: bool) -> None:
        self.batch_at, self.shares = batch_at, shares
        self.thread = ThreadPoolExecutor(1) if ahead else None
        self.next: tuple[int, list[Future[Mapping[str, Any]]]] | None = None

    def __call__(self, step: int, more: bool) -> Iterator[Mapping[str, Any]]:
        """The pieces of a step's batch; `more`: there is one after it."""
        if self.thread is None:
            yield from (self.batch_at(step, share) for share in self.shares)
            return
        if self.next is None or self.next[0] != step:
            self.next = (step, self._begun(step))
        now = self.next[1]
        # Only when the last piece is there is the next batch begun: no more than one is held.
        for piece in now[:-1]:
            yield piece.result()
        last = now[-1].result()
        self.next = (step + 1, self._begun(step + 1)) if more else None
        yield last

    def _begun(self, step: int) -> list[Future[Mapping[str, Any]]]:
        assert self.thread is not None
        return [self.thread.submit(self.batch_at, step, share) for share in self.shares]

    def close(self) -> None:
        if self.thread is not None:
            self.thread.shutdown(cancel_futures=True)


def planned(folder: Path, step: int, updates: int | None, minutes: float | None) -> int | None:
    """The updates that a training in `folder`, now at `step`, ends with; None where some have to be timed first."""
    plan = json.loads((folder / "plan.json").read_text()) if (folder / "plan.json").exists() else {}
    if updates is None and "updates" in plan and plan.get("minutes") == minutes:
        return int(plan["updates"])
    if updates is None and "seconds_an_update" in plan:  # another budget than before
        return max(step, int((minutes or 0) * 60 / plan["seconds_an_update"]))
    return updates


def begun(folder: Path) -> bool:
    """Whether the training in `folder` has come to a first checkpoint."""
    return _newest(folder) is not None


def ended(folder: Path, updates: int | None, minutes: float | None) -> bool:
    """Whether the training in `folder` has nothing left to do with this budget."""
    place = _newest(folder)
    if place is None:
        return False
    step = int(json.loads((place / "loop.json").read_text())["step"])
    target = planned(folder, step, updates, minutes)
    return target is not None and step >= target


def check_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Raises ValueError where the folder holds a training of other settings; notes those of a new one. What came later is noted
    where an older training has none: sums of weights, and all settings of those that noted nothing. Where "files of ..." are
    others than before, which may be meant, a line says what becomes of it."""
    folder.mkdir(parents=True, exist_ok=True)
    path, wanted = folder / "settings.json", json.loads(json.dumps(settings))
    if not path.exists():
        _write_json(path, wanted)
        return
    known = json.loads(path.read_text())
    late = {key for key in wanted if key.startswith(("weights of ", "files of ")) or not known}
    new = {key: wanted[key] for key in late if key not in known}
    others = {key: wanted[key] for key in wanted if key.startswith("files of ") and key in known}
    now = {**known, **new, **others}
    for key in {**now, **wanted}:
        if now.get(key) != wanted.get(key):
            raise ValueError(
                f"{folder.parent} holds a training with {key} = {known.get(key)!r}, not {wanted.get(key)!r}; "
                "name another folder, or ask for the same"
            )
    for key in others:
        if known[key] != now[key]:
            print(f"{folder.parent}: the {key} are others than when it began; its clips are, from here on", flush=True)
    if now != known:
        _write_json(path, now)


def _finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no number for what is not one."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}


def _save(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    names: list[str],
    folder: Path,
    step: int,
    seconds: float,
    skipped: int,
    bad: Mapping[str, str],
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
    _write_json(fresh / "loop.json", {"step": step, "seconds": seconds, "skipped": skipped, "bad": bad})
    if current.exists():  # else a kill came between the two renames, and the old one is the only one
        shutil.rmtree(old, ignore_errors=True)
        current.rename(old)
    fresh.rename(current)
    shutil.rmtree(old, ignore_errors=True)


def _resume(
    module: nn.Module, optimizer: torch.optim.Optimizer, names: list[str], folder: Path
) -> tuple[int, float, int, dict[str, str]]:
    """Load the newest whole checkpoint into module and optimizer; returns its step, which is also the place in the data, the
    seconds spent until then, the updates skipped and what could not be read."""
    place = _newest(folder)
    if place is None:
        return 0, 0.0, 0, {}
    module.load_state_dict(load_file(place / "model.safetensors"))
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in load_file(place / "optimizer.safetensors").items():
        name, moment = key.rsplit("|", 1)
        state.setdefault(names.index(name), {})[moment] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    loop = json.loads((place / "loop.json").read_text())
    return loop["step"], loop["seconds"], loop.get("skipped", 0), loop.get("bad", {})


def _newest(folder: Path) -> Path | None:
    """The newest whole checkpoint of a training; None where there is none."""
    places = (folder / "checkpoint", folder / "checkpoint.old")
    return next((place for place in places if (place / "loop.json").exists()), None)


def _cut_metrics(path: Path, step: int) -> None:
    """Drop the lines after the checkpoint (they will be written again) and a line torn by a kill."""
    if not path.exists():
        return
    kept, lines = [], path.read_text().splitlines()
    for line in lines:
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (json.JSONDecodeError, KeyError):
            break
    if kept != lines:
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(line + "\n" for line in kept))
        os.replace(temporary, path)


def _write_json(path: Path, value: Any) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, indent=1))
    os.replace(temporary, path)
