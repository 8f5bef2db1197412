"""Two ways to learn a distribution from noise, behind one call: `loss(process, net, clean, noise, time)`.

A process says how clean data and noise are mixed at a time 0..1, what a network is asked for, and how samples are drawn
with it. `net(mixed, time)` returns its guess, of the shape of `mixed`; what it is conditioned on is its own affair.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, Protocol

import torch
from torch import Generator, Tensor

STEPS = 1000  # times are multiples of 1/1000, as published
Net = Callable[[Tensor, Tensor], Tensor]
Watch = Callable[[int, int, Tensor], object]  # (step, steps, the clean data as they are guessed now)


class Process(Protocol):
    def times(self, shape: tuple[int, ...], generator: Generator) -> Tensor: ...
    def mixed(self, clean: Tensor, noise: Tensor, time: Tensor) -> Tensor: ...
    def target(self, clean: Tensor, noise: Tensor, time: Tensor) -> Tensor: ...
    def sample(self, net: Net, noise: Tensor, steps: int, watch: Watch | None = None) -> Tensor: ...


def loss(process: Process, net: Net, clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
    """The squared error of the network's guess, of the shape of `clean`. `time` is broadcast over `clean`."""
    guess = net(process.mixed(clean, noise, time), time)
    return (guess.float() - process.target(clean, noise, time)).square()


@dataclass(frozen=True)
class Flow:
    """Flow matching on straight lines (Lipman et al. 2023; NExT-Vid eq. 6-8): from noise at time 0 to data at time 1.

    The network is asked for the velocity, as published, or for the clean data, from which the velocity follows. Noise
    fills every dimension of a patch, so a network that is narrower than its patch cannot give the velocity back, while a
    patch of a picture it can (Li and He 2025, "Back to basics"; docs/log.md).

    `shift` draws times towards noise, in training and in sampling (Esser et al. 2024, eq. 23): the more pixels say the
    same, the more noise it takes to hide what they say, about the square root of their number. 1 is uniform, as published.
    """

    asked_for: Literal["velocity", "clean"] = "velocity"
    shift: float = 1.0

    def times(self, shape: tuple[int, ...], generator: Generator) -> Tensor:
        """Times of {0, 1/1000, ..., 999/1000}, uniform but for the shift."""
        return self.shifted(torch.randint(STEPS, shape, generator=generator) / STEPS)

    def shifted(self, time: Tensor) -> Tensor:
        """Uniform times 0..1 drawn towards noise, 0; the ends stay where they are."""
        return time / (time + self.shift * (1 - time))

    def mixed(self, clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        return (1 - time) * noise + time * clean

    def target(self, clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        return clean if self.asked_for == "clean" else clean - noise

    def sample(self, net: Net, noise: Tensor, steps: int, watch: Watch | None = None) -> Tensor:
        """Euler's method from `noise`, in `steps` steps, equal but for the shift."""
        x = noise
        ends = self.shifted(torch.linspace(0, 1, steps + 1, device=x.device))
        for k, (time, later) in enumerate(pairwise(ends), 1):
            guess = net(x, time).float()
            velocity = (guess - x) / (1 - time) if self.asked_for == "clean" else guess
            if watch:
                watch(k, steps, x + (1 - time) * velocity)
            x = x + (later - time) * velocity
        return x


@dataclass(frozen=True)
class DDPM:
    """Denoising diffusion with the cosine schedule (Ho et al. 2020; Nichol and Dhariwal 2021, eq. 17): data at time 0,
    noise at time 1. The network is asked for the noise, as published, or for the clean data; `shift` as in `Flow`.

    `limit`: data lie within -limit..limit, so a guess beyond is cut when sampling (as in Ho et al. 2020); 0 for none. Where
    there is all but noise, a small error of the noise is a large one of the data."""

    asked_for: Literal["noise", "clean"] = "noise"
    shift: float = 1.0
    limit: float = 0.0

    def times(self, shape: tuple[int, ...], generator: Generator) -> Tensor:
        """Times of {1/1000, ..., 1}, uniform but for the shift."""
        return self.shifted((torch.randint(STEPS, shape, generator=generator) + 1) / STEPS)

    def shifted(self, time: Tensor) -> Tensor:
        """Uniform times 0..1 drawn towards noise, 1; the ends stay where they are."""
        return self.shift * time / (1 + (self.shift - 1) * time)

    def kept(self, time: Tensor) -> Tensor:
        """How much of the signal's variance is left at `time`, alpha-bar; never quite none, for the way back divides."""
        angle = (time + 0.008) / 1.008 * math.pi / 2
        return (angle.cos() / math.cos(0.008 / 1.008 * math.pi / 2)).square().clamp(1e-5, 1.0)

    def mixed(self, clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        kept = self.kept(time)
        return kept.sqrt() * clean + (1 - kept).sqrt() * noise

    def target(self, clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        return clean if self.asked_for == "clean" else noise

    def sample(self, net: Net, noise: Tensor, steps: int, watch: Watch | None = None) -> Tensor:
        """Deterministic sampling (DDIM: Song et al. 2021, eq. 12) from `noise`, in `steps` steps, equal but for the shift."""
        x = noise
        ends = self.shifted(torch.linspace(1, 0, steps + 1, device=x.device))
        for k, (time, before) in enumerate(pairwise(ends), 1):
            kept, kept_before = self.kept(time), self.kept(before)
            guess = net(x, time).float()
            clean = guess if self.asked_for == "clean" else (x - (1 - kept).sqrt() * guess) / kept.sqrt()
            if self.limit:
                clean = clean.clamp(-self.limit, self.limit)
            noisy = (x - kept.sqrt() * clean) / (1 - kept).sqrt()
            if watch:
                watch(k, steps, clean)
            x = kept_before.sqrt() * clean + (1 - kept_before).sqrt() * noisy
        return x


def waves(time: Tensor, width: int = 256) -> Tensor:
    """Sines and cosines of 1000 * time, (..., width) (as in DiT)."""
    frequency = torch.exp(-math.log(10_000) * torch.arange(width // 2, device=time.device) / (width // 2))
    angle = 1000 * time[..., None].float() * frequency
    return torch.cat([angle.cos(), angle.sin()], -1)
