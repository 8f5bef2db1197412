"""What makes a training fast and small, for any arm alike: nothing here knows a family, and nothing changes what is computed
beyond rounding (but `quantise`, which is a key of its own for that reason).

Blocks are the modules that a library names as its smallest whole ones, or as those that repeat: what is compiled, checkpointed
and sharded.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor, nn

from tasks.base import Missing, UserError

BLOCKS = ("_no_split_modules", "_repeated_blocks")
# In the order of preference on a GPU: torch's own first choice is the slower one on Hopper.
ATTENTION = ("CUDNN_ATTENTION", "FLASH_ATTENTION", "EFFICIENT_ATTENTION", "MATH")


def blocks(model: nn.Module) -> list[nn.Module]:
    """The model's blocks, outermost first; none where its library names none."""
    said = (getattr(part, name, None) or () for part in model.modules() for name in BLOCKS)
    names = {name for some in said for name in some}
    found: list[nn.Module] = []
    for module in model.modules():
        if type(module).__name__ in names and not any(module is inner for outer in found for inner in outer.modules()):
            found.append(module)
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Weights


class Masters:
    """fp32 copies of the trained weights, which the optimiser updates. The model computes with its own precision: an update of
    1e-4 of a weight is lost in bf16, and fp32 adapters in a bf16 model make every one of their inputs fp32.

    Weights that are fp32 are their own masters.
    """

    def __init__(self, weights: Mapping[str, nn.Parameter]) -> None:
        self.weights = weights
        self.copies = {
            name: p if p.dtype == torch.float32 else nn.Parameter(p.detach().float()) for name, p in weights.items()
        }

    def take_gradients(self) -> None:
        """Move the gradients of the weights to their masters."""
        for name, p in self.weights.items():
            if self.copies[name] is not p and p.grad is not None:
                self.copies[name].grad, p.grad = p.grad.float(), None

    @torch.no_grad()
    def give(self) -> None:
        """Round the masters into the weights."""
        for name, p in self.weights.items():
            if self.copies[name] is not p:
                p.copy_(self.copies[name])

    def clip(self, most: float) -> Tensor:
        """Clip the gradients to a norm of `most`; the norm before."""
        norm = nn.utils.clip_grad_norm_(list(self.copies.values()), most)
        return whole(norm)


def optimiser_bytes(weights: Iterable[Tensor], gradients: bool = True) -> int:
    """What training adds to the weights themselves: masters where they are not fp32, two moments, and gradients in fp32."""
    return sum(p.numel() * (4 * (p.element_size() < 4) + 8 + 4 * gradients) for p in weights)


def whole(value: Tensor) -> Tensor:
    """A tensor that may be sharded over processes, whole. All processes have to ask."""
    gather = getattr(value, "full_tensor", None)
    return gather() if gather else value


@torch.no_grad()
def fill(value: Tensor, whole_value: Tensor) -> None:
    """Write a whole tensor into one that may be sharded."""
    if hasattr(value, "full_tensor"):
        from torch.distributed.tensor import distribute_tensor

        whole_value = distribute_tensor(
            whole_value.to(value.device, value.dtype),
            value.device_mesh,
            value.placements,
        )
    value.copy_(whole_value)


def shard(module: nn.Module) -> nn.Module:
    """FSDP2: every process keeps its part of each block's weights and fetches the rest when the block is at work. What is on the
    CPU goes to the process's device block by block."""
    from torch.distributed.fsdp import fully_shard

    for block in blocks(module):
        fully_shard(block)
    return fully_shard(module)  # type: ignore[no-any-return]


def quantise(model: nn.Module, kind: str, device: torch.device) -> None:
    """Replace the linear layers of the model's blocks by 4-bit (NF4, Dettmers et al. 2023) or 8-bit ones, frozen; peft knows how
    to put a LoRA on them. Before `attach`. A model that is on the CPU comes to `device` layer by layer, in its few bits: whole it
    is never there. Raises UserError where bitsandbytes is not installed or there are no blocks."""
    try:
        import bitsandbytes as bnb
    except ImportError as error:
        raise Missing(f"quantise: {kind} needs bitsandbytes. Install it with: pip install bitsandbytes") from error
    inside = blocks(model)
    if not inside:
        raise UserError("quantise: this backbone names no blocks to quantise. Set quantise: none.")
    for block in inside:
        for name, layer in list(block.named_modules()):
            if type(layer) is nn.Linear:
                parent = block.get_submodule(name.rpartition(".")[0])
                setattr(parent, name.rpartition(".")[2], _quantised(layer, kind, bnb, device))
    model.to(device)
    # by these peft knows what it meets
    model.is_loaded_in_4bit, model.is_loaded_in_8bit = kind == "nf4", kind == "int8"  # type: ignore[assignment]


def _quantised(layer: nn.Linear, kind: str, bnb: Any, device: torch.device) -> nn.Module:
    weight, bias = layer.weight.data, layer.bias
    if kind == "nf4":
        made = bnb.nn.Linear4bit(
            layer.in_features,
            layer.out_features,
            bias=bias is not None,
            compute_dtype=weight.dtype,
            quant_type="nf4",
        )
        made.weight = bnb.nn.Params4bit(weight.cpu(), requires_grad=False, quant_type="nf4")
    else:
        made = bnb.nn.Linear8bitLt(
            layer.in_features,
            layer.out_features,
            bias=bias is not None,
            has_fp16_weights=False,
            threshold=6.0,  # LLM.int8(), as transformers has it: inputs beyond it are multiplied in more bits
        )
        made.compute_dtype = weight.dtype  # peft gives adapters this dtype; by the int8 weight it would leave them fp32
        made.weight = bnb.nn.Int8Params(weight.cpu(), requires_grad=False, has_fp16_weights=False)
    made.bias = bias
    return made.to(device)  # type: ignore[no-any-return]  # quantised on the way


# ---------------------------------------------------------------------------------------------------------------------
# Memory


def checkpoint_blocks(model: nn.Module) -> None:
    """Keep of each block its input alone and compute the rest again on the way back: a third more work, a tenth of the memory."""
    for part in model.modules():  # transformers, by its newer name and the older
        for name in ("activation_checkpointing_enable", "gradient_checkpointing_enable"):
            if hasattr(part, name):
                getattr(part, name)({"use_reentrant": False})
                return
    for part in model.modules():
        if getattr(part, "_supports_gradient_checkpointing", False):  # diffusers
            part.enable_gradient_checkpointing()  # type: ignore[operator]


def tidy() -> None:
    """Give back to the device what nothing holds any more, also where it is held in circles."""
    clear_device_cache(garbage_collection=True)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is short: torch's own, or one of the words by which the driver and cuBLAS say it."""
    words = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    said = isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    return said or isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error)


def fitting(
    attempt: Callable[[int], None], share: int, most: int | None = None, lacked: list[str] | None = None
) -> int | None:
    """The largest micro-batch up to `most` that divides `share` and with which `attempt(micro)` finds room; None: not even 1.
    `lacked` gets the words of each error: the errors themselves would keep what was computed."""
    micro = most or share
    while micro:
        try:
            attempt(micro)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            if lacked is not None:
                lacked.append(str(error))
        else:
            return micro
        finally:
            tidy()
        micro = max((size for size in range(1, micro) if share % size == 0), default=0)
    return None


def in_bf16(model: nn.Module) -> bool:
    """Whether the weights are bf16 as they lie. Autocast would keep every norm's output in fp32 for the way back: two fifths more
    memory in CogVideoX, for a model that its library runs in bf16 throughout."""
    return any(p.dtype == torch.bfloat16 for p in model.parameters())


def has_bf16() -> bool:
    """Whether the GPU that is here computes in bf16. torch says yes to what it can imitate, such as on a T4."""
    return torch.cuda.is_bf16_supported(including_emulation=False)


def worth_fitting(device: torch.device) -> bool:
    """Whether memory is so scarce that a look ahead pays: on a GPU."""
    return device.type == "cuda"


# ---------------------------------------------------------------------------------------------------------------------
# Kernels


def compile_blocks(model: nn.Module, backend: str = "inductor") -> int:
    """Compile each block by itself: the same code serves all of them. The number of blocks."""
    found = blocks(model)
    for block in found:
        block.compile(backend=backend)
    return len(found)


plain_attention = nn.functional.scaled_dot_product_attention
_through: list[Callable[..., Tensor]] = []  # what attention goes through now, the last first
_turn = threading.Lock()


@contextlib.contextmanager
def attention_through(function: Callable[..., Tensor]) -> Iterator[None]:
    """Have libraries attend through `function` in place of torch's own. A patch and no mode: checkpointed blocks are computed
    again where modes are off. Threads may overlap: torch's own is back when the last of them is done."""
    with _turn:
        _through.append(function)
        nn.functional.scaled_dot_product_attention = function
    try:
        yield
    finally:
        with _turn:
            _through.remove(function)
            nn.functional.scaled_dot_product_attention = _through[-1] if _through else plain_attention


def _in_fp32(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *rest: Any, **more: Any
) -> Tensor:
    """torch's fused attention, given fp32 where it was to have fewer bits."""
    few_bits = query.dtype in (torch.bfloat16, torch.float16) or torch.is_autocast_enabled(query.device.type)
    if query.is_meta or not few_bits:  # of what is only counted the kernel that counts it knows best
        return plain_attention(query, key, value, attn_mask, *rest, **more)
    mask = attn_mask.float() if attn_mask is not None and attn_mask.is_floating_point() else attn_mask
    with torch.autocast(query.device.type, enabled=False):  # it would round the inputs again
        return plain_attention(query.float(), key.float(), value.float(), mask, *rest, **more).to(query.dtype)


def kernels(device: torch.device) -> list[str]:
    """The kernels of attention on a device, the best first: those of a GPU; none of them where there is none."""
    return kernels_of(torch.cuda.get_device_capability(device)) if device.type == "cuda" else []


def kernels_of(capability: tuple[int, int]) -> list[str]:
    """The kernels of attention on a GPU of a compute capability, such as (9, 0), the best first. cuDNN's only where torch's
    switch (torch.backends.cuda.enable_cudnn_sdp) leaves it on, and not from Blackwell on: on B200 it writes wrong answers with
    few key heads, and no error (pytorch#193893)."""
    cudnn = torch.backends.cuda.cudnn_sdp_enabled() and capability < (10, 0)
    return [name for name in ATTENTION if cudnn or name != "CUDNN_ATTENTION"]


@contextlib.contextmanager
def best_attention(device: torch.device, precision: torch.dtype | None = None) -> Iterator[None]:
    """Attention by the fastest kernel that can do it: on a GPU, and on a CPU in bf16, where torch's fused kernel (2.13) is
    slower, there and back, than in fp32 with its casts, and the plain one too (`benchmarks/results/cpu_precision.md`)."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    if device.type == "cuda":
        with sdpa_kernel([getattr(SDPBackend, name) for name in kernels(device)], set_priority=True):
            yield
    elif device.type == "cpu" and precision == torch.bfloat16:
        with attention_through(_in_fp32):
            yield
    else:
        yield


def longest(samples: Sequence[Any]) -> list[Any]:
    """Samples, the one that takes most memory first: of text, question and answer together."""

    def size(sample: Any) -> int:
        text = len(getattr(sample.given, "text", ""))
        return getattr(sample.wanted, "nbytes", None) or text + len(sample.wanted or "")

    return sorted(samples, key=size, reverse=True)
