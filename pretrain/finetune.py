"""Train a pretrained encoder on labels, all of its weights, and say how it does on clips that it has not seen.

    vdmreason finetune my-lvmae --long order --frames 64

After LVMAE's fine-tuning (arXiv 2411.13683, section 4.1; VideoMAE V2's script where the paper is silent): a linear layer on the
mean of the tokens, a share of the tokens dropped by a random tube where clips are long, learning rates that fall from block to
block towards the input, one clip a video at test. Mixup, cutmix, RandAugment, stochastic depth (also where the recipe has it:
whatever the encoder begins from, it is trained in evaluation mode) and ViT-L's class attention are not here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from pretrain import long, masks
from pretrain.loop import Share, fit, warm_cosine
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
        self.learnt = Videos(train, frames, side, **options)
        self.asked = Videos(test, frames, side, augment=False, **options)
        for where, videos in ((train, self.learnt), (test, self.asked)):
            missing = [source.name for source in videos.sources if source.label is None]
            if missing:
                raise ValueError(f"{where}: {missing[0]} has no label; write one behind every path")
        both = {_place(s) for s in self.learnt.sources} & {_place(s) for s in self.asked.sources}
        if both:
            raise ValueError(f"{len(both)} videos are in {train} and in {test}, such as {min(both)[0]}; test on others")
        labels = [s.label for videos in (self.learnt, self.asked) for s in videos.sources if s.label is not None]
        if min(labels) < 0:
            raise ValueError(f"{train}: labels are whole numbers from 0, there is a {min(labels)}")
        self.classes, self.test = max(labels) + 1, len(self.asked.sources)

    def __call__(self, part: Part, numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Of the test the middle of each video, once; what cannot be read is left out, and named by `asked.bad`."""
        if part == "test":
            found = [pair for number in numbers if (pair := self.asked.middle(number)) is not None]
            if not found:
                return torch.zeros(0, 2, 8, 8, 3, dtype=torch.uint8), torch.zeros(0, dtype=torch.long)
            return torch.from_numpy(np.stack([frames for frames, _ in found])), torch.tensor([k for _, k in found])
        frames, labels = self.learnt.labelled(numbers)
        return torch.from_numpy(frames), torch.from_numpy(labels)


def _place(source: Any) -> tuple[str, int]:
    """Where a video is, however its path is written and whatever links lead there."""
    return (source.path if "://" in source.path else os.path.realpath(source.path)), source.start


class Classifier(nn.Module):
    """An encoder, and for each of the questions in `classes`, name -> number of answers, a linear layer on the mean of its
    tokens. `forward` is the loss."""

    def __init__(self, encoder: Any, classes: Mapping[str, int], smoothing: float = 0.1) -> None:
        super().__init__()
        # In evaluation mode, whether it was pretrained or begins from random weights: the two are to differ in nothing else.
        self.encoder, self.smoothing = encoder.requires_grad_(True).eval(), smoothing
        self.norm = nn.LayerNorm(encoder.size.width, 1e-6)
        self.heads = nn.ModuleDict({name: nn.Linear(encoder.size.width, count) for name, count in classes.items()})
        for head in self.heads.values():
            nn.init.trunc_normal_(head.weight, std=1e-3)

    def pooled(self, pixels: Tensor, keep: Tensor | None = None) -> Tensor:
        return self.norm(self.encoder(pixels, keep).mean(1))

    def forward(self, video: Tensor, labels: Tensor, keep: Tensor | None) -> dict[str, Tensor]:
        """Rows lie question by question, as many of each."""
        count = len(self.heads)
        parts = zip(
            self.heads.values(), self.pooled(to_pixels(video), keep).chunk(count), labels.chunk(count), strict=True
        )
        losses, right = [], []
        for head, features, wanted in parts:
            logits = head(features)
            losses.append(F.cross_entropy(logits, wanted, label_smoothing=self.smoothing))
            right.append((logits.argmax(-1) == wanted).float().mean())
        return {"loss": torch.stack(losses).mean(), "right": torch.stack(right).mean().detach()}


def save(model: Classifier, place: Path) -> None:
    """The weights, in fp16."""
    save_file({name: value.detach().half().cpu().contiguous() for name, value in model.state_dict().items()}, place)


def layer_rates(depth: int, decay: float) -> dict[str, float]:
    """What each part's learning rate is multiplied by: 1 for the head, and once more by `decay` for every block nearer to the
    input."""
    rates = {f"encoder.blocks.{k}.": decay ** (depth - k) for k in range(depth)}
    return {"": 1.0, "encoder.": decay ** (depth + 1), "encoder.norm.": 1.0, **rates}


def finetune(
    encoder: Any,
    data: Mapping[str, Data],
    work: Path,
    *,
    updates: int | None = None,
    minutes: float | None = None,
    batch: int = 16,
    micro: int = 1,
    lr: float = 1e-3,
    layer_decay: float = 0.65,
    drop: float = 0.0,
    seed: int = 0,
    precision: Literal["no", "bf16"] = "no",
    settings: Mapping[str, Any] | None = None,
    ahead: bool = False,
    bad: Mapping[str, str] | None = None,
    title: str = "finetune",
) -> tuple[Classifier, dict[str, Any]]:
    """Train all of `encoder` on `data`, question -> labelled clips; resumes after a kill. Every question has an equal part of the
    batch. `drop`: share of the places hidden by a tube in training (as published 20 % at 128 frames, 25 % for ViT-L, none below).
    `bad`: what of the videos cannot be read, as it grows. Returns the model and the log."""
    torch.manual_seed(seed)
    model = Classifier(encoder, {name: clips.classes for name, clips in data.items()})
    factors = layer_rates(encoder.size.depth, layer_decay)
    each = max(1, batch // len(data))

    def batch_at(step: int, share: Share) -> dict[str, Any]:
        rows = share.rows(each)
        parts = [clips("train", [step * each + row for row in rows]) for clips in data.values()]
        video, keep = torch.cat([clip for clip, _ in parts]), None
        if drop:
            frames, height, width = encoder.grid(to_pixels(video[:1]))
            names = [(k, row) for k in range(len(data)) for row in rows]
            tubes = [masks.tube(1, height * width, drop, generator(seed, step, *name)) for name in names]
            keep = masks.over_time(torch.cat(tubes), range(frames), height * width)
        return {"video": video, "labels": torch.cat([label for _, label in parts]), "keep": keep}

    def schedule(step: int, total: int) -> dict[str, float]:
        rate = warm_cosine(step, total, lr, 0.05)
        return {name: rate * factor for name, factor in factors.items()}

    log = fit(model, batch_at, work, updates=updates, minutes=minutes, schedule=schedule, weight_decay=0.05,
              decay_vectors=False, betas=(0.9, 0.999), micro=micro, precision=precision, settings=settings, ahead=ahead,
              bad=bad, title=title)  # fmt: skip
    return model, log


@torch.no_grad()
def tested(model: Classifier, question: str, data: Data, batch: int = 20) -> dict[str, float]:
    """Accuracy on the test clips with its 95 % interval (Wilson)."""
    device = next(model.parameters()).device
    model.eval()
    right = count = 0
    for start in tqdm(range(0, data.test, batch), desc="test", mininterval=2.0):
        video, labels = data("test", range(start, min(start + batch, data.test)))
        if len(labels):
            logits = model.heads[question](model.pooled(to_pixels(video.to(device))))
            right, count = right + int((logits.argmax(-1).cpu() == labels).sum()), count + len(labels)
    if not count:
        raise ValueError("none of the videos of the test can be read")
    low, high = wilson(right, count)
    return {"accuracy": right / count, "low": low, "high": high, "clips": count}
