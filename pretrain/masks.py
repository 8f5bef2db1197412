"""Which tokens a model sees, as sorted index tensors (B, K): the tokens that stay. Every draw comes from a generator.

All samples of a batch keep equally many tokens, so a batch is a rectangle. A mask over the places of a frame is laid over
all frames with `over_time`, a "tube"; what is hidden is the `complement`.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Generator, Tensor

TRIES = 100
GROUP = 32  # clips on a GPU in V-JEPA's and NExT-Vid's trainings: as many share the count that stays


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
    of the clip). A sample whose rectangles hide everything is drawn again, and so is one behind the first GROUP that has fewer
    places than those: what stays does not shrink with the batch.
    """
    return _evened(seen_past_blocks(batch, grid, count, scale, generator, aspect), generator)


def tubes_of_blocks(
    batch: int,
    grid: tuple[int, int, int],
    count: int,
    scale: float,
    generator: Generator,
    most: int | None = None,
    cut: Literal["tail", "random"] = "random",
    group: int = GROUP,
) -> Tensor:
    """`blocks` laid over all frames of a clip of `grid` (t, y, x): (batch, K), at most `most`.

    As many stay as the poorest sample has. `cut` "tail" takes them from the front, so that what is cut are the last frames
    (V-JEPA and InternVideo-Next: the end of the clip is hidden whole, and has to be foreseen); "random" takes places at
    random, the same in all frames.
    """
    frames, places = grid[0], grid[1] * grid[2]
    seen = seen_past_blocks(batch, grid[1:], count, scale, generator, group=group)
    if cut == "random":
        keep = _evened(seen, generator)
        count_kept = min(keep.shape[1], max(1, (most or frames * places) // frames))
        chosen = torch.rand(keep.shape, generator=generator).argsort(1)[:, :count_kept].sort(1).values
        return over_time(keep.gather(1, chosen), range(frames), places)
    least = min(int(seen.sum(1).min()) * frames, most or frames * places)
    tokens = seen[:, None].expand(-1, frames, -1).flatten(1)
    # stable: tokens that are seen come first, in their order
    return tokens.int().argsort(dim=1, descending=True, stable=True)[:, :least].sort(1).values


def seen_past_blocks(
    batch: int,
    grid: tuple[int, int],
    count: int,
    scale: float,
    generator: Generator,
    aspect: tuple[float, float] = (0.75, 1.5),
    group: int = GROUP,
) -> Tensor:
    """What the rectangles of `blocks` leave of a frame: bool (batch, rows * columns), at least one place of each. Behind the
    first `group` none has less than the poorest of those."""
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
        counts = seen.flatten(1).sum(1)
        least = max(1, int(counts[:group].min()))
        poor = (counts < least).nonzero()[:, 0]
        if not len(poor):
            return seen.flatten(1)
    raise ValueError(
        f"{count} blocks of {scale:.0%} hide every place of {rows} x {columns}; take fewer or smaller ones"
    )


def _evened(seen: Tensor, generator: Generator) -> Tensor:
    """As many random places of each row of bool (B, S) as the poorest row has: (B, K)."""
    least = int(seen.sum(1).min())
    order = torch.rand(seen.shape, generator=generator).masked_fill(~seen, 2.0).argsort(1)
    return order[:, :least].sort(1).values


def sampled(weights: Tensor, count: int, uniform: Tensor) -> Tensor:
    """`count` different tokens, one after the other in proportion to their weights >= 0 in (B, N): (B, count).

    UMT and InternVideo-Next draw so from a teacher's attention. `uniform` (B, N) in 0..1 is what chance there is, so that a
    batch can bring it along: the largest u ** (1 / w) are such a draw (Efraimidis and Spirakis 2006).
    """
    keys = uniform.double().clamp(1e-300).log() / weights.double().clamp_min(1e-12)
    return keys.topk(count, 1).indices.sort(1).values


def importance(scores: Tensor, top: int, extra: int, uniform: Tensor, without: Tensor | None = None) -> Tensor:
    """The `top` tokens of the highest scores (B, N) and `extra` random others: (B, top + extra), none of them in `without`
    (B, K) (LVMAE's adaptive decoder mask, arXiv 2411.13683, section 3.2). `uniform` (B, N) in 0..1 is what chance there is."""
    scores = scores.clone()
    if without is not None:
        scores.scatter_(1, without, -torch.inf)
        if top + extra > scores.shape[1] - without.shape[1]:
            raise ValueError(f"{top + extra} tokens to choose, {scores.shape[1] - without.shape[1]} are left")
    best = scores.topk(top, 1).indices
    chance = uniform.masked_fill(scores == -torch.inf, -1.0).scatter(1, best, -1.0)
    return torch.cat([best, chance.topk(extra, 1).indices], 1).sort(1).values
