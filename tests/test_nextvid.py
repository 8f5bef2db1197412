"""NExT-Vid: what may see what, each equation against a plain version, and a training that resumes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pretrain import loop, masks, nextvid
from pretrain.targets import meters, normalised
from pretrain.vit3d import coordinates, gather

ROOT = Path(__file__).resolve().parents[1]
TINY = nextvid.FLAVOURS["tiny"]
GRID = (4, 3, 4)  # of 8 frames, 12 x 16 pixels
VARIANTS = {
    "published": replace(TINY, plain=False, sines=False, asked_for="velocity"),
    "with the plain pass": TINY,
    "not isolated": replace(TINY, isolated=False),
    "joint denoising": replace(TINY, frame_isolated=False),
    "no masking": replace(TINY, masks=(), plain=False),
    "all places asked": replace(TINY, queries="all"),
    "no alignment": replace(TINY, align=0.0),
    "alignment alone": replace(TINY, flow=0.0),
}


def model_of(config: nextvid.Config = TINY, seed: int = 0) -> nextvid.NextVid:
    """Random weights, none of them zero: queries, gates and the last layers too, or nothing would depend on anything."""
    torch.manual_seed(seed)
    model = nextvid.NextVid(config)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn(p.shape))
    return model


def video(batch: int = 2, seed: int = 0) -> Tensor:
    return torch.randint(
        0, 256, (batch, 8, 12, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


def draw(config: nextvid.Config, model: nextvid.NextVid, batch: int = 2, step: int = 0) -> nextvid.Draw:
    return nextvid.draw(config, model.target.width, GRID, batch, range(batch), 2, 0, step)


def test_one_clip_has_nothing_to_be_compared_with() -> None:
    """A deviation of 0 and a rank of 1 would look like a collapse."""
    model = model_of()
    for batch, measured in ((1, False), (2, True)):
        logs = model(video(batch), **draw(TINY, model, batch).batch(), measure=True)
        assert ({"deviation", "rank"} <= set(logs)) == measured


@pytest.mark.parametrize("name", ["published", "with the plain pass"])
def test_what_is_measured_is_the_whole_clip(name: str) -> None:
    """Behind a mask the k-th token is another place in each clip, so that positions alone would look like features."""
    config = VARIANTS[name]
    model = model_of(config)
    logs = model(video(3), **draw(config, model, 3).batch(), measure=True)
    whole = meters(model.encoder(nextvid.to_pixels(video(3))))
    assert all(torch.allclose(logs[name], value) for name, value in whole.items())


# What may see what


@pytest.mark.parametrize("name", VARIANTS)
def test_no_feature_sees_a_later_frame(name: str) -> None:
    """By gradient: c of frame t depends on frames 0..t and on no later one; z of frame t on frames before t."""
    config = VARIANTS[name]
    model = model_of(config)
    pixels = nextvid.to_pixels(video()).requires_grad_()
    drawn = draw(config, model)
    context, at_context = model.context(pixels, drawn.keeps[0])
    at = gather(coordinates(GRID)[None], drawn.asked[0])
    z = model.predict((context, at_context), at)
    for frame in range(GRID[0]):
        own = at_context[0, :, 0] == frame
        gradient = torch.autograd.grad(context[:, own].square().sum(), pixels, retain_graph=True)[0]
        seen = gradient.abs().sum((0, 1, 3, 4)).view(GRID[0], 2).sum(1) > 0
        assert seen.tolist() == [k <= frame for k in range(GRID[0])]
    for frame in range(1, GRID[0]):
        own = at[0, :, 0] == frame
        gradient = torch.autograd.grad(z[:, own].square().sum(), pixels, retain_graph=True)[0]
        seen = gradient.abs().sum((0, 1, 3, 4)).view(GRID[0], 2).sum(1) > 0
        assert seen.tolist() == [k < frame for k in range(GRID[0])]


def test_the_predictor_never_changes_the_context() -> None:
    """Every layer reads the same keys and values, and after the predictor the context is the tensor it was."""
    model = model_of()
    context, at_context = model.context(nextvid.to_pixels(video()))
    before, version = context.clone(), context._version
    read: list[Tensor] = []
    for block in model.predictor.blocks:
        block.register_forward_pre_hook(lambda _, given: read.append(given[3]))
    model.predict((context, at_context), coordinates(GRID)[None, 12:].expand(2, -1, -1))
    assert torch.equal(context, before) and context._version == version
    assert len(read) == 2 and read[0] is read[1]


def test_isolated_queries_do_not_see_each_other() -> None:
    model = model_of()
    context = model.context(nextvid.to_pixels(video()))
    at = coordinates(GRID)[None, 12:].expand(2, -1, -1)
    alone = torch.cat([model.predict(context, at[:, n : n + 1]) for n in range(at.shape[1])], 1)
    assert torch.allclose(model.predict(context, at), alone, atol=1e-5)


@pytest.mark.parametrize("isolated", [True, False])
def test_noise_of_one_frame_does_not_reach_another(isolated: bool) -> None:
    config = replace(TINY, frame_isolated=isolated)
    model = model_of(config)
    drawn = draw(config, model)
    at = gather(coordinates(GRID)[None], drawn.asked[0])
    z = torch.randn(2, at.shape[1], config.encoder.width)
    noisy = drawn.noises[0][0].clone().requires_grad_()
    velocity = model.guess(noisy, z, drawn.times[0][0], at)
    places = at.shape[1] // 3
    for frame in range(3):
        own = slice(frame * places, (frame + 1) * places)
        gradient = torch.autograd.grad(velocity[:, own].square().sum(), noisy, retain_graph=True)[0]
        reached = gradient.abs().sum((0, 2)).view(3, places).sum(1) > 0
        assert reached.tolist() == [k == frame or not isolated for k in range(3)]


def test_no_gradient_reaches_the_teacher_and_both_losses_reach_the_encoder() -> None:
    model = model_of()
    logs = model(video(), **draw(TINY, model).batch())
    for name in ("flow", "align"):
        model.zero_grad()
        logs[name].backward(retain_graph=True)
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.encoder.parameters() if p.ndim > 1)
        assert all(p.grad is None for p in model.teacher.parameters())
    assert not any(p.requires_grad for p in model.teacher.parameters())


@pytest.mark.parametrize("name", VARIANTS)
def test_every_weight_that_trains_is_used(name: str) -> None:
    """So that gradients of many processes can be averaged without asking which are there."""
    model = model_of(VARIANTS[name])
    model(video(), **draw(VARIANTS[name], model).batch())["loss"].backward()
    assert not [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]


# The equations


@pytest.mark.parametrize("asked_for", ["velocity", "clean"])
def test_the_loss_against_a_loop(asked_for: str) -> None:
    """Eq. 5 to 9, token by token: alignment with the normalised features of the averaged encoder on the whole clip, the
    straight path's velocity with each frame's own time, and the weights of table 8; the mean over the passes."""
    model, clip = model_of(replace(TINY, asked_for=asked_for)), video()  # type: ignore[arg-type]
    drawn = draw(TINY, model)
    logs = model(clip, **drawn.batch())
    pixels = nextvid.to_pixels(clip)
    reference = model.teacher.model(pixels)
    target = pixels.reshape(2, 3, 4, 2, 3, 4, 4, 4)  # B C t 2 y p x p
    flows, alignments = [], []
    for number in range(3):
        keep, asked = drawn.keeps[number], drawn.asked[number]
        context = model.context(pixels, keep)
        at = gather(coordinates(GRID)[None], asked)
        z = model.predict(context, at, number)
        flow, align = [], []
        for b in range(2):
            for n, token in enumerate(asked[b].tolist()):
                c = reference[b, token]
                wanted = (c - c.mean()) / (c.var(unbiased=False) + 1e-5).sqrt()
                align.append((z[b, n] - wanted).square().mean().item())
        places = asked.shape[1] // 3
        for k in range(2):
            noisy = torch.empty_like(drawn.noises[number][k])
            velocity = torch.empty_like(noisy)
            for b in range(2):
                for n, token in enumerate(asked[b].tolist()):
                    t, y, x = token // 12, token % 12 // 4, token % 4
                    h1 = target[b, :, t, :, y, :, x, :].permute(1, 2, 3, 0).flatten()
                    h0, tau = drawn.noises[number][k, b, n], drawn.times[number][k, b, n // places]
                    noisy[b, n], velocity[b, n] = (1 - tau) * h0 + tau * h1, h1 - h0 * (asked_for == "velocity")
            guess = model.guess(noisy, z, drawn.times[number][k], at)
            flow.append((guess - velocity).square().mean().item())
        flows.append(np.mean(flow))
        alignments.append(np.mean(align))
    assert logs["flow"].item() == pytest.approx(np.mean(flows), rel=1e-4)
    assert logs["align"].item() == pytest.approx(np.mean(alignments), rel=1e-4)
    assert logs["loss"].item() == pytest.approx(TINY.flow * np.mean(flows) + np.mean(alignments), rel=1e-4)


def test_the_reference_is_the_average_of_the_encoder() -> None:
    model = model_of(replace(TINY, momentum=0.75))
    before = model.teacher.model.embed.weight.clone()
    with torch.no_grad():
        model.encoder.embed.weight.add_(1.0)
    model.after_step()
    assert torch.allclose(model.teacher.model.embed.weight, 0.75 * before + 0.25 * model.encoder.embed.weight)


def test_masks_hide_the_same_places_in_every_frame() -> None:
    drawn = draw(TINY, model_of())
    for keep, asked in zip(drawn.keeps[:2], drawn.asked[:2], strict=True):
        assert keep is not None
        by_frame = keep.view(2, 4, -1) - 12 * torch.arange(4)[:, None]
        assert torch.equal(by_frame, by_frame[:, :1].expand(-1, 4, -1))
        hidden = masks.complement(by_frame[:, 0], 12)
        assert torch.equal(asked, masks.over_time(hidden, range(1, 4), 12))
    assert nextvid.FLAVOURS["vit-l"].flow == 0.5 and nextvid.FLAVOURS["vit-l"].align == 1.0  # table 8
    assert drawn.keeps[2] is None and drawn.asked[2].shape == (2, 36)


def test_a_draw_is_its_name_s_own_and_a_process_draws_its_rows() -> None:
    model = model_of()
    one, again, other = draw(TINY, model, 4), draw(TINY, model, 4), draw(TINY, model, 4, step=1)
    part = nextvid.draw(TINY, model.target.width, GRID, 4, range(2, 4), 2, 0, 0)
    assert torch.equal(one.noises[0], again.noises[0]) and not torch.equal(one.times[2], other.times[2])
    assert torch.equal(part.noises[1], one.noises[1][:, 2:]) and torch.equal(part.asked[0], one.asked[0][2:])
    assert len(torch.unique(torch.cat([n.flatten(2)[..., 0].flatten() for n in one.noises]))) == 24


# The stages


def test_stages_are_the_published_ones() -> None:
    total = 132_000
    ends = {0: 1e-4, 12_000: 5e-4, 40_000: 4.5e-4, 120_000: 1e-4, 131_999: 1e-6}
    for step, rate in ends.items():
        assert nextvid.rates(step, total)[""] == pytest.approx(rate, rel=0.02)
    assert nextvid.rates(39_999, total)["decoder"] == nextvid.rates(39_999, total)[""]
    assert nextvid.rates(40_000, total)["decoder"] == 8e-4 and nextvid.rates(125_000, total)["decoder"] == 3e-4
    names = [nextvid.stage_at(step, total)[0].name for step in (0, 11_999, 12_000, 40_000, 120_000, 10**9)]
    assert names == ["warm-up", "warm-up", "stable 1", "stable 2", "cool-down", "cool-down"]


@pytest.mark.parametrize(
    ("name", "encoder"),
    [("vit-l", 300e6), ("vit-h", 600e6), ("vit-g", 1.1e9)],
)
def test_published_sizes_have_the_published_parameters(name: str, encoder: float) -> None:
    """Encoder, predictor and decoder of the paper: 300 M, 600 M, 1.1 B; 22 M; 33 M. The paper rounds its encoders: ViT-L,
    ViT-H and ViT-giant have 304, 632 and 1012 M."""
    with torch.device("meta"):
        config = nextvid.FLAVOURS[name]
        model = nextvid.NextVid(replace(config, align=0.0))
        decoder = nextvid.Decoder(config, 64)  # of two frames' latents of 32 channels, as published

    def millions(module: torch.nn.Module) -> float:
        return sum(p.numel() for p in module.parameters()) / 1e6

    known = {"vit-l": 304, "vit-h": 632, "vit-g": 1012}[name]
    assert millions(model.encoder) == pytest.approx(known, rel=0.01)
    assert millions(model.encoder) == pytest.approx(encoder / 1e6, rel=0.09)
    assert millions(model.predictor) == pytest.approx(22, rel=0.02)
    assert millions(decoder) == pytest.approx(33, rel=0.02)


# Targets


@pytest.fixture(scope="module")
def image_vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=2,
    )
    folder = tmp_path_factory.mktemp("vae")
    vae.save_pretrained(folder)
    return folder


def test_pixels_there_and_back() -> None:
    model, clip = model_of(), video()
    tokens = model.target.encode(nextvid.to_pixels(clip))
    assert tokens.shape == (2, 48, 2 * 4 * 4 * 3)
    assert torch.equal(nextvid.to_uint8(model.target.decode(tokens, GRID)), clip)


def test_latents_of_any_image_vae(image_vae: Path) -> None:
    """Stride 2 under a patch of 4: each token holds 2 x 2 latents of 2 frames, each frame encoded by itself; the way back
    is what the VAE itself gives; and the VAE is no part of what trains or is saved."""
    model = model_of(replace(TINY, target=str(image_vae)))
    pixels = nextvid.to_pixels(video())
    model.target.measure(pixels)
    tokens = model.target.encode(pixels)
    assert tokens.shape == (2, 48, 2 * 2 * 2 * 4)
    assert tokens.view(2, 48, 2, 2, 2, 4).mean((0, 1, 2, 3, 4)).abs().max() < 1e-4
    vae = model.target.vae
    plain = vae.decode(vae.encode(pixels[:, :, 5]).latent_dist.mode()).sample
    assert torch.allclose(model.target.decode(tokens, GRID)[:, :, 5], plain, atol=1e-4)
    assert not [n for n in model.state_dict() if "vae" in n]
    logs = model(video(), **draw(TINY, model).batch())
    logs["loss"].backward()
    assert all(p.grad is None for p in vae.parameters())
    assert model.rollout(video()[:, :4], 2, 2).shape == (2, 6, 12, 16, 3)


def test_autoencoders_without_a_distribution_and_those_of_a_pipeline(tmp_path: Path, image_vae: Path) -> None:
    from diffusers import AutoencoderTiny

    torch.manual_seed(0)
    plain = AutoencoderTiny(encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), latent_channels=3,
                            num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1))  # fmt: skip
    plain.save_pretrained(tmp_path / "tiny")
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "vae").symlink_to(image_vae)
    (tmp_path / "pipeline" / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    for name, width in (("tiny", 2 * 2 * 2 * 3), ("pipeline", 2 * 2 * 2 * 4)):
        target = nextvid.Target(replace(TINY, target=str(tmp_path / name)))
        tokens = target.encode(nextvid.to_pixels(video()))
        assert tokens.shape == (2, 48, width) == (2, 48, target.width)
        assert target.decode(tokens, GRID).shape == (2, 3, 8, 12, 16)
    with pytest.raises(ValueError, match="no image VAE of diffusers") as error:
        nextvid.load_vae(str(tmp_path / "nothing"))
    assert "\n" not in str(error.value)


def test_a_vae_whose_stride_does_not_fit(image_vae: Path) -> None:
    with pytest.raises(ValueError, match="does not divide the patch"):
        nextvid.NextVid(replace(TINY, patch=3, target=str(image_vae)))


# Generation


def test_a_rollout_goes_on_with_the_clip() -> None:
    model, clip = model_of(), video()
    drawn = [model.rollout(clip[:, :4], 3, 2, torch.Generator().manual_seed(7)) for _ in range(2)]
    assert drawn[0].shape == (2, 8, 12, 16, 3) and torch.equal(drawn[0][:, :4], clip[:, :4])
    assert torch.equal(*drawn) and not torch.equal(drawn[0], model.rollout(clip[:, :4], 3, 2))


def test_it_learns_to_draw_the_next_frame(tmp_path: Path) -> None:
    """A square that steps one patch to the right: after a short training the drawn frame has it where it has to be, and a
    copy of the last frame has not."""
    config = replace(nextvid.FLAVOURS["tiny"], align=0.0, masks=(), plain=True)
    torch.manual_seed(0)
    model = nextvid.NextVid(config)

    def clips(names: range) -> Tensor:
        made = torch.zeros(len(names), 6, 8, 16, 3, dtype=torch.uint8)
        for row, name in enumerate(names):
            y, x = name % 2, name // 2 % 2
            for t in range(3):
                made[row, 2 * t : 2 * t + 2, 4 * y : 4 * y + 4, 4 * (x + t) : 4 * (x + t) + 4] = 255
        return made

    def batch(step: int, share: loop.Share) -> dict[str, object]:
        drawn = nextvid.draw(config, model.target.width, (3, 2, 4), 8, share.rows(8), 2, 0, step)
        return {"video": clips(range(8)), **drawn.batch()}

    loop.fit(model, batch, tmp_path, updates=350, schedule=loop.trapezoid(6e-3, 20))
    true = clips(range(4)).float()
    drawn = model.rollout(clips(range(4))[:, :4], 2, 10, torch.Generator().manual_seed(0)).float()
    error, copied = (drawn[:, 4:] - true[:, 4:]).abs().mean(), (true[:, 2:4] - true[:, 4:]).abs().mean()
    assert error < 0.4 * copied, (error, copied)


def test_without_an_average_the_reference_is_the_encoder() -> None:
    model = model_of(replace(TINY, momentum=0.0))
    with torch.no_grad():
        model.encoder.embed.weight.add_(1.0)
    model.after_step()
    pixels = nextvid.to_pixels(video())
    assert torch.allclose(normalised(model.teacher(pixels)), normalised(model.encoder(pixels)))
