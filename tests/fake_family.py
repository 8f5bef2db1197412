"""A small honest family for tests of the loop: a real network with real LoRA, that reads each cell's 3x3 neighbourhood.

It learns Game of Life in a few hundred updates on a CPU in seconds, so the loop, the checkpoints and the folders can be
tested without a diffusion or a language model. `install()` makes it known to `adapters`, in this process only.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

import adapters
from adapters.base import Answer, Arm, Flavour, Sample, Watch
from tasks.base import Example

ARM = "language"
NAMES = ("fake", "fake_video")
FLAVOURS = {
    "small": Flavour("small", "", "a small one", 5000, False, {"optim.lr": 0.02, "lora.rank": 4}),
    "tiny": Flavour("tiny", "", "a tiny one", 500, False, {"options.width": 8}),
}


@dataclass(frozen=True)
class Options:
    width: int = 24  # hidden units
    noise: float = 0.05  # share of question cells blanked in training
    explode_at: int = 0  # >0: the loss is not finite from this collate on
    mode: Literal["plain", "fancy"] = "plain"
    canvas: tuple[int, int] | None = None


def frame(example: Example, options: Options) -> Sample:
    return Sample(example.question, example.answer, example.key)


class Net(nn.Module):
    dropout = 0.1  # its own, beside LoRA's; a test that compares other cuts of the batch turns it off

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(9 * 16, width), nn.Linear(width, width)
        self.drop = nn.Dropout(self.dropout)
        self.head = nn.Linear(width, 16)

    def forward(self, x: Tensor) -> Tensor:
        """(B, rows, cols) int64 -> (B, rows, cols, 16) logits."""
        hot = nn.functional.one_hot(nn.functional.pad(x, (1, 1, 1, 1), value=15), 16).float()
        near = [hot[:, r : r + x.shape[1], c : c + x.shape[2]] for r in range(3) for c in range(3)]
        hidden = self.drop(torch.relu(self.fc1(torch.cat(near, -1))))
        out: Tensor = self.head(torch.relu(self.fc2(hidden)))
        return out


class Fake(Arm):
    layout = "peft"
    targets: Mapping[str, Sequence[str]] = {"attention": ("fc1",), "mlp": ("fc2",)}

    def __init__(self, options: Options, device: str) -> None:
        self.options, self.device, self.collated = options, device, 0
        self.seen: list[tuple[str, int]] = []
        self.model = Net(options.width).to(device)

    def frame(self, example: Example) -> Sample:
        return frame(example, self.options)

    def collate(self, samples: Sequence[Sample], seeds: Sequence[int]) -> dict[str, Tensor]:
        self.collated += 1
        self.seen += [(s.key, seed) for s, seed in zip(samples, seeds, strict=True)]
        given, weight = [], []
        for sample, seed in zip(samples, seeds, strict=True):
            generator = torch.Generator().manual_seed(seed)
            grid = torch.as_tensor(sample.given.astype(np.int64))
            given.append(torch.where(torch.rand(grid.shape, generator=generator) < self.options.noise, 0, grid))
            weight.append(0.5 + torch.rand((), generator=generator))
        blow = self.options.explode_at and self.collated >= self.options.explode_at
        return {
            "given": torch.stack(given).to(self.device),
            "wanted": torch.stack([torch.as_tensor(s.wanted.astype(np.int64)) for s in samples]).to(self.device),
            "weight": torch.stack(weight).to(self.device) * (float("nan") if blow else 1.0),
        }

    def loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        logits = self.model(batch["given"]).permute(0, 3, 1, 2)
        each = nn.functional.cross_entropy(logits.float(), batch["wanted"], reduction="none").mean((1, 2))
        return (each * batch["weight"]).mean()

    @torch.no_grad()
    def predict(self, givens: Sequence[Any], seeds: Sequence[int], watch: Watch | None = None) -> list[Answer]:
        self.model.eval()
        answers = []
        for given in givens:
            logits = self.model(torch.as_tensor(given.astype(np.int64))[None].to(self.device))[0].softmax(-1)
            certainty, grid = logits.max(-1)
            raw: Any = str(grid.tolist())
            if isinstance(self, FakeVideo):
                raw = np.repeat(np.stack([given, grid.numpy()]).astype(np.uint8)[..., None] * 10, 3, axis=-1)
            answers.append(Answer(grid.cpu().numpy().astype(np.int8), raw, certainty.cpu().numpy(), "", 0.01))
        return answers

    def codec(self, samples: Sequence[Sample]) -> list[Answer]:
        return [Answer(sample.wanted, "", None) for sample in samples]


class FakeVideo(Fake):
    """The same network; its raw answer is a clip of two frames."""


def load(
    flavour: Flavour,
    options: Options,
    *,
    init: str = "pretrained",
    seed: int = 0,
    device: str = "cpu",
    dtype: str = "float32",
) -> Fake:
    torch.manual_seed(seed if init == "random" else 12345)
    return Fake(options, device)


def install() -> None:
    """Add "fake" (language) and "fake_video" (video) to the families of this process."""
    names = sorted({*adapters.families(), *NAMES})
    adapters.families = lambda: names  # type: ignore[assignment]
    sys.modules["adapters.fake"] = sys.modules[__name__]
    video = ModuleType("adapters.fake_video")

    def load_video(flavour: Flavour, options: Options, **rest: Any) -> Fake:
        arm = load(flavour, options, **rest)
        arm.__class__ = FakeVideo
        return arm

    vars(video).update(ARM="video", FLAVOURS=FLAVOURS, Options=Options, frame=frame, load=load_video)
    sys.modules["adapters.fake_video"] = video


@contextmanager
def installed() -> Iterator[None]:
    """`install` for a while, so that other tests see the real families only."""
    families = adapters.families
    install()
    try:
        yield
    finally:
        adapters.families = families
        for name in NAMES:
            sys.modules.pop(f"adapters.{name}", None)
