"""Labelled clips: scenes whose answer to "what, where, how does it move" is known because they were made so.

Item `i` is a pure function of `(seed, i)`. Two or three textured objects move over a textured background that drifts by
itself. The largest object is the one that is asked about:

    shape      what it is, of SHAPES
    motion     how it moves, of MOTIONS
    position   where it ends, of 9 cells of the picture's middle

The background's drift and the other objects' motions are drawn apart from the labels, and so are all colours, so no single
frame tells the motion and no single colour the shape. Depth order, boxes and a map of who is seen where come with it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numpy.random import Generator

from pretrain.data import named_rng

SHAPES = ("disc", "cross", "ring", "bar")
MOTIONS = ("right", "left", "down", "up", "clockwise", "anticlockwise", "to and fro", "up and down")
CELLS = 9
LEAST = 4
CLASSES = {"shape": len(SHAPES), "motion": len(MOTIONS), "position": CELLS}


@dataclass(frozen=True)
class Scene:
    frames: npt.NDArray[np.uint8]  # (F, side, side, 3)
    labels: dict[str, int]  # of the largest object
    boxes: npt.NDArray[np.float32]  # (F, K, 4): top, left, bottom, right in pixels, the largest object first
    seen: npt.NDArray[np.uint8]  # (F, side, side): 0 background, else 1 + the number of the object in front
    depth: tuple[int, ...]  # the objects' numbers from back to front
    over: tuple[tuple[int, int], ...]  # (in front, behind) of objects that overlap by LEAST pixels in some frame


def scene(i: int, seed: int = 0, frames: int = 8, side: int = 32) -> Scene:
    """Scene `i`: `frames` pictures of `side` x `side` pixels."""
    rng = named_rng("scene", seed, i, frames, side)
    labels = {name: int(rng.integers(count)) for name, count in CLASSES.items()}
    count = int(rng.integers(2, 4))
    shapes = [labels["shape"], *rng.integers(len(SHAPES), size=count - 1)]
    motions = [labels["motion"], *rng.integers(len(MOTIONS), size=count - 1)]
    radii = [side * rng.uniform(0.22, 0.28), *(side * rng.uniform(0.07, 0.11, size=count - 1))]
    paths = [_path(rng, motions[k], frames, side, labels["position"] if k == 0 else None) for k in range(count)]
    depth = tuple(int(k) for k in rng.permutation(count))

    pictures = _background(rng, frames, side)
    seen = np.zeros((frames, side, side), np.uint8)
    over: list[tuple[int, int]] = []
    y, x = np.mgrid[0:side, 0:side].astype(np.float32) + 0.5
    for k in depth:
        dy = y - paths[k][:, 0, None, None]  # (F, side, side)
        dx = x - paths[k][:, 1, None, None]
        mask = _inside(int(shapes[k]), dy, dx, radii[k])
        pictures[mask] = _texture(rng, dy[mask], dx[mask])
        behind = [j for j in range(count) if (mask & (seen == j + 1)).sum((1, 2)).max() >= LEAST]
        over += [(k, j) for j in behind]
        seen[mask] = k + 1
    radius = np.array(radii, np.float32)[:, None]
    corners = [np.concatenate([p - r, p + r], 1) for p, r in zip(paths, radius, strict=True)]
    noisy = pictures + rng.normal(0, 4, pictures.shape[:3])[..., None]
    return Scene(
        np.clip(np.rint(noisy), 0, 255).astype(np.uint8), labels, np.stack(corners, 1), seen, depth, tuple(over)
    )


def _path(rng: Generator, motion: int, frames: int, side: int, cell: int | None) -> npt.NDArray[np.float32]:
    """The centre (row, column) in every frame: (F, 2). Where a cell is given the path ends in it.

    A path may lead in from outside the picture; it ends inside.
    """
    row, column = divmod(int(rng.integers(CELLS)) if cell is None else cell, 3)
    # Cells of the middle 70 %: an object in the very corner would be half outside.
    end = side * (0.15 + 0.7 / 3 * (np.array([row, column]) + rng.uniform(0.2, 0.8, 2)))
    phase = np.linspace(-1, 0, frames)  # 0 in the last frame
    reach = side * rng.uniform(0.3, 0.45)
    if motion < 4:
        direction = np.array([(0, 1), (0, -1), (1, 0), (-1, 0)][motion])
        offset = phase[:, None] * reach * direction
    elif motion < 6:
        turn = (1 if motion == 4 else -1) * 2 * np.pi * phase * rng.uniform(0.7, 1.0)
        start = rng.uniform(0, 2 * np.pi)
        circle = np.stack([np.sin(start + turn), np.cos(start + turn)], 1) * reach / 2
        offset = circle - circle[-1]
    else:
        swing = np.sin(2 * np.pi * (phase * rng.uniform(0.9, 1.3) + rng.uniform()))
        offset = (swing - swing[-1])[:, None] * np.array([(0, 1), (1, 0)][motion - 6]) * reach / 2
    return (end + offset).astype(np.float32)


def _inside(shape: int, dy: npt.NDArray[np.float32], dx: npt.NDArray[np.float32], r: float) -> npt.NDArray[np.bool_]:
    """Where a shape of radius `r` is, given the distances from its centre. All cover about the same area."""
    if shape == 0:
        return dy * dy + dx * dx <= 0.92 * r * r
    if shape == 1:
        return (np.minimum(np.abs(dy), np.abs(dx)) <= 0.4 * r) & (np.maximum(np.abs(dy), np.abs(dx)) <= 1.1 * r)
    if shape == 2:
        return (dy * dy + dx * dx <= 1.25 * r * r) & (dy * dy + dx * dx >= 0.33 * r * r)
    return (np.abs(dy) <= 0.55 * r) & (np.abs(dx) <= 1.3 * r)


def _texture(rng: Generator, dy: npt.NDArray[np.float32], dx: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Faint stripes of two colours that move with their object: (pixels, 3)."""
    one, two = _two_colours(rng)
    angle, pitch = rng.uniform(0, np.pi), rng.uniform(3, 7)
    weight = 0.5 + 0.2 * np.sin(2 * np.pi * (np.cos(angle) * dy + np.sin(angle) * dx) / pitch + rng.uniform(0, 6))
    return (one + (two - one) * weight[:, None]).astype(np.float32)


def _background(rng: Generator, frames: int, side: int) -> npt.NDArray[np.float32]:
    """Soft, faint blotches of two colours, drifting: (F, side, side, 3)."""
    one, two = _two_colours(rng)
    wave = 2 * np.pi * rng.integers(-3, 4, size=(4, 2)) / side  # whole periods, so that the drift may wrap round
    phase, drift = rng.uniform(0, 2 * np.pi, 4), rng.uniform(-0.08, 0.08, 2) * side
    t, y, x = np.arange(frames)[:, None, None], np.arange(side)[:, None], np.arange(side)
    weight = sum(
        np.sin(wy * (y + drift[0] * t) + wx * (x + drift[1] * t) + p) for (wy, wx), p in zip(wave, phase, strict=True)
    )
    return (one + (two - one) * (0.5 + weight[..., None] / 20)).astype(np.float32)


def _two_colours(rng: Generator) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Two colours that differ by 80 or more in red, green or blue."""
    one, two = rng.uniform(0, 255, 3), rng.uniform(0, 255, 3)
    return one, np.where(np.abs(one - two).max() < 80, 255 - one, two)
