"""The adaptive tokenizer: its numbers, its windows, what it drops, and what is kept of what it says."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given as drawn_by
from hypothesis import settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from pretrain import long, tokenizer
from pretrain.recipe import to_pixels
from pretrain.stored import SHARD, Stored, read, sum_of
from pretrain.tokenizer import FLAVOURS, Config, Stage, Tokenizer, distance, psnr, surprise, top


@pytest.fixture(scope="module")
def model() -> Tokenizer:
    return tokenizer.load("tiny").eval()


def clips(count: int = 2, frames: int = 8, side: int = 32) -> Tensor:
    return to_pixels(long.clips(range(count), 3, frames, side)[0])


# Finite scalar quantisation


@pytest.mark.parametrize("levels", [(8,) * 6, (8, 5, 5, 5), (7, 5, 5, 5, 5)])
def test_all_levels_are_used_and_codes_are_exact(levels: tuple[int, ...]) -> None:
    one = Tokenizer(Config((Stage(4, 0, 2, 4), Stage(4, 0)), 4, levels))
    soft = torch.linspace(-6, 6, 4001)[None, None].expand(1, len(levels), -1)
    codes = one.quantised(soft[..., None, None])
    assert [len(codes[0, :, k].unique()) for k in range(len(levels))] == list(levels)
    assert codes.abs().max() <= 1
    indices = one.indices(codes)
    assert torch.equal(one.codes_of(indices), codes) and torch.equal(one.indices(one.codes_of(indices)), indices)
    every = torch.arange(math.prod(levels))[:: max(1, math.prod(levels) // 5000)][None]
    assert torch.equal(one.indices(one.codes_of(every)), every.int())
    assert torch.equal(one.nearest(codes), codes)
    assert torch.equal(one.quantised(torch.zeros(1, len(levels), 1, 1, 1)), torch.zeros(1, 1, len(levels)))


@settings(max_examples=50, deadline=None)
@drawn_by(st.lists(st.floats(-2, 2), min_size=4, max_size=4))
def test_the_nearest_code_is_the_nearest(values: list[float]) -> None:
    one = tokenizer.load("tiny")
    asked, found = torch.tensor([values]), one.nearest(torch.tensor([values]))
    for k, levels in enumerate((8, 5, 5, 5)):
        half = levels // 2
        all_levels = (torch.arange(levels) - half) / half
        assert (found[0, k] - asked[0, k]).abs() <= (all_levels - asked[0, k]).abs().min() + 1e-6


def test_gradients_go_straight_through(model: Tokenizer) -> None:
    soft = torch.randn(1, 4, 2, 2, 2, requires_grad=True)
    model.quantised(soft).sum().backward()
    assert soft.grad is not None and (soft.grad > 0).all()


# Shapes


@pytest.mark.parametrize("size", sorted(FLAVOURS))
def test_the_grid_is_the_vit_s(size: str) -> None:
    """Tubelets of 2 frames, patches of 8 or 16 pixels; the published ones quantise to 18 bits."""
    config = FLAVOURS[size]
    small = size in ("tiny", "small")
    assert (config.tubelet, config.patch) == (2, 8 if small else 16)
    if size != "tiny":
        assert math.prod(config.levels) == 2**18
    if not small:
        assert config.keep == (768 / 1568,) * 2 and config.window == 16
        config = replace(config, stages=tuple(replace(s, width=4, blocks=0) for s in config.stages), scorer=4)
    one = Tokenizer(config)
    pixels = torch.zeros(1, 3, 4, 3 * config.patch, 2 * config.patch)
    assert one.grid(pixels) == (2, 3, 2) and one.encode(pixels).shape == (1, 12, len(config.levels))
    assert one.decode(one.encode(pixels), (2, 3, 2)).shape == pixels.shape and one.importance(pixels).shape == (1, 12)
    with pytest.raises(ValueError, match="does not divide"):
        one.encode(pixels[:, :, :3])


def test_long_clips_are_read_window_by_window(model: Tokenizer) -> None:
    pixels = clips(frames=24)
    alone = [model.encode(part) for part in pixels.split(model.config.window, 2)]
    assert torch.equal(model.encode(pixels), torch.cat(alone, 1))
    codes = model.encode(pixels)
    made = [model.decode(c, (4, 4, 4)) for c in alone]
    assert torch.allclose(model.decode(codes, (12, 4, 4)), torch.cat(made, 2))
    assert torch.equal(model.rebuilt(pixels), model.decode(codes, (12, 4, 4)))


# Importance


def test_importance_is_how_far_a_token_is_from_the_one_before(model: Tokenizer) -> None:
    """In a loop, over the border of windows too; the first frame has the second's; a clip's sum is 1."""
    pixels = clips(frames=16)
    found, seen = model.importance(pixels), model.scorer(pixels)
    wanted = torch.zeros(2, 8, 4, 4)
    for b in range(2):
        for t in range(1, 8):
            for y in range(4):
                for x in range(4):
                    wanted[b, t, y, x] = (seen[b, :, t, y, x] - seen[b, :, t - 1, y, x]).norm()
    wanted[:, 0] = wanted[:, 1]
    assert torch.allclose(found, wanted.flatten(1) / wanted.flatten(1).sum(1, keepdim=True), atol=1e-5)
    assert torch.allclose(found.sum(1), torch.ones(2))
    one = model.importance(pixels[:, :, :2])
    assert torch.allclose(one, torch.full((2, 16), 1 / 16))  # nothing to compare with


def test_nothing_happens_where_a_window_ends(model: Tokenizer) -> None:
    """A clip that stands still has the same importance everywhere, at its ends and between windows too."""
    still = clips(frames=2)[:, :, :1].expand(-1, -1, 32, -1, -1)
    found = model.importance(still).view(2, 16, 16)
    assert torch.allclose(found, torch.full_like(found, 1 / 256), rtol=1e-3)


def test_the_top_are_the_highest() -> None:
    scores = torch.tensor([[0.1, 0.9, 0.5, 0.2]]).expand(4, -1)
    found = top(scores, torch.tensor([2, 1, 4, 0]))
    assert found.int().tolist() == [[0, 1, 1, 0], [0, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]]


def test_a_scorer_learns_the_shares_of_what_is_missed() -> None:
    """Least where importance is in proportion to the error of dropped tokens, whatever those that stayed have; it rises for what
    is missed more than it is thought to be; without an error or without tokens there is nothing to learn."""
    missed = torch.tensor([[0.0, 0.6, 0.0, 0.2]])
    best = surprise(torch.tensor([[5.0, 3.0, 0.1, 1.0]]), missed)
    assert best.item() == pytest.approx(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)), rel=1e-5)
    scores = torch.tensor([[0.5, 0.5, 0.6, 0.5]], requires_grad=True)
    found = surprise(scores, missed)
    found.sum().backward()
    assert found > best and scores.grad is not None
    assert scores.grad[0, 1] < 0 < scores.grad[0, 3] and scores.grad[0, 0] == scores.grad[0, 2] == 0  # it is descended
    assert surprise(scores, torch.zeros(1, 4)).item() == 0
    assert surprise(torch.zeros(2, 0), torch.zeros(2, 0)).tolist() == [0, 0]


def given(model: Tokenizer, keep: float, by_chance: bool) -> dict[str, Tensor]:
    chance = torch.rand(2, 64, generator=torch.Generator().manual_seed(0))
    return {"keep": torch.full((2,), keep), "chance": chance, "by_chance": torch.full((2,), by_chance)}


@pytest.mark.parametrize("by_chance", [False, True])
@pytest.mark.parametrize("keep", [0.1, 0.5, 1.0])
def test_what_is_dropped_is_zero_before_it_is_quantised(model: Tokenizer, by_chance: bool, keep: float) -> None:
    """The first frame stays whole, of the others the best or the luckiest, `keep` of the clip altogether."""
    video = long.clips(range(2), 3, 8, 32)[0]
    pixels = to_pixels(video)
    drawn = given(model, keep, by_chance)
    rank = (drawn["chance"] if by_chance else model.importance(pixels))[:, 16:]
    stays = torch.zeros(2, 64)
    stays[:, :16] = 1
    for b in range(2):
        stays[b, 16 + rank[b].argsort(descending=True)[: max(0, round(keep * 64) - 16)]] = 1
    soft = model.encoder(pixels) * stays.unflatten(1, (4, 4, 4))[:, None]
    wanted = (model.decode(model.quantised(soft), (4, 4, 4)) - pixels).square().mean()
    found = model(video, **drawn)
    assert found["psnr"].item() == pytest.approx(psnr(wanted).item(), rel=1e-5)
    assert (found["loss"] - found["scorer"]).item() == pytest.approx(wanted.item(), rel=1e-4)
    assert torch.equal(model.rebuilt(pixels, stays), model.decode(model.quantised(soft), (4, 4, 4)))


def test_scorer_and_picture_learn_apart(model: Tokenizer) -> None:
    """The picture's error has no gradient for the scorer, nor the scorer's loss one for the rest; each part has some, also where
    there is one frame of tokens and nothing to choose."""
    video = long.clips(range(2), 3, 8, 32)[0]
    parts = {"scorer": model.scorer, "rest": torch.nn.ModuleList([model.encoder, model.decoder])}
    for of, learns in (("scorer", "scorer"), ("picture", "rest")):
        model.zero_grad()
        found = model(video, **given(model, 0.4, False))
        (found["scorer"] if of == "scorer" else found["loss"] - found["scorer"]).backward()
        for name, part in parts.items():
            moved = any(p.grad is not None and p.grad.abs().max() > 0 for p in part.parameters())
            assert moved == (name == learns), (of, name)
    model.zero_grad()
    drawn = {**given(model, 0.4, False), "chance": torch.rand(2, 16)}
    model(video[:, :2], **drawn)["loss"].backward()
    assert all(p.grad is not None for p in model.parameters())


def test_a_place_that_does_not_change_has_a_gradient() -> None:
    volume = torch.zeros(1, 2, 3, 1, 1, requires_grad=True)
    distance(volume).sum().backward()
    assert volume.grad is not None and torch.isfinite(volume.grad).all()


def test_pictures_show_where_it_looks(model: Tokenizer) -> None:
    shown = tokenizer.pictures(model, long.clips([0], 0, 8, 32)[0])
    assert list(shown) == ["the clip", "importance", "all tokens", "the best 50%", "the best 25%", "the best 10%"]
    assert all(film.shape == (8, 32, 32, 3) and film.dtype == torch.uint8 for film in shown.values())


# What is kept


def counted(folder: Path, model: Tokenizer, total: int = 3 * SHARD - 10) -> tuple[Stored, list[int]]:
    made: list[int] = []

    def make(numbers: range) -> dict[str, Tensor]:
        made.extend(numbers)
        return {"codes": torch.tensor(list(numbers))[:, None].int(), "scores": torch.tensor(list(numbers)) / 7}

    return Stored(folder, {"tokenizer": sum_of(model), "frames": 8}, total, make).fill(), made


def test_values_are_made_once(model: Tokenizer, tmp_path: Path) -> None:
    first, made = counted(tmp_path, model)
    assert sorted(made) == list(range(first.total))
    second, made = counted(tmp_path, model)
    assert made == [] and torch.equal(second([170, 3])["codes"], torch.tensor([[170], [3]]))
    assert torch.equal(second([170, 3])["scores"], torch.tensor([170, 3]) / 7)


def test_a_last_shard_of_fewer_values_is_made_again(model: Tokenizer, tmp_path: Path) -> None:
    """Of 100 values the second shard has 36: of 200 under the same key it is whole, and of 100 again as it was."""
    counted(tmp_path, model, 100)
    more, made = counted(tmp_path, model, 200)
    assert set(made) == set(range(SHARD, 200)) and more.values["codes"][:, 0].tolist() == list(range(200))
    fewer, made = counted(tmp_path, model, 100)
    assert made == [] and fewer.values["codes"][:, 0].tolist() == list(range(100))
    assert fewer.span(range(90, 100))["codes"][:, 0].tolist() == list(range(90, 100))


def test_a_span_is_what_is_held(model: Tokenizer, tmp_path: Path) -> None:
    """From the disk, within a shard, over a border of two, at the end; what is not there is made, and no more than that."""
    kept, made = counted(tmp_path / "filled", model)
    for numbers in (range(5, 9), range(SHARD - 2, SHARD + 3), range(kept.total - 4, kept.total)):
        assert all(torch.equal(value, kept(list(numbers))[name]) for name, value in kept.span(numbers).items())
    made.clear()
    fresh = Stored(tmp_path / "empty", {}, kept.total, kept.make)
    assert torch.equal(fresh.span(range(SHARD, SHARD + 5))["codes"], kept(list(range(SHARD, SHARD + 5)))["codes"])
    assert made == list(range(SHARD, 2 * SHARD)) and not fresh.values


def test_two_that_fill_at_once_share_the_work(
    model: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each in its own order: half way through the one the other finds what was made."""
    total, seen = 12 * SHARD, []

    def make(numbers: range) -> dict[str, Tensor]:
        seen.append(numbers.start)
        if len(seen) == 6:
            monkeypatch.setattr(os, "getpid", lambda: 2)
            Stored(tmp_path, {}, total, make).fill()
        return {"codes": torch.tensor(list(numbers))}

    monkeypatch.setattr(os, "getpid", lambda: 1)
    values = Stored(tmp_path, {}, total, make).fill().values
    assert torch.equal(values["codes"], torch.arange(total))
    assert set(seen) == set(range(0, total, SHARD)) and len(seen) == 13  # the one that was being made is made twice
    assert seen != sorted(seen)


def test_another_tokenizer_makes_them_anew(model: Tokenizer, tmp_path: Path) -> None:
    counted(tmp_path, model)
    other = tokenizer.load("tiny")
    with torch.no_grad():
        other.scorer[0].bias[0] += 1e-3  # type: ignore[operator, index]
    changed, made = counted(tmp_path, other)
    assert sorted(made) == list(range(changed.total))
    assert counted(tmp_path, model)[1] == [] == counted(tmp_path, other)[1]


def test_a_shard_that_was_cut_or_edited_is_made_again(model: Tokenizer, tmp_path: Path) -> None:
    kept, _ = counted(tmp_path, model)
    shards = sorted(kept.folder.glob("*.safetensors"))
    assert len(shards) == 3 and not list(kept.folder.glob("*.tmp"))
    data = bytearray(shards[0].read_bytes())
    data[-1] ^= 1
    shards[0].write_bytes(data)
    shards[1].write_bytes(shards[1].read_bytes()[:200])
    values = load_file(shards[2])
    save_file(values, shards[2])  # whole, but without its sum
    assert [read(shard) for shard in shards] == [None] * 3
    again, made = counted(tmp_path, model)
    assert sorted(made) == list(range(again.total)) and torch.equal(again.values["codes"], kept.values["codes"])


# Long clips


def test_a_long_clip_is_a_function_of_its_number() -> None:
    for task in long.TASKS:
        one, two = long.long_clip(5, 1, 32, task), long.long_clip(5, 1, 32, task)
        assert np.array_equal(one.frames, two.frames) and one.label == two.label
        part = long.long_clip(5, 1, 32, task, range(40, 56))
        assert np.array_equal(part.frames, one.frames[40:56]) and np.array_equal(part.seen, one.seen[40:56])
        assert one.frames.shape == (long.LENGTH, 32, 32, 3) and one.seen.any((1, 2)).all()


def test_labels_are_evenly_drawn() -> None:
    for task, count in long.TASKS.items():
        labels = [long.long_clip(i, 0, 16, task, range(2)).label for i in range(400)]
        assert min(np.bincount(labels, minlength=count)) > 0.6 * 400 / count


@pytest.mark.parametrize("i", range(12))
def test_bounces_are_the_turns_of_the_path(i: int) -> None:
    """Told from where the object is: its centre, unwrapped, changes direction as often as the label says."""
    clip = long.long_clip(i, 4, 64, "bounces")
    at = np.array([_centre(seen) for seen in clip.seen])
    steps = (np.diff(at[::4], axis=0) + 32) % 64 - 32  # over 4 frames, on a picture without borders
    along = steps[:, np.abs(steps).sum(0).argmax()]
    signs = np.sign(along[np.abs(along) > 0.8])
    assert (np.diff(signs) != 0).sum() == clip.label


@pytest.mark.parametrize("i", range(12))
def test_events_are_half_a_clip_apart(i: int) -> None:
    clip = long.long_clip(i, 4, 64, "order")
    areas = clip.seen.sum((1, 2)).astype(float)
    at = np.array([_centre(seen) for seen in clip.seen])
    jumps = np.abs((np.diff(at, axis=0) + 32) % 64 - 32).max(1)
    found = sorted([(t, 1) for t in _bursts(areas > 1.35 * np.median(areas))] + [(t, 0) for t in _bursts(jumps > 2.5)])
    assert [kind for _, kind in found] == [clip.label // 2, clip.label % 2]
    assert found[1][0] - found[0][0] >= long.LENGTH // 2 - 4


@pytest.mark.parametrize(("frames", "low", "high"), [(16, 0.15, 0.45), (128, 0.75, 1.0)])
def test_a_period_is_told_by_a_long_look(frames: int, low: float, high: float) -> None:
    """From the exact path, a third of a pixel of noise: the nearest neighbours of its polynomial. Chance is .25."""

    def paths(numbers: range) -> tuple[np.ndarray, np.ndarray]:
        rows = []
        for i in numbers:
            at = long._period(long.named_rng("path", i), i % 4, 32)[0][long.middle(frames) :][:frames]
            path = (at - at[0])[:, np.abs(at - at[0]).max(0).argmax()] + np.random.default_rng(i).normal(0, 0.3, frames)
            fit = np.polynomial.polynomial.polyfit(np.linspace(-1, 1, frames), path, 3 if frames < 64 else 7)
            rows.append(fit * np.sign(fit[1]))
        return np.array(rows), np.array([i % 4 for i in numbers])

    known, labels = paths(range(1200))
    asked, wanted = paths(range(5000, 5300))
    apart = (((asked[:, None] - known) / known.std(0)) ** 2).sum(-1).argsort(1)[:, :15]
    said = [np.bincount(labels[near], minlength=4).argmax() for near in apart]
    assert low < (np.array(said) == wanted).mean() <= high


def test_events_are_told_by_a_long_look() -> None:
    for task, chance in (("order", 0.25), ("bounces", 0.2)):
        told = [long.ceiling(task, frames, 600) for frames in (16, 128)]
        assert chance - 0.05 < told[0] < 0.4 and told[1] == 1.0
    assert long.ceiling("order", 64, 600) < 0.55


def _centre(seen: np.ndarray) -> tuple[float, float]:
    """The mean place on a picture whose borders meet."""
    side = len(seen)
    angle = 2 * np.pi * (np.arange(side) + 0.5) / side
    return tuple(  # type: ignore[return-value]
        np.angle((seen.sum(axis) * np.exp(1j * angle)).sum()) * side / (2 * np.pi) for axis in (1, 0)
    )


def _bursts(flags: np.ndarray) -> list[int]:
    """Where runs of True begin; runs less than 12 frames apart are one."""
    times = np.flatnonzero(flags)
    return [int(t) for k, t in enumerate(times) if k == 0 or t - times[k - 1] > 12]
