"""LTX-Video: the real classes at tiny size. Training and sampling agree with both stock pipelines; nothing leaks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import t5_text
import torch
from diffusers import (
    AutoencoderKLLTXVideo,
    FlowMatchEulerDiscreteScheduler,
    LTXConditionPipeline,
    LTXImageToVideoPipeline,
    LTXVideoTransformer3DModel,
)
from diffusers.pipelines.ltx import pipeline_ltx_condition, pipeline_ltx_image2video
from PIL import Image

import tasks
from adapters import ltx
from adapters.base import Flavour, Lora, Sample, sample_generator
from adapters.ltx import Options
from tasks.base import UserError
from tasks.render import STYLES, paint

PIPELINES = {"image": pipeline_ltx_image2video, "condition": pipeline_ltx_condition}


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VDMREASON_CACHE", str(tmp_path_factory.mktemp("cache")))


def published(folder: Path, pipeline: str) -> Path:
    """A checkpoint in the published layout of LTX-Video at tiny size: of 0.9.0 (image), or with a VAE that is told how noisy its
    latents are and draws noise between its layers (condition)."""
    torch.manual_seed(0)
    new = pipeline == "condition"
    decoder = {
        "decoder_block_out_channels": (8, 16, 32),
        "decoder_layers_per_block": (1,) * 4,
        "decoder_spatio_temporal_scaling": (True,) * 3,
        "decoder_inject_noise": (False, True, True, False),
        "upsample_residual": (True,) * 3,
        "upsample_factor": (2, 2, 2),
        "timestep_conditioning": True,
    }
    older = {"decoder_block_out_channels": (8,) * 4, "decoder_layers_per_block": (1,) * 5}
    vae = AutoencoderKLLTXVideo(
        latent_channels=8, block_out_channels=(8,) * 4, layers_per_block=(1,) * 5, **(decoder if new else older)
    )
    vae.latents_mean.copy_(torch.linspace(-0.3, 0.3, 8))
    vae.latents_std.copy_(torch.linspace(0.5, 1.5, 8))
    vae.save_pretrained(folder / "vae")
    LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=16,
        cross_attention_dim=32,
        num_layers=2,
        caption_channels=8,
    ).save_pretrained(folder / "transformer", max_shard_size="60KB")
    FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=not new,
        base_shift=0.95,
        max_shift=2.05,
        base_image_seq_len=1024,
        max_image_seq_len=4096,
        shift_terminal=0.1,
    ).save_pretrained(folder / "scheduler")
    t5_text.leave(folder)
    name = "LTXConditionPipeline" if new else "LTXPipeline"
    (folder / "model_index.json").write_text(json.dumps({"_class_name": name, "_diffusers_version": "0.42.1"}))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: published(tmp_path_factory.mktemp("ltx"), name) for name in PIPELINES}


def arm(folder: Path, **options: object) -> ltx.LTX:
    chosen = Options(**{"steps": 4, "prompt": "a a", **options})  # type: ignore[arg-type]
    return ltx.load(Flavour(str(folder), str(folder), ""), chosen)


def samples(ours: ltx.LTX, n: int = 2) -> list:
    return [ours.frame(e) for e in tasks.examples("colour_moves/shift", "train", n)]


def stock(ours: ltx.LTX, text: tuple = (None, None)) -> LTXImageToVideoPipeline | LTXConditionPipeline:
    """diffusers' own pipeline around the same weights."""
    kind = {"image": LTXImageToVideoPipeline, "condition": LTXConditionPipeline}[ours.pipeline]
    encoder, tokenizer = text
    pipeline = kind(ours.scheduler, ours.vae, encoder, tokenizer, ours.model)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def picture() -> np.ndarray:
    example = tasks.examples("colour_moves/shift", "train", 1)[0]
    return paint(example.question[:4, :6], STYLES["video-32"], (4, 6))


@pytest.mark.parametrize("name", PIPELINES)
def test_published_layout_is_sharded_and_loads(
    name: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoTokenizer, T5EncoderModel

    folder = folders[name]
    assert len(list((folder / "transformer").glob("*.safetensors"))) > 1
    loaded = arm(folder)
    text = (
        T5EncoderModel.from_pretrained(folder / "text_encoder"),
        AutoTokenizer.from_pretrained(folder / "tokenizer"),
    )
    embeds, mask = stock(loaded, text)._get_t5_prompt_embeds("a a")  # with their own number of tokens
    assert torch.allclose(loaded.prompt["prompt_embeds"], embeds, atol=1e-5)  # T5 was asked once ...
    assert torch.equal(loaded.prompt["prompt_mask"].bool(), mask) and 0 < mask.sum() < mask.numel()
    monkeypatch.setattr(T5EncoderModel, "from_pretrained", lambda *a, **k: pytest.fail("asked again"))
    again = arm(folder)
    assert all(torch.equal(again.prompt[k], v) for k, v in loaded.prompt.items())  # ... and its answer was kept


@pytest.mark.parametrize("rate", [25, 8])
@pytest.mark.parametrize("name", PIPELINES)
def test_sampling_equals_the_stock_pipeline(
    name: str, rate: int, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Same noise, same picture (the posterior's mode, not blurred): our sampler and diffusers' pipelines draw the same clip."""
    ours = arm(folders[name], frame_rate=rate, frames=17, steps=6)
    image, module = picture(), PIPELINES[name]
    original = module.retrieve_latents
    monkeypatch.setattr(
        module, "retrieve_latents", lambda out, generator=None: original(out, generator, sample_mode="argmax")
    )
    noise = torch.randn(3, 8, 4, 6, generator=torch.Generator().manual_seed(5)).transpose(0, 1)[
        None
    ]  # frames first: ours
    later = torch.randn(8, 3, 4, 6, generator=sample_generator(~5))[None]
    drawn = iter([noise, later])
    monkeypatch.setattr(module, "randn_tensor", lambda *a, **k: next(drawn).clone())
    only = {"image_cond_noise_scale": 0.0} if name == "condition" else {}
    theirs = stock(ours)(
        image=Image.fromarray(image),
        prompt_embeds=ours.prompt["prompt_embeds"],
        prompt_attention_mask=ours.prompt["prompt_mask"].bool() if name == "image" else ours.prompt["prompt_mask"],
        height=image.shape[0],
        width=image.shape[1],
        num_frames=17,
        frame_rate=rate,
        num_inference_steps=6,
        guidance_scale=1.0,
        decode_timestep=0.05,
        decode_noise_scale=0.025,
        output_type="np",
        **only,
    ).frames[0]
    mine = ours.sample(image[None], [5])[0]
    assert mine.shape == theirs.shape == (17, *image.shape)
    assert mine.std() > 1  # not a grey clip, on which all agree
    assert np.abs(mine / 255.0 - theirs).max() < 0.51 / 255


@pytest.mark.parametrize("name", PIPELINES)
def test_the_frame_rate_says_where_a_latent_is(name: str, folders: dict[str, Path]) -> None:
    """Both ways to tell positions: the second latent begins with frame 1, which the older pipeline does not know."""
    places = arm(folders[name]).positions(1, 3, 2, 2)
    if name == "image":
        assert places["rope_interpolation_scale"] == (8 / 25, 32, 32)
    else:
        frames = (places["video_coords"][0, 0] * 25).reshape(3, 4)
        assert torch.allclose(frames, torch.tensor([[0.0], [1.0], [9.0]]).expand(3, 4))


@pytest.mark.parametrize("name", PIPELINES)
def test_a_batch_is_sampled_as_one_by_one(name: str, folders: dict[str, Path]) -> None:
    """Also the noise with which the VAE decodes is each sample's own."""
    ours = arm(folders[name])
    both = np.stack([picture(), picture()[::-1]])
    one = np.concatenate([ours.sample(both[i : i + 1], [seed]) for i, seed in enumerate((3, 4))])
    assert np.abs(ours.sample(both, [3, 4]).astype(int) - one).max() <= 1


@pytest.mark.parametrize("name", [*PIPELINES, "tiny"])
def test_one_step_goes_from_noise_to_the_clip(name: str, folders: dict[str, Path]) -> None:
    """Also where the scheduler stretches its times to a last one, which a single step does not have."""
    tiny = name == "tiny"
    ours = ltx.load(ltx.FLAVOURS["tiny"], Options(steps=1)) if tiny else arm(folders[name], steps=1)
    image = picture()[None]
    clip = ours.sample(image, [5])
    assert ours.scheduler.timesteps.tolist() == [1000.0] and ours.scheduler.sigmas.tolist() == [1.0, 0.0]
    told = ours.condition(image)
    noise = torch.randn(2, *told["image"].shape[1:], generator=sample_generator(5))[None, 1:]
    with torch.no_grad():
        x = noise - ours.velocity(noise, told, torch.tensor([1000.0]))
    wanted = ours.shown(torch.cat([told["image"][:, None], ours.unscaled(x)], 1), [5])
    assert np.abs(clip.astype(int) - wanted).max() <= 1


def test_a_decoder_that_draws_noise_is_deterministic(folders: dict[str, Path]) -> None:
    ours = arm(folders["condition"])
    for name, weight in ours.vae.named_parameters():
        if "per_channel_scale" in name:  # 0 as drawn
            weight.data.fill_(0.5)
    z = torch.randn(1, 2, 8, 2, 2, generator=torch.Generator().manual_seed(0))
    first = ours.decode(z)
    torch.randn(7)
    assert np.array_equal(ours.decode(z), first)
    assert not np.array_equal(ours.shown(z, [1]), ours.shown(z, [2]))  # another seed, another clip
    before = torch.get_rng_state()
    ours.decode(z)
    assert torch.equal(torch.get_rng_state(), before)  # and nobody else's noise is touched


@pytest.mark.parametrize("name", PIPELINES)
def test_the_condition_is_encoded_from_the_single_picture(name: str, folders: dict[str, Path]) -> None:
    """Replacing the answer changes the clip's latents, but never the condition. The first latent has not seen it: this VAE's
    encoder looks back only, unlike CogVideoX's."""
    ours = arm(folders[name])
    one, two = samples(ours)
    swapped = Sample(one.given, np.concatenate([one.wanted[:4], two.wanted[4:]]), "other")
    (a,), (b,) = ours.latents_of([one]), ours.latents_of([swapped])
    assert set(a) == {"mean", "logvar", "image"} and torch.equal(a["image"], b["image"])
    assert not torch.equal(a["mean"], b["mean"])
    assert torch.allclose(a["mean"][0], a["image"], atol=1e-5)


def test_given_does_not_know_the_answer() -> None:
    example = tasks.examples("arc1/evaluation/00576224", "train", 1)[0]  # 2 x 2 becomes 6 x 6
    other = type(example)(example.question, np.zeros((3, 3), np.int8), example.canvas)
    one, two = (ltx.frame(e, Options()).given.picture for e in (example, other))
    assert np.array_equal(one, two)


@pytest.mark.parametrize("name", PIPELINES)
def test_the_loss_is_plain_flow_matching(name: str, folders: dict[str, Path]) -> None:
    """Written out again, for one sample at a time and with the transformer asked directly."""
    ours = arm(folders[name])
    both = samples(ours)
    batch = ours.collate(both, [1, 2])
    mean, std = (v.view(1, 8, 1, 1, 1) for v in (ours.vae.latents_mean, ours.vae.latents_std))
    losses = []
    for i, sample in enumerate(both):
        video = torch.from_numpy(sample.wanted).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
        clean = (ours.vae.encode(video).latent_dist.mode() - mean) / std
        given = (ours.vae.encode(video[:, :, :1]).latent_dist.mode() - mean) / std
        generator = torch.Generator().manual_seed(i + 1)
        s = float(torch.rand(1, generator=generator))
        assert batch["t"][i] == pytest.approx(1000 * s)
        noise = torch.randn(2, 8, *clean.shape[3:], generator=generator).transpose(0, 1)[None]
        noisy = torch.cat([given, ((1 - s) * clean + s * noise)[:, :, 1:]], 2)
        tokens = noisy.flatten(2).transpose(1, 2)  # frame by frame, row by row
        half = tokens.shape[1] // 2
        times = torch.cat([torch.zeros(1, half), torch.full((1, half), 1000 * s)], 1)
        height, width = noisy.shape[3:]
        if name == "image":
            scale = (8 / 25, 32, 32)
            places = {"num_frames": 2, "height": height, "width": width, "rope_interpolation_scale": scale}
        else:
            grid = torch.meshgrid(
                torch.tensor([0, 1 / 25]), torch.arange(height) * 32.0, torch.arange(width) * 32.0, indexing="ij"
            )
            places = {"video_coords": torch.stack(grid).flatten(1)[None]}
        text = {
            "encoder_hidden_states": ours.prompt["prompt_embeds"],
            "encoder_attention_mask": ours.prompt["prompt_mask"],
        }
        v = ours.model(hidden_states=tokens, timestep=times, **text, **places, return_dict=False)[0]
        wanted = (noise - clean).flatten(2).transpose(1, 2)
        losses.append((v - wanted)[:, half:].square().mean())
    assert torch.allclose(ours.loss(batch), torch.stack(losses).mean(), rtol=1e-4)


@pytest.mark.parametrize("name", PIPELINES)
def test_the_padding_of_the_text_is_not_read(name: str, folders: dict[str, Path]) -> None:
    ours = arm(folders[name])
    before = velocity(ours)
    mask = ours.prompt["prompt_mask"][..., None].bool()
    ours.prompt["prompt_embeds"] = torch.where(mask, ours.prompt["prompt_embeds"], torch.tensor(9.0))
    assert torch.allclose(velocity(ours), before, atol=1e-6)


@pytest.mark.parametrize("name", PIPELINES)
def test_each_sample_has_its_own_noise(name: str, folders: dict[str, Path]) -> None:
    """Shards of a batch see what the whole batch saw: the loss of a batch is the mean over its halves."""
    ours = arm(folders[name])
    both = samples(ours)
    whole = ours.loss(ours.collate(both, [3, 4]))
    halves = (ours.loss(ours.collate(both[:1], [3])) + ours.loss(ours.collate(both[1:], [4]))) / 2
    assert torch.allclose(whole, halves, rtol=1e-5)


@pytest.mark.parametrize("name", PIPELINES)
def test_nothing_is_left_behind_on_another_device(name: str, folders: dict[str, Path]) -> None:
    """The meta device stands for a GPU: it takes no tensor of the CPU."""
    ours = arm(folders[name])
    batch = {k: v.to("meta") for k, v in ours.collate(samples(ours), [1, 2]).items()}
    ours.model.to("meta"), ours.vae.to("meta")
    ours.prompt = {k: v.to("meta") for k, v in ours.prompt.items()}
    assert ours.loss(batch).is_meta and ours.drawn(torch.empty(2, 8, 3, 2, 2, device="meta")).is_meta


@pytest.mark.parametrize(("key", "value"), [("frame_rate", 8), ("pipeline", "condition"), ("frames", 17)])
def test_an_adapter_refuses_another_convention(
    key: str, value: object, folders: dict[str, Path], tmp_path: Path
) -> None:
    ours = arm(folders["image"])
    ours.attach(Lora(rank=2))
    ours.save(tmp_path)
    other = arm(folders["image"], **{key: value})
    other.attach(Lora(rank=2))
    with pytest.raises(UserError, match=key):
        other.restore(tmp_path)


def test_a_scheduler_that_shifts_is_taken_without_where_the_pipeline_has_its_own_times(
    folders: dict[str, Path],
) -> None:
    """There the stock pipeline stops. Times and sigmas are then one, as for the model's authors."""
    tiny = ltx.load(ltx.FLAVOURS["tiny"], Options(steps=4, pipeline="condition"))
    ours = arm(folders["image"], pipeline="condition")
    assert ours.prompt["prompt_mask"].shape == (1, 256)
    for made in (tiny, ours):
        made.schedule((3, 8, 4, 6))
        assert torch.allclose(made.scheduler.sigmas[:-1] * 1000, made.scheduler.timesteps)
        own = pipeline_ltx_condition.linear_quadratic_schedule(4) * 1000
        assert torch.allclose(made.scheduler.timesteps, own)
        assert made.sample(picture()[None], [0]).shape == (1, 9, *picture().shape)


@pytest.mark.parametrize("targets", [("attention", "mlp"), ("attention",), ("mlp",)])
@pytest.mark.parametrize("name", PIPELINES)
def test_adapters_load_in_diffusers(
    name: str, targets: tuple[str, ...], folders: dict[str, Path], tmp_path: Path
) -> None:
    """`load_lora_weights` of a stock pipeline gives the same output, alpha included, and so does our own `restore`."""
    ours, plain, again = (arm(folders[name]) for _ in range(3))
    ours.attach(Lora(rank=4, alpha=2, targets=targets), seed=1)
    generator = torch.Generator().manual_seed(0)
    for p in ours.trainable().values():
        torch.nn.init.normal_(p, std=0.3, generator=generator)
    ours.save(tmp_path)

    before = velocity(plain)
    stock(plain).load_lora_weights(str(tmp_path), use_safetensors=True)
    assert (velocity(plain) - before).abs().max() > 1e-3
    assert (velocity(plain) - velocity(ours)).abs().max() < 1e-5

    again.attach(Lora(rank=4, alpha=2, targets=targets), seed=2)
    again.restore(tmp_path)
    assert torch.equal(velocity(again), velocity(ours))


def velocity(ours: ltx.LTX) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    noisy, image = torch.randn(2, 2, 8, 4, 6, generator=generator), torch.randn(2, 8, 4, 6, generator=generator)
    with torch.no_grad():
        return ours.velocity(noisy, {"image": image}, torch.tensor([900.0, 300.0]))


@pytest.mark.parametrize("name", PIPELINES)
def test_random_weights_leave_a_lora_something_to_work_with(name: str, folders: dict[str, Path]) -> None:
    """What comes out has about the scale of the target, every block has a say, and the seed decides."""
    folder = str(folders[name])
    one, same, other = (
        ltx.load(Flavour(folder, folder, ""), Options(steps=4), init="random", seed=seed) for seed in (3, 3, 4)
    )
    whole = velocity(one)
    assert whole.equal(velocity(same)) and not whole.equal(velocity(other))
    assert 0.4 < whole.std() < 2.5
    one.model.transformer_blocks = one.model.transformer_blocks[1:]
    assert (velocity(one) - whole).std() > 0.1 * whole.std()


def test_a_model_is_the_same_in_every_precision(folders: dict[str, Path]) -> None:
    folder = str(folders["condition"])
    for init in ("pretrained", "random"):
        half, full = (
            ltx.load(Flavour(folder, folder, ""), Options(steps=2), init=init, dtype=d) for d in ("bfloat16", "float32")
        )
        assert half.model.dtype == torch.bfloat16 and half.vae.dtype == torch.float32
        assert torch.isfinite(half.loss(half.collate(samples(half), [1, 2])))
        for made in (half, full):
            made.attach(Lora(rank=2))
        assert half.backbone == full.backbone


def test_a_truncated_file_is_one_line(folders: dict[str, Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(folders["image"], broken)
    path = next((broken / "transformer").glob("*-00002-*.safetensors"))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match="damaged or cut off") as caught:
        arm(broken)
    assert str(broken) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [name for name, f in ltx.FLAVOURS.items() if f.published])
def test_a_hub_id_without_a_network_is_one_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="not on this machine") as caught:
        ltx.load(ltx.FLAVOURS[name], Options())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "bad",
    [
        {"frames": 8},
        {"frames": 13},
        {"steps": 0},
        {"style": "papr"},
        {"frame_rate": 0},
        {"decode_noise": 2.0},
        {"pipeline": "text"},
    ],
)
def test_options_are_checked(bad: dict) -> None:
    with pytest.raises(UserError) as caught:
        Options(**bad)
    assert "\n" not in str(caught.value)


def test_a_picture_of_half_tokens_is_refused(folders: dict[str, Path]) -> None:
    example = tasks.examples("colour_moves/shift", "train", 1)[0]
    odd = type(example)(example.question[:5, :5], example.answer[:5, :5], (5, 5))
    with pytest.raises(UserError, match=r"multiples of 32.*video-32") as caught:
        arm(folders["image"], style="video-16").frame(odd)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", PIPELINES)
@pytest.mark.parametrize("frames", [9, 17, 25])
def test_legal_lengths_come_back(name: str, frames: int, folders: dict[str, Path]) -> None:
    ours = arm(folders[name], frames=frames)
    video = np.zeros((1, frames, 32, 64, 3), np.uint8)
    assert ours.encode(video).shape[1] == (frames - 1) // 8 + 1
    assert ours.decode(ours.encode(video)).shape == video.shape


@pytest.mark.parametrize("name", PIPELINES)
def test_the_image_control_is_one_frame(name: str, folders: dict[str, Path]) -> None:
    """The answer's one latent stands behind the picture's and is decoded alone."""
    ours = arm(folders[name], transition="image")
    both = samples(ours)
    batch = ours.collate(both, [1, 2])
    assert batch["z"].shape[1] == 1 and torch.isfinite(ours.loss(batch))
    answer = ours.predict([both[0].given], [0])[0]
    assert answer.raw.shape == (1, *both[0].given.picture.shape)


@pytest.mark.parametrize("name", PIPELINES)
def test_the_codec_reads_what_the_vae_draws(name: str, folders: dict[str, Path]) -> None:
    """A random VAE draws no puzzle, so the true answer cannot come back at this size: what is read is the VAE's own clip."""
    ours = arm(folders[name])
    both = samples(ours)
    for sample, answer in zip(both, ours.codec(both), strict=True):
        alone = ours.decode(ours.encode(sample.wanted[None]))[0]
        assert np.abs(answer.raw.astype(int) - alone).max() <= 1


def test_published_parameter_counts() -> None:
    """At the published numbers, on the meta device."""
    assert set(ltx.PUBLISHED) == {name for name, f in ltx.FLAVOURS.items() if f.published}
    with torch.device("meta"):
        for name, parts in ltx.PUBLISHED.items():
            count = sum(p.numel() for p in LTXVideoTransformer3DModel(**parts["transformer"]).parameters())
            assert count == ltx.FLAVOURS[name].parameters
