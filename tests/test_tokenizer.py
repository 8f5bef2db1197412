"""The adaptive tokenizer: its numbers, its windows, what it drops, and what is kept of what it says."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from pretrain import long, tokenizer
from pretrain.recipe import to_pixels
from pretrain.stored import SHARD, Stored, read, sum_of
from pretrain.tokenizer import FLAVOURS, Config, Stage, Tokenizer, distance, psnr, relaxed_top


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
@given(st.lists(st.floats(-2, 2), min_size=4, max_size=4))
def test_the_nearest_code_is_the_nearest(values: list[float]) -> None:
    one = tokenizer.load("tiny")
    given_, found = torch.tensor([values]), one.nearest(torch.tensor([values]))
    for k, levels in enumerate((8, 5, 5, 5)):
        half = levels // 2
        all_levels = (torch.arange(levels) - half) / half
        assert (found[0, k] - given_[0, k]).abs() <= (all_levels - given_[0, k]).abs().min() + 1e-6


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
    found = model.importance(pixels)
    seen = torch.cat([model.scorer(part) for part in pixels.split(8, 2)], 2)
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


def test_the_relaxed_top_is_hard_forwards_and_soft_backwards() -> None:
    scores = torch.tensor([[0.1, 0.9, 0.5, 0.2]], requires_grad=True)
    for share, wanted in ((0.5, [0, 1, 1, 0]), (0.25, [0, 1, 0, 0]), (1.0, [1, 1, 1, 1]), (0.0, [0, 0, 0, 0])):
        assert relaxed_top(scores, torch.tensor([share]), 0.5)[0].round().tolist() == wanted
    relaxed_top(scores, torch.tensor([0.5]), 0.5)[0, 2].backward()
    assert scores.grad is not None and scores.grad[0, 2] > 0


def test_what_is_dropped_is_zero_before_it_is_quantised(model: Tokenizer) -> None:
    """What a dropped token showed has no part in what is made of the clip, and the first frame is never dropped."""
    pixels = clips()
    stays = torch.ones(2, 64)
    stays[:, 40] = 0
    other = pixels.clone()
    soft = model.encoder(pixels)
    dropped = soft * stays.unflatten(1, soft.shape[2:])[:, None]
    assert torch.equal(model.rebuilt(pixels, stays), model.decode(model.quantised(dropped), (4, 4, 4)))
    assert not torch.equal(model.rebuilt(pixels, stays), model.rebuilt(pixels))
    video = long.clips(range(2), 3, 8, 32)[0]
    none = model(video, torch.zeros(2))["loss"]
    first = torch.zeros(2, 64)
    first[:, :16] = 1
    assert none.item() == pytest.approx((model.rebuilt(other, first) - pixels).square().mean().item(), rel=1e-5)
    whole = model(video, torch.ones(2))["loss"]
    assert whole.item() == pytest.approx((model.rebuilt(pixels) - pixels).square().mean().item(), rel=1e-5)
    assert model(video, torch.ones(2))["psnr"].item() == pytest.approx(psnr(whole).item())


def test_the_scorer_learns_from_the_picture_alone(model: Tokenizer) -> None:
    model.zero_grad()
    model(long.clips(range(2), 3, 8, 32)[0], torch.full((2,), 0.3))["loss"].backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.scorer.parameters())


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
    assert made == list(range(first.total))
    second, made = counted(tmp_path, model)
    assert made == [] and torch.equal(second([170, 3])["codes"], torch.tensor([[170], [3]]))
    assert torch.equal(second([170, 3])["scores"], torch.tensor([170, 3]) / 7)


def test_another_tokenizer_makes_them_anew(model: Tokenizer, tmp_path: Path) -> None:
    counted(tmp_path, model)
    other = tokenizer.load("tiny")
    with torch.no_grad():
        other.scorer[0].bias[0] += 1e-3  # type: ignore[operator, index]
    changed, made = counted(tmp_path, other)
    assert made == list(range(changed.total))
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
    assert made == list(range(again.total)) and torch.equal(again.values["codes"], kept.values["codes"])


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
