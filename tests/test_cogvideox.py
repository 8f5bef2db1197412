"""CogVideoX: the real classes at tiny size. Training and sampling agree with the stock pipeline; nothing leaks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import t5_text
import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXImageToVideoPipeline,
    CogVideoXTransformer3DModel,
)
from diffusers.pipelines.cogvideo import pipeline_cogvideox_image2video

import tasks
from adapters import cogvideox
from adapters.base import Flavour, Lora
from adapters.cogvideox import Options
from tasks.base import UserError
from tasks.render import STYLES, paint


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VDMREASON_CACHE", str(tmp_path_factory.mktemp("cache")))


def published(folder: Path, version: str = "1.5", shard: str = "60KB", learned: int = 9) -> Path:
    """A checkpoint in the published layout of CogVideoX-I2V at tiny size: sharded safetensors, T5 folder, scheduler. Version 1.0
    has learned positions for so many frames, which are no sines."""
    torch.manual_seed(0)
    new = version == "1.5"
    AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=2,
        temporal_compression_ratio=4,
        sample_height=480,
        sample_width=720,
        scaling_factor=0.7,
        invert_scale_latents=new,
    ).save_pretrained(folder / "vae")
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=8,
        out_channels=4,
        time_embed_dim=16,
        ofs_embed_dim=16 if new else None,
        text_embed_dim=8,
        num_layers=2,
        sample_width=300 if new else 12,
        sample_height=300 if new else 8,
        sample_frames=81 if new else learned,
        patch_size=2,
        patch_size_t=2 if new else None,
        patch_bias=not new,
        temporal_compression_ratio=4,
        max_text_seq_length=6,
        use_rotary_positional_embeddings=True,
        use_learned_positional_embeddings=not new,
    )
    if not new:
        torch.nn.init.normal_(transformer.patch_embed.pos_embedding, std=0.5)
    transformer.save_pretrained(folder / "transformer", max_shard_size=shard)
    CogVideoXDDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        snr_shift_scale=1.0,
        clip_sample=False,
    ).save_pretrained(folder / "scheduler")
    t5_text.leave(folder)
    index = {"_class_name": "CogVideoXImageToVideoPipeline", "_diffusers_version": "0.42.1"}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture(scope="module")
def new(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return published(tmp_path_factory.mktemp("cogvideox15"))


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return published(tmp_path_factory.mktemp("cogvideox10"), "1.0")


def arm(folder: Path, **options: object) -> cogvideox.CogVideoX:
    chosen = Options(**{"style": "video-16", "steps": 4, **options})  # type: ignore[arg-type]
    return cogvideox.load(Flavour(str(folder), str(folder), ""), chosen)


def samples(options: Options, n: int = 2) -> list:
    return [cogvideox.frame(e, options) for e in tasks.examples("colour_moves/shift", "train", n)]


def test_published_layout_is_sharded_and_loads(new: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(list((new / "transformer").glob("*.safetensors"))) > 1
    loaded = arm(new)
    assert loaded.model.config.patch_size_t == 2
    assert loaded.prompt.shape == (1, 6, 8)  # T5 was asked once ...
    monkeypatch.setattr("transformers.T5EncoderModel.from_pretrained", lambda *a, **k: pytest.fail("asked again"))
    again = arm(new)
    assert torch.equal(again.prompt, loaded.prompt)  # ... and its answer was kept


@pytest.mark.parametrize("version", ["new", "old"])
def test_sampling_equals_the_stock_pipeline(
    version: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Same noise, same condition: our sampler and diffusers' pipeline draw the same clip."""
    folder = request.getfixturevalue(version)
    options = {"canvas": (4, 6)} if version == "old" else {}
    ours = arm(folder, **options)
    example = tasks.examples("colour_moves/shift", "train", 1)[0]
    canvas = (4, 6) if version == "old" else example.canvas
    image = paint(example.question[: canvas[0], : canvas[1]], STYLES["video-16"], canvas)

    original = pipeline_cogvideox_image2video.retrieve_latents
    monkeypatch.setattr(
        pipeline_cogvideox_image2video,
        "retrieve_latents",
        lambda out, generator=None: original(out, sample_mode="argmax"),
    )
    frames = (
        4 if version == "new" else 3
    )  # 1.5 pads three latent frames to four; 1.0 has learned positions for just these
    noise = torch.randn(
        1, frames, 4, image.shape[0] // 8, image.shape[1] // 8, generator=torch.Generator().manual_seed(5)
    )
    pipeline = CogVideoXImageToVideoPipeline(None, None, ours.vae, ours.model, ours.scheduler)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        image=torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255,
        prompt_embeds=ours.prompt,
        height=image.shape[0],
        width=image.shape[1],
        num_frames=9,
        num_inference_steps=4,
        guidance_scale=1.0,
        latents=noise,
        output_type="np",
    ).frames[0]
    mine = ours.sample(image[None], [5])[0]
    assert mine.shape == theirs.shape == (9, *image.shape)
    assert np.abs(mine / 255.0 - theirs).max() < 1.5 / 255


@pytest.mark.parametrize("transition", ["discrete", "image"])
def test_fewer_frames_have_the_first_of_the_learned_positions(tmp_path: Path, transition: str) -> None:
    """As in the authors' code. diffusers would make sines for them: its own class is asked with a table that was cut."""
    ours = arm(published(tmp_path, "1.0", learned=17), canvas=(4, 6), transition=transition)
    frames = 1 if transition == "image" else 9
    count, name, weights = (frames - 1) // 4 + 1, "patch_embed.pos_embedding", ours.model.state_dict()
    assert weights[name].shape[1] == 6 + 5 * 4 * 6  # of the text, and of all that was learned
    stock = CogVideoXTransformer3DModel.from_config({**ours.model.config, "sample_frames": frames})
    stock.load_state_dict({**weights, name: weights[name][:, : 6 + count * 4 * 6]})
    generator = torch.Generator().manual_seed(0)
    noisy, image = (torch.randn(1, *shape, 8, 12, generator=generator) for shape in ((count, 4), (4,)))
    with torch.no_grad():
        mine = ours.velocity(noisy, image, torch.tensor([500]))
        ours.model = stock
        assert torch.allclose(ours.velocity(noisy, image, torch.tensor([500])), mine, atol=1e-5)


def test_a_clip_longer_than_the_learned_positions_is_one_line(old: Path) -> None:
    with pytest.raises(UserError, match=r"Set options\.frames to 9 or fewer") as caught:
        arm(old, canvas=(4, 6), frames=17)
    assert "\n" not in str(caught.value)


def test_the_condition_is_encoded_from_the_single_frame(new: Path) -> None:
    """Replacing the answer changes the clip's latents, the first one included, but never the condition."""
    ours = arm(new)
    one, two = samples(ours.options, 2)
    swapped = cogvideox.Sample(one.given, np.concatenate([one.wanted[:4], two.wanted[4:]]), "other")
    assert torch.equal(ours.latents(one)[1], ours.latents(swapped)[1])
    assert not torch.equal(ours.latents(one)[0][0], ours.latents(swapped)[0][0])  # the leak that is avoided


def test_given_does_not_know_the_answer() -> None:
    example = tasks.examples("arc1/evaluation/00576224", "train", 1)[0]  # 2 x 2 becomes 6 x 6
    other = type(example)(example.question, np.zeros((3, 3), np.int8), example.canvas)
    assert np.array_equal(
        cogvideox.frame(example, Options()).given.picture, cogvideox.frame(other, Options()).given.picture
    )


def test_padding_is_at_the_front_and_comes_off_again(new: Path) -> None:
    ours = arm(new)
    z = torch.randn(1, 3, 4, 2, 2)
    padded = ours.pad(z)
    assert padded.shape[1] == 4 and torch.equal(padded[:, 0], z[:, 0]) and torch.equal(padded[:, ours.padding(3) :], z)
    assert ours.padding(4) == 0


def test_the_loss_is_the_official_one(new: Path) -> None:
    """MSE on v equals the official weighting, 1 / (1 - alpha) times the MSE on the clean clip, in fp64."""
    ours = arm(new)
    batch = ours.collate(samples(ours.options), [1, 2])
    t = torch.tensor([200, 700])
    batch["t"] = t
    alpha = ours.alphas[t][:, None, None, None, None]
    noisy = alpha.sqrt() * batch["z"] + (1 - alpha).sqrt() * batch["noise"]
    v = ours.velocity(noisy, batch["image"], t)
    clean = ours.scheduler.get_velocity(v, noisy, t)
    official = ((clean - batch["z"]).square() / (1 - alpha)).mean()
    assert torch.allclose(ours.loss(batch), official, rtol=1e-4)


def test_each_sample_has_its_own_noise(new: Path) -> None:
    """Shards of a batch see what the whole batch saw: the loss of a batch is the mean over its halves."""
    ours = arm(new)
    both = samples(ours.options)
    whole = ours.loss(ours.collate(both, [3, 4]))
    halves = (ours.loss(ours.collate(both[:1], [3])) + ours.loss(ours.collate(both[1:], [4]))) / 2
    assert torch.allclose(whole, halves, rtol=1e-5)


def test_timesteps_are_uniform_or_drawn_towards_noise(new: Path) -> None:
    u = torch.linspace(0, 1, 100_001)[:-1]
    uniform, shifted = (arm(new, shift=shift).training_times(u) for shift in (1.0, 4.0))
    assert all(abs(count - 100) <= 1 for count in uniform.bincount(minlength=1000).tolist())
    assert shifted.min() == 0 and shifted.max() == 999
    # eq. 23 moves the median from 1/2 to shift / (shift + 1)
    assert (shifted < 800).float().mean() == pytest.approx(0.5, abs=0.001)
    with pytest.raises(UserError, match="shift"):
        arm(new, shift=0.0)


@pytest.mark.parametrize(("convention", "factor"), [("diffusers", 1 / 0.7), ("sat", 1.0), ("scaled", 0.7)])
def test_condition_scale_has_a_name(new: Path, convention: str, factor: float) -> None:
    z = torch.randn(1, 4, 2, 2)
    assert torch.allclose(arm(new, condition=convention).condition_latents(z), z * factor)


def test_an_adapter_refuses_another_convention(new: Path, tmp_path: Path) -> None:
    ours = arm(new, condition="sat")
    ours.attach(Lora(rank=2))
    ours.save(tmp_path)
    other = arm(new, condition="diffusers")
    other.attach(Lora(rank=2))
    with pytest.raises(UserError, match="condition"):
        other.restore(tmp_path)


@pytest.mark.parametrize("version", ["new", "old"])
def test_adapters_load_in_diffusers(version: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """`load_lora_weights` of a stock pipeline gives the same output, alpha included."""
    folder = request.getfixturevalue(version)
    ours = arm(folder)
    ours.attach(Lora(rank=4, alpha=2, targets=("attention", "mlp")), seed=1)
    for p in ours.trainable().values():
        torch.nn.init.normal_(p, std=0.3, generator=torch.Generator().manual_seed(len(p.shape) + p.numel()))
    ours.save(tmp_path)

    stock = arm(folder)
    pipeline = CogVideoXImageToVideoPipeline(None, None, stock.vae, stock.model, stock.scheduler)
    before = _velocity(stock)
    pipeline.load_lora_weights(str(tmp_path), use_safetensors=True)
    assert (_velocity(stock) - before).abs().max() > 1e-3
    assert (_velocity(stock) - _velocity(ours)).abs().max() < 1e-5


@pytest.mark.parametrize("version", ["new", "old"])
def test_random_weights_leave_a_lora_something_to_work_with(version: str, request: pytest.FixtureRequest) -> None:
    """What comes out has about the scale of the target (std 1), every block has a say, and the seed decides."""
    folder = str(request.getfixturevalue(version))
    found = Flavour(folder, folder, "")
    one, same, other = (
        cogvideox.load(found, Options(style="video-16", steps=4), init="random", seed=seed) for seed in (3, 3, 4)
    )
    whole = _velocity(one)
    assert whole.equal(_velocity(same)) and not whole.equal(_velocity(other))
    assert 0.4 < whole.std() < 2.5
    one.model.transformer_blocks = one.model.transformer_blocks[1:]
    assert (_velocity(one) - whole).std() > 0.1 * whole.std()


def _velocity(loaded: cogvideox.CogVideoX) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    frames = 4 if loaded.model.config.patch_size_t else 3
    noisy = torch.randn(1, frames, 4, 8, 12, generator=generator)
    with torch.no_grad():
        return loaded.velocity(noisy, torch.randn(1, 4, 8, 12, generator=generator), torch.tensor([500]))


def test_a_truncated_file_is_one_line(new: Path, tmp_path: Path) -> None:
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(new, broken)
    path = next((broken / "transformer").glob("*-00002-*.safetensors"))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match="damaged or cut off") as caught:
        arm(broken)
    assert "\n" not in str(caught.value)


def test_a_model_that_sees_no_picture_is_one_line(new: Path, tmp_path: Path) -> None:
    """CogVideoX-2B and -5B draw from text: their channels are those of the noise alone."""
    import shutil

    shutil.copytree(new, tmp_path / "t2v")
    file = tmp_path / "t2v" / "transformer" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "in_channels": 4}))
    with pytest.raises(UserError, match="text alone"):
        arm(tmp_path / "t2v")


def test_a_hub_id_without_a_network_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="not on this machine") as caught:
        cogvideox.load(cogvideox.FLAVOURS["THUDM/CogVideoX1.5-5B-I2V"], Options())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "bad", [{"frames": 8}, {"frames": 13}, {"steps": 7}, {"transition": "discret"}, {"style": "papr"}]
)
def test_options_are_checked(bad: dict) -> None:
    with pytest.raises(UserError) as caught:
        Options(**bad)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("pixels", [0, 100, 256, 480])
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (8, 8), (13, 13), (30, 30)])
def test_enlarged_cells_are_read_back(new: Path, pixels: int, size: tuple[int, int]) -> None:
    ours = arm(new, pixels=pixels)
    grid = np.random.default_rng(0).integers(0, 16, size).astype(np.int8)
    question = cogvideox.frame(type(tasks.examples("life/B3S23", "train", 1)[0])(grid, grid, size), ours.options).given
    assert all(side % 16 == 0 for side in question.picture.shape[:2])
    assert np.array_equal(ours.answer(question.picture[None], question).grid, grid)


def test_a_clip_with_its_own_colours_and_place_is_read_by_its_first_frame(new: Path) -> None:
    """The whole clip 3 pixels too far down and in false colours: the last frame alone is misread, with the first it isn't."""
    plain, by_first = (arm(new, readout=readout) for readout in ("last", "calibrated"))
    exact = []
    for example in tasks.examples("colour_moves/shift", "train", 4):
        sample = plain.frame(example)
        assert sample.wanted is not None
        faulty = np.roll(sample.wanted, 3, axis=1) * np.array([0.6, 1, 0.8]) + np.array([60, -30, 30])
        clip = np.clip(faulty, 0, 255).astype(np.uint8)
        exact.append(
            [np.array_equal(ours.answer(clip, sample.given).grid, example.answer) for ours in (plain, by_first)]
        )
    assert np.array(exact)[:, 1].all() and not np.array(exact)[:, 0].all()
    with pytest.raises(UserError, match="no first frame"):
        Options(transition="image", readout="calibrated")


@pytest.mark.parametrize("frames", [9, 17, 25])
def test_legal_lengths_come_back(new: Path, frames: int) -> None:
    ours = arm(new, frames=frames)
    video = np.zeros((1, frames, 16, 16, 3), np.uint8)
    assert ours.decode(ours.encode(video)).shape == video.shape


def test_the_image_control_is_one_frame(new: Path) -> None:
    ours = arm(new, transition="image")
    sample = samples(ours.options, 1)[0]
    assert ours.latents(sample)[0].shape[0] == 1
    answer = ours.predict([sample.given], [0])[0]
    assert answer.raw.shape == (1, *sample.given.picture.shape)


def test_published_parameter_count() -> None:
    """At the published numbers, on the meta device."""
    assert set(cogvideox.PUBLISHED) == {name for name, f in cogvideox.FLAVOURS.items() if f.published}
    with torch.device("meta"):
        for name, parts in cogvideox.PUBLISHED.items():
            model = CogVideoXTransformer3DModel(**parts["transformer"])
            count = sum(p.numel() for p in model.parameters())
            assert count == pytest.approx(cogvideox.FLAVOURS[name].parameters, rel=1e-3)


def test_the_loss_curve_is_the_published_scripts(old: Path, tmp_path: Path) -> None:
    """Twenty updates through `vdmreason.train` beside what diffusers' example script does with stock classes, written out: the
    same batches and noise, its scheduler's noising, the clean clip from the velocity, its weighting, its AdamW."""
    from diffusers import CogVideoXDPMScheduler
    from diffusers.models.embeddings import get_3d_rotary_pos_embed
    from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid
    from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict

    from vdmreason import config, store, train

    updates, batch, grid = 20, 3, (4, 6)  # cells, one token each
    run = config.resolve(
        {
            "task": "colour_moves/shift", "n": 5, "family": "cogvideox", "flavour": str(old), "test": 1,
            "lora": {"rank": 4, "alpha": 2, "targets": ["attention"]},
            "optim": {"updates": updates, "batch": batch, "lr": 1e-2, "warmup": 0, "schedule": "constant"},
            "options": {"style": "video-16", "pixels": 0, "canvas": list(grid), "condition": "scaled", "steps": 4},
        }
    )  # fmt: skip
    small = type(tasks.examples(run.task, "train", 1)[0])
    examples = [
        small(e.question[: grid[0], : grid[1]], e.answer[: grid[0], : grid[1]], grid)
        for e in tasks.examples(run.task, "train", run.n)
    ]
    with pytest.MonkeyPatch.context() as patch:  # puzzles that the one size of picture of version 1.0 can hold
        patch.setattr(config, "train_examples", lambda run: examples)
        patch.setattr(config, "learned_examples", lambda run: examples)
        patch.setattr(config, "test_examples", lambda run, n=None: [])
        train.train(run, tmp_path)
    ours = [line["loss"] for line in store.read_lines(tmp_path / "metrics.jsonl")]

    arm = train.load_arm(run, "cpu")
    first = get_peft_model_state_dict(arm.model)
    vae, scheduler = arm.vae, CogVideoXDPMScheduler.from_pretrained(old, subfolder="scheduler")
    transformer = CogVideoXTransformer3DModel.from_pretrained(old, subfolder="transformer").requires_grad_(False)
    transformer.add_adapter(
        LoraConfig(r=4, lora_alpha=2, init_lora_weights=True, target_modules=["to_k", "to_q", "to_v", "to_out.0"])
    )
    set_peft_model_state_dict(transformer, first)
    learned = [p for p in transformer.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=1e-2, betas=run.optim.betas, weight_decay=run.optim.weight_decay)
    size = transformer.config.sample_width // 2, transformer.config.sample_height // 2
    crops = get_resize_crop_region_for_grid(grid, size[0], size[1])
    rotary = get_3d_rotary_pos_embed(16, crops, grid_size=grid, temporal_size=3, device="cpu")
    samples, theirs = [arm.frame(e) for e in examples], []
    for step in range(updates):
        chosen = [samples[i] for i in train.indices_at(step, len(samples), batch, run.seed)]
        seeds = [train.sample_seed(run.seed, step, p) for p in range(batch)]
        drawn = arm.collate(chosen, seeds)
        pixels = torch.from_numpy(np.stack([s.wanted for s in chosen])).permute(0, 4, 1, 2, 3) / 127.5 - 1
        clean = vae.encode(pixels).latent_dist.mode().permute(0, 2, 1, 3, 4) * vae.config.scaling_factor
        image = vae.encode(pixels[:, :, :1]).latent_dist.mode().permute(0, 2, 1, 3, 4) * vae.config.scaling_factor
        image = torch.cat([image, torch.zeros_like(clean[:, 1:])], 1)
        noisy = scheduler.add_noise(clean, drawn["noise"], drawn["t"])
        out = transformer(
            hidden_states=torch.cat([noisy, image], 2),
            encoder_hidden_states=arm.prompt.expand(batch, -1, -1),
            timestep=drawn["t"],
            image_rotary_emb=rotary,
            return_dict=False,
        )[0]
        guess = scheduler.get_velocity(out, noisy, drawn["t"])
        weights = 1 / (1 - scheduler.alphas_cumprod[drawn["t"]])
        loss = (weights[:, None, None, None, None] * (guess - clean) ** 2).reshape(batch, -1).mean(1).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learned, run.optim.clip)
        optimizer.step()
        optimizer.zero_grad()
        theirs.append(loss.item())
    assert ours == pytest.approx(theirs, rel=1e-3) and ours[-1] != pytest.approx(ours[0], rel=1e-3)


@pytest.mark.parametrize("version", ["new", "old"])
def test_the_end_of_a_clip_decoded_alone_is_a_clip_that_ends_so(version: str, request: pytest.FixtureRequest) -> None:
    """Fewer frames, as large; the latents that are left out have no say; and another reading of the clip is refused."""
    whole, end = (arm(request.getfixturevalue(version), decode=decode) for decode in ("whole", "end"))
    z = torch.randn(1, 3, 4, 4, 6)
    assert whole.end(z) is z and end.end(z).shape[1] == 2
    clip, other = end.decode(end.end(z)), end.decode(end.end(torch.cat([z[:, :1] + 1, z[:, 1:]], 1)))
    assert np.array_equal(clip, other) and clip.shape[2:] == whole.decode(z).shape[2:]
    assert len(clip) == 1 and len(clip[0]) < 9
    with pytest.raises(UserError, match="readout = best"):
        Options(decode="end", readout="best")


def test_a_picture_that_the_vae_cannot_return_is_refused_before_any_training() -> None:
    """98 pixels would come back as 96, in which no answer can be read."""
    arm = cogvideox.load(cogvideox.FLAVOURS["tiny"], cogvideox.Options(style="video-14"))
    with pytest.raises(UserError, match=r"takes multiples of \d+\. Set options\.style to .*video-"):
        arm.frame(tasks.examples("maze/7x7", "train", 1)[0])


def test_a_card_says_where_a_stock_pipeline_asks_otherwise() -> None:
    assert cogvideox.Options().stock == ""
    assert "options.condition=diffusers" in cogvideox.Options(condition="sat").stock
    whole, short = (
        cogvideox.Options(style="video-16", canvas=(30, 45), frames=n).stock for n in (49, 9)
    )  # version 1.0
    assert whole == "" and "any number of frames but 49" in short
    assert cogvideox.Options(style="video-16", canvas=(21, 21), frames=9).stock == ""  # version 1.5, of a fixed size
