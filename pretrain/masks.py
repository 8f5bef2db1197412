"""Which tokens a model sees, as sorted index tensors (B, K): the tokens that stay. Every draw comes from a generator.

All samples of a batch keep equally many tokens, so a batch is a rectangle. A mask over the places of a frame is laid over
all frames with `over_time`, a "tube"; what is hidden is the `complement`.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

TRIES = 100


def complement(keep: Tensor, total: int) -> Tensor:
    """The tokens of 0..total-1 that `keep` (B, K) leaves out, sorted: (B, total - K)."""
    hidden = torch.ones(len(keep), total, dtype=torch.bool, device=keep.device)
    hidden.scatter_(1, keep, False)
    return hidden.nonzero()[:, 1].view(len(keep), -1)


def over_time(keep: Tensor, frames: range, places: int) -> Tensor:
    """The same places (B, K) of a frame of `places` tokens in each of `frames`: (B, len(frames) * K)."""
    starts = torch.arange(frames.start, frames.stop, device=keep.device) * places
    return (keep[:, None, :] + starts[:, None]).flatten(1)


def tube(batch: int, places: int, ratio: float, generator: Generator) -> Tensor:
    """Hide a share `ratio` of the places at random (VideoMAE's tube, 0.9): (batch, K), at least one stays."""
    count = max(1, round(places * (1 - ratio)))
    return torch.rand(batch, places, generator=generator).argsort(1)[:, :count].sort(1).values


def blocks(
    batch: int,
    grid: tuple[int, int],
    count: int,
    scale: float,
    generator: Generator,
    aspect: tuple[float, float] = (0.75, 1.5),
) -> Tensor:
    """Hide the union of `count` rectangles that each cover a share `scale` of a frame of `grid` (rows, columns) tokens.

    The rectangles' size is drawn once a batch, their places sample by sample; then every sample gives up places at random
    until all have as many as the poorest (V-JEPA's multi-block masks; there the last indices are cut, which hides the end
    of the clip). A sample whose rectangles hide everything is drawn again.
    """
    rows, columns = grid
    low, high = aspect
    ratio = low + (high - low) * torch.rand((), generator=generator).item()
    height = min(rows, max(1, round((scale * rows * columns * ratio) ** 0.5)))
    width = min(columns, max(1, round((scale * rows * columns / ratio) ** 0.5)))
    if height == rows and width == columns:  # a rectangle of the whole frame
        height -= rows > 1
        width -= rows == 1
    y, x = torch.arange(rows)[:, None], torch.arange(columns)
    seen = torch.zeros(batch, rows, columns, dtype=torch.bool)
    poor = torch.arange(batch)
    for _ in range(TRIES):
        top = torch.randint(rows - height + 1, (len(poor), count, 1, 1), generator=generator)
        left = torch.randint(columns - width + 1, (len(poor), count, 1, 1), generator=generator)
        hidden = (y >= top) & (y < top + height) & (x >= left) & (x < left + width)
        seen[poor] = ~hidden.any(1)
        poor = (~seen.flatten(1).any(1)).nonzero()[:, 0]
        if not len(poor):
            return _evened(seen.flatten(1), generator)
    raise ValueError(
        f"{count} blocks of {scale:.0%} hide every place of {rows} x {columns}; take fewer or smaller ones"
    )


def _evened(seen: Tensor, generator: Generator) -> Tensor:
    """As many random places of each row of bool (B, S) as the poorest row has: (B, K)."""
    least = int(seen.sum(1).min())
    order = torch.rand(seen.shape, generator=generator).masked_fill(~seen, 2.0).argsort(1)
    return order[:, :least].sort(1).values


def sampled(weights: Tensor, count: int, generator: Generator) -> Tensor:
    """`count` different tokens, each drawn in proportion to its weight >= 0 in (B, N): (B, count).

    UMT and InternVideo-Next draw so from a teacher's attention. Where fewer than `count` have a weight the others follow
    in random order.
    """
    return torch.multinomial(weights.double() + 1e-12, count, generator=generator).sort(1).values


def importance(scores: Tensor, top: int, extra: int, generator: Generator, without: Tensor | None = None) -> Tensor:
    """The `top` tokens of the highest scores (B, N) and `extra` random others: (B, top + extra), none of them in `without`
    (B, K) (LVMAE's adaptive decoder mask, arXiv 2411.13683, section 3.2)."""
    scores = scores.clone()
    if without is not None:
        scores.scatter_(1, without, -torch.inf)
        if top + extra > scores.shape[1] - without.shape[1]:
            raise ValueError(f"{top + extra} tokens to choose, {scores.shape[1] - without.shape[1]} are left")
    best = scores.topk(top, 1).indices
    chance = torch.rand(scores.shape, generator=generator).masked_fill(scores == -torch.inf, -1.0)
    chance.scatter_(1, best, -1.0)
    return torch.cat([best, chance.topk(extra, 1).indices], 1).sort(1).values
