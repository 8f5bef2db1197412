"""Depth order and tracks: the truth by construction, the scores by hand, and heads that read what is there."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain import heads
from pretrain.scenes import LEAST, Scene, scene


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [scene(i, 3) for i in range(240)]


def test_the_truth_is_what_is_painted(scenes: list[Scene]) -> None:
    told = heads.truth(scenes[:20])
    assert told.ranks.shape == (20, 4, 8, 8) and told.boxes.shape == (20, 4, 3, 4)
    for row, made in enumerate(scenes[:20]):
        for t, y, x in itertools.product(range(4), range(8), range(8)):
            cell = made.seen[2 * t, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4]
            counts = [int((cell == k).sum()) for k in range(4)]
            shown = told.owners[row, t, y, x].item() + 1
            assert counts[shown] == max(counts)
            assert told.ranks[row, t, y, x] == (0 if shown == 0 else made.depth.index(shown - 1) + 1)
        # who is painted later is in front, and hides pixels of who is behind
        assert all(made.depth.index(a) > made.depth.index(b) for a, b in told.pairs[row])
    assert LEAST == 4 and 0.2 < np.mean([len(made.over) for made in scenes]) < 3
    there = told.there[:, :, :2]
    assert there[..., 0].float().mean() > 0.9 and not told.there[[len(s.depth) == 2 for s in scenes[:20]], :, 2].any()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=8, max_size=8))
def test_overlap_against_counting(sides: list[int]) -> None:
    a, b = sides[:4], sides[4:]
    one, two = ([min(s[0], s[2]), min(s[1], s[3]), max(s[0], s[2]) + 1, max(s[1], s[3]) + 1] for s in (a, b))

    def cells(box: list[int]) -> set[tuple[int, int]]:
        return set(itertools.product(range(box[0], box[2]), range(box[1], box[3])))

    both, either = cells(one) & cells(two), cells(one) | cells(two)
    first, second = torch.tensor(one).float(), torch.tensor(two).float()
    assert heads.overlap(first, second).item() == pytest.approx(len(both) / len(either))
    hull = [min(one[0], two[0]), min(one[1], two[1]), max(one[2], two[2]), max(one[3], two[3])]
    general = len(both) / len(either) - (len(cells(hull)) - len(either)) / len(cells(hull))
    assert heads.overlap(first, second, general=True).item() == pytest.approx(general, abs=1e-6)


def test_scores_of_who_knows_and_who_does_not(scenes: list[Scene]) -> None:
    told = heads.truth(scenes)
    sure = 20 * torch.nn.functional.one_hot(told.ranks, heads.RANKS).float()
    assert heads.depth_scores(sure, told) == {"ranks": 1.0, "pairs": 1.0}
    backwards = sure[..., [0, 3, 2, 1]]
    assert heads.depth_scores(backwards, told)["pairs"] == 0.0
    guessed = heads.depth_scores(torch.randn((*told.ranks.shape, 4), generator=torch.Generator().manual_seed(0)), told)
    assert 0.3 < guessed["pairs"] < 0.7
    assert heads.track_scores(told.boxes[:, 1:], told) == {"iou": pytest.approx(1.0, abs=1e-6)}
    assert 0.2 < heads.staying(told)["iou"] < 0.7


@pytest.mark.parametrize("knows", [True, False])
def test_heads_read_what_is_there_and_nothing_else(scenes: list[Scene], knows: bool) -> None:
    """Features that say the rank of each cell and where each object is are read; noise is not."""
    torch.manual_seed(0)
    told, grid = heads.truth(scenes), (4, 8, 8)
    features = torch.randn(240, 256, 32)
    if knows:
        features[..., :4] = torch.nn.functional.one_hot(told.ranks, 4).flatten(1, 3)
        features[..., 4:16] = 3 * told.boxes.flatten(2).repeat_interleave(64, 1)  # said by every token of a frame
    parts = [(features[a:b], told.part(slice(a, b))) for a, b in ((0, 160), (160, 200), (200, 240))]
    depth, track = (
        read(*parts, grid, epochs=40 if knows else 10, rates=(5e-3,)) for read in (heads.depth, heads.track)
    )
    staying = heads.staying(parts[2][1])["iou"]
    if knows:
        assert depth["ranks"] > 0.85 and depth["pairs"] > 0.85 and track["iou"] > staying + 0.03, (
            depth,
            track,
            staying,
        )
    else:
        assert (
            depth["ranks"] < heads.one_rank(parts[2][1]) + 0.1
            and 0.2 < depth["pairs"] < 0.8
            and track["iou"] < staying + 0.1
        ), (depth, track)
