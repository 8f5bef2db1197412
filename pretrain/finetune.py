"""Train a pretrained encoder on labels, all of its weights, and say how it does on clips that it has not seen.

    vdmreason finetune my-lvmae --long order --frames 64

After LVMAE's fine-tuning (arXiv 2411.13683, section 4.1; VideoMAE V2's script where the paper is silent): a linear layer on the
mean of the tokens, a share of the tokens dropped by a random tube where clips are long, learning rates that fall from block to
block towards the input, one clip a video at test. Mixup, cutmix and RandAugment are not here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from pretrain import long, masks
from pretrain.loop import Share, fit
from pretrain.probe import wilson
from pretrain.recipe import generator, to_pixels

Part = Literal["train", "test"]


class Data(Protocol):
    """Labelled clips by number."""

    classes: int
    test: int  # how many there are to test on

    def __call__(self, part: Part, numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
        """uint8 (B, F, H, W, 3) and labels (B,)."""


class LongClips:
    """A task of `pretrain.long`: the middle `frames` of `labels` clips, again and again; the test is on others."""

    def __init__(self, task: str, frames: int, side: int, labels: int, test: int = 1000, seed: int = 0) -> None:
        if task not in long.TASKS:
            raise ValueError(f"{task}: no such task; there are {', '.join(long.TASKS)}")
        if not 0 < frames <= long.LENGTH:
            raise ValueError(f"{frames} frames: a long clip has {long.LENGTH}")
        self.task, self.frames, self.side, self.labels, self.seed = task, frames, side, labels, seed
        self.classes, self.test = long.TASKS[task], test

    def __call__(self, part: Part, numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
        # No pretraining draws clips of these seeds.
        seed, start = 10**7 + self.seed, long.middle(self.frames)
        if part == "train":
            return long.clips([n % self.labels for n in numbers], seed, self.frames, self.side, self.task, start)
        return long.clips([2**40 + n for n in numbers], seed, self.frames, self.side, self.task, start)


class ListedVideos:
    """Real videos with labels: a list, or shards that have them, for training and another for the test."""

    def __init__(self, train: str, test: str, frames: int, side: int, fps: float, seed: int = 0) -> None:
        from pretrain.video import Videos

        options: dict[str, Any] = {"fps": fps, "seed": seed}
        self.parts = {
            "train": Videos(train, frames, side, **options),
            "test": Videos(test, frames, side, augment=False, **options),
        }
        for where, videos in ((train, self.parts["train"]), (test, self.parts["test"])):
            missing = [s.name for s in videos.sources if s.label is None]
            if missing:
                raise ValueError(f"{where}: {missing[0]} has no label; write one behind every path")
        labels = [s.label for videos in self.parts.values() for s in videos.sources if s.label is not None]
        if min(labels) < 0:
            raise ValueError(f"{train}: labels are whole numbers from 0, there is a {min(labels)}")
        self.classes, self.test = max(labels) + 1, len(self.parts["test"].sources)

    def __call__(self, part: Part, numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
        frames, labels = self.parts[part].labelled(numbers)
        return torch.from_numpy(frames), torch.from_numpy(labels)


class Classifier(nn.Module):
    """An encoder and a linear layer on the mean of its tokens. `forward` is the loss."""

    def __init__(self, encoder: Any, classes: int, smoothing: float = 0.1) -> None:
        super().__init__()
        self.encoder, self.smoothing = encoder.requires_grad_(True), smoothing
        self.norm = nn.LayerNorm(encoder.size.width, 1e-6)
        self.head = nn.Linear(encoder.size.width, classes)
        nn.init.trunc_normal_(self.head.weight, std=1e-3)

    def logits(self, pixels: Tensor, keep: Tensor | None = None) -> Tensor:
        return self.head(self.norm(self.encoder(pixels, keep).mean(1)))

    def forward(self, video: Tensor, labels: Tensor, keep: Tensor | None) -> dict[str, Tensor]:
        logits = self.logits(to_pixels(video), keep)
        right = (logits.argmax(-1) == labels).float().mean()
        return {"loss": F.cross_entropy(logits, labels, label_smoothing=self.smoothing), "right": right.detach()}


def save(model: Classifier, place: Path) -> None:
    """The weights, in fp16."""
    save_file({name: value.detach().half().cpu().contiguous() for name, value in model.state_dict().items()}, place)


def layer_rates(depth: int, decay: float) -> dict[str, float]:
    """What each part's learning rate is multiplied by: 1 for the head, `decay` less for every block nearer to the input."""
    rates = {f"encoder.blocks.{k}.": decay ** (depth - k) for k in range(depth)}
    return {"": 1.0, "encoder.": decay ** (depth + 1), "encoder.norm": 1.0, **rates}


def finetune(
    encoder: Any,
    data: Data,
    work: Path,
    *,
    updates: int | None = None,
    minutes: float | None = None,
    batch: int = 16,
    lr: float = 1e-3,
    layer_decay: float = 0.75,
    drop: float = 0.0,
    seed: int = 0,
    settings: dict[str, Any] | None = None,
    ahead: bool = False,
    title: str = "finetune",
) -> tuple[Classifier, dict[str, Any]]:
    """Train all of `encoder` on `data`; resumes after a kill. `drop`: share of the places hidden by a tube in training (20 % at
    128 frames, 25 % for ViT-L, none below). Returns the model and the log."""
    torch.manual_seed(seed)
    model = Classifier(encoder, data.classes)
    factors = layer_rates(encoder.size.depth, layer_decay)

    def batch_at(step: int, share: Share) -> dict[str, Any]:
        rows = share.rows(batch)
        video, labels = data("train", [step * batch + row for row in rows])
        keep = None
        if drop:
            frames, height, width = encoder.grid(to_pixels(video[:1]))
            tubes = [masks.tube(1, height * width, drop, generator(seed, step, row)) for row in rows]
            keep = masks.over_time(torch.cat(tubes), range(frames), height * width)
        return {"video": video, "labels": labels, "keep": keep}

    def schedule(step: int, total: int) -> dict[str, float]:
        # a warm-up of a twentieth, then a cosine to 0
        done = step / max(1, total)
        rate = lr * (done * 20 if done < 0.05 else (1 + math.cos(math.pi * (done - 0.05) / 0.95)) / 2)
        return {name: rate * factor for name, factor in factors.items()}

    log = fit(model, batch_at, work, updates=updates, minutes=minutes, schedule=schedule, weight_decay=0.05, decay_vectors=False,
              betas=(0.9, 0.999), settings=settings, ahead=ahead, title=title)  # fmt: skip
    return model, log


@torch.no_grad()
def tested(logits: Callable[[Tensor], Tensor], data: Data, batch: int = 20) -> dict[str, float]:
    """Accuracy on the test clips with its 95 % interval (Wilson). `logits`: pixels (B, 3, F, H, W) -> (B, classes)."""
    right = 0
    for start in tqdm(range(0, data.test, batch), desc="test", mininterval=2.0):
        video, labels = data("test", range(start, min(start + batch, data.test)))
        right += int((logits(to_pixels(video)).argmax(-1) == labels).sum())
    low, high = wilson(right, data.test)
    return {"accuracy": right / data.test, "low": low, "high": high, "clips": data.test}
