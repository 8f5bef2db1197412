"""Long clips whose label can only be told from events far apart.

Clip `i` is a pure function of `(seed, i)`: one textured object on a textured background, which stands still or pans as a whole.
What is asked depends on the task:

    bounces   how often the object turns back, 0 to 4 times
    order     the object hops or swells, twice, half a clip or more apart: which and then which, one of 4
    period    how long a swing to and fro takes, one of 4; how fast it is at its fastest is drawn apart from it

Speeds, phases, colours and places are drawn apart from the labels, the object leaves on one side and comes back on the other,
and a few frames hold at most one event: of a short window even the exact path tells little more than chance
(tests/test_tokenizer.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from numpy.random import Generator
from torch import Tensor

from pretrain.data import named_rng

LENGTH = 128  # frames of a whole clip
TASKS = {"bounces": 5, "order": 4, "period": 4}  # and how many labels each has
PERIODS = (80, 120, 180, 270)  # frames of a swing
EVENT = 8  # frames that a hop or a swelling takes
APART = 10  # frames between two bounces at least


@dataclass(frozen=True)
class Long:
    frames: npt.NDArray[np.uint8]  # (F, side, side, 3)
    task: str
    label: int
    seen: npt.NDArray[np.bool_]  # (F, side, side): where the object is


def long_clip(
    i: int,
    seed: int = 0,
    side: int = 32,
    task: str | None = None,
    frames: range = range(LENGTH),
    pan: bool | None = None,
) -> Long:
    """Those `frames` of clip `i`, `side` x `side` pixels. `task` and `pan` are drawn where they are not given."""
    rng = named_rng("long", seed, i, side)
    drawn, drifts = str(rng.choice(list(TASKS))), bool(rng.random() < 0.5)
    task, pan = task or drawn, drifts if pan is None else pan
    rng = named_rng("long", seed, i, side, task)
    label = int(rng.integers(TASKS[task]))
    at, radius, _ = _ACTED[task](rng, label, side)
    t = np.arange(frames.start, frames.stop, frames.step)
    y = np.arange(side, dtype=np.float32) + 0.5
    # What leaves on one side comes back on the other.
    dy, dx = (((y - at[t, axis, None] + side / 2) % side - side / 2) for axis in (0, 1))  # each (F, side)
    dy, dx, r = dy[:, :, None], dx[:, None, :], radius[t, None, None]
    inside = dy * dy + dx * dx <= r * r if rng.random() < 0.5 else np.maximum(np.abs(dy), np.abs(dx)) <= 0.85 * r

    pictures = _cloth(rng, t, side, pan)
    one, two = _two_colours(rng)
    angle, pitch = rng.uniform(0, np.pi), rng.uniform(4, 7)
    along = np.broadcast_to(np.cos(angle) * dy + np.sin(angle) * dx, inside.shape)[inside]
    weight = 0.5 + 0.2 * np.sin(2 * np.pi * along / pitch)
    pictures[inside] = one + (two - one) * weight[:, None]
    pictures += rng.integers(-7, 8, (LENGTH, side, side), np.int8)[t][..., None]
    return Long(np.clip(np.rint(pictures), 0, 255).astype(np.uint8), task, label, inside)


def clips(
    numbers: Iterable[int], seed: int, frames: int, side: int, task: str | None = None, start: int | None = None
) -> tuple[Tensor, Tensor]:
    """uint8 (B, frames, side, side, 3) and labels (B,). Fewer frames than LENGTH are a window: from `start`, or from anywhere."""
    found = []
    for number in numbers:
        most = LENGTH - frames
        first = int(named_rng("window", seed, number).integers(most + 1)) if start is None else start
        found.append(long_clip(number, seed, side, task, range(first, first + frames)))
    return torch.from_numpy(np.stack([c.frames for c in found])), torch.tensor([c.label for c in found])


def middle(frames: int) -> int:
    """Where a window in the middle of a clip begins."""
    return (LENGTH - frames) // 2


def ceiling(task: str, frames: int, count: int = 4000) -> float:
    """How often one is right who sees every event in the middle `frames` of a clip and nothing else of it: the best guess for
    what is seen (how many, of which kind, before or after the middle), by counting. For bounces and order."""
    seen: dict[object, list[int]] = {}
    for i in range(count):
        rng = named_rng("ceiling", i, task)
        label = int(rng.integers(TASKS[task]))
        events = _ACTED[task](rng, label, 32)[2]
        start = middle(frames)
        shown = tuple((kind, time < LENGTH // 2) for time, kind in events if start <= time < start + frames)
        seen.setdefault(shown, []).append(label)
    return sum(max(np.bincount(labels)) for labels in seen.values()) / count


# Where the object is, how large, and when what happens to it: (LENGTH, 2), (LENGTH,), (time, kind)
Acted = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], list[tuple[int, int]]]


def _size(rng: Generator) -> npt.NDArray[np.float64]:
    return np.full(LENGTH, rng.uniform(3.5, 5.5))


def _bounces(rng: Generator, count: int, side: int) -> Acted:
    free = LENGTH - 2 * APART - (count - 1) * APART if count else 1
    times = np.sort(rng.integers(0, free, count)) + APART + np.arange(count) * APART
    turns = np.zeros(LENGTH)
    turns[times] = 1
    speed = rng.uniform(0.35, 0.9) * side / 32
    velocity = speed * (-1.0) ** np.cumsum(turns) * rng.choice((-1, 1))
    at = rng.uniform(0, side, 2) + np.zeros((LENGTH, 2))
    at[:, rng.integers(2)] += np.cumsum(velocity)
    return at, _size(rng), [(int(time), 0) for time in times]


def _order(rng: Generator, label: int, side: int) -> Acted:
    first = int(rng.integers(2, LENGTH // 2 - EVENT - 2))
    second = int(rng.integers(first + LENGTH // 2, LENGTH - EVENT - 2))
    axis, drift = rng.integers(2), rng.uniform(0.1, 0.3) * rng.choice((-1, 1)) * side / 32
    at, radius = rng.uniform(0, side, 2) + np.zeros((LENGTH, 2)), _size(rng)
    at[:, axis] += np.arange(LENGTH) * drift
    bump = np.sin(np.pi * (np.arange(EVENT) + 0.5) / EVENT)
    way = rng.choice((-1, 1))
    for time, swells in ((first, label // 2), (second, label % 2)):
        when = slice(time, time + EVENT)
        if swells:
            radius[when] *= 1 + 0.6 * bump
        else:
            at[when, 1 - axis] += way * 0.22 * side * bump
    return at, radius, [(first, label // 2), (second, label % 2)]


def _period(rng: Generator, label: int, side: int) -> Acted:
    period = PERIODS[label] * rng.uniform(0.94, 1.06)
    speed = rng.uniform(0.12, 0.3) * side / 32  # at its fastest, pixels a frame: the wide swings are the slow ones
    swing = speed * period / (2 * np.pi) * np.sin(2 * np.pi * (np.arange(LENGTH) / period + rng.uniform()))
    at = rng.uniform(0, side, 2) + np.zeros((LENGTH, 2))
    at[:, rng.integers(2)] += swing
    return at, _size(rng), []


_ACTED = {"bounces": _bounces, "order": _order, "period": _period}


def _cloth(rng: Generator, t: npt.NDArray[np.int64], side: int, pan: bool) -> npt.NDArray[np.float32]:
    """Blotches of two colours, which stand or pan all together: (F, side, side, 3)."""
    one, two = _two_colours(rng)
    # Whole periods, so that it may wrap round, and blotches of eight pixels and more: a patch is like those around it.
    most = max(1, side // 16)
    wave = 2 * np.pi * rng.integers(-most, most + 1, size=(5, 2)) / side
    phase, angle, speed = rng.uniform(0, 2 * np.pi, 5), rng.uniform(0, 2 * np.pi), rng.uniform(0.5, 1.2) * side / 32
    drift = speed * pan * np.array([np.sin(angle), np.cos(angle)])
    ways = [
        wave[:, axis] * (np.arange(side) + drift[axis] * t[:, None])[..., None] + phase * axis for axis in (0, 1)
    ]  # each (F, side, waves)
    (down, down_), (across, across_) = ((np.sin(way), np.cos(way)) for way in ways)
    # the sum over waves of sin(down + across)
    weight = 0.5 + (down @ across_.transpose(0, 2, 1) + down_ @ across.transpose(0, 2, 1)).astype(np.float32) / 12
    pictures: npt.NDArray[np.float32] = np.float32(one) + np.float32(two - one) * weight[..., None]
    return pictures


def _two_colours(rng: Generator) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Two colours that differ by 80 or more in red, green or blue."""
    one, two = rng.uniform(0, 255, 3), rng.uniform(0, 255, 3)
    return one, np.where(np.abs(one - two).max() < 80, 255 - one, two)
