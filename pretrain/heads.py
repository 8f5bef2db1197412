"""What a frozen encoder knows of a scene beyond its class: who is in front of whom, and where things go.

Both heads are queries that look at all tokens once (one cross-attention layer, as in Scaling-4D's evaluation: Carreira et al.
2024), trained on features that are computed once. A token's place is told, since what is asked is what is there. The truth is
known by construction (`pretrain.scenes`).

    depth    for every cell of every frame the rank of what is seen there, from the back: 0 is the background
    track    an object's box in the first frame is given; its boxes in the frames after are asked for
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.scenes import Scene
from pretrain.vit3d import Attention, coordinates, initialise, sincos

RANKS = 4  # the background and at most three objects
RATES = (5e-3, 1.5e-3)
WIDTH, BASE = 64, 100.0


# The truth


@dataclass(frozen=True)
class Truth:
    """Of some scenes. Objects are padded to three; `there` says which exist."""

    ranks: Tensor  # int64 (B, F, h, w): of each cell, 0 the background
    owners: Tensor  # int64 (B, F, h, w): the number of the object that is seen there, -1 the background
    pairs: list[list[tuple[int, int]]]  # (in front, behind) of objects that overlap somewhere in the clip
    boxes: Tensor  # float (B, F, 3, 4): top, left, bottom, right in 0..1, cut to the picture
    there: Tensor  # bool (B, F, 3): objects whose box has at least half a percent of the picture

    def part(self, rows: slice) -> Truth:
        return Truth(self.ranks[rows], self.owners[rows], self.pairs[rows], self.boxes[rows], self.there[rows])


def truth(scenes: Sequence[Scene], every: int = 2, cells: int = 8) -> Truth:
    """Of every `every`th frame, from the first; of `cells` x `cells` cells, each what most of it shows."""
    side = scenes[0].seen.shape[1]
    pixels = side // cells
    ranks, owners = [], []
    for scene in scenes:
        seen = scene.seen[::every]
        frames = len(seen)
        cut = seen.reshape(frames, cells, pixels, cells, pixels)
        counts = np.stack([(cut == k).sum((2, 4)) for k in range(RANKS)])
        seen = counts.argmax(0)  # 0 background, else 1 + the object's number
        rank = np.zeros(RANKS, np.int64)
        for place, number in enumerate(scene.depth):
            rank[number + 1] = place + 1
        ranks.append(rank[seen])
        owners.append(seen - 1)
    boxes = np.zeros((len(scenes), len(scenes[0].boxes[::every]), 3, 4), np.float32)
    for row, scene in enumerate(scenes):
        boxes[row, :, : scene.boxes.shape[1]] = np.clip(scene.boxes[::every] / side, 0, 1)
    area = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    return Truth(
        torch.from_numpy(np.stack(ranks)),
        torch.from_numpy(np.stack(owners)),
        [list(scene.over) for scene in scenes],
        torch.from_numpy(boxes),
        torch.from_numpy(area >= 0.005),
    )


# The heads


Grid = tuple[int, int, int]


class Reader(nn.Module):
    """Queries (B, Q, WIDTH) look once at the tokens (B, N, D) of a grid: (B, Q, out)."""

    def __init__(self, width: int, grid: Grid, out: int) -> None:
        super().__init__()
        self.register_buffer("places", sincos(coordinates(grid), WIDTH, BASE))
        self.embed, self.norm, self.last = nn.Linear(width, WIDTH), nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention = Attention(WIDTH, 4)
        self.out = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, out))
        self.apply(initialise)

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        found = queries + self.attention(self.norm(queries), self.embed(tokens) + self.places)
        return self.out(self.last(found))


class Depth(nn.Module):
    """Logits (B, F, h, w, RANKS) for the cells of a grid `asked`, from the tokens of a grid."""

    def __init__(self, width: int, grid: Grid, asked: Grid) -> None:
        super().__init__()
        self.asked, self.reader = asked, Reader(width, grid, RANKS)
        # A cell's own place among the tokens, where it starts to look.
        at = coordinates(asked) * torch.tensor([g / a for g, a in zip(grid, asked, strict=True)])
        self.queries = nn.Parameter(sincos(at, WIDTH, BASE))
        # Queries and keys begin alike, so that the nearest places are looked at first.
        weight = self.reader.attention.kv.weight.data
        self.reader.attention.q.weight.data.copy_(4 * torch.eye(WIDTH))
        weight[:WIDTH].copy_(torch.eye(WIDTH))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.reader(self.queries.expand(len(tokens), -1, -1), tokens).unflatten(1, self.asked)

    def loss(self, tokens: Tensor, told: Truth) -> Tensor:
        """Background and objects count alike, or the background would be all there is to learn."""
        each = F.cross_entropy(self(tokens).flatten(0, 3), told.ranks.flatten(), reduction="none")
        things = told.ranks.flatten() > 0
        return each[things].mean() + each[~things].mean()


class Track(nn.Module):
    """Boxes (B, F - 1, K, 4) of the frames after the first, from boxes (B, K, 4) in it."""

    def __init__(self, width: int, grid: Grid, frames: int) -> None:
        super().__init__()
        self.frames, self.reader = frames, Reader(width, grid, 4)
        self.box = nn.Sequential(nn.Linear(4, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))
        self.box.apply(initialise)
        self.times = nn.Parameter(sincos(coordinates((frames - 1, 1, 1)) + 1, WIDTH, BASE))

    def forward(self, tokens: Tensor, first: Tensor) -> Tensor:
        queries = self.times[:, None] + self.box(first)[:, None]  # (B, F - 1, K, WIDTH)
        moved: Tensor = self.reader(queries.flatten(1, 2), tokens).unflatten(1, (self.frames - 1, -1))
        return first[:, None] + moved

    def loss(self, tokens: Tensor, told: Truth) -> Tensor:
        """Smooth L1 and half the generalised IoU, over objects that are there in both frames."""
        guess = self(tokens, told.boxes[:, 0])
        wanted, counts = told.boxes[:, 1:], told.there[:, 1:] & told.there[:, :1]
        near = F.smooth_l1_loss(guess, wanted, beta=0.1, reduction="none").sum(-1)[counts].mean()
        return near + 0.5 * (1 - overlap(guess, wanted, general=True)[counts]).mean()


def overlap(one: Tensor, two: Tensor, general: bool = False) -> Tensor:
    """Intersection over union of boxes (..., 4): (...). `general` takes off how much of the smallest box round both is neither
    (Rezatofighi et al. 2019)."""

    def area(low: Tensor, high: Tensor) -> Tensor:
        return (high - low).clamp_min(0).prod(-1)

    low, high = torch.maximum(one[..., :2], two[..., :2]), torch.minimum(one[..., 2:], two[..., 2:])
    both = area(low, high)
    union = area(one[..., :2], one[..., 2:]) + area(two[..., :2], two[..., 2:]) - both
    found = both / union.clamp_min(1e-9)
    if not general:
        return found
    low, high = torch.minimum(one[..., :2], two[..., :2]), torch.maximum(one[..., 2:], two[..., 2:])
    hull = area(low, high).clamp_min(1e-9)
    return found - (hull - union) / hull


# Scores


@torch.no_grad()
def depth_scores(logits: Tensor, told: Truth) -> dict[str, float]:
    """`ranks`: of the cells with an object, the share whose rank among objects is right: that one is there is not asked, which
    would be finding and no order. `pairs`: of objects that overlap somewhere in the clip and are both seen, the share whose
    order comes out right by the mean rank over their cells; chance is a half."""
    chosen = logits[..., 1:].argmax(-1) + 1
    things = told.ranks > 0
    mean = (logits.softmax(-1) * torch.arange(RANKS)).sum(-1)  # the expected rank
    right = total = 0
    for row, pairs in enumerate(told.pairs):
        for front, behind in pairs:
            cells = [told.owners[row] == number for number in (front, behind)]
            if all(c.any() for c in cells):
                right += int(mean[row][cells[0]].mean() > mean[row][cells[1]].mean())
                total += 1
    ranks_right = (chosen == told.ranks)[things].float().mean().item()
    return {"ranks": ranks_right, "pairs": right / max(1, total)}


def one_rank(told: Truth) -> float:
    """What `ranks` is where every object is said to have the rank that most cells have."""
    return float(torch.bincount(told.ranks[told.ranks > 0]).max() / (told.ranks > 0).sum())


@torch.no_grad()
def track_scores(guess: Tensor, told: Truth) -> dict[str, float]:
    """`iou`: the mean over objects and frames."""
    counts = told.there[:, 1:] & told.there[:, :1]
    return {"iou": overlap(guess, told.boxes[:, 1:])[counts].mean().item()}


def staying(told: Truth) -> dict[str, float]:
    """What a tracker scores that says everything stays where it is."""
    return track_scores(told.boxes[:, :1].expand(-1, told.boxes.shape[1] - 1, -1, -1), told)


Parts = tuple[Tensor, Truth]  # features (B, N, D) and what is true of their clips


def depth(
    train: Parts,
    pick: Parts,
    test: Parts,
    grid: Grid,
    *,
    epochs: int = 20,
    rates: Sequence[float] = RATES,
    seed: int = 0,
) -> dict[str, float]:
    """Scores on `test` of the head whose learning rate did best on `pick`; `grid` is that of the features' tokens."""
    _, frames, rows, columns = train[1].ranks.shape

    def made(width: int) -> nn.Module:
        return Depth(width, grid, (frames, rows, columns))

    return _best(
        made, lambda head, x, told: depth_scores(head(x), told), "pairs", train, pick, test, epochs, rates, seed
    )


def track(
    train: Parts,
    pick: Parts,
    test: Parts,
    grid: Grid,
    *,
    epochs: int = 20,
    rates: Sequence[float] = RATES,
    seed: int = 0,
) -> dict[str, float]:
    """Scores on `test` of the head whose learning rate did best on `pick`; `grid` is that of the features' tokens."""
    frames = train[1].boxes.shape[1]

    def scores(head: nn.Module, x: Tensor, told: Truth) -> dict[str, float]:
        return track_scores(head(x, told.boxes[:, 0]), told)

    return _best(lambda width: Track(width, grid, frames), scores, "iou", train, pick, test, epochs, rates, seed)


def _best(
    made: Callable[[int], nn.Module],
    scores: Callable[[nn.Module, Tensor, Truth], Mapping[str, float]],
    by: str,
    train: Parts,
    pick: Parts,
    test: Parts,
    epochs: int,
    rates: Sequence[float],
    seed: int,
) -> dict[str, float]:
    mean = train[0].float().mean((0, 1))
    scale = train[0].float().std((0, 1)).clamp_min(1e-6)

    def standard(tokens: Tensor) -> Tensor:
        return (tokens.float() - mean) / scale

    best: tuple[float, nn.Module] | None = None
    for rate in rates:
        torch.manual_seed(seed)
        head = made(train[0].shape[-1])
        optimizer = torch.optim.AdamW(head.parameters(), lr=rate, weight_decay=0.01)
        batch, count = 16, len(train[0])
        steps = epochs * math.ceil(count / batch)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps, pct_start=0.1)
        for _ in range(epochs):
            for rows in torch.randperm(count).split(batch):
                told = train[1]
                some = Truth(told.ranks[rows], told.owners[rows], [], told.boxes[rows], told.there[rows])
                head.loss(standard(train[0][rows]), some).backward()  # type: ignore[operator]
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
        head.eval()
        with torch.no_grad():
            score = scores(head, standard(pick[0]), pick[1])[by]
        if best is None or score > best[0]:
            best = (score, head)
    assert best is not None
    with torch.no_grad():
        return dict(scores(best[1], standard(test[0]), test[1]))
