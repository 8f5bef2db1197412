"""The one training loop. It knows no model family: both arms go through the same lines.

Everything random is a pure function of the step: which examples (`indices_at`), the learning rate (`lr_at`), the seed
of each sample (`sample_seed`). So a killed run that resumes, a run on other hardware, and the rival arm all see the
same data in the same order, and on a CPU the resumed weights equal the uninterrupted ones to the bit.

    accelerate launch -m vdmreason.train --config run.yaml

is the same thing on any number of devices. The effective batch is cut into equal shares, one a process, and each share
into equal micro-batches; the mean of equal parts' means is the mean of the whole, so neither cut changes the loss.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedType, InitProcessGroupKwargs, PartialState
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import adapters
from adapters.base import Arm
from tasks.base import Example, UserError, suggest
from tasks.split import refuse_leak
from vdmreason import config, evaluate, jobs, library, predict, speed, store
from vdmreason.config import Optim, Run, named_seed
from vdmreason.progress import progress

KEEP_CHECKPOINTS = 2
PATIENCE = timedelta(hours=2)  # with one that works alone, as at previews: NCCL's ten minutes would end the job
OnStep = Callable[[dict[str, Any]], None]


# ---------------------------------------------------------------------------------------------------------------------
# Pure functions of the step


@functools.lru_cache(maxsize=64)
def _order(epoch: int, n: int, seed: int) -> tuple[int, ...]:
    return tuple(random.Random(f"order/{seed}/{epoch}").sample(range(n), n))


def indices_at(step: int, n: int, batch: int, seed: int) -> list[int]:
    """The `batch` training examples of update `step` (counted from 0), out of n.

    One long stream of shuffled epochs, cut every `batch` examples: every example is seen equally often, whether or not
    the batch divides n, and also where it is larger than n.
    """
    positions = range(step * batch, (step + 1) * batch)
    return [_order(p // n, n, seed)[p % n] for p in positions]


def lr_at(step: int, optim: Optim) -> float:
    """The learning rate of update `step` (counted from 0): linear warm-up, then the schedule."""
    if step < optim.warmup:
        return optim.lr * (step + 1) / optim.warmup
    # 0 at the first update after the warm-up, 1 just after the last update
    done = (step - optim.warmup) / max(1, optim.updates - optim.warmup)
    shape = {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}
    return optim.lr * shape[optim.schedule]


def sample_seed(run_seed: int, step: int, position: int) -> int:
    """The seed of all randomness (noise, timestep) of the sample at `position` in the effective batch of `step`."""
    return named_seed("sample", run_seed, step, position)


def shares(batch: int, micro_batch: int | None, process: int, processes: int) -> list[range]:
    """The positions in the effective batch that a process works on: one range a micro-batch, all equally long."""
    if batch % processes:
        raise UserError(
            f"optim.batch: {batch} examples cannot be shared equally by {processes} processes; make it a multiple."
        )
    share = batch // processes
    micro = min(micro_batch or share, share)
    if share % micro:
        raise UserError(f"optim.micro_batch: must divide the {share} examples of one process, but it is {micro}.")
    first = process * share
    return [range(start, start + micro) for start in range(first, first + share, micro)]


# ---------------------------------------------------------------------------------------------------------------------
# The loop


def train(
    run: Run,
    folder: str | Path,
    stop: Callable[[], bool] | None = None,
    on_step: OnStep | None = None,
    report_to: str | None = None,
    resident: Resident | None = None,
) -> Arm:
    """Adapt an arm to n examples, in `folder`; go on where an earlier call was interrupted. Returns the adapted arm.

    `resident` keeps the backbone between calls: one that suits the run gets a fresh LoRA instead of being loaded again.

    `stop` is asked after every update; a STOP file in the folder and SIGTERM mean the same: checkpoint and end, state
    "stopped". A SAVE file asks for a checkpoint that stays, a PREVIEW file for previews; the training goes on, and to the
    same weights as without them. `on_step` gets each line of metrics.jsonl: {"step" (updates done), "loss" (mean over the
    effective batch), "lr", "grad_norm" (before clipping), "seconds" (this update), "samples_per_second"}, and with previews
    "preview_exact" and "preview_cells".

    Raises UserError for a folder that holds another run (naming the keys) or what is no run, for a loss that is not finite
    (naming the step; the checkpoint is kept) and for a full disk.
    """
    folder = Path(folder)
    store.refuse_foreign(folder, "--folder")  # before trackers put theirs into it
    accelerator = make_accelerator(report_to, folder)
    main = accelerator.is_main_process
    store.code()  # what runs is what is checked out now, not when the training ends
    with store.lock(folder) if main else nullcontext():
        begun = not main or (folder / "config.yaml").is_file()
        if main:
            store.claim(folder, run)
        accelerator.wait_for_everyone()
        try:
            refuse_apart(accelerator, folder)
            examples = config.train_examples(run)
            learned = config.learned_examples(run)
            refuse_leak(examples, config.test_examples(run))
            if main:
                warn_of_days(run, accelerator.device)
            arm = (resident or Resident()).arm(run, str(accelerator.device), in_parts=in_parts(run, accelerator))
        except UserError:
            if not begun:  # too many examples, no such model: nothing began that a report should miss
                (folder / "config.yaml").unlink(missing_ok=True)
            raise
        here = store.sitting(device_name(accelerator.device))
        made_of: dict[str, Any] = {"id": run.id, "backbone": arm.backbone, "data": store.data_hash(learned)}
        made_of["sittings"] = store.sat(sittings_before(folder), here)
        if store.whole_folder(folder / "adapter"):
            predict.refuse_other_examples(run, folder)
            arm.restore(folder / "adapter")
            if main:
                store.write_state(folder, state="done", step=run.optim.updates, updates=run.optim.updates, eta=None)
            return arm
        try:
            with _pen(accelerator, folder, run) as pen:
                _loop(run, folder, accelerator, arm, learned, made_of, pen, stop, on_step)
                weights = arm.weights()
                if main:
                    # before the adapter: whoever finds that takes the run for done, and would never write this
                    result = store.read_json(folder / "result.json") or {}
                    facts = store.provenance(run, examples, device_name(accelerator.device), arm.backbone)
                    facts |= {"published": config.flavour_of(run).published}
                    if len(made_of["sittings"]) > 1:
                        facts |= {
                            "sittings": made_of["sittings"],
                            "dirty": any(s["dirty"] for s in made_of["sittings"]),
                        }
                    result |= {"id": run.id, "run": config.to_dict(run), "provenance": facts}
                    store.write_json(folder / "result.json", result)
                    notes = {"run": config.to_dict(run), "id": run.id, "versions": store.versions()}
                    with store.new_folder(folder / "adapter") as new:
                        arm.save(new, notes, weights)
                    library.leave_card(folder)
        except jobs.Stopped:
            pass  # the checkpoint is written; the arm is as far as it got
        accelerator.wait_for_everyone()
    if report_to:
        accelerator.end_training()
    return arm


def _loop(
    run: Run,
    folder: Path,
    accelerator: Accelerator,
    arm: Arm,
    examples: Sequence[Example],
    made_of: Mapping[str, Any],
    pen: jobs.Working,
    stop: Callable[[], bool] | None,
    on_step: OnStep | None,
) -> None:
    optim, main, device = run.optim, accelerator.is_main_process, accelerator.device
    samples = [arm.frame(example) for example in examples]
    precision = torch.bfloat16 if use_bf16(run, device) else None
    mixed = precision is not None and not speed.in_bf16(arm.model)
    autocast = functools.partial(torch.autocast, device.type, precision, enabled=mixed)
    sharded = in_parts(run, accelerator)
    refuse_impossible(run, sharded)
    if not sharded:
        compute_ahead(run, accelerator, arm, samples)
    micro = make_room(run, accelerator, arm, samples, autocast, sharded)
    parts = shares(optim.batch, micro, accelerator.process_index, accelerator.num_processes)
    compiled = 0
    if run.speed.compile == "on" or (run.speed.compile == "auto" and device.type == "cuda" and optim.updates >= 100):
        compiled = speed.compile_blocks(arm.model)
    if main:
        print(f"{run.name}: {_setting(arm, device, precision, len(parts[0]), compiled, sharded)}", file=sys.stderr)

    module, alone = arm.module(), accelerator.num_processes == 1
    # Alone there is nothing to share, and of FSDP accelerate would prepare no module without an optimiser beside it.
    model = speed.shard(module) if sharded else module if alone else accelerator.prepare(module)
    if sharded:  # only now the arm is where it computes
        compute_ahead(run, accelerator, arm, samples)
    weights = speed.Masters(arm.trainable())
    optimizer = torch.optim.AdamW(
        weights.copies.values(),
        lr=optim.lr,
        betas=optim.betas,
        weight_decay=optim.weight_decay,
        fused=True if device.type == "cuda" else None,
    )
    first = restore_checkpoint(folder, made_of, weights.copies, optimizer)
    weights.give()

    if main:
        cut_metrics(folder, first)
        if first == 0 and run.preview_every:
            preview(run, folder, arm, 0)
    model.train()
    done = first
    metrics = store.Lines(folder / "metrics.jsonl") if main else nullcontext()
    kernels = speed.kernels(device) if precision else []
    attention = speed.best_attention(device, precision)
    with metrics as lines, attention, progress(f"{run.name}: training", optim.updates, first, main) as show:
        pace = Pace()
        for step in range(first, optim.updates):
            began = time.perf_counter()
            torch.manual_seed(named_seed("dropout", run.seed, step, accelerator.process_index))
            for group in optimizer.param_groups:
                group["lr"] = lr_at(step, optim)

            indices = indices_at(step, len(samples), optim.batch, run.seed)
            total = torch.zeros((), device=device)
            for number, part in enumerate(parts, start=1):
                batch = arm.collate([samples[indices[p]] for p in part], [sample_seed(run.seed, step, p) for p in part])
                # gradients are summed over micro-batches here and averaged over processes once, with the last of them
                last = number == len(parts)
                if sharded:
                    model.set_requires_gradient_sync(last)
                with nullcontext() if last or sharded or alone else accelerator.no_sync(model):
                    with autocast():
                        loss = model(batch)
                    accelerator.backward(loss / len(parts))
                total += loss.detach().float() / len(parts)
            weights.take_gradients()
            norm = weights.clip(optim.clip or math.inf)

            # One wait for the device an update, one message between processes: the loss, who wants to stop, and whether
            # a checkpoint was asked for, which is the main process's to see, and everyone's to make where weights are sharded.
            wishes = [bool(pen.stop_wanted() or (stop and stop())), main and pen.asked(jobs.SAVE)]
            wanted = [torch.tensor(float(wish), device=device) for wish in wishes]
            shared = accelerator.reduce(torch.stack([total, *wanted]), "mean")
            loss_value, stop_share, save_share = (float(x) for x in shared)
            norm_value = float(norm)
            refuse_non_finite(loss_value, norm_value, step + 1, folder, kernels)
            optimizer.step()
            optimizer.zero_grad()
            weights.give()

            done, seconds = step + 1, time.perf_counter() - began
            ending = done == optim.updates or stop_share > 0
            due = done % run.checkpoint_every == 0 or ending or save_share > 0
            state = checkpoint_state(weights.copies, optimizer) if due else None
            if main:
                assert lines is not None
                record = {"step": done, "loss": loss_value, "lr": lr_at(step, optim), "grad_norm": norm_value,
                          "seconds": seconds, "samples_per_second": optim.batch / seconds}  # fmt: skip
                look = pen.asked(jobs.PREVIEW)
                if look:
                    pen.answered(jobs.PREVIEW)
                due_look = run.preview_every and (done % run.preview_every == 0 or done == optim.updates)
                if due_look or (look and not sharded):  # a part of the weights answers nothing
                    record |= preview(run, folder, arm, done)
                    model.train()
                lines.write(record)
                eta = pace(time.perf_counter() - began) * (optim.updates - done)
                pen.beat(done, optim.updates, eta, often=0 if ending else 1)
                show(done, eta, _line(record))
                if on_step:
                    on_step(record)
                # After the metrics: a kill between the two costs a checkpoint, never a line.
                if state:
                    save_checkpoint(folder, made_of, done, *state, stays=save_share > 0)
                if save_share > 0:
                    pen.answered(jobs.SAVE)
            accelerator.log({"loss": loss_value, "lr": lr_at(step, optim), "grad_norm": norm_value}, step=done)
            if ending:
                break
    if done < optim.updates:
        raise jobs.Stopped


def refuse_non_finite(loss: float, norm: float, step: int, folder: Path, kernels: Sequence[str] = ()) -> None:
    """End the run before a loss or gradient that is no number reaches the weights. `kernels`: those of attention."""
    if math.isfinite(loss) and math.isfinite(norm):
        return
    what = f"the loss is {loss}" if not math.isfinite(loss) else f"the gradient norm is {norm}"
    kept = store.checkpoints(folder)
    saved = f"{kept[-1].name} is kept" if kept else "no checkpoint was due yet"
    # Where a mask is given, cuDNN's way back may have gradients that are no numbers: pytorch#196678.
    kernel = (
        " Or cuDNN's attention is at fault: torch.backends.cuda.enable_cudnn_sdp(False) before train.main() avoids it."
    )
    raise UserError(
        f"{what} at step {step}; {saved}. Lower optim.lr, lengthen optim.warmup, or set precision: fp32."
        + kernel * ("CUDNN_ATTENTION" in kernels)
    )


# ---------------------------------------------------------------------------------------------------------------------
# Beginning


def make_accelerator(report_to: str | None, folder: Path) -> Accelerator:
    """One accelerator. Precision is ours (`torch.autocast`): a run's config decides it, not the launcher's. UserError where
    this process was to be one of many and is alone."""
    # For FSDP accelerate's launcher exports "true" unless told otherwise. transformers (5.0 to 5.22) then loads zeros in all of a
    # machine's processes but the first, prompts' encoders included, and waits for a broadcast that nobody makes here.
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    group = InitProcessGroupKwargs(timeout=PATIENCE)
    cpu = not torch.accelerator.is_available()  # untold, each of torchrun's on a CPU takes itself for the only one
    launched = cpu and {"ACCELERATE_USE_CPU", "MASTER_PORT"} <= os.environ.keys()
    if launched and PartialState(cpu=cpu, **group.to_kwargs()).num_processes == 1:
        # The launcher names a port where it was asked for more than one process, and on a CPU it starts one.
        raise UserError(
            "accelerate launch starts one process on a CPU, whatever --num_processes says. To try many: "
            "torchrun --nproc-per-node 2 -m vdmreason.train --config run.yaml"
        )
    if report_to is None:
        return Accelerator(mixed_precision="no", cpu=cpu, kwargs_handlers=[group])
    try:
        accelerator = Accelerator(
            mixed_precision="no", cpu=cpu, kwargs_handlers=[group], log_with=report_to, project_dir=str(folder)
        )
    except ValueError:
        names = ("tensorboard", "trackio", "wandb")
        raise UserError(
            f"--report-to {report_to}: unknown.{suggest(report_to, names)} One of {', '.join(names)}."
        ) from None
    if not accelerator.log_with:
        raise UserError(f"--report-to {report_to}: is not installed. Install it with: pip install {report_to}")
    accelerator.init_trackers("vdmreason")
    return accelerator


def refuse_apart(accelerator: Accelerator, folder: Path) -> None:
    """Refuse processes that find different things in the run's folder: one would go on where another begins."""
    found = accelerator.gather(
        torch.tensor([[newest_step(folder), bool(store.whole_folder(folder / "adapter"))]], device=accelerator.device)
    )
    if (found != found[0]).any():
        steps = ", ".join(str(step) for step in sorted(set(found[:, 0].tolist())))
        raise UserError(
            f"{folder}: is not the same to all processes (steps done: {steps}). All machines must see the same folder: put "
            "it on a disk that they share."
        )


def warn_of_days(run: Run, device: torch.device) -> None:
    """Say so before a backbone that wants a GPU is loaded for a training on a CPU."""
    flavour = config.flavour_of(run)
    if flavour.published and device.type == "cpu":
        print(
            f"{run.name}: {run.flavour} wants a GPU; on this CPU it may take days. `vdmreason doctor --config` says what it "
            "needs. If there is a GPU here, torch's CPU build may be installed: delete .venv and run make again.",
            file=sys.stderr,
        )


def load_arm(run: Run, device: str) -> Arm:
    """The run's backbone with a fresh LoRA attached, on a device such as "cpu" or "cuda:0"."""
    return Resident().arm(run, device)


class Resident:
    """A backbone that stays in memory between runs: loading is most of a short trial. A run that wants another one, or the same
    asked otherwise, has it loaded in its place."""

    def __init__(self) -> None:
        self._arm: Arm | None = None
        self._key: tuple[Any, ...] = ()

    def arm(self, run: Run, device: str, in_parts: bool = False) -> Arm:
        """The run's backbone with a fresh LoRA attached; where it will lie in parts on the CPU, for no device holds it whole."""
        module = adapters.family(run.family)
        flavour = adapters.base.flavour(module, run.flavour)
        dtype = "bfloat16" if use_bf16(run, torch.device(device)) else "float32"
        # The seed names the backbone's weights where those are drawn, and else nothing of it.
        seed = run.seed if run.init == "random" or not flavour.base else None
        options = json.dumps(config.to_dict(run)["options"], sort_keys=True)
        # What was compiled or checkpointed stays so; what was sharded is not used again.
        key = (run.family, run.flavour, run.init, seed, run.quantise, options, device, dtype, run.speed)
        torch.manual_seed(named_seed("load", run.seed))
        if self._arm is None or self._key != key:
            if self._arm is not None:  # the old one goes first; its module() and compiled blocks hold it in circles
                self._arm = None
                speed.tidy()
            # Whole on the device only where it stays so: in fewer bits, or in parts, it may fit where whole it would not.
            place = "cpu" if in_parts or run.quantise != "none" else device
            arm: Arm = module.load(flavour, run.arm_options(), init=run.init, seed=run.seed, device=place, dtype=dtype)
            if run.quantise != "none":
                speed.quantise(arm.model, run.quantise, torch.device(device))
        else:
            arm = self._arm
            arm.detach()
        self._arm, self._key = (None, ()) if run.speed.shard else (arm, key)
        arm.attach(run.lora, run.seed)
        return arm


def in_parts(run: Run, accelerator: Accelerator) -> bool:
    """Whether the frozen weights lie in parts over the processes."""
    wanted = run.speed.shard or accelerator.distributed_type == DistributedType.FSDP
    return wanted and accelerator.num_processes > 1


def refuse_impossible(run: Run, sharded: bool) -> None:
    """Refuse settings that contradict each other."""
    if sharded and run.preview_every:
        raise UserError("speed.shard: sharded weights draw no previews; set preview_every: 0 and predict afterwards.")
    if sharded and run.quantise != "none":
        raise UserError("speed.shard: quantised weights cannot be sharded; set quantise: none, or speed.shard: false.")


def compute_ahead(run: Run, accelerator: Accelerator, arm: Arm, samples: Sequence[Any]) -> None:
    """Latents and the like, once a sample; many processes share the work."""
    mine = samples[accelerator.process_index :: accelerator.num_processes]
    with progress(f"{run.name}: latents", len(mine), 0, accelerator.is_main_process and len(mine) > 100) as show:
        arm.prepare(mine, lambda done: show(done, None, ""))
    accelerator.wait_for_everyone()


def make_room(
    run: Run,
    accelerator: Accelerator,
    arm: Arm,
    samples: Sequence[Any],
    autocast: Callable[[], Any],
    sharded: bool,
) -> int | None:
    """The micro-batch: the run's own, or the whole share of the process; on a GPU the largest up to that which fits, tried on the
    longest samples. Only where not even one example fits are activations computed twice. The effective batch stays as it is."""
    wanted, device = run.speed.checkpointing, accelerator.device
    if wanted == "on":
        speed.checkpoint_blocks(arm.model)
    share = run.optim.batch // accelerator.num_processes
    # one device cannot hold what has to be sharded: nothing can be tried on it
    if sharded or not speed.worth_fitting(device):
        flavour = config.flavour_of(run)
        return run.optim.micro_batch or (1 if flavour.published else None)
    (first, *_) = shares(run.optim.batch, run.optim.micro_batch, 0, accelerator.num_processes)  # refuses what cannot be
    most = speed.longest(samples)
    later = speed.optimiser_bytes(arm.trainable().values(), gradients=False)  # those are made here too
    lacked: list[str] = []

    def attempt(micro: int) -> None:
        held = torch.empty(later, dtype=torch.uint8, device=device)  # what the optimiser will need beside it
        batch = arm.collate([most[i % len(most)] for i in range(micro)], [0] * micro)
        arm.model.train()
        try:
            with autocast(), speed.best_attention(device, torch.bfloat16 if use_bf16(run, device) else None):
                loss = arm.loss(batch)
                loss.backward()
        finally:
            arm.model.zero_grad(set_to_none=True)
            del held

    micro = speed.fitting(attempt, share, len(first), lacked)
    if micro is None and wanted == "auto":
        speed.checkpoint_blocks(arm.model)
        micro = speed.fitting(attempt, share, len(first), lacked)
    fits = torch.tensor([micro or 0], device=device)
    micro = int(accelerator.gather(fits).min())
    if not micro:
        cause = torch.OutOfMemoryError(lacked[-1]) if lacked else None  # by which a sweep knows the machine's fault
        raise UserError(
            "Not even one example fits into this device's memory. Set quantise: nf4, or a smaller options.pixels; "
            "`vdmreason doctor --config` says what would fit."
        ) from cause
    return micro


def use_bf16(run: Run, device: torch.device) -> bool:
    """Whether to compute in bf16: as the run says; by itself, on a GPU that has it."""
    if run.precision == "auto":
        return device.type == "cuda" and speed.has_bf16()
    return run.precision == "bf16"


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


@contextmanager
def _pen(accelerator: Accelerator, folder: Path, run: Run) -> Iterator[jobs.Working]:
    """state.json is the main process's to write; the others only listen for SIGTERM."""
    if not accelerator.is_main_process:
        with jobs.listening(folder) as pen:
            yield pen
        return
    with jobs.working(folder, step=newest_step(folder), updates=run.optim.updates) as pen:
        yield pen


# ---------------------------------------------------------------------------------------------------------------------
# Checkpoints: checkpoints/step-000100/{lora,optimizer}.safetensors and trainer.json


Tensors = dict[str, torch.Tensor]


def checkpoint_state(weights: Mapping[str, torch.Tensor], optimizer: torch.optim.Optimizer) -> tuple[Tensors, Tensors]:
    """The weights and the optimiser's state, whole and on the CPU; where they are sharded all processes have to ask."""

    def kept(value: Any) -> torch.Tensor:
        return speed.whole(torch.as_tensor(value)).detach().cpu().contiguous().clone()

    names = list(weights)
    flat = {}  # "exp_avg.<weight>", "exp_avg_sq.<weight>", "step.<weight>"
    for index, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            flat[f"{key}.{names[index]}"] = kept(value)
    return {name: kept(value) for name, value in weights.items()}, flat


def save_checkpoint(
    folder: Path, made_of: Mapping[str, Any], step: int, tensors: Tensors, flat: Tensors, stays: bool = False
) -> None:
    """Write a checkpoint (`checkpoint_state`) whole or not at all, then drop all but the last two and those that stay. `made_of`:
    the run's id, what names the backbone's weights, the hash of what is learned, and the sittings so far."""
    with store.new_folder(folder / "checkpoints" / f"step-{step:06d}") as new:
        save_file(tensors, new / "lora.safetensors", {"format": "pt"})
        save_file(flat, new / "optimizer.safetensors", {"format": "pt"})
        facts = {"step": step, "stays": stays, **made_of}
        (new / "trainer.json").write_text(json.dumps(facts), encoding="utf-8")
    dropped = [kept for kept in store.checkpoints(folder) if not stays_for_good(kept)][:-KEEP_CHECKPOINTS]
    for old in dropped:
        shutil.rmtree(old, ignore_errors=True)


def stays_for_good(checkpoint: Path) -> bool:
    """Whether someone asked for this checkpoint by a SAVE file. One that cannot be read is as good as any other."""
    try:
        return bool(json.loads((checkpoint / "trainer.json").read_text(encoding="utf-8")).get("stays"))
    except (OSError, ValueError, AttributeError):
        return False


def restore_checkpoint(
    folder: Path, made_of: Mapping[str, Any], weights: Mapping[str, torch.Tensor], optimizer: torch.optim.Optimizer
) -> int:
    """Load the latest checkpoint into `weights` and `optimizer`; returns the number of updates it holds, 0 if none."""
    kept = store.checkpoints(folder)
    if not kept:
        return 0
    newest = kept[-1]
    before = f" to go on from {kept[-2].name}" if len(kept) > 1 else " to start again"
    try:
        facts = json.loads((newest / "trainer.json").read_text(encoding="utf-8"))
        lora, flat = load_file(newest / "lora.safetensors"), load_file(newest / "optimizer.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{newest}: is damaged ({reason}). Delete that folder{before}.") from None
    if facts["id"] != made_of["id"] or {k: v.shape for k, v in lora.items()} != {
        k: v.shape for k, v in weights.items()
    }:
        raise UserError(f"{newest}: belongs to another run. Delete that folder{before}.")
    store.refuse_other(newest, facts, made_of)

    for name, value in weights.items():
        speed.fill(value, lora[name])
    names = list(weights)
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in flat.items():
        kind, _, name = key.partition(".")
        if value.shape == weights[name].shape:  # sharded as the weight is, on however many processes
            like = torch.empty_like(weights[name])
            speed.fill(like, value)
            value = like
        state.setdefault(names.index(name), {})[kind] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return int(facts["step"])


def newest_step(folder: Path) -> int:
    """How many updates the newest checkpoint holds, by its name; 0 where there is none."""
    kept = store.checkpoints(folder)
    return int(kept[-1].name.removeprefix("step-")) if kept else 0


def sittings_before(folder: Path) -> list[dict[str, Any]]:
    """Which code made the newest checkpoint, with what and on what; [] where there is none. One that does not say was made by
    code that is not known."""
    kept = store.checkpoints(folder)
    if not kept:
        return []
    try:
        return list(json.loads((kept[-1] / "trainer.json").read_text(encoding="utf-8"))["sittings"])
    except (OSError, ValueError, KeyError, TypeError):  # a damaged one is refused where it is read whole
        return [store.UNKNOWN]


def cut_metrics(folder: Path, step: int) -> None:
    """Drop the lines of updates that the checkpoint does not hold: they are about to be done again."""
    path = folder / "metrics.jsonl"
    lines = store.read_lines(path)
    kept = [line for line in lines if line["step"] <= step]
    if len(kept) < len(lines):
        store.write_lines(path, kept)


# ---------------------------------------------------------------------------------------------------------------------
# Watching


def preview(run: Run, folder: Path, arm: Arm, step: int) -> dict[str, float]:
    """Answer the same few test examples as always into previews/step-000100/; their mean exact match and cells, {} where
    nobody knows the answer to any of them."""
    examples = config.test_examples(run, min(run.previews, run.test))
    with store.new_folder(folder / "previews" / f"step-{step:06d}") as new:
        records = predict.answer(run, arm, list(enumerate(examples)), new)
        arm.rest()  # what only answers need makes room
        store.write_lines(new / "predictions.jsonl", records)
    known = evaluate.scorable(records)
    if not known:
        return {}
    exact, cells = (sum(r[name] for r in known) / len(known) for name in ("exact", "cells"))
    return {"preview_exact": exact, "preview_cells": cells}


class Pace:
    """A running mean of seconds an update, which forgets slow beginnings (caches that fill, kernels that compile)."""

    def __init__(self) -> None:
        self.mean = 0.0

    def __call__(self, seconds: float) -> float:
        self.mean = seconds if not self.mean else 0.9 * self.mean + 0.1 * seconds
        return self.mean


def _setting(
    arm: Arm, device: torch.device, precision: torch.dtype | None, micro: int, compiled: int, sharded: bool
) -> str:
    """What decides how fast this will be, in one line."""
    learned = sum(p.numel() for p in arm.trainable().values()) / 1e6
    said = [f"{learned:.1f} M learned on {device_name(device)}", "bf16" if precision else "fp32", f"{micro} at once"]
    said += [f"{compiled} compiled blocks"] * bool(compiled) + ["weights in parts"] * sharded
    return ", ".join(said)


def _line(record: Mapping[str, Any]) -> str:
    exact = f"  exact {record['preview_exact']:.2f}" if "preview_exact" in record else ""
    return f"loss {record['loss']:.4f}  lr {record['lr']:.1e}  {record['samples_per_second']:.1f} samples/s{exact}"


# ---------------------------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> None:
    """accelerate launch -m vdmreason.train --config run.yaml"""
    parser = argparse.ArgumentParser(prog="vdmreason.train", description=main.__doc__)
    parser.add_argument("--config", required=True, help="a YAML file; one run's config.yaml will do")
    parser.add_argument("--folder", help="where the run is kept (default: runs/<name>); the same folder resumes")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="optim.lr=1e-3")
    parser.add_argument(
        "--answer", action="store_true", help="then answer the run's test examples (in one process alone)"
    )
    parser.add_argument("--report-to", help="tensorboard, trackio or wandb, beside metrics.jsonl")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    given = parser.parse_args(arguments)
    from vdmreason.__main__ import one_line_errors

    with one_line_errors(given.debug):
        run = config.load(given.config, given.set)
        folder = Path(given.folder or store.runs_root() / run.name)
        arm = train(run, folder, report_to=given.report_to)
        finished = store.whole_folder(folder / "adapter")  # or it was stopped
        if given.answer and finished and PartialState().num_processes == 1:
            with jobs.working(folder) as pen:  # a stop or a kill is no end of the run
                predict.predict(folder, arm, stop=pen.stop_wanted)
        PartialState().destroy_process_group()
        if not finished:
            raise jobs.Stopped


if __name__ == "__main__":
    main()
