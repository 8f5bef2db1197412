"""What the recipes of our own backbones share: clips to learn from, a training with its record, weights and their card.

A recipe is one file of this folder. It says what a model is (`Config`, `FLAVOURS`), what a step learns from, and what the
loss is; `train` does the rest. Its module offers

    load(folder, *, random_weights=False)     the model that `save` wrote
    encode(model, video) -> (B, N, D)         what probes read
    pictures(model, video, seed) -> films     what a person looks at
    KEYS                                      what of its `Config` a training may set otherwise

and its `config.json` names it.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import math
import shlex
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Generator, Tensor, nn

from pretrain.data import clip, named_rng
from pretrain.loop import processes

LEAST = 4  # patches a side: of fewer no masks can be drawn
# Pictures in patches, (rows, columns), for procedural clips: mostly square, some long, so that distances are learnt.
SHAPES = ((8, 8),) * 6 + ((7, 7),) * 2 + ((4, 16), (16, 4), (6, 10), (10, 6), (5, 5), (12, 12))


def to_pixels(video: Tensor) -> Tensor:
    """uint8 (B, F, H, W, 3) -> float (B, 3, F, H, W) in -1..1 (mean and deviation .5)."""
    return video.permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def to_uint8(pixels: Tensor) -> Tensor:
    """The inverse of `to_pixels`."""
    return ((pixels + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 4, 1)


def generator(*name: int) -> Generator:
    """A generator named by whole numbers. (torch seeds with 32 bits: two of some hundred thousand names may be alike.)"""
    seed = functools.reduce(
        lambda so_far, part: (so_far * 6364136223846793005 + part + 1442695040888963407) % 2**64, name, 0
    )
    seed = (seed ^ seed >> 31) * 0x9E3779B97F4A7C15 % 2**64
    return torch.Generator().manual_seed(seed >> 1)


def everywhere(batch: int, places: int) -> Tensor:
    """(batch, places): all of them."""
    return torch.arange(places).expand(batch, -1)


# Clips


class Clips:
    """Where clips come from: procedural ones, or `videos` with `clips(numbers, frames)`."""

    def __init__(self, patch: int, side: int, seed: int, videos: Any = None) -> None:
        self.patch, self.side, self.seed, self.videos = patch, side, seed, videos

    def shape(self, step: int) -> tuple[int, int]:
        """Rows and columns of patches that all clips of a step have."""
        side = self.side // self.patch
        if self.videos is not None:
            return side, side
        shape = SHAPES[int(named_rng("shape", self.seed, step).integers(len(SHAPES)))]
        return shape[0] * side // 8, shape[1] * side // 8

    def batch(self, asked: int, rows: int, columns: int, times: float = 1.0) -> int:
        """How many clips of that shape make a batch that is worth `asked` square ones, or so many `times` as much: what is asked
        for, and where it is more or less than that whole eights, or 4, 2 or 1, so that processes share what one would see."""
        times *= min(1.0, (self.side // self.patch) ** 2 / (rows * columns))
        if times == 1:
            return asked
        wanted = asked * times
        return round(wanted / 8) * 8 if wanted >= 8 else 2 ** int(math.log2(max(1, round(wanted))))

    def __call__(self, numbers: Sequence[int], frames: int, rows: int, columns: int) -> Tensor:
        """uint8 (len(numbers), frames, H, W, 3)."""
        if self.videos is not None:
            return torch.from_numpy(self.videos.clips(numbers, frames))
        size = (rows * self.patch, columns * self.patch)
        return torch.from_numpy(np.stack([clip(n, self.seed, frames, size).frames for n in numbers]))


def check_side(side: int, patch: int) -> None:
    if side % patch or side < LEAST * patch:
        raise ValueError(f"a picture of {side} pixels does not divide into at least {LEAST} patches of {patch} a side")


# A training


def files_of(videos: Any) -> dict[str, str]:
    """What the settings of a training note of its real videos: which ones there are."""
    return {"files of its data": videos.listing()} if videos is not None else {}


def shares(config: Any, *names: str, whole: bool = True) -> None:
    """Raises ValueError where a field that is a share is none; unless `whole`, where it is all."""
    for name in names:
        value = getattr(config, name)
        if not 0 <= value <= 1 or (value == 1 and not whole):
            raise ValueError(f"{name}: a share between 0 and 1{'' if whole else ', and less than 1'}, not {value:g}")


def weights(config: Any, *names: str) -> None:
    """Raises ValueError where the weights of losses are negative, or leave nothing to learn from."""
    values = [getattr(config, name) for name in names]
    if min(values) < 0 or not any(values):
        raise ValueError(f"{', '.join(names)}: weights of losses, none negative and one above 0, not {values}")


def is_mask(mask: Sequence[float]) -> bool:
    """Whether it is (blocks, the share of a frame that each covers) as a mask of blocks can be."""
    return len(mask) == 2 and 1 <= mask[0] <= 16 and mask[0] == int(mask[0]) and 0.02 <= mask[1] <= 0.8


def masks_of_blocks(config: Any, name: str) -> None:
    """Raises ValueError where a field has a mask that cannot be."""
    for mask in getattr(config, name):
        if not is_mask(mask):
            raise ValueError(
                f"{name}: each a number of blocks, 1 to 16, and the share of a frame that each covers, 0.02 to 0.8; not {mask}"
            )


def record_of(
    name: str,
    recipe: Any,
    out: Path,
    budget: str,
    given: Mapping[str, Any],
    pretrain: Callable,
    spelled: Mapping[str, str] = {},
) -> dict:
    """What the card says of a training: the command, the machine, the data, the weights' sum. `given` are `pretrain`'s
    arguments as they came; those that are its defaults are not said. `spelled`: which have another name on the command line."""
    usual = {
        name: p.default for name, p in inspect.signature(pretrain).parameters.items() if name not in ("size", "seed")
    }
    said = [
        f"--{spelled.get(k, k).replace('_', '-')} {shlex.quote(str(v))}"
        for k, v in given.items()
        if k != "overrides" and (k not in usual or v != usual[k])
    ]
    for key, value in (given.get("overrides") or {}).items():
        value = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
        said.append(f"--set {shlex.quote(f'{key}={value}')}")
    return {
        "command": f"vdmreason pretrain {name} --budget {budget} {' '.join(said)}",
        "machine": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"{torch.get_num_threads()} CPU threads",
        "size": given["size"],
        "seed": given["seed"],
        "data": given.get("data") or "procedural",
        "weights": hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest(),
        "recipe": asdict(recipe) if recipe else {},
        "torch": torch.__version__,
    }


def write_down(record: dict[str, Any], out: Path, card: str) -> dict[str, Any]:
    """Leave `pretrain.json` and the card of a training beside its weights."""
    (out / "pretrain.json").write_text(json.dumps(record, indent=1))
    (out / "README.md").write_text(card)
    return record


def is_main() -> bool:
    """Whether this is the process that writes."""
    return bool(processes().is_main_process)


# Weights


def save(out: Path, recipe: str, model: nn.Module, config: Any, beside: Iterable[str] = ()) -> None:
    """Weights in fp16 and their configuration. Parts of the model named in `beside` have files of their own."""
    out.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().half().cpu().contiguous() for name, value in model.state_dict().items()}
    files: dict[str, dict[str, Tensor]] = {"model": {}, **{part: {} for part in beside}}
    for name, value in weights.items():
        files[next((part for part in beside if name.startswith(f"{part}.")), "model")][name] = value
    for file, part in files.items():
        if part:
            fresh = out / f"{file}.tmp"
            save_file(part, fresh, {"format": "pt"})
            fresh.replace(out / f"{file}.safetensors")
    (out / "config.json").write_text(json.dumps({"recipe": recipe, **asdict(config)}, indent=1))


def stored_config(folder: Path, recipe: str, title: str) -> dict[str, Any]:
    """The values of a `Config` that `save` wrote. Raises ValueError where the folder holds another recipe's."""
    try:
        stored: dict[str, Any] = json.loads((folder / "config.json").read_text())
    except FileNotFoundError:
        raise ValueError(f"{folder} holds no {title}: there is no config.json in it") from None
    if stored.pop("recipe", None) != recipe:
        raise ValueError(f"{folder} holds no {title}: its config.json names another recipe")
    return stored


def stored_weights(folder: Path, beside: Iterable[str] = ()) -> dict[str, Tensor]:
    """All weights there are, in fp32."""
    files = [folder / "model.safetensors", *(p for part in beside if (p := folder / f"{part}.safetensors").exists())]
    try:
        return {name: value.float() for file in files for name, value in load_file(file).items()}
    except FileNotFoundError:
        raise ValueError(
            f"{folder} has no model.safetensors: its training has not come to a first checkpoint"
        ) from None
    except SafetensorError:
        raise ValueError(f"a weights file in {folder} is damaged or cut off. Copy or train it again") from None


def millions(model: nn.Module) -> dict[str, float]:
    """Parameters by part, in millions."""
    return {name: sum(p.numel() for p in part.parameters()) / 1e6 for name, part in model.named_children()}


def card(title: str, about: str, record: Mapping[str, Any], points: Iterable[str]) -> str:
    """A model card: `points` and what every training has to say of itself."""
    learnt = (
        "procedural clips (`pretrain/data.py`): moving shapes, blocks that influence each other, a camera that turns. No task "
        "of the exam is drawn on purpose, and no puzzle; what comes near to one by chance is counted in that file"
    )
    if record["data"] == "long":
        learnt = "long procedural clips (`pretrain/long.py`): one object on a background that stands or pans; no puzzle"
    elif record["data"] != "procedural":
        learnt = f"the videos in `{record['data']}`"
        learnt += f", {len(record['bad'])} of them unreadable" if record.get("bad") else ""
    said = [
        *points,
        f"**Learnt from**: {learnt}.",
        f"**Machine**: {record['machine']}, torch {record['torch']}. Weights saved in fp16.",
        f"**Command**: `{record['command']}`",
        f"**Weights**: sha256 of `model.safetensors` {record['weights'][:16]}",
    ]
    # A path or an option that is broken at a hyphen is no command any more.
    fill = functools.partial(textwrap.fill, width=118, break_on_hyphens=False, break_long_words=False)
    lines = [fill(f"- {point}", subsequent_indent="  ") for point in said]
    return f"# {title}\n\n{textwrap.fill(about, 118)}\n\n{chr(10).join(lines)}\n"
