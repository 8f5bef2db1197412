"""A frozen image model that a video model learns from, frame by frame: SigLIP2, SigLIP, CLIP or DINOv2, by folder or hub id.

    vdmreason pretrain image-teacher --out my-teacher

makes a small one where no hub can be reached: the vision tower of SigLIP at a small size, on still procedural pictures,
told what shapes are in them and where the largest is. That stands in for the image-text supervision of the published ones,
and whatever learns from it says so.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn

from pretrain import recipe as recipes
from pretrain.data import SHAPES as SPRITES
from pretrain.data import clip, named_rng
from pretrain.loop import Share, fit, mean_over_processes, trapezoid
from pretrain.recipe import is_main, record_of
from pretrain.scenes import CELLS, scene
from pretrain.scenes import SHAPES as OBJECTS
from pretrain.vit3d import coordinates, sincos

ZOO = Path(__file__).resolve().parent / "zoo" / "image_teacher"

# Mean and deviation of the pixels in 0..1 that each kind of tower was trained on.
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_OPENAI = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
AT_ONCE = 64  # frames: SigLIP2-giant's 41 maps of them are 4 GB
TOWERS = {"siglip_vision_model": _HALF, "clip_vision_model": _OPENAI, "dinov2": _IMAGENET}


class ImageTeacher(nn.Module):
    """`frames` (B, 3, H, W) in -1..1 -> maps, the pooled embedding, and where the pooling looks.

    maps      (K, B, S, D) inputs of K of the tower's blocks, the last first, each token of length 1
    pooled    (B, D) of length 1
    attention (B, S), summing to 1: of the pooling head (SigLIP), of the class token in the last block (CLIP, DINOv2)
    """

    def __init__(self, tower: Any, name: str = "") -> None:
        super().__init__()
        self.tower, self.name = tower.eval().requires_grad_(False), name
        kind = tower.config.model_type
        self.classes = 0 if kind == "siglip_vision_model" else 1  # tokens before the patches
        mean, deviation = TOWERS[kind]
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("deviation", torch.tensor(deviation)[:, None, None], persistent=False)
        if self.classes:
            tower.set_attn_implementation("eager")  # others do not say where they look

    @property
    def depth(self) -> int:
        return int(self.tower.config.num_hidden_layers)

    @property
    def width(self) -> int:
        return int(self.tower.config.hidden_size)

    @property
    def patch(self) -> int:
        return int(self.tower.config.patch_size)

    def train(self, mode: bool = True) -> ImageTeacher:
        """Frozen: it never leaves evaluation."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, frames: Tensor, grid: tuple[int, int], layers: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
        """`grid`: the rows and columns of patches that are wanted, whatever the tower's own patch is. `layers`: the blocks
        whose inputs are returned. AT_ONCE frames at a time: a tower keeps all of its maps until it is done."""
        maps, pooled, attention = zip(*(self._look(some, grid, layers) for some in frames.split(AT_ONCE)), strict=True)
        return torch.cat(maps, 1), torch.cat(pooled), torch.cat(attention)

    def _look(self, frames: Tensor, grid: tuple[int, int], layers: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
        size = (grid[0] * self.patch, grid[1] * self.patch)
        if frames.shape[-2:] != size:
            frames = F.interpolate(frames, size, mode="bicubic", antialias=True).clamp(-1, 1)
        frames = ((frames + 1) / 2 - self.mean) / self.deviation
        given: dict[str, Any] = {"output_hidden_states": True}
        if self.tower.config.model_type != "dinov2":  # which always interpolates its positions
            given["interpolate_pos_encoding"] = size != (self.tower.config.image_size,) * 2
        if self.classes:
            given["output_attentions"] = True
        found = self.tower(frames.to(next(self.tower.parameters()).dtype), **given)
        patches = slice(self.classes, None)
        maps = torch.stack([F.normalize(found.hidden_states[k][:, patches].float(), dim=-1) for k in layers])
        if self.classes:
            attention = found.attentions[-1][:, :, 0, patches].mean(1)  # of the class token, mean over heads
        else:
            head, tokens = self.tower.head, found.last_hidden_state
            probe = head.probe.expand(len(tokens), -1, -1)
            attention = head.attention(probe, tokens, tokens, need_weights=True)[1][:, 0]
        attention = attention.float() / attention.float().sum(-1, keepdim=True)
        return maps, F.normalize(found.pooler_output.float(), dim=-1), attention


def layers_of(teacher: int, student: int, count: int) -> tuple[int, ...]:
    """Which of a teacher's blocks go with the last `count` of a student's, the last first: evenly spaced from the top, as many
    teacher blocks apart as there are teacher blocks a student block (the released code's 3.33 and 1.67 for 40 over 12 and 24)."""
    step = round(teacher / student, 2)
    return tuple(max(0, min(teacher - 1, math.floor(teacher - 0.01 - k * step))) for k in range(count))


def load(name: str | Path) -> ImageTeacher:
    """The vision tower in a folder or of a hub id; of a model with a text tower, the vision tower alone. Raises ValueError in
    one line that says what to do."""
    from transformers import AutoConfig, CLIPVisionModel, Dinov2Model, SiglipVisionModel

    name = str(name)
    classes = {"siglip": SiglipVisionModel, "siglip_vision_model": SiglipVisionModel, "clip": CLIPVisionModel,
               "clip_vision_model": CLIPVisionModel, "dinov2": Dinov2Model}  # fmt: skip
    try:
        kind = AutoConfig.from_pretrained(name, trust_remote_code=False).model_type
        if kind in classes:
            tower = loaded(classes[kind], name, dtype=torch.float32)
            return ImageTeacher(tower, name)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"the image teacher {name} could not be loaded ({' '.join(str(error).split())[:150]}). Without a network name a "
            "folder that holds one, or take the one that ships: --teacher small"
        ) from None
    raise ValueError(f"{name} is a {kind}; an image teacher is a SigLIP (1 or 2 of a fixed size), CLIP or DINOv2")


def loaded(kind: Any, name: str, **given: Any) -> Any:
    """A model of transformers with all of its weights: what is not in the file would be random, and is refused."""
    model, info = kind.from_pretrained(name, trust_remote_code=False, output_loading_info=True, **given)
    if missing := sorted(info["missing_keys"]):
        raise ValueError(f"{len(missing)} of its weights are not in the file, such as {missing[0]}")
    return model


def resolve(name: str) -> str:
    """ "small" is the one that ships."""
    return str(ZOO) if name == "small" else name


# One of our own

SIZES = {  # width, depth, heads, patch, side
    "tiny": (24, 2, 2, 8, 32),
    "small": (96, 6, 3, 8, 64),  # as deep as the small InternVideo-Next, so that its blocks have one each
}
KNOWN = tuple(sorted({*SPRITES, *OBJECTS}))  # what may be in a picture


def tower_of(size: str) -> Any:
    from transformers import SiglipVisionConfig, SiglipVisionModel

    width, depth, heads, patch, side = SIZES[size]
    config = SiglipVisionConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        image_size=side,
        patch_size=patch,
    )
    tower = SiglipVisionModel(config)
    # Random positions tell a small tower in a short training nothing: after 1,200 updates it did not know where anything was.
    grid = (1, side // patch, side // patch)
    tower.embeddings.position_embedding.weight.data.copy_(sincos(coordinates(grid), width, 100.0))
    return tower


class Told(nn.Module):
    """A tower that is told what is in a picture: which shapes, and in which ninth the largest of a scene is."""

    def __init__(self, tower: Any) -> None:
        super().__init__()
        self.tower = tower
        self.shapes = nn.Linear(tower.config.hidden_size, len(KNOWN))
        self.place = nn.Linear(tower.config.hidden_size, CELLS)

    def forward(self, pictures: Tensor, there: Tensor, place: Tensor) -> dict[str, Tensor]:
        """`pictures` (B, 3, H, W) in -1..1; `there` (B, len(KNOWN)) 0 or 1; `place` (B,), -1 where it is not told."""
        pooled = self.tower(pictures).pooler_output
        shapes = F.binary_cross_entropy_with_logits(self.shapes(pooled), there)
        told = (place >= 0).sum()
        told = (mean_over_processes(told) if self.training else told).clamp_min(1)  # there may be none at all
        place_ = F.cross_entropy(self.place(pooled), place, ignore_index=-1, reduction="sum") / told
        return {"loss": shapes + place_ / 4, "shapes": shapes, "place": place_}


def still(i: int, seed: int, side: int) -> tuple[np.ndarray, np.ndarray, int]:
    """A picture uint8 (side, side, 3), which of KNOWN are in it, and the ninth of the largest object or -1."""
    rng = named_rng("still", seed, i)
    there = np.zeros(len(KNOWN), np.float32)
    if rng.random() < 0.6:
        made = scene(i, seed, 8, side)
        there[KNOWN.index(OBJECTS[made.labels["shape"]])] = 1  # the others are too small to be told
        return made.frames[-1], there, made.labels["position"]
    frames = clip(i, seed, 9, (side, side))
    for shape in frames.labels.get("shapes", ()):
        there[KNOWN.index(shape)] = 1
    return frames.frames[0], there, -1


def pretrain(
    out: Path | str,
    *,
    minutes: float | None = None,
    updates: int | None = None,
    size: str = "small",
    seed: int = 0,
    batch: int = 32,
) -> dict[str, Any]:
    """Train a tower and write it to `out` in the published layout. Resumes after a kill."""
    out = Path(out)
    torch.manual_seed(seed)
    model = Told(tower_of(size))
    side = SIZES[size][-1]

    def batch_at(step: int, share: Share) -> dict[str, Tensor]:
        pictures, there, place = zip(*(still(step * batch + row, seed, side) for row in share.rows(batch)), strict=True)
        pixels = recipes.to_pixels(torch.from_numpy(np.stack(pictures))[:, None])[:, :, 0]
        return {"pictures": pixels, "there": torch.from_numpy(np.stack(there)), "place": torch.tensor(place)}

    log = fit(
        model,
        batch_at,
        out / "work",
        minutes=minutes,
        updates=updates,
        schedule=trapezoid(1e-3),
        settings={"size": size, "seed": seed, "batch": batch},
        title=f"image teacher {size}",
    )
    if not is_main():
        return {"log": log}
    model.tower.half().save_pretrained(out)
    given = {"size": size, "seed": seed, "batch": batch}
    record = record_of("image-teacher", None, out, f"{minutes:g}m" if minutes else f"{updates}u", given, pretrain)
    record |= {"log": log}
    return recipes.write_down(record, out, card(record, model))


def card(record: dict[str, Any], model: Told) -> str:
    log = record["log"]
    about = (
        "A stand-in for SigLIP2 where no hub can be reached: the same class at a small size, in the published layout, trained by "
        "this project. It knows what a picture shows and nothing of motion."
    )
    points = [
        f"**Parameters**: {sum(p.numel() for p in model.tower.parameters()) / 1e6:.2f} M.",
        f"**Told**: which of {', '.join(KNOWN)} are in a still picture, and in which ninth the largest object is: labels "
        "of the renderer, where SigLIP2 has the texts of web pages. Whatever learns from it has that knowledge.",
        f"**Training**: {log['updates']:,} updates, {log['seconds'] / 60:.0f} minutes; last loss {log['loss']:.3f}.",
    ]
    return recipes.card(f"An image teacher, size {record['size']}, pretrained by us", about, record, points)
