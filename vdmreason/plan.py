"""What a run will need, told before it runs: device memory, hours, disk; and the nearest setting that fits where it does not.

The arm is sketched on torch's meta device: the real classes at true size, with shapes and no values. One step of it on one
real sample says what autograd keeps for the way back and how much is computed; the rest is arithmetic. Left out of the memory
are the autoencoder and the text encoder, which are gone while a GPU trains.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

import adapters
from adapters.base import Arm, Sample
from tasks.base import UserError
from vdmreason import config, speed
from vdmreason.config import Run

GIB = 2**30
FREE = 0.1  # of a device's memory: fragments that nothing fits into
LIBRARIES = 1.0  # GiB: what CUDA and its libraries take
BITS = {"nf4": 4.5, "int8": 8.5}  # a quantised weight and its share of the scales
SHARES = {"small": 0.25, "plain": 0.40, "compiled": 0.50}  # of a matrix product's speed, by how a step is run
CHECKPOINTS = 3  # two are kept, and one is being written
LOOKED_AT = 64  # examples among which the largest is looked for
SMALLER = (0.85, 0.7, 0.5, 0.35, 0.25)  # of a picture's side


# ---------------------------------------------------------------------------------------------------------------------
# A step that is watched


@dataclass(frozen=True)
class Work:
    """Of one forward and backward pass. Bytes, without weights and gradients of weights; FLOPs, a multiplication and an addition
    being two."""

    kept: int  # bytes that autograd keeps for the way back
    passing: int  # bytes beside those at the worst moment before the first block is done with on the way back
    forward: int  # FLOPs
    step: int  # FLOPs, forward and backward


def watched(arm: Arm, loss: Callable[[], Tensor]) -> Work:
    """The work of `loss` and of the way back from it. On any device; where that is real, so is the work."""
    own = [*arm.model.parameters(), *arm.model.buffers()]
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage  # held, so that no other takes its number
        return x

    weights = {w.untyped_storage()._cdata for w in own}
    arm.model.train()
    counting, memory = counter(), Memory(own)
    with fused_attention(), memory, counting:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            value = loss()
        forward, bytes_kept = counting.get_total_flops(), sum(storage.nbytes() for storage in kept.values())
        most = memory.most
        kept.clear()
        memory.most = 0
        if value.requires_grad:
            value.backward()
    arm.model.zero_grad(set_to_none=True)
    return Work(bytes_kept, max(0, most - bytes_kept), forward, counting.get_total_flops())


class Memory(TorchDispatchMode):
    """Bytes of all tensors that are alive and were made inside; `most`, at the worst moment."""

    def __init__(self, known: Sequence[Tensor]) -> None:
        super().__init__()
        self.alive = self.most = 0
        self.known: dict[int, Any] = {t.untyped_storage()._cdata: None for t in known}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._meet(tensor.untyped_storage())
        return made

    def _meet(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata not in self.known:
            size, number = storage.nbytes(), storage._cdata
            self.known[number] = weakref.finalize(storage, self._gone, number, size)
            self.alive += size
            self.most = max(self.most, self.alive)

    def _gone(self, number: int, size: int) -> None:
        self.alive -= size
        self.known.pop(number, None)


FUSED = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
FUSED_BACK = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def fused_attention() -> contextlib.AbstractContextManager[None]:
    """On the meta device torch takes attention apart into matrix products, whose weights (heads, T, T) a GPU never has in memory.
    Here it is one kernel, as it is there."""
    plain = speed.plain_attention

    def attention(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        if not query.is_meta:
            return plain(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
        if enable_gqa:
            key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            attn_mask = attn_mask.to(query.dtype)
        found: Tensor = FUSED(query, key, value, 0.0, is_causal, attn_mask=attn_mask, scale=scale)[0]
        return found

    return speed.attention_through(attention)


def counter() -> FlopCounterMode:
    """torch's own count, and attention as a CPU does it, which torch leaves out."""

    def forward(query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
        return int(sdpa_flop_count(query, key, value))

    def backward(grad: Any, query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
        return int(sdpa_backward_flop_count(grad, query, key, value))

    return FlopCounterMode(display=False, custom_mapping={FUSED: forward, FUSED_BACK: backward})


# ---------------------------------------------------------------------------------------------------------------------
# A sketch, measured


class Sketch:
    """A run's arm on the meta device, with its LoRA, and what one of its samples takes."""

    def __init__(self, run: Run, dtype: str) -> None:
        module = adapters.family(run.family)
        if not hasattr(module, "sketch"):
            raise UserError(
                f"{run.family}: is not planned ahead. Try a few updates: vdmreason train --set optim.updates=3"
            )
        flavour = adapters.base.flavour(module, run.flavour)
        self.base = flavour.base
        self.arm: Arm = module.sketch(flavour, run.arm_options(), dtype)
        self.linear = [
            layer.weight.numel() * layer.weight.element_size()
            for block in speed.blocks(self.arm.model)
            for layer in block.modules()
            if type(layer) is nn.Linear
        ]
        # a library that names no blocks still has them in a list
        lists = [len(m) for m in self.arm.model.modules() if isinstance(m, nn.ModuleList)]
        self.named = len(speed.blocks(self.arm.model))
        self.blocks = self.named or max(lists, default=1)
        self.arm.attach(run.lora, run.seed)
        as_loaded(self.arm)
        self.trained = list(self.arm.trainable().values())
        self.frozen = [p for p in self.arm.model.parameters() if not p.requires_grad]
        inside = {id(p) for block in speed.blocks(self.arm.model) for p in block.parameters()}
        # bytes of frozen weights in no block, such as an embedding
        self.outside = sum(p.numel() * p.element_size() for p in self.frozen if id(p) not in inside)
        few = dataclasses.replace(run, n=min(run.n, LOOKED_AT), far_from=0)
        samples = [self.arm.frame(example) for example in config.train_examples(few)]
        asked = [self.arm.frame(example) for example in config.test_examples(few, min(run.test, LOOKED_AT))]
        self.sample: Sample = speed.longest([s for s in samples if s.wanted is not None])[0]
        self.asked: Sample = speed.longest([s for s in asked if s.wanted is not None] or [self.sample])[0]
        self.itemsize = getattr(torch, dtype).itemsize

    @functools.cached_property
    def ahead(self) -> int:
        """FLOPs of what is computed once a sample, such as latents."""
        with fused_attention(), counter() as counting:
            self.arm.rehearsal([self.sample])
        return counting.get_total_flops()

    @functools.cached_property
    def answer(self) -> int:
        """FLOPs of one answer."""
        batch = self.arm.rehearsal([self.asked])
        with torch.no_grad():
            return watched(self.arm, lambda: self.arm.rehearse(batch)).forward * self.arm.passes

    @functools.cached_property
    def plain(self) -> Work:
        learning: set[int] = set()  # blocks that keep something; those of an expert that waits do not

        def met(block: nn.Module, _: Any, made: Any) -> None:
            if any(isinstance(x, Tensor) and x.requires_grad for x in tree_leaves(made)):
                learning.add(id(block))

        hooks = [block.register_forward_hook(met) for block in speed.blocks(self.arm.model)]
        work = self.work([self.sample])
        for hook in hooks:
            hook.remove()
        self.blocks = len(learning) or self.blocks
        return work

    @functools.cached_property
    def checkpointed(self) -> Work:
        """Its way back cannot be watched as it passes: of that, at most one block is in memory."""
        plain = self.plain  # before: what is checkpointed stays so
        _ = self.answer
        speed.checkpoint_blocks(self.arm.model)
        work = self.work([self.sample])
        return dataclasses.replace(work, passing=plain.passing + plain.kept // self.blocks)

    def work(self, samples: Sequence[Sample]) -> Work:
        batch = self.arm.rehearsal(samples)
        return watched(self.arm, lambda: self.arm.rehearse(batch))

    def frozen_bytes(self, quantise: str) -> int:
        """Weights that are not trained; with `quantise` the blocks' linear layers in fewer bits."""
        whole = sum(p.numel() * p.element_size() for p in self.frozen)
        if quantise == "none":
            return whole
        if not self.linear:
            raise UserError("quantise: this backbone names no blocks to quantise. Set quantise: none.")
        return int(whole - sum(self.linear) + sum(self.linear) / self.itemsize * BITS[quantise] / 8)

    def lora_bytes(self) -> int:
        """The trained weights, and what their optimiser adds."""
        return sum(p.numel() * p.element_size() for p in self.trained) + speed.optimiser_bytes(self.trained)


def as_loaded(arm: Arm) -> None:
    """peft gives an adapter the precision of its layer, but not on the meta device."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for layer in arm.model.modules():
        if isinstance(layer, BaseTunerLayer):
            kind: Any = layer.get_base_layer().weight.dtype
            for weight in layer.parameters():
                if weight.requires_grad:
                    weight.data = weight.data.to(kind)


def sketch_of(run: Run, dtype: str) -> Sketch:
    """The run's sketch; one that differs in nothing a sketch shows is not made twice."""
    told = config.to_dict(run)
    names = ("family", "flavour", "options", "lora", "task", "test_task", "n", "seed", "augment", "votes", "far_from")
    return _sketch_of(json.dumps({name: told[name] for name in names}), dtype, _Holder(run))


@functools.lru_cache(maxsize=16)
def _sketch_of(key: str, dtype: str, held: _Holder) -> Sketch:
    return Sketch(held.run, dtype)


class _Holder:
    """A run that goes along with its key and is no part of it."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Holder)

    def __hash__(self) -> int:
        return 0


# ---------------------------------------------------------------------------------------------------------------------
# The plan


@dataclass(frozen=True)
class Plan:
    """What a run takes on each of `processes` devices. Bytes, FLOPs, hours."""

    run: Run
    processes: int
    parameters: int  # of the backbone
    lora_parameters: int
    frozen: int  # bytes of weights that are not trained
    lora: int  # bytes of those that are, with optimiser and gradients
    work: Work  # of one sample, as it will be run
    micro_batch: int
    idle: int  # samples beside a micro-batch's own that an expert computes for nothing, so that its shards are fetched with it
    checkpointing: bool
    room: int  # bytes of the device that may be used
    host: int  # bytes of the backbone on the CPU, whole in every process, as it is loaded; 0 where it goes to the device at once
    flops: int  # of all updates
    answer: int  # FLOPs of one answer
    training: float | None  # hours; None: the device's speed is not known
    answers: float | None
    ahead: float | None  # hours, of latents and the like
    disk: Mapping[str, int]  # what is kept or downloaded -> bytes
    notes: tuple[str, ...]  # what is assumed, a line each

    @property
    def activations(self) -> int:
        """Bytes of what a micro-batch keeps and what passes."""
        return (self.micro_batch + self.idle) * self.work.kept + self.micro_batch * self.work.passing

    @property
    def need(self) -> int:
        """Bytes of device memory."""
        return self.frozen + self.lora + self.activations

    @property
    def fits(self) -> bool:
        return self.need <= self.room


def plan(
    run: Run, device_gib: float, flops_per_second: float | None = None, *, processes: int = 1, gpu: bool = True
) -> Plan:
    """What `run` takes on devices of `device_gib` GiB whose matrix products run at `flops_per_second`; `gpu`: as training goes on
    a GPU, which takes bf16 and looks for a micro-batch by itself. Raises UserError for a backbone nobody knows the size of."""
    if run.optim.batch % processes:
        raise UserError(f"optim.batch: {run.optim.batch} examples cannot be shared equally by {processes} processes.")
    dtype = dtype_of(run, gpu)
    sketch = sketch_of(run, dtype)
    sharded = run.speed.shard and processes > 1
    frozen, lora = sketch.frozen_bytes(run.quantise), sketch.lora_bytes()
    # shards and few bits are made of the whole backbone on the CPU, in every process
    host = processes * sketch.frozen_bytes("none") if sharded or run.quantise != "none" else 0
    if sharded:  # of what is fetched, two blocks are in memory, the one at work and the next, and all that is in none
        fetched = sketch.outside + 2 * (frozen - sketch.outside) // max(1, sketch.named)
        frozen, lora = frozen // processes + fetched, lora // processes
    room = max(0, int(GIB * ((1 - FREE) * device_gib - LIBRARIES)))
    share = run.optim.batch // processes
    work, micro, checkpointing = _cut(run, sketch, room - frozen - lora, share, gpu and not sharded)

    compiled = run.speed.compile == "on" or (run.speed.compile == "auto" and gpu and run.optim.updates >= 100)
    pace = "small" if micro < 2 else "compiled" if compiled else "plain"
    idle = sketch.arm.idle_samples if sharded else 0
    flops = run.optim.updates * run.optim.batch * work.step * (micro + idle) // micro
    answers = run.test * run.votes * sketch.answer
    asked = "small" if run.options.get("batch", 1) < 2 else "plain"

    def hours(count: float, how: str, slower: float = 1.0) -> float | None:
        return count / (flops_per_second * SHARES[how] * slower * 3600) if flops_per_second else None

    return Plan(
        run,
        processes,
        sum(p.numel() for p in sketch.frozen),
        sum(p.numel() for p in sketch.trained),
        frozen,
        lora,
        work,
        micro,
        idle,
        checkpointing,
        room,
        host,
        flops,
        sketch.answer,
        hours(flops / processes, pace),
        hours(answers, asked, sketch.arm.answer_pace),
        hours(run.n * run.augment * sketch.ahead / processes, "small"),
        disk(run, sketch),
        (*notes(pace, sketch.arm.answer_pace, dtype), *alone(sketch, room, sharded), *sketch.arm.caveats),
    )


def dtype_of(run: Run, gpu: bool) -> str:
    """torch's name of the precision that the run is computed in; on a machine with a GPU, as that one would by itself."""
    bf16 = gpu and (not torch.cuda.is_available() or speed.has_bf16())
    return "bfloat16" if run.precision == "bf16" or (run.precision == "auto" and bf16) else "float32"


def _cut(run: Run, sketch: Sketch, room: int, share: int, looks: bool) -> tuple[Work, int, bool]:
    """The work of a sample, the micro-batch, and whether blocks are checkpointed: as `train.make_room` will find them."""
    wanted = run.speed.checkpointing
    first = sketch.checkpointed if wanted == "on" else sketch.plain
    if not looks:
        published = config.flavour_of(run).published
        return first, min(run.optim.micro_batch or (1 if published else share), share), wanted == "on"
    largest = min(run.optim.micro_batch or share, share)

    def most(work: Work) -> int:
        sizes = [size for size in range(1, largest + 1) if share % size == 0]
        return max((size for size in sizes if size * (work.kept + work.passing) <= room), default=0)

    if micro := most(first):
        return first, micro, wanted == "on"
    if wanted == "auto":
        return sketch.checkpointed, max(1, most(sketch.checkpointed)), True
    return first, 1, wanted == "on"


def notes(pace: str, answer_pace: float, dtype: str) -> tuple[str, ...]:
    """What hours stand on."""
    how = {"small": "micro-batches below 2", "plain": "blocks that are not compiled", "compiled": "compiled blocks"}
    said = f"training at {SHARES[pace]:.0%} of a {dtype} matrix product's speed, as with {how[pace]}"
    slower = "" if answer_pace == 1 else f"; answers, token by token, at {answer_pace:.0%} of that"
    return (said + slower,)


def alone(sketch: Sketch, room: int, sharded: bool) -> list[str]:
    """What is learned in parts is answered by one device, which must hold all of it: said where it cannot."""
    whole = sketch.frozen_bytes("none")
    if not sharded or whole <= room:
        return []
    return [
        f"answers are not in this: one device makes them, with the whole backbone, {whole / GIB:.1f} GiB: more than it holds"
    ]


def disk(run: Run, sketch: Sketch) -> dict[str, int]:
    """Bytes on the disk, by what they are for."""
    trained = sum(p.numel() for p in sketch.trained)
    taken = {
        "latents": run.n * run.augment * sketch.arm.kept_bytes(sketch.sample),
        "checkpoints": CHECKPOINTS * trained * (4 + 8),
        "adapter": sum(p.numel() * p.element_size() for p in sketch.trained),
    }
    if sketch.base and not here(sketch.base):
        # published in bf16; what else a checkpoint has (text encoder, autoencoder) comes on top
        taken["download, at least"] = 2 * sum(p.numel() for p in sketch.frozen)
    return {name: size for name, size in taken.items() if size}


def here(base: str) -> bool:
    """Whether a checkpoint's weights lie on this machine: a folder, or a snapshot in the hub's cache."""
    if Path(base).exists():
        return True
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return any(Path(snapshot_download(base, local_files_only=True)).rglob("*.safetensors"))
    except (LocalEntryNotFoundError, HFValidationError, OSError):
        return False


# ---------------------------------------------------------------------------------------------------------------------
# The nearest setting that fits


def nearest(
    found: Plan, device_gib: float, *, gpu: bool = True, most: int = 8, host: float = math.inf
) -> tuple[list[str], int] | None:
    """Settings (KEY=VALUE) to add so that a plan that does not fit does, and on how many processes; None where nothing helps.
    `host`: bytes of memory of the machine that all processes run on, each loading the backbone.

    Tried in this order: computing activations twice, micro-batches of 1, bf16 where it would be fp32, fewer bits, smaller
    pictures or shorter clips, on GPUs shards over processes (on a CPU the launcher starts one). What came before is kept, and
    dropped where it turns out not to be needed. Where the `host` cannot load it so often, fewer processes come first.
    """
    run, processes = found.run, found.processes

    def changed(settings: Sequence[str], on: int = processes) -> Plan | None:
        try:
            return plan(config.resolve(config.to_dict(run), settings), device_gib, processes=on, gpu=gpu)
        except UserError:  # a size that does not go with the rest
            return None

    def fits(settings: Sequence[str], on: int = processes) -> bool:
        return bool((tried := changed(settings, on)) and tried.fits and tried.host <= host)

    def needed(settings: Sequence[str], on: int = processes) -> list[str]:
        for setting in settings[:-1]:
            fewer = [s for s in settings if s != setting]
            if fits(fewer, on):
                settings = fewer
        return list(settings)

    for on in range(processes - 1, 0, -1) if found.host > host else ():
        if fits([], on):
            return [], on
    few = ["speed.checkpointing=on", "optim.micro_batch=1"]
    small = [*few, *["precision=bf16"] * (dtype_of(run, gpu) == "float32")]
    bits = [[]] if run.speed.shard else [["quantise=int8"], ["quantise=nf4"]]
    for settings in (few[:1], few, small, *([*small, *fewer] for fewer in bits)):
        if fits(settings):
            return needed(settings), processes
    # each size is another sketch: none is made where the weights alone are too large, or nothing is known of fewer bits
    least = changed([*small, *bits[-1]])
    if least is None:
        bits, least = [[]], changed(small)
    if least and least.frozen + least.lora < least.room and least.host <= host:
        for smaller in _smaller(run):
            if fits(settings := [*small, *bits[-1], *smaller]):
                return needed(settings), processes
    for on in range(max(2, processes), most + 1) if gpu else ():
        settings = [*small, "quantise=none", "speed.shard=true"]
        if run.quantise == "none":
            settings.remove("quantise=none")
        if run.optim.batch % on == 0 and fits(settings, on):
            return needed(settings, on), on
    return None


def _smaller(run: Run) -> list[list[str]]:
    """Settings that make an example smaller, the mildest first; none for an arm that shows no pictures."""
    options = run.arm_options()
    tried = []
    if pixels := getattr(options, "pixels", 0):
        tried += [[f"options.pixels={int(pixels * share) // 16 * 16}"] for share in SMALLER]
    every = getattr(options, "every", None)
    if every and (frames := getattr(options, "frames", 0)) > every + 1:
        lengths = range(frames - every, every, -every)
        tried += [[f"options.frames={length}"] for length in lengths]
        if pixels:
            tried += [[f"options.frames={lengths[-1]}", *settings] for settings in tried[: len(SMALLER)]]
    return tried


# ---------------------------------------------------------------------------------------------------------------------
# The device that is here


def device() -> tuple[float, bool]:
    """GiB of memory of one of this machine's devices, and whether that is a GPU."""
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[1] / GIB, True
    import psutil

    return psutil.virtual_memory().total / GIB, False


def speed_of_device(run: Run, gpu: bool) -> float:
    """FLOP/s of a matrix product here, in the run's precision, measured for a moment."""
    import time

    bf16 = run.precision == "bf16" or (run.precision == "auto" and gpu)
    size = 8192 if gpu else 1024
    a = torch.ones(size, size, device="cuda" if gpu else "cpu", dtype=torch.bfloat16 if bf16 else torch.float32)
    best = math.inf
    for _ in range(5):
        began = time.perf_counter()
        (a @ a)[0, 0].item()  # waits for the device
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best
