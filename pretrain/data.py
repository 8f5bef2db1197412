"""Procedural video: what the small video backbones learn from.

Item `i` of a corpus is a pure function of `(seed, i)`: no files, any length, random access. A clip shows one of two
worlds:

- **sprites**: one to four flat or textured shapes that drift, bounce, rotate, grow, shrink, orbit or fall, occlude each
  other in a known depth order and may leave trails;
- **fields**: a mosaic of coloured blocks in which neighbours influence each other: colours spread and are stopped by
  barriers, regions grow and erode, contact changes a colour, brightness diffuses, a current carries the mosaic along,
  or a weighted sum over the neighbourhood with random real weights drives the next colour; or nothing moves but the
  camera, which rolls by quarter turns or zooms about the middle of the picture.

Time runs evenly, in jumps, or with a single cut in the middle, as in any edited video.

What is *not* here: no task of the exam is drawn on purpose, and no puzzle. There is no maze, no mirror image, no
stacking, no wrapping shift. The weighted sum draws unequal real weights, so it does not count to three as Life does; but
by chance it is now and then an automaton of the simplest kind. Of 4,000 draws 2,691 have two colours. Of these 184 are a
rule of three cells of a row: rule 0 (all is ground) 92, rule 204 (all stays) 47, rule 255 6, and 39 of 25 others, such as
252, 238, or 32 and 170, which are tasks here (2 draws each). And 194 count their eight neighbours alike: again all ground
92, all stays 47, and thresholds such as B12345678/S012345678. None is rule 110, which would be about one clip in a
million, or B3/S23 (`tests/test_pretrain_video.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.random import Generator

SHAPES = ("rectangle", "disc", "triangle", "cross", "ring", "bar")
MOTIONS = ("still", "drift", "bounce", "rotate", "grow", "shrink", "orbit", "fall")
FIELDS = ("spread", "grow", "erode", "contact", "diffuse", "current", "influence", "camera")
TIMINGS = ("even", "jump", "cut")


@dataclass(frozen=True)
class Clip:
    """`frames`: uint8 (F, H, W, 3). `labels`: what is known by construction (world, motion, shapes, positions, depth order)."""

    frames: np.ndarray
    labels: dict[str, Any] = field(default_factory=dict)


def named_rng(*name: object) -> Generator:
    """A generator seeded by a name, so that neighbouring items and seeds share nothing."""
    digest = hashlib.sha256("/".join(map(str, name)).encode()).digest()
    return np.random.default_rng(np.frombuffer(digest, dtype=np.uint64))


def clip(i: int, seed: int = 0, frames: int = 9, size: tuple[int, int] = (64, 64)) -> Clip:
    """Clip `i` of the corpus `seed`: `frames` x `size` (height, width) pixels."""
    rng = named_rng("video", seed, i, frames, *size)
    timing = str(rng.choice(TIMINGS, p=(0.35, 0.15, 0.5)))
    times = _times(rng, timing, frames)
    made = _sprites(rng, times, size) if rng.random() < 0.4 else _field(rng, times, size)
    return Clip(made.frames, {**made.labels, "timing": timing})


def _times(rng: Generator, timing: str, frames: int) -> np.ndarray:
    """When each frame is taken, in world time: float (F,), starting at 0."""
    if timing == "even":
        return np.arange(frames) * rng.uniform(0.5, 1.5)
    if timing == "jump":  # a held picture that changes two to four times
        return np.floor(np.arange(frames) * rng.integers(2, 5) / frames) * rng.uniform(1, 3)
    steps = rng.choice((1, 2, 3), p=(0.7, 0.2, 0.1))  # one cut in the middle
    return np.where(np.arange(frames) < frames // 2, 0, steps).astype(float)


# Sprites


def _sprites(rng: Generator, times: np.ndarray, size: tuple[int, int]) -> Clip:
    height, width = size
    y, x = np.mgrid[0:height, 0:width].astype(np.float32) + 0.5  # (H, W) pixel centres
    background = _surface(rng, y, x)
    block = int(rng.choice((0, 8), p=(0.4, 0.6)))  # 0: any position; 8: positions and sizes in steps of a block
    trail = rng.random() < 0.3
    sprites = [_Sprite(rng, size, block, y, x) for _ in range(rng.integers(1, 5))]  # painted back to front

    frames = np.empty((len(times), height, width, 3), np.float32)
    canvas = background.copy()
    for f, t in enumerate(times):
        picture = canvas if trail else background.copy()
        for sprite in sprites:
            mask = sprite.mask(float(t), y, x)
            picture[mask] = sprite.surface[mask]
        frames[f] = picture
    labels = {
        "world": "sprites",
        "shapes": [s.shape for s in sprites],
        "motions": [s.motion for s in sprites],
        "positions": [[s.at(float(t)) for s in sprites] for t in times],
        "depth_order": list(range(len(sprites))),
        "trail": trail,
    }
    return Clip(_to_uint8(frames), labels)


class _Sprite:
    def __init__(self, rng: Generator, size: tuple[int, int], block: int, y: np.ndarray, x: np.ndarray) -> None:
        self.size, self.block = size, block
        self.shape = str(rng.choice(SHAPES, p=(0.4, 0.16, 0.1, 0.12, 0.1, 0.12)))
        self.motion = str(rng.choice(MOTIONS, p=(0.1, 0.3, 0.15, 0.12, 0.1, 0.08, 0.08, 0.07)))
        unit = block or 1
        self.radius = rng.integers(1, 4) * unit / 2 if block else rng.uniform(3, 14)
        self.aspect = rng.choice((0.5, 1.0, 2.0))
        self.centre = np.array([rng.integers(0, max(1, s // unit)) * unit + unit / 2 for s in size])
        direction = np.array([(0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (-1, 1), (1, -1), (-1, -1)])[rng.integers(8)]
        speed = rng.integers(1, 4) * unit if block else rng.uniform(2, 12)
        self.velocity = direction * (speed if block or rng.random() < 0.5 else rng.uniform(1, 12))
        self.turn = rng.uniform(-0.8, 0.8) if not block else rng.choice((-1, 1)) * np.pi / 2
        self.angle = 0.0 if block else rng.uniform(0, np.pi)
        self.surface = _surface(rng, y, x)

    def at(self, t: float) -> tuple[float, float]:
        """The centre at time t, in pixels (row, column)."""
        height, width = self.size
        if self.motion == "drift":
            place = self.centre + self.velocity * t
        elif self.motion == "bounce":  # reflect inside the frame: a triangle wave
            span = np.array([height, width], float)
            place = span - np.abs((self.centre + self.velocity * t) % (2 * span) - span)
        elif self.motion == "orbit":
            phase = self.turn * t
            place = self.centre + 2.5 * self.radius * np.array([np.sin(phase), np.cos(phase) - 1])
        elif self.motion == "fall":
            place = self.centre + np.array([0.8 * t * t * (self.block or 4) / 4, self.velocity[1] * t])
            place[0] = min(place[0], height - self.radius)
        else:
            place = self.centre
        if self.block:
            place = np.floor(place / self.block) * self.block + self.block / 2
        return float(place[0]), float(place[1])

    def mask(self, t: float, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Bool (H, W): the pixels the sprite covers at time t."""
        row, column = self.at(t)
        angle = self.angle + (self.turn * t if self.motion == "rotate" else 0.0)
        scale = {"grow": 1 + 0.5 * t, "shrink": 1 / (1 + 0.5 * t)}.get(self.motion, 1.0)
        if self.block:
            scale = max(1.0, round(scale * self.radius * 2 / self.block)) * self.block / (2 * self.radius)
        r = self.radius * scale
        dy, dx = y - row, x - column
        v, u = np.cos(angle) * dy - np.sin(angle) * dx, np.sin(angle) * dy + np.cos(angle) * dx
        if self.shape == "rectangle":
            return (np.abs(v) <= r * self.aspect) & (np.abs(u) <= r)
        if self.shape == "disc":
            return u * u + v * v <= r * r
        if self.shape == "ring":
            return (u * u + v * v <= r * r) & (u * u + v * v >= 0.3 * r * r)
        if self.shape == "triangle":
            return (v <= r) & (v >= 2 * np.abs(u) - r)
        if self.shape == "cross":
            return ((np.abs(v) <= r / 3) & (np.abs(u) <= r)) | ((np.abs(u) <= r / 3) & (np.abs(v) <= r))
        return (np.abs(v) <= max(2.0, r / 4)) & (np.abs(u) <= 2 * r)  # bar


def _surface(rng: Generator, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """float (H, W, 3): a flat colour (mostly), stripes, a chequered cloth, a gradient or soft noise."""
    a, b = _colour(rng), _colour(rng)
    kind = rng.choice(("flat", "stripes", "chequer", "gradient", "noise"), p=(0.76, 0.06, 0.06, 0.06, 0.06))
    if kind == "flat":
        return np.broadcast_to(a, (*y.shape, 3)).astype(np.float32)
    pitch, angle = rng.uniform(4, 16), rng.choice((0.0, np.pi / 2, rng.uniform(0, np.pi)))
    along = np.cos(angle) * y + np.sin(angle) * x
    if kind == "stripes":
        weight = (along // pitch) % 2
    elif kind == "chequer":
        weight = (y // pitch + x // pitch) % 2
    elif kind == "gradient":
        weight = (along - along.min()) / max(float(np.ptp(along)), 1e-6)
    else:
        weight = rng.random(y.shape)
    return (a * (1 - weight[..., None]) + b * weight[..., None]).astype(np.float32)


def _colour(rng: Generator) -> np.ndarray:
    """A colour in 0..255: half of them from the corners and mid-edges of the colour cube, where flat graphics live."""
    if rng.random() < 0.5:
        return rng.choice((0.0, 128.0, 255.0), size=3)
    return rng.uniform(0, 255, size=3)


# Fields


def _field(rng: Generator, times: np.ndarray, size: tuple[int, int]) -> Clip:
    height, width = size
    block = 8 if rng.random() < 0.85 else int(rng.choice((4, 16)))
    rows, columns = -(-height // block), -(-width // block)
    kind = str(rng.choice(FIELDS, p=(0.16, 0.08, 0.06, 0.08, 0.04, 0.11, 0.32, 0.15)))
    state, step, colours = _FIELD_RULES[kind](rng, rows, columns)

    frames = np.empty((len(times), height, width, 3), np.float32)
    now = 0
    for f, t in enumerate(times):
        while now < int(t):
            state, now = step(state), now + 1
        mosaic = state if state.ndim == 3 else colours[state]  # (rows, columns, 3)
        frames[f] = np.repeat(np.repeat(mosaic, block, 0), block, 1)[:height, :width]
    return Clip(_to_uint8(frames), {"world": "fields", "motion": kind, "block": block, "steps": now})


FieldRule = tuple[np.ndarray, Callable[[np.ndarray], np.ndarray], np.ndarray]


def _colours(rng: Generator, k: int) -> np.ndarray:
    return np.stack([_colour(rng) for _ in range(k)]).astype(np.float32)


def _mosaic(rng: Generator, rows: int, columns: int, k: int) -> np.ndarray:
    """int (rows, columns): ground 0 with scattered cells, rectangles or streaks of colours 1..k-1."""
    state = np.zeros((rows, columns), int)
    if rng.random() < 0.6:
        density = rng.uniform(0.08, 0.6)
        scattered = rng.random((rows, columns)) < density
        state[scattered] = rng.integers(1, k, scattered.sum())
        return state
    for _ in range(rng.integers(1, 7)):
        top, left = rng.integers(rows), rng.integers(columns)
        h, w = int(rng.integers(1, 5)), int(rng.integers(1, 5))
        if rng.random() < 0.4:
            h, w = ((1, int(rng.integers(2, 8))), (int(rng.integers(2, 8)), 1))[rng.integers(2)]
        state[top : top + h, left : left + w] = rng.integers(1, k)
    return state


def _shifted(state: np.ndarray, dy: int, dx: int, fill: int = 0) -> np.ndarray:
    """`out[r, c] = state[r - dy, c - dx]`, `fill` where that lies outside."""
    out = np.full_like(state, fill)
    rows, columns = state.shape[:2]
    dy, dx = max(-rows, min(rows, dy)), max(-columns, min(columns, dx))
    ys, xs = slice(max(dy, 0), rows + min(dy, 0)), slice(max(dx, 0), columns + min(dx, 0))
    yt, xt = slice(max(-dy, 0), rows + min(-dy, 0)), slice(max(-dx, 0), columns + min(-dx, 0))
    out[ys, xs] = state[yt, xt]
    return out


_CROSS = ((-1, 0), (1, 0), (0, -1), (0, 1))
_AROUND = tuple((dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx)


def _spread(rng: Generator, rows: int, columns: int) -> FieldRule:
    """A liquid fills the open ground from its sources, cell by cell, and is stopped by barriers."""
    k = 4  # 0 ground, 1 barrier, 2 and 3 liquids
    state = (rng.random((rows, columns)) < rng.uniform(0.1, 0.5)).astype(int)
    for liquid in range(2, 2 + rng.integers(1, 3)):
        state[rng.integers(rows), rng.integers(columns)] = liquid
    speed = int(rng.integers(1, 6))

    def step(state: np.ndarray) -> np.ndarray:
        for _ in range(speed):
            new = state.copy()
            for dy, dx in _CROSS:
                source = _shifted(state, dy, dx)
                new[(new == 0) & (source >= 2)] = source[(new == 0) & (source >= 2)]
            state = new
        return state

    return state, step, _colours(rng, k)


def _grow(rng: Generator, rows: int, columns: int) -> FieldRule:
    """Regions take the ground beside them, in a random subset of directions."""
    directions = [d for d in (_CROSS if rng.random() < 0.6 else _AROUND) if rng.random() < 0.6] or [_CROSS[0]]

    def step(state: np.ndarray) -> np.ndarray:
        new = state.copy()
        for dy, dx in directions:
            source = _shifted(state, dy, dx)
            new = np.where((new == 0) & (source > 0), source, new)
        return new

    return _mosaic(rng, rows, columns, int(rng.integers(2, 5))), step, _colours(rng, 5)


def _erode(rng: Generator, rows: int, columns: int) -> FieldRule:
    """Cells that touch ground on a chosen side wear away; or what is inside changes its colour."""
    directions = [d for d in _CROSS if rng.random() < 0.6] or [_CROSS[0]]
    inside = rng.random() < 0.5

    def step(state: np.ndarray) -> np.ndarray:
        exposed = np.zeros(state.shape, bool)
        for dy, dx in directions:
            exposed |= _shifted(state, dy, dx) == 0
        if inside:
            return np.where((state > 0) & ~exposed, 4, state)
        return np.where(exposed, 0, state)

    state = _mosaic(rng, rows, columns, 3)
    return np.maximum(state, _mosaic(rng, rows, columns, 3)), step, _colours(rng, 5)


def _contact(rng: Generator, rows: int, columns: int) -> FieldRule:
    """A cell of one colour that touches another colour changes into a third."""
    k = int(rng.integers(2, 5))
    victim, agent, result = rng.integers(0, k, 3)
    around = _CROSS if rng.random() < 0.5 else _AROUND
    around = tuple(d for d in around if rng.random() < 0.75) or _CROSS

    def step(state: np.ndarray) -> np.ndarray:
        touched = np.zeros(state.shape, bool)
        for dy, dx in around:
            touched |= _shifted(state, dy, dx, fill=-1) == agent
        return np.where((state == victim) & touched, (result if result != victim else k), state)

    return _mosaic(rng, rows, columns, k), step, _colours(rng, k + 1)


def _diffuse(rng: Generator, rows: int, columns: int) -> FieldRule:
    """Colour diffuses to the four neighbours."""
    rate = rng.uniform(0.05, 0.24)
    start = _colours(rng, 4)[_mosaic(rng, rows, columns, 4)]  # float (rows, columns, 3)

    def step(state: np.ndarray) -> np.ndarray:
        padded = np.pad(state, ((1, 1), (1, 1), (0, 0)), mode="edge")
        around = padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:]
        return (state + rate * (around - 4 * state)).astype(np.float32)

    return start, step, _colours(rng, 1)


def _current(rng: Generator, rows: int, columns: int) -> FieldRule:
    """A current carries some colours along; what leaves is gone, what enters is ground. Others stay and are covered."""
    dy, dx = ((0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (-1, -1))[rng.integers(6)]
    reach = int(rng.integers(1, 4))
    moving = rng.random(6) < 0.6
    moving[rng.integers(1, 4)] = True

    def step(state: np.ndarray) -> np.ndarray:
        moves = moving[state]
        carried = _shifted(np.where(moves, state, 0), dy * reach, dx * reach)
        return np.where(carried > 0, carried, np.where(moves, 0, state))

    return _mosaic(rng, rows, columns, 5), step, _colours(rng, 6)


def _influence(rng: Generator, rows: int, columns: int) -> FieldRule:
    """Each cell's next colour is decided by a weighted sum over its neighbourhood: random real weights, random bands."""
    k = int(rng.choice((2, 2, 3)))
    around = _AROUND if rng.random() < 0.7 else _CROSS
    weights = rng.uniform(0.55, 1.45, len(around)) * (rng.random(len(around)) < rng.choice((1.0, 0.7)))
    if not weights.any():
        weights[0] = 1.0
    own = rng.uniform(-2, 2)
    level = np.concatenate([[0.0], rng.uniform(0.5, 1.5, k - 1)])  # how strongly each colour pulls
    bands = np.sort(rng.uniform(0.05, 0.75, rng.integers(1, 4))) * weights.sum()
    outcome = rng.permutation(np.resize(np.arange(k), len(bands) + 1))
    keep = rng.random() < 0.4  # in the lowest band a cell stays as it is

    def step(state: np.ndarray) -> np.ndarray:
        total = own * level[state]
        for weight, (dy, dx) in zip(weights, around, strict=True):
            total = total + weight * level[_shifted(state, dy, dx)]
        band = np.digitize(total, bands)
        return np.where((band == 0) & keep, state, outcome[band])

    return _mosaic(rng, rows, columns, k), step, _colours(rng, k)


def _camera(rng: Generator, rows: int, columns: int) -> FieldRule:
    """The scene stands still and the camera moves: it rolls, or it zooms in or out. A roll keeps what is left and right
    of each other so, as no mirror does. It is what teaches where in the picture a place is, not only how far off."""
    move = str(rng.choice(("roll", "zoom in", "zoom out"), p=(0.7, 0.15, 0.15)))
    turns = int(rng.integers(1, 4)) if rows == columns else 2

    def step(state: np.ndarray) -> np.ndarray:
        if move == "roll":
            return np.rot90(state, turns).copy()
        if move == "zoom in":
            return state[rows // 4 + np.arange(rows) // 2][:, columns // 4 + np.arange(columns) // 2]
        small = state[::2, ::2]
        top, left = (rows - len(small)) // 2, (columns - small.shape[1]) // 2
        out = np.zeros_like(state)
        out[top : top + len(small), left : left + small.shape[1]] = small
        return out

    return _mosaic(rng, rows, columns, 5), step, _colours(rng, 5)


_FIELD_RULES: dict[str, Callable[[Generator, int, int], FieldRule]] = {
    "spread": _spread,
    "grow": _grow,
    "erode": _erode,
    "contact": _contact,
    "diffuse": _diffuse,
    "current": _current,
    "influence": _influence,
    "camera": _camera,
}


def _to_uint8(frames: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(frames), 0, 255).astype(np.uint8)
