"""InternVideo-Next: who sees what, each equation against a loop, its image teachers, and the parts the paper counts."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import begun
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from pretrain import image_teacher, loop, masks
from pretrain import internvideo_next as iv
from pretrain.image_teacher import ImageTeacher
from pretrain.recipe import to_pixels
from pretrain.vit3d import Table, coordinates, gather, patchify, sincos

TINY = replace(iv.FLAVOURS["tiny"], decoded=1.0, aligned=2)
GRID = (4, 3, 4)  # of 4 frames, 24 x 32 pixels
STAGE_2 = replace(TINY, stage=2, mask="blocks")
VARIANTS = {
    "small": TINY,
    "published": replace(
        TINY, scale=1e-5, dual_norm=True, rope=False, asked_for="noise", shift=1.0, ahead=False, drop=0.5
    ),
    "blocks": replace(TINY, mask="blocks"),
    "linear head": replace(TINY, head="linear"),
    "mlp head": replace(TINY, head="mlp"),
    "alignment alone": replace(TINY, pixels=0.0),
    "pixels alone": replace(TINY, align=0.0, pool=0.0),
    "half decoded": replace(TINY, decoded=0.5),
    "stage 2": STAGE_2,
    "stage 2 as published": replace(STAGE_2, pixels_too=0.0, ahead=False),
    "stage 2, image teacher": replace(STAGE_2, latent="image teacher"),
    "stage 2, semantic masks": replace(STAGE_2, mask="semantic"),
    "stage 2, average": replace(STAGE_2, momentum=0.9),
}


@pytest.fixture(scope="module")
def teacher() -> ImageTeacher:
    return iv.teacher_of(TINY)


def model_of(config: iv.Config, teacher: ImageTeacher | None = None, seed: int = 0) -> iv.InternVideoNext:
    """Random weights, none of them zero: gates and the last layers too, or nothing would depend on anything."""
    torch.manual_seed(seed)
    model = iv.InternVideoNext(config)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if not name.startswith("reference"):
                p.add_(0.05 * torch.randn(p.shape))
    if model.reference is not None:
        model.reference.model.load_state_dict(model.encoder.state_dict())
    return model.learn_from(teacher or iv.teacher_of(config))


def video(batch: int = 2, seed: int = 0) -> Tensor:
    return torch.randint(
        0, 256, (batch, 4, 24, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


def step(model: iv.InternVideoNext, batch: int = 2, seed: int = 0) -> dict[str, Tensor]:
    return model(video(batch, seed), **iv.draw(model.config, GRID, batch, range(batch), 0, seed).batch())


def seen(model: iv.InternVideoNext, pixels: Tensor, keep: Tensor, layers: list[int]) -> list[Tensor]:
    """What the blocks give, without the registers."""
    return [state[:, 4:] for state in model.states(pixels, keep, layers)]


# Who sees what


def test_latents_see_the_visible_tokens_and_nothing_else(teacher: ImageTeacher) -> None:
    """By gradient: z and c depend on the pixels of visible tokens alone."""
    model, pixels = model_of(TINY, teacher), to_pixels(video()).requires_grad_()
    keep = torch.stack(
        [torch.randperm(48, generator=torch.Generator().manual_seed(s))[:12].sort().values for s in (1, 2)]
    )
    latents, states = model.predict(pixels, keep), seen(model, pixels, keep, [0])
    for out in (latents, *states):
        gradient = torch.autograd.grad(out.square().sum(), pixels, retain_graph=True)[0]
        touched = patchify(gradient, 1, 8).abs().sum(-1) > 0
        wanted = torch.zeros(2, 48, dtype=torch.bool).scatter(1, keep, True)
        assert torch.equal(touched, wanted)
    assert latents.shape == (2, 48, 24) and states[0].shape == (2, 12, 24)


def test_every_patch_is_denoised_by_itself(teacher: ImageTeacher) -> None:
    model = model_of(TINY, teacher)
    noisy, latent = torch.randn(2, 9, 192).requires_grad_(), torch.randn(2, 9, 24).requires_grad_()
    guess = model.guess(noisy, torch.rand(2, 9), latent)
    for given in (noisy, latent):
        gradient = torch.autograd.grad(guess[0, 4].square().sum(), given, retain_graph=True)[0]
        touched = (gradient.abs().sum(-1) > 0).nonzero().tolist()
        assert touched == [[0, 4]]


def test_alignment_acts_on_visible_tokens_alone(teacher: ImageTeacher) -> None:
    """What the teacher sees at hidden places has no part in it, and no gradient of it reaches the predictor, the decoder or
    the teacher."""
    model = model_of(TINY, teacher)
    keep = torch.arange(0, 48, 4).expand(2, -1)
    pixels = to_pixels(video())
    maps = model.look(pixels)[0]
    states = seen(model, pixels, keep, [0, 1])
    before = model.alignment(states, maps, keep, GRID)
    other = F.normalize(torch.randn_like(maps), dim=-1)
    hidden = masks.complement(keep, 48)
    other.scatter_(2, keep[None, ..., None].expand(2, -1, -1, 24), gather_maps(maps, keep))
    assert torch.equal(model.alignment(states, other, keep, GRID), before)
    assert not torch.equal(gather(other[0], hidden), gather(maps[0], hidden))
    logs = step(model)
    (logs["align"] + logs["pool"]).backward()
    reached = {
        n.partition(".")[0] for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0
    }
    assert reached == {"encoder", "align", "align_positions", "pool"}
    assert not any(p.requires_grad for p in teacher.parameters())


def gather_maps(maps: Tensor, keep: Tensor) -> Tensor:
    return torch.stack([gather(m, keep) for m in maps])


@pytest.mark.parametrize("name", VARIANTS)
def test_every_weight_that_trains_is_used(name: str) -> None:
    """So that gradients of many processes can be averaged without asking which are there."""
    config = VARIANTS[name]
    model = model_of(replace(config, drop=0.0))
    logs = step(model)
    logs["loss"].backward()
    assert not [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    parts = {"pixels": config.pixel_weight, "align": config.stage == 1 and config.align, "latent": config.stage == 2}
    assert {k for k in logs if k in parts} == {k for k, there in parts.items() if there}


def test_the_frozen_teachers_are_untouched_to_the_bit(tmp_path: Path) -> None:
    first = model_of(TINY)
    second = iv.second_stage(first)
    image = {n: v.clone() for n, v in second.image.state_dict().items()}
    before = {n: v.clone() for n, v in second.reference.model.state_dict().items()}
    assert all(torch.equal(v, first.encoder.state_dict()[n]) for n, v in before.items())
    stage = iv.RECIPES["tiny"].stages[1]
    log = loop.fit(
        second, iv.Batches(second.config, stage, 32, 0), tmp_path, updates=8, schedule=loop.trapezoid(1e-2, 1)
    )
    assert log["updates"] == 8
    assert all(torch.equal(v, before[n]) for n, v in second.reference.model.state_dict().items())
    assert all(torch.equal(v, image[n]) for n, v in second.image.state_dict().items())
    assert not torch.equal(second.encoder.embed.weight, before["embed.weight"])
    average = iv.second_stage(first, momentum=0.75)
    with torch.no_grad():
        average.encoder.embed.weight.add_(1.0)
    average.after_step()
    moved = 0.75 * before["embed.weight"] + 0.25 * average.encoder.embed.weight
    assert torch.allclose(average.reference.model.embed.weight, moved)


def test_a_teacher_drops_nothing() -> None:
    """Stochastic depth is the student's: the teacher says the same of a clip each time, in training too."""
    second = iv.second_stage(model_of(replace(TINY, drop=0.5))).train()
    pixels = to_pixels(video())
    assert second.encoder.training and not second.reference.model.training
    assert torch.equal(second.reference(pixels), second.reference(pixels))
    assert not torch.equal(second.encoder(pixels), second.encoder(pixels))
    step(second)
    assert second.encoder.training


def test_stage_2_begins_as_stage_1_ended() -> None:
    first = model_of(TINY)
    second = iv.second_stage(first, pixels_too=0.0)
    pixels, keep = to_pixels(video()), torch.arange(0, 48, 3).expand(2, -1)
    assert torch.equal(first.predict(pixels, keep), second.predict(pixels, keep))
    noise = torch.randn(2, 32, 192)
    assert torch.equal(first.fill(pixels, keep, 2, noise), second.fill(pixels, keep, 2, noise))
    assert not any(p.requires_grad for p in second.decoder.parameters())
    assert second.align is None and second.pool is None and first.latent is None
    with pytest.raises(ValueError, match="needs its image teacher"):
        iv.InternVideoNext(TINY).look(pixels)


# The equations


@pytest.mark.parametrize("asked_for", ["noise", "clean"])
def test_the_loss_of_stage_1_against_a_loop(asked_for: str, teacher: ImageTeacher) -> None:
    """Token by token: 2 - 2 cos with the teacher's block at visible places, with its pooled embedding, and the squared error of
    what the diffusion asks for at hidden ones; all with weight 1."""
    config = replace(TINY, ahead=False, asked_for=asked_for, shift=1.0)  # type: ignore[arg-type]
    model, clip = model_of(config, teacher), video()
    drawn = iv.draw(config, GRID, 2, range(2), 0, 5)
    logs = model(clip, **drawn.batch())
    pixels = to_pixels(clip)
    maps = torch.zeros(2, 2, 48, 24)  # (K, B, N, D)
    pooled, attention = torch.zeros(2, 4, 24), torch.zeros(2, 4, 12)
    layers = image_teacher.layers_of(2, 2, 2)
    for b in range(2):
        for t in range(4):
            m, p, a = teacher(pixels[b, :, t][None], GRID[1:], layers)
            maps[:, b, 12 * t : 12 * t + 12], pooled[b, t], attention[b, t] = m[:, 0], p[0], a[0]
    keep = model.semantic(attention, drawn.uniform)
    assert keep.shape == (2, 4 * 3)  # a quarter of 12 places in 4 frames
    latents = model.predict(pixels, keep)
    states = seen(model, pixels, keep, [0, 1])
    align, pool, diffusion = [], [], []
    for b in range(2):
        for k, block in enumerate((1, 0)):  # the student's last block goes with the teacher's last
            for n, token in enumerate(keep[b].tolist()):
                mine = model.align[k](states[block][b, n] + model.align_positions(GRID)[token])
                align.append(2 - 2 * F.cosine_similarity(mine, maps[k, b, token], 0).item())
        mine = F.normalize(model.pool(states[1][b : b + 1])[0], dim=0)
        pool.append(2 - 2 * (mine @ pooled[b].mean(0)).item())
        hidden = [token for token in range(48) if token not in keep[b].tolist()]
        for n, token in enumerate(hidden):
            t, y, x = token // 12, token % 12 // 4, token % 4
            x0 = pixels[b, :, t, 8 * y : 8 * y + 8, 8 * x : 8 * x + 8].permute(1, 2, 0).flatten()
            u, e = drawn.times[0][b, n], drawn.noises[0][b, n]
            bar = (math.cos((u + 0.008) / 1.008 * math.pi / 2) / math.cos(0.008 / 1.008 * math.pi / 2)) ** 2
            bar = min(max(bar, 1e-5), 1.0)
            guess = model.decoder(math.sqrt(bar) * x0 + math.sqrt(1 - bar) * e, u, latents[b, token])
            diffusion.append((guess - (e if asked_for == "noise" else x0)).square().mean().item())
    assert logs["align"].item() == pytest.approx(np.mean(align), rel=1e-4)
    assert logs["pool"].item() == pytest.approx(np.mean(pool), rel=1e-4)
    assert logs["pixels"].item() == pytest.approx(np.mean(diffusion), rel=1e-4)
    assert logs["loss"].item() == pytest.approx(np.mean(align) + np.mean(pool) + np.mean(diffusion), rel=1e-4)


def test_the_loss_of_stage_2_against_a_loop() -> None:
    """2 - 2 cos between what the head says of each hidden place and the frozen encoder's token there, the whole clip shown to
    it; the mean over places, then over the two masks. No norm on the target but its length."""
    config = replace(STAGE_2, pixels_too=0.0)
    model, clip = model_of(config), video()
    with torch.no_grad():
        model.encoder.embed.weight.add_(0.1)  # student and teacher differ
    drawn = iv.draw(config, GRID, 2, range(2), 0, 5)
    assert len(drawn.keeps) == 2 and config.passes == ("blocks", "blocks")
    logs = model(clip, **drawn.batch())
    pixels, losses = to_pixels(clip), []
    target = model.reference.model(pixels)
    for keep in drawn.keeps:
        latents, each = model.predict(pixels, keep), []
        for b in range(2):
            for token in set(range(48)) - set(keep[b].tolist()):
                each.append(2 - 2 * F.cosine_similarity(model.latent(latents[b, token]), target[b, token], 0).item())
        losses.append(np.mean(each))
    assert logs["loss"].item() == logs["latent"].item() == pytest.approx(np.mean(losses), rel=1e-4)


@pytest.mark.parametrize("asked_for", ["noise", "clean"])
def test_a_perfect_net_has_no_loss_and_draws_the_patch(asked_for: str, teacher: ImageTeacher) -> None:
    config = replace(TINY, asked_for=asked_for)  # type: ignore[arg-type]
    model = model_of(config, teacher)
    clean, noise, time = torch.rand(2, 5, 192) * 2 - 1, torch.randn(2, 5, 192), torch.rand(2, 5)

    def oracle(noisy: Tensor, time: Tensor, latent: Tensor) -> Tensor:
        kept = config.process.kept(time)[..., None]
        return clean if asked_for == "clean" else (noisy - kept.sqrt() * clean) / (1 - kept).sqrt()

    model.guess = oracle  # type: ignore[method-assign]
    assert model.pixel_loss(clean, torch.zeros(2, 5, 24), noise, time.clamp_min(0.05)).item() < 1e-6
    assert torch.allclose(model.drawn(torch.zeros(2, 5, 24), noise, 10), clean, atol=1e-2)


# Masks


def test_semantic_masks_follow_the_teacher(teacher: ImageTeacher) -> None:
    """As many a frame, in every frame; drawn more often where the teacher looks, or exactly there."""
    model = model_of(replace(TINY, hidden=0.75), teacher)
    attention = torch.full((500, 4, 12), 0.2 / 11)
    attention[:, :, 7] = 0.8
    keep = model.semantic(attention, torch.rand(500, 4, 12, generator=torch.Generator().manual_seed(0)))
    frames = keep.view(500, 4, 3)
    assert torch.equal(frames // 12, torch.arange(4)[None, :, None].expand(500, -1, 3))
    assert (frames.diff(dim=2) > 0).all() and (frames % 12 == 7).any(2).float().mean() > 0.95
    top = model_of(replace(TINY, pick="top"), teacher).semantic(torch.rand(2, 4, 12), torch.rand(2, 4, 12))
    assert top.shape == (2, 12)
    looked = torch.rand(2, 4, 12)
    top = model_of(replace(TINY, pick="top"), teacher).semantic(looked, torch.rand(2, 4, 12)).view(2, 4, 3) % 12
    assert torch.equal(top, looked.topk(3).indices.sort().values)
    assert [replace(TINY, hidden=h).visible(256) for h in (0.75, 0.8)] == [64, 52]  # the script's and the paper's


def test_large_batches_leave_what_the_published_share_of_a_gpu_does() -> None:
    """The count is shared by 14 clips (Base) or 8 (Large), however many are in the batch; more would leave fewer."""
    for size, wanted in (("base", 0.073), ("large", 0.09)):
        config = replace(iv.FLAVOURS[size], flavour=size, stage=2, mask="blocks", blocks=((2, 0.7),), pixels_too=0.0)
        kept = [iv.draw(config, (4, 16, 16), 64, range(1), seed).keeps[0].shape[1] / 1024 for seed in range(60)]
        assert np.mean(kept) == pytest.approx(wanted, abs=0.012), size


def test_the_first_frames_whole() -> None:
    """Of eight frames the first two stay and nothing else, the same for all clips."""
    config = replace(TINY, stage=2, mask="frames", most=0.25, ahead=False)
    (keep,) = iv.draw(config, (8, 3, 3), 5, range(5), 0).keeps
    assert config.passes == ("frames",) and torch.equal(keep, torch.arange(18).expand(5, 18))
    (most,) = iv.draw(replace(config, most=1.0), (4, 3, 3), 2, range(2), 0).keeps
    assert most.shape == (2, 27)  # one frame is always hidden
    with pytest.raises(ValueError, match="one frame of tokens"):
        iv.draw(config, (1, 3, 3), 2, range(2), 0)
    with pytest.raises(ValueError, match="Stage 2's"):
        replace(config, stage=1)


def test_what_multi_block_masks_leave() -> None:
    """As measured with the released generator, batches of 14, 32 frames of 16 x 16: of the short masks 35 % stay, 19.4 % after
    the cut to 400 tokens an eighth; of the long ones 17 % and 7.3 %. The cut takes the end of the clip."""
    most = int(32 * 256 * iv.FLAVOURS["base"].most)
    assert most == 1600
    generator = torch.Generator().manual_seed(0)
    for (count, scale), bare, cut in zip(((8, 0.15), (2, 0.7)), (0.35, 0.17), (0.194, 0.073), strict=True):
        seen = [masks.seen_past_blocks(14, (16, 16), count, scale, generator).float().mean().item() for _ in range(60)]
        assert np.mean(seen) == pytest.approx(bare, abs=0.035)
        kept = [masks.tubes_of_blocks(14, (32, 16, 16), count, scale, generator, most, "tail") for _ in range(60)]
        assert np.mean([k.shape[1] for k in kept]) / 8192 == pytest.approx(cut, abs=0.012)
        assert all((k.diff(dim=1) > 0).all() for k in kept)
        last = np.mean([(k // 256).max(1).values.float().mean().item() for k in kept])
        assert last < (24 if count == 8 else 27), last  # of 0 to 31
        even = masks.tubes_of_blocks(14, (32, 16, 16), count, scale, generator, most, "random").view(14, 32, -1) % 256
        assert even[0].numel() <= most and torch.equal(even, even[:, :1].expand(-1, 32, -1))


def test_the_pass_ahead_hides_whole_frames(teacher: ImageTeacher) -> None:
    seen = set()
    for seed in range(20):
        drawn = iv.draw(TINY, GRID, 2, range(2), seed)
        keep = drawn.keeps[-1]
        assert drawn.keeps[0] is None and keep.shape[1] % 12 == 0 and torch.equal(keep[0], torch.arange(keep.shape[1]))
        seen.add(keep.shape[1] // 12)
    assert seen == {1, 2, 3}


# Positions


def test_positions_are_learnt_from_sines_and_interpolated() -> None:
    table = Table((4, 6, 6), 24, 100.0)
    assert torch.equal(table((4, 6, 6)), sincos(coordinates((4, 6, 6)), 24, 100.0))
    other = table((8, 5, 9)).view(8, 5, 9, 24)
    assert other.shape == (8, 5, 9, 24)
    # Along time linear: between two frames of the table lies their mean.
    times = table((7, 6, 6)).view(7, 6, 6, 24)
    known = table.weight.view(4, 6, 6, 24)
    wanted = F.interpolate(known.permute(1, 2, 3, 0).reshape(36, 24, 4), 7, mode="linear").permute(2, 0, 1)
    assert torch.allclose(times.reshape(7, 36, 24), wanted, atol=1e-6)
    # A table that is the same everywhere stays so.
    with torch.no_grad():
        table.weight.copy_(torch.arange(24.0).expand(144, -1))
    assert torch.allclose(table((3, 4, 11)), torch.arange(24.0).expand(132, -1), atol=1e-4)


@pytest.mark.parametrize(("frames", "height", "width"), [(1, 24, 32), (7, 40, 16), (12, 32, 32)])
def test_other_lengths_and_shapes(frames: int, height: int, width: int, teacher: ImageTeacher) -> None:
    model, grid = model_of(TINY, teacher), (frames, height // 8, width // 8)
    clip = torch.zeros(2, frames, height, width, 3, dtype=torch.uint8)
    assert iv.encode(model, clip).shape == (2, math.prod(grid), 24)
    if frames > 1:
        assert math.isfinite(model(clip, **iv.draw(TINY, grid, 2, range(2), 0).batch())["loss"].item())


# Generation


def test_filling_looks_at_nothing_that_is_hidden(teacher: ImageTeacher) -> None:
    model, pixels = model_of(TINY, teacher), to_pixels(video())
    keep = torch.arange(24).expand(2, -1)
    noise = torch.randn(2, 24, 192)
    drawn = model.fill(pixels, keep, 3, noise)
    blind = pixels.clone()
    blind[:, :, 2:] = 0.5
    assert torch.equal(model.fill(blind, keep, 3, noise), drawn) and drawn.shape == (2, 24, 192)
    assert not torch.allclose(model.fill(pixels, keep, 3, torch.randn(2, 24, 192)), drawn)
    seen = []
    model.fill(pixels, keep, 3, noise, lambda k, steps, clean: seen.append((k, steps, clean.shape)))
    assert seen == [(k, 3, (2, 24, 192)) for k in (1, 2, 3)]


def test_it_learns_to_draw_what_comes(tmp_path: Path) -> None:
    """A square that steps one patch to the right: after a short training the drawn second half has it where it has to be, and a
    copy of the last frame has not."""
    config = replace(TINY, align=0.0, pool=0.0, mask="blocks", blocks=())
    torch.manual_seed(0)
    model = iv.InternVideoNext(config)

    def clips() -> Tensor:
        made = torch.zeros(8, 4, 16, 40, 3, dtype=torch.uint8)
        for row in range(8):
            y, x = row % 2, row // 2 % 2
            for t in range(4):
                made[row, t, 8 * y : 8 * y + 8, 8 * (x + t) : 8 * (x + t) + 8] = 255
        return made

    def batch(step: int, share: loop.Share) -> dict[str, object]:
        return {"video": clips(), **iv.draw(config, (4, 2, 5), 8, share.rows(8), 0, step).batch()}

    loop.fit(model, batch, tmp_path, updates=300, schedule=loop.trapezoid(4e-3, 20))
    pixels = to_pixels(clips())[:4]
    clean = patchify(pixels, 1, 8)
    drawn = model.fill(pixels, torch.arange(20).expand(4, -1), 10, torch.randn(4, 20, 192))
    error, copied = (drawn - clean[:, 20:]).abs().mean(), (clean[:, 10:20].repeat(1, 2, 1) - clean[:, 20:]).abs().mean()
    assert error < 0.4 * copied, (error, copied)


def test_pictures(teacher: ImageTeacher) -> None:
    clip = video(1)
    for config, count in ((TINY, 2), (STAGE_2, 4)):
        films = iv.pictures(model_of(config, teacher), clip, steps=2)
        assert len(films) == 1 + 2 * count and all(f.shape == (4, 24, 32, 3) for f in films.values())
        half = films["the first half: drawn"]
        assert torch.equal(half[:2], clip[0, :2]) and not torch.equal(half[2:], clip[0, 2:])
    lost = model_of(replace(TINY, teacher="/nowhere"), teacher).learn_from(None)
    assert len(iv.pictures(lost, clip, steps=1)) == 5


# Sizes


@pytest.mark.parametrize(("name", "encoder"), [("base", 86), ("large", 304)])
def test_published_sizes_have_the_published_parameters(name: str, encoder: float) -> None:
    """ViT-B and ViT-L without their tables of positions, five ModernBERT layers, a diffusion decoder of six at 1536."""
    with torch.device("meta"):
        model = iv.InternVideoNext(iv.FLAVOURS[name])

    def millions(module: torch.nn.Module) -> float:
        return sum(p.numel() for p in module.parameters()) / 1e6

    assert millions(model.encoder) - millions(model.encoder.positions) == pytest.approx(encoder, rel=0.02)
    assert millions(model.predictor.blocks) == pytest.approx(5 * 12.3, rel=0.02)
    assert millions(model.decoder) == pytest.approx(82, rel=0.02)
    config = iv.FLAVOURS[name]
    assert (config.asked_for, config.shift, config.decoded, config.pixels_too, config.momentum) == ("noise", 1, 1, 0, 1)
    assert config.align == config.pool == config.pixels == 1.0


def test_rates_are_the_published_ones() -> None:
    first, second = iv.RECIPES["base"].stages
    assert first.rates(0, 1000)[""] == pytest.approx(1e-5) and first.rates(100, 1000)[""] == pytest.approx(1e-3)
    assert first.rates(1000, 1000)[""] == pytest.approx(1e-5) and second.rates(0, 1000)[""] == pytest.approx(1e-4)
    assert first.rates(550, 1000)[""] == pytest.approx((1e-3 + 1e-5) / 2)
    assert (first.frames, second.frames, iv.RECIPES["large"].stages[1].batch) == (16, 32, 1024)
    for name in ("base", "large"):  # 50 and 100 epochs
        one, two = iv.RECIPES[name].stages
        assert two.share * two.batch == pytest.approx(2 * one.share * one.batch) and one.share + two.share == 1


# A predictor that was a language model


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import ModernBertConfig, ModernBertModel

    torch.manual_seed(0)
    config = ModernBertConfig(vocab_size=40, hidden_size=24, intermediate_size=32, num_hidden_layers=7, num_attention_heads=2,
                              local_attention=16, pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1,
                              sep_token_id=2)  # fmt: skip
    folder = tmp_path_factory.mktemp("bert")
    ModernBertModel(config).save_pretrained(folder)
    return folder


def test_the_last_layers_of_a_modernbert_are_the_predictor(bert: Path) -> None:
    """They do what they do at the end of their own model: full and sliding attention in its order, and no last norm."""
    from transformers import ModernBertModel

    stored, weights = iv.load_bert(str(bert), 5)
    body = iv.bert_body(stored)
    body.layers.load_state_dict(weights)
    whole = ModernBertModel.from_pretrained(bert)
    assert [layer.attention_type for layer in body.layers] == [layer.attention_type for layer in whole.layers[2:]]
    given: list[Tensor] = []
    whole.layers[2].register_forward_pre_hook(lambda _, args: given.append(args[0]))
    whole.final_norm = torch.nn.Identity()
    wanted = whole(input_ids=torch.randint(0, 40, (2, 50))).last_hidden_state
    assert torch.allclose(body(inputs_embeds=given[0]).last_hidden_state, wanted, atol=1e-5)


def test_pretraining_with_a_modernbert(bert: Path, tmp_path: Path) -> None:
    iv.pretrain(tmp_path, updates=4, size="tiny", bert=str(bert), stages="1")
    model = iv.load(tmp_path)
    assert model.config.bert["num_hidden_layers"] == 3 and model.config.predictor.width == 24
    assert "with 3-axis positions" not in (tmp_path / "README.md").read_text()
    assert math.isfinite(step(model.learn_from(iv.teacher_of(TINY)))["loss"].item())
    for name, said in ((str(tmp_path / "no"), "leave --bert away"), (str(bert), "has 7 layers, 9 are wanted")):
        with pytest.raises(ValueError, match=said) as error:
            iv.load_bert(name, 9)
        assert "\n" not in str(error.value)


# Image teachers


def towers() -> dict[str, object]:
    from transformers import (
        CLIPVisionConfig,
        CLIPVisionModel,
        Dinov2Config,
        Dinov2Model,
        SiglipConfig,
        SiglipModel,
        SiglipVisionConfig,
        SiglipVisionModel,
    )

    size = {"hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    mlp = {"intermediate_size": 48}
    text = {"vocab_size": 20, "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, **mlp}
    return {
        "siglip vision": SiglipVisionModel(SiglipVisionConfig(**size, **mlp)),
        "siglip": SiglipModel(SiglipConfig(text_config=text, vision_config={**size, **mlp})),
        "clip": CLIPVisionModel(CLIPVisionConfig(**size, **mlp)),
        "dinov2": Dinov2Model(Dinov2Config(**size)),
    }


@pytest.mark.parametrize("kind", ["siglip vision", "siglip", "clip", "dinov2"])
def test_published_layouts_load_through_the_same_path(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Maps are the inputs of the named blocks, the pooled embedding the model's own, attention adds up to 1; other grids work;
    and a step of Stage 1 learns from it."""
    torch.manual_seed(0)
    model = towers()[kind]
    model.save_pretrained(tmp_path)  # type: ignore[attr-defined]
    teacher = image_teacher.load(tmp_path)
    saved = {n.removeprefix("vision_model."): v for n, v in model.state_dict().items()}  # type: ignore[attr-defined]
    assert all(torch.equal(v, saved[n.removeprefix("vision_model.")]) for n, v in teacher.tower.state_dict().items())
    frames = torch.rand(3, 3, 32, 32) * 2 - 1
    maps, pooled, attention = teacher(frames, (4, 4), (3, 1))
    assert maps.shape == (2, 3, 16, 24) and pooled.shape == (3, 24) and attention.shape == (3, 16)
    for unit in (maps, pooled):
        assert torch.allclose(unit.norm(dim=-1), torch.ones(()), atol=1e-5)
    assert torch.allclose(attention.sum(-1), torch.ones(3), atol=1e-5)
    tower = teacher.tower
    normal = ((frames + 1) / 2 - teacher.mean) / teacher.deviation
    found = tower(normal, output_hidden_states=True)
    extra = 0 if kind.startswith("siglip") else 1
    assert torch.allclose(maps[1], F.normalize(found.hidden_states[1][:, extra:], dim=-1), atol=1e-5)
    assert torch.allclose(pooled, F.normalize(found.pooler_output, dim=-1), atol=1e-5)
    assert teacher(torch.rand(1, 3, 40, 20), (8, 4), (2,))[0].shape == (1, 1, 32, 24)
    monkeypatch.setattr(image_teacher, "AT_ONCE", 2)
    for one, two in zip((maps, pooled, attention), teacher(frames, (4, 4), (3, 1)), strict=True):
        assert torch.allclose(one, two, atol=1e-5)
    config = replace(TINY, teacher=str(tmp_path), teacher_size=(teacher.width, teacher.depth))
    assert math.isfinite(step(model_of(config, teacher))["loss"].item())
    assert not teacher.train().training and not teacher.tower.training


def test_an_image_teacher_that_is_not_there_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # it would try for half a minute
    with pytest.raises(ValueError, match="take the one that ships: --teacher small") as error:
        image_teacher.load("google/siglip2-giant-opt-patch16-256")
    assert "\n" not in str(error.value)
    for name, damage in (("half", lambda data: data[: len(data) // 2]), ("whole", lambda data: data)):
        torch.manual_seed(0)
        folder = tmp_path / name
        image_teacher.tower_of("tiny").save_pretrained(folder)
        file = folder / "model.safetensors"
        if name == "whole":
            weights = load_file(file)
            weights.pop(
                "encoder.layers.1.mlp.fc1.weight", weights.pop("vision_model.encoder.layers.1.mlp.fc1.weight", None)
            )
            save_file(weights, file, {"format": "pt"})
        file.write_bytes(damage(file.read_bytes()))
        with pytest.raises(ValueError, match="could not be loaded") as error:
            image_teacher.load(folder)
        assert "\n" not in str(error.value)
    assert "not in the file" in str(error.value)
    from transformers import BertConfig

    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a bert; an image teacher is"):
        image_teacher.load(tmp_path)


def test_which_blocks_go_together() -> None:
    """The released code's tables for 40 blocks over 12 and 24."""
    assert image_teacher.layers_of(40, 12, 6) == (39, 36, 33, 30, 26, 23)
    assert image_teacher.layers_of(40, 24, 6) == (39, 38, 36, 34, 33, 31)
    assert image_teacher.layers_of(2, 2, 2) == (1, 0) and image_teacher.layers_of(1, 6, 3) == (0, 0, 0)


def test_an_image_teacher_of_our_own(tmp_path: Path) -> None:
    """It learns what it is told, once, is written in the published layout, and its card says what it knows."""
    record = image_teacher.pretrain(tmp_path, updates=6, size="tiny", batch=4)
    teacher = image_teacher.load(tmp_path)
    assert teacher.width == 24 and record["log"]["updates"] == 6
    card = " ".join((tmp_path / "README.md").read_text().split())
    assert "labels of the renderer" in card and "vdmreason pretrain image-teacher --budget 6u --size tiny" in card
    pictures, there, place = zip(*(image_teacher.still(i, 0, 32) for i in range(200)), strict=True)
    assert {p.shape for p in pictures} == {(32, 32, 3)} and np.stack(there).sum(0).min() > 0
    assert set(place) == set(range(-1, 9))
    begun.mark(tmp_path)
    again = image_teacher.pretrain(tmp_path, updates=6, size="tiny", batch=4)
    assert begun.went_on(tmp_path)
    assert again["weights"] == record["weights"]


# The recipe


def test_a_second_stage_is_that_of_its_first(tmp_path: Path) -> None:
    """With more updates Stage 1 goes on, and is another than the one that the checkpoint of Stage 2 grew from: nothing of either
    is thrown away unsaid."""
    record = iv.pretrain(tmp_path, updates=4, size="tiny")
    whole = (tmp_path / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="has begun Stage 2, and with a larger budget"):
        iv.pretrain(tmp_path, updates=8, size="tiny")
    assert (tmp_path / "model.safetensors").read_bytes() == whole
    assert iv.pretrain(tmp_path, updates=4, size="tiny")["weights"] == record["weights"]
    second = tmp_path / "work" / "stage-2" / "settings.json"
    second.write_text(json.dumps(json.loads(second.read_text()) | {"weights of Stage 1": "another"}))
    with pytest.raises(ValueError, match="weights of Stage 1"):
        iv.pretrain(tmp_path, updates=4, size="tiny")
    second.unlink()
    settings = tmp_path / "work" / "stage-1" / "settings.json"
    said = json.loads(settings.read_text())
    settings.write_text(json.dumps({key: v for key, v in said.items() if not key.startswith("weights")}))
    iv.pretrain(tmp_path, updates=4, size="tiny")  # begun by an older version, which noted none
    assert json.loads(settings.read_text()) == said
    settings.write_text(json.dumps(said | {"weights of the image teacher": "another"}))
    with pytest.raises(ValueError, match="weights of the image teacher"):
        iv.pretrain(tmp_path, updates=4, size="tiny")


def test_one_stage_at_a_time(tmp_path: Path) -> None:
    iv.pretrain(tmp_path / "one", updates=6, size="tiny", stages="1")
    assert iv.load(tmp_path / "one").config.stage == 1
    iv.pretrain(tmp_path / "two", updates=6, stages="2", start=str(tmp_path / "one"))  # the size is the first stage's
    two = iv.load(tmp_path / "two")
    assert two.config.stage == 2
    for name, value in two.reference.model.state_dict().items():
        assert torch.allclose(value, iv.load(tmp_path / "one").encoder.state_dict()[name])
    card = (tmp_path / "two" / "README.md").read_text()
    assert "stage 2: 6 updates" in card and "stage 1:" not in card and "size tiny" in card
    for given, said in (
        ({"stages": "2"}, "needs --start"),
        ({"start": str(tmp_path / "one")}, "needs --start"),
        ({"stages": "2", "start": str(tmp_path / "two")}, "has been through Stage 2"),
        ({"stages": "2", "start": str(tmp_path / "no")}, "there is no config.json"),
        ({"stages": "2", "start": str(tmp_path / "one"), "bert": "x"}, "are Stage 1's"),
        ({"stages": "2", "start": str(tmp_path / "three")}, "name another folder"),
    ):
        with pytest.raises(ValueError, match=said):
            iv.pretrain(tmp_path / "three", updates=6, size="tiny", **given)  # type: ignore[arg-type]


def test_rates_scaled_by_the_batch(tmp_path: Path) -> None:
    record = iv.pretrain(tmp_path, updates=4, size="tiny", batch=8, lr_scale="linear256")
    usual = iv.RECIPES["tiny"].stages
    assert [s["lr"] for s in record["recipe"]["stages"]] == [s.lr * 8 / 256 for s in usual]
    assert "--lr-scale linear256" in record["command"]


def test_positions_and_registers_are_spared_from_decay() -> None:
    model = iv.InternVideoNext(TINY)
    groups = loop._groups(model, {"": 1.0}, 0.05, False, iv.OPTIMISER["spared"])
    decays = {name: group["weight_decay"] for group in groups for name in group["names"]}
    for name, decay in decays.items():
        spared = any(p in name for p in ("positions", "register", "mask")) or name.endswith(("bias", "norm1.weight"))
        assert not (spared and decay), name
    assert decays["encoder.embed.weight"] == 0.05 and decays["predictor.mask"] == 0.0


def test_drop_path_keeps_the_mean() -> None:
    from pretrain.vit3d import Block

    torch.manual_seed(0)
    block = Block(8, 2, 16, drop=0.5).train()
    x = torch.randn(1, 3, 8).expand(4000, -1, -1)
    with torch.no_grad():
        added = block._past(torch.ones(4000, 3, 8), None)
        assert set(added[:, 0, 0].tolist()) == {0.0, 2.0} and added.mean().item() == pytest.approx(1.0, abs=0.06)
        assert torch.equal(block.eval()(x)[0], block(x)[1])
