"""Wan 2.1 and 2.2: the real classes at tiny size. Training and sampling agree with the stock pipeline; nothing leaks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanTransformer3DModel,
)
from diffusers.pipelines.wan import pipeline_wan_i2v
from PIL import Image

import tasks
from adapters import wan
from adapters.base import Flavour, Lora, Sample
from adapters.wan import Options
from tasks.base import UserError
from tasks.render import STYLES, paint

VARIANTS = ("2.1", "2.2", "5B")  # CLIP and channels; two transformers and channels; a clean first latent
STYLE = {"2.1": "video-16", "2.2": "video-16", "5B": "video-32"}


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VDMREASON_CACHE", str(tmp_path_factory.mktemp("cache")))


def published(folder: Path, variant: str) -> Path:
    """A checkpoint in the published layout of Wan at tiny size: sharded safetensors, UMT5, tokenizer, scheduler, CLIP."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        CLIPVisionModel,
        PreTrainedTokenizerFast,
        UMT5Config,
        UMT5EncoderModel,
    )

    torch.manual_seed(0)
    large = variant == "5B"
    AutoencoderKLWan(
        base_dim=8,
        decoder_base_dim=8,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[0.5, 0.8, 1.2, 0.9],
        is_residual=large,
        in_channels=12 if large else 3,
        out_channels=12 if large else 3,
        patch_size=2 if large else None,
        scale_factor_spatial=16 if large else 8,
    ).save_pretrained(folder / "vae")
    for name in ("transformer", "transformer_2")[: 2 if variant == "2.2" else 1]:
        WanTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=4 if large else 12,
            out_channels=4,
            text_dim=8,
            freq_dim=16,
            ffn_dim=64,
            num_layers=2,
            image_dim=16 if variant == "2.1" else None,
            added_kv_proj_dim=32 if variant == "2.1" else None,
            rope_max_seq_len=64,
        ).save_pretrained(folder / name, max_shard_size="60KB")
    UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=3.0
    ).save_pretrained(folder / "scheduler")
    text = UMT5Config(
        vocab_size=16, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2, feed_forward_proj="gated-gelu"
    )
    UMT5EncoderModel(text).save_pretrained(folder / "text_encoder")
    words = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2, "a": 3}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    fast.save_pretrained(folder / "tokenizer")
    index: dict = {"_class_name": "WanImageToVideoPipeline", "_diffusers_version": "0.42.1"}
    if variant == "2.1":
        seen = CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=28,
            patch_size=14,
        )
        CLIPVisionModel(seen).save_pretrained(folder / "image_encoder")
        size = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
        CLIPImageProcessor(**size).save_pretrained(folder / "image_processor")
    index |= {"boundary_ratio": 0.8 if variant == "2.2" else None, "expand_timesteps": large}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {v: published(tmp_path_factory.mktemp("wan"), v) for v in VARIANTS}


def arm(folder: Path, **options: object) -> wan.Wan:
    large = json.loads((folder / "model_index.json").read_text())["expand_timesteps"]
    chosen = {"style": "video-32" if large else "video-16", "steps": 4, "prompt": "a a", **options}
    return wan.load(Flavour(str(folder), str(folder), ""), Options(**chosen))  # type: ignore[arg-type]


def samples(ours: wan.Wan, n: int = 2) -> list:
    return [ours.frame(e) for e in tasks.examples("colour_moves/shift", "train", n)]


def stock(ours: wan.Wan) -> WanImageToVideoPipeline:
    """diffusers' own pipeline around the same weights."""
    processor, encoder = ours.clip or (None, None)
    experts = isinstance(ours, wan.WanExperts)
    pipeline = WanImageToVideoPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=ours.vae,
        scheduler=ours.scheduler,
        image_processor=processor,
        image_encoder=encoder,
        transformer=ours.model["transformer"] if experts else ours.model,
        transformer_2=ours.model["transformer_2"] if experts else None,
        boundary_ratio=0.8 if experts else None,
        expand_timesteps=ours.pinned,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def picture_of(variant: str) -> np.ndarray:
    example = tasks.examples("colour_moves/shift", "train", 1)[0]
    return paint(example.question[:4, :6], STYLES[STYLE[variant]], (4, 6))


def test_published_layout_is_sharded_and_loads(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoTokenizer, UMT5EncoderModel

    folder = folders["2.1"]
    assert len(list((folder / "transformer").glob("*.safetensors"))) > 1
    loaded = arm(folder)
    pipeline = WanImageToVideoPipeline(
        AutoTokenizer.from_pretrained(folder / "tokenizer"),
        UMT5EncoderModel.from_pretrained(folder / "text_encoder"),
        loaded.vae,
        loaded.scheduler,
    )
    monkeypatch.setattr(
        pipeline_wan_i2v, "prompt_clean", str.strip
    )  # theirs wants ftfy, for text that was decoded wrongly
    theirs = pipeline._get_t5_prompt_embeds("a a", max_sequence_length=512)
    assert loaded.prompt.shape == (1, 512, 8) and torch.allclose(
        loaded.prompt, theirs, atol=1e-5
    )  # UMT5 was asked once ...
    assert loaded.prompt.abs().sum() > 0
    with monkeypatch.context() as patch:
        patch.setattr(UMT5EncoderModel, "from_pretrained", lambda *a, **k: pytest.fail("asked again"))
        assert torch.equal(arm(folder).prompt, loaded.prompt)  # ... and its answer was kept
    assert isinstance(arm(folders["2.2"]), wan.WanExperts)
    assert arm(folders["5B"]).pinned and arm(folders["5B"]).multiple == 32


@pytest.mark.parametrize("scheduler", ["UniPC", "Euler"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_sampling_equals_the_stock_pipeline(variant: str, scheduler: str, folders: dict[str, Path]) -> None:
    """Same noise, same picture: our sampler and diffusers' pipeline draw the same clip."""
    ours = arm(folders[variant])
    if scheduler == "Euler":
        ours.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    image = picture_of(variant)
    scale = ours.vae.config.scale_factor_spatial
    shape = (3, 4, image.shape[0] // scale, image.shape[1] // scale)  # frames first: ours
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(5)).transpose(0, 1)[None]
    theirs = stock(ours)(
        image=Image.fromarray(image),
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
    assert mine.std() > 1  # not a grey clip, on which all agree
    assert np.abs(mine / 255.0 - theirs).max() < 0.51 / 255


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_batch_is_sampled_as_one_by_one(variant: str, folders: dict[str, Path]) -> None:
    ours = arm(folders[variant])
    image = picture_of(variant)
    both = np.stack([image, image[::-1]])
    one = np.concatenate([ours.sample(both[i : i + 1], [seed]) for i, seed in enumerate((3, 4))])
    assert np.abs(ours.sample(both, [3, 4]).astype(int) - one).max() <= 1


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_condition_is_encoded_from_the_single_picture(variant: str, folders: dict[str, Path]) -> None:
    """Replacing the answer changes the clip's latents, but never the condition. The first latent has not seen it: this VAE
    looks back only, unlike CogVideoX's."""
    ours = arm(folders[variant])
    one, two = samples(ours)
    swapped = Sample(one.given, np.concatenate([one.wanted[:4], two.wanted[4:]]), "other")
    (a,), (b,) = ours.latents_of([one]), ours.latents_of([swapped])
    told = set(a) - {"mean", "logvar"}
    assert told == {"2.1": {"image", "after", "clip"}, "2.2": {"image", "after"}, "5B": {"image"}}[variant]
    assert all(torch.equal(a[name], b[name]) for name in told)
    assert not torch.equal(a["mean"], b["mean"])
    assert torch.allclose(a["mean"][0], a["image"], atol=1e-5)


def test_given_does_not_know_the_answer() -> None:
    example = tasks.examples("arc1/evaluation/00576224", "train", 1)[0]  # 2 x 2 becomes 6 x 6
    other = type(example)(example.question, np.zeros((3, 3), np.int8), example.canvas)
    one, two = (wan.frame(e, Options()).given.picture for e in (example, other))
    assert np.array_equal(one, two)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_loss_is_plain_flow_matching(variant: str, folders: dict[str, Path]) -> None:
    """Written out again, for one sample at a time and with the transformer asked directly."""
    ours = arm(folders[variant])
    both = samples(ours)
    batch = ours.collate(both, [1, 2])
    batch["t"] = torch.tensor([900.0, 300.0])  # one on each side of the boundary
    mean, std = (
        torch.tensor(v).view(1, 4, 1, 1, 1) for v in (ours.vae.config.latents_mean, ours.vae.config.latents_std)
    )
    losses = []
    for i, sample in enumerate(both):
        video = torch.from_numpy(sample.wanted).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
        clean = (ours.vae.encode(video).latent_dist.mode() - mean) / std
        generator = torch.Generator().manual_seed(i + 1)
        torch.rand(1, generator=generator)  # the time is drawn first
        noise = torch.randn(3, 4, *clean.shape[3:], generator=generator).transpose(0, 1)[None]
        s = float(batch["t"][i]) / 1000
        noisy = (1 - s) * clean + s * noise
        alone = torch.zeros_like(video)
        alone[:, :, 0] = video[:, :, 0]
        given = (ours.vae.encode(alone).latent_dist.mode() - mean) / std
        time = torch.tensor([1000 * s])
        if variant == "5B":
            noisy[:, :, :1] = given[:, :, :1]
            tokens = noisy[0, 0, :, ::2, ::2]
            time = torch.cat([torch.zeros_like(tokens[:1]), torch.full_like(tokens[1:], 1000 * s)]).flatten()[None]
            inputs = noisy
        else:
            mask = torch.zeros_like(noisy)
            mask[:, :, 0] = 1
            inputs = torch.cat([noisy, mask, given], 1)
        model = ours.model
        if variant == "2.2":
            model = model["transformer" if s >= 0.8 else "transformer_2"]
        more = {"encoder_hidden_states_image": ours.seen(sample.given.picture[None])} if variant == "2.1" else {}
        v = model(inputs, time, ours.prompt, return_dict=False, **more)[0]
        wrong = (v - (noise - clean)).square()
        losses.append(wrong[:, :, 1:].mean() if variant == "5B" else wrong.mean())
    assert torch.allclose(ours.loss(batch), torch.stack(losses).mean(), rtol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_sample_has_its_own_noise(variant: str, folders: dict[str, Path]) -> None:
    """Shards of a batch see what the whole batch saw: the loss of a batch is the mean over its halves."""
    ours = arm(folders[variant])
    both = samples(ours)
    whole = ours.loss(ours.collate(both, [3, 4]))
    halves = (ours.loss(ours.collate(both[:1], [3])) + ours.loss(ours.collate(both[1:], [4]))) / 2
    assert torch.allclose(whole, halves, rtol=1e-5)


def test_the_clean_latent_teaches_nothing(folders: dict[str, Path]) -> None:
    """What stands in the clip's first latent is not in the batch at all; the model is shown the picture there."""
    ours = arm(folders["5B"])
    batch = ours.collate(samples(ours), [1, 2])
    assert batch["z"].shape[1] == batch["noise"].shape[1] == 2
    assert ours.velocity(batch["z"], batch, batch["t"]).shape == batch["z"].shape


def test_times_are_uniform_or_drawn_towards_noise(folders: dict[str, Path]) -> None:
    u = torch.linspace(0, 1, 1001)
    uniform, shifted = (arm(folders["5B"], shift=shift).training_times(u) for shift in (1.0, 3.0))
    assert torch.allclose(uniform, 1000 * u)
    scheduler = FlowMatchEulerDiscreteScheduler(
        shift=3.0
    )  # its own times, between 1 and 1000, are shifted by the same rule
    assert torch.allclose(shifted[1:].flip(0), scheduler.timesteps, atol=1e-2)
    assert shifted[500] == pytest.approx(750)  # eq. 23 moves the median from 1/2 to shift / (shift + 1)


def test_each_expert_learns_at_its_times_and_waits_for_the_other(folders: dict[str, Path]) -> None:
    ours = arm(folders["2.2"])
    ours.attach(Lora(rank=2))
    torch.nn.init.normal_(next(p for n, p in ours.trainable().items() if "lora_B" in n), std=0.1)
    for t, learning in ((900.0, "transformer."), (300.0, "transformer_2.")):
        batch = ours.collate(samples(ours, 1), [1])
        batch["t"] = torch.tensor([t])
        ours.model.zero_grad()
        ours.loss(batch).backward()
        assert all(p.grad is not None for p in ours.trainable().values())  # or processes would wait for ever
        assert {n for n, p in ours.trainable().items() if p.grad.any()} <= {
            n for n in ours.trainable() if n.startswith(learning)
        }
        assert any(p.grad.any() for n, p in ours.trainable().items() if n.startswith(learning))


@pytest.mark.parametrize("variant", ["2.1", "5B"])
def test_nothing_is_left_behind_on_another_device(variant: str, folders: dict[str, Path]) -> None:
    """The meta device stands for a GPU: it takes no tensor of the CPU."""
    ours = arm(folders[variant])
    batch = {k: v.to("meta") for k, v in ours.collate(samples(ours), [1, 2]).items()}
    ours.model.to("meta"), ours.vae.to("meta")
    ours.prompt = ours.prompt.to("meta")
    assert ours.loss(batch).is_meta and ours.drawn(torch.empty(2, 4, 3, 2, 2, device="meta")).is_meta


def test_an_idle_expert_works_where_its_weights_are_sharded(folders: dict[str, Path]) -> None:
    """Its blocks are fetched by all processes together, or some would wait for ever. The loss is what it was, and `idle_samples`
    says how many samples that costs."""
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard

    ours = arm(folders["2.2"])
    ours.attach(Lora(rank=2))
    batch = ours.collate(samples(ours), [1, 2])
    batch["t"] = torch.tensor([900.0, 950.0])
    before = ours.loss(batch).detach()
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    try:
        ran = []
        for name, model in ours.model.items():
            for block in model.blocks:
                fully_shard(block)
            model.proj_out.register_forward_hook(lambda _, __, made, name=name: ran.append((name, len(made))))
        whole = fully_shard(ours.module())
        loss = whole(batch)
        loss.backward()
        assert ran == [("transformer", 2), ("transformer_2", ours.idle_samples)] and torch.allclose(
            loss.detach(), before
        )
        assert [arm(folders[variant]).idle_samples for variant in VARIANTS] == [0, 1, 0]
        assert all(p.grad is not None for p in ours.trainable().values())
    finally:
        dist.destroy_process_group()


def test_an_adapter_refuses_another_convention(folders: dict[str, Path], tmp_path: Path) -> None:
    for variant in ("2.1", "2.2"):
        ours = arm(folders[variant])
        ours.attach(Lora(rank=2))
        ours.save(tmp_path)
        other = arm(folders[variant], frames=13)
        other.attach(Lora(rank=2))
        with pytest.raises(UserError, match="frames"):
            other.restore(tmp_path)


@pytest.mark.parametrize("targets", [("attention", "mlp"), ("attention",), ("mlp",)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_adapters_load_in_diffusers(
    variant: str, targets: tuple[str, ...], folders: dict[str, Path], tmp_path: Path
) -> None:
    """`load_lora_weights` of a stock pipeline gives the same output, alpha included, and so does our own `restore`."""
    ours, plain, again = (arm(folders[variant]) for _ in range(3))
    ours.attach(Lora(rank=4, alpha=2, targets=targets), seed=1)
    generator = torch.Generator().manual_seed(0)
    for p in ours.trainable().values():
        torch.nn.init.normal_(p, std=0.3, generator=generator)
    ours.save(tmp_path)

    before = velocity(plain)
    pipeline = stock(plain)
    pipeline.load_lora_weights(str(tmp_path), use_safetensors=True)
    if variant == "2.2":
        assert (velocity(plain)[1] - before[1]).abs().max() == 0  # the second expert has its own file
        pipeline.load_lora_weights(str(tmp_path / "transformer_2"), load_into_transformer_2=True)
    assert all(change > 1e-3 for change in (velocity(plain) - before).abs().amax((1, 2, 3, 4)))
    assert (velocity(plain) - velocity(ours)).abs().max() < 1e-5

    again.attach(Lora(rank=4, alpha=2, targets=targets), seed=2)
    again.restore(tmp_path)
    assert torch.equal(velocity(again), velocity(ours))


def velocity(ours: wan.Wan) -> torch.Tensor:
    """At two times, one for each expert, after two pictures."""
    images = np.stack([picture_of("5B"), picture_of("5B")[:, ::-1]])
    told = ours.condition(images)
    noisy = torch.randn(2, 3, *told["image"].shape[1:], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return ours.velocity(noisy[:, ours.first :], told, torch.tensor([900.0, 300.0]))


@pytest.mark.parametrize("variant", VARIANTS)
def test_random_weights_leave_a_lora_something_to_work_with(variant: str, folders: dict[str, Path]) -> None:
    """What comes out has about the scale of the target, every block has a say, and the seed decides."""
    folder = str(folders[variant])
    options = Options(style=STYLE[variant], steps=4)
    one, same, other = (wan.load(Flavour(folder, folder, ""), options, init="random", seed=seed) for seed in (3, 3, 4))
    whole = velocity(one)
    assert whole.equal(velocity(same)) and not whole.equal(velocity(other))
    assert 0.4 < whole.std() < 2.5
    for model in one.model.values() if variant == "2.2" else (one.model,):
        model.blocks = model.blocks[1:]
    assert (velocity(one) - whole).std() > 0.1 * whole.std()


def test_the_second_expert_is_no_other_runs_first(folders: dict[str, Path]) -> None:
    folder, options = str(folders["2.2"]), Options(style="video-16", steps=2)
    three, four = (wan.load(Flavour(folder, folder, ""), options, init="random", seed=s).model for s in (3, 4))
    drawn = wan._drawn(dict(three["transformer"].config), 3, torch.float32)
    name = "blocks.0.attn1.to_q.weight"
    assert three["transformer"].state_dict()[name].equal(drawn.state_dict()[name])  # the first's seed is the run's own
    weights = [model[expert].state_dict()[name] for model in (three, four) for expert in model]
    assert not any(one.equal(other) for i, one in enumerate(weights) for other in weights[:i])


def test_what_only_answers_need_leaves_the_gpu(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """After what is computed ahead, and when asked; there is no GPU here, so what is asked to leave is written down."""

    class OnGpu(wan.Wan):
        device = torch.device("cuda")

    ours = arm(folders["2.1"])
    assert ours.clip is not None
    left: list[tuple[str, str]] = []
    for name, part in (("vae", ours.vae), ("clip", ours.clip[1])):
        monkeypatch.setattr(part, "to", lambda where, name=name: left.append((name, where)))
    ours.prepare([])
    ours.rest()
    assert not left  # on a CPU nothing has to go
    ours.__class__ = OnGpu
    for let_go in (lambda: ours.prepare([]), ours.rest):
        let_go()
        assert sorted(left) == [("clip", "cpu"), ("vae", "cpu")]
        left.clear()


def test_precision_is_that_of_the_published_layout(folders: dict[str, Path]) -> None:
    """bf16 where `from_pretrained` has it, and times and norms in fp32, also where weights are drawn."""
    folder = str(folders["5B"])
    options = Options(style="video-32", steps=2)
    for init in ("pretrained", "random"):
        ours = wan.load(Flavour(folder, folder, ""), options, init=init, dtype="bfloat16")
        assert ours.model.dtype == torch.bfloat16 and ours.vae.dtype == torch.float32
        assert ours.model.blocks[0].scale_shift_table.dtype == torch.float32
        assert torch.isfinite(ours.loss(ours.collate(samples(ours), [1, 2])))
    full = wan.load(Flavour(folder, folder, ""), options, init="random")
    for made in (ours, full):
        made.attach(Lora(rank=2))
    assert ours.backbone == full.backbone


def test_a_truncated_file_is_one_line(folders: dict[str, Path], tmp_path: Path) -> None:
    for name in ("transformer", "transformer_2"):
        broken = tmp_path / name
        shutil.copytree(folders["2.2"], broken)
        path = next((broken / name).glob("*-00001-*.safetensors"))
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(UserError, match="damaged or cut off") as caught:
            arm(broken)
        assert str(broken) in str(caught.value) and "\n" not in str(caught.value)


def test_other_checkpoints_are_one_line(folders: dict[str, Path], tmp_path: Path) -> None:
    """A text-to-video checkpoint, and a scheduler that we do not know."""
    text = tmp_path / "text"
    shutil.copytree(folders["5B"], text)
    index = json.loads((text / "model_index.json").read_text())
    (text / "model_index.json").write_text(json.dumps(index | {"expand_timesteps": False}))
    with pytest.raises(UserError, match="text alone"):
        arm(text)
    (text / "scheduler" / "scheduler_config.json").write_text(json.dumps({"_class_name": "DDIMScheduler"}))
    with pytest.raises(UserError, match="DDIMScheduler"):
        arm(text)


@pytest.mark.parametrize("name", [name for name, f in wan.FLAVOURS.items() if f.published])
def test_a_hub_id_without_a_network_is_one_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="not on this machine") as caught:
        wan.load(wan.FLAVOURS[name], Options())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("bad", [{"frames": 8}, {"frames": 11}, {"frames": 1}, {"steps": 0}, {"style": "papr"}])
def test_options_are_checked(bad: dict) -> None:
    with pytest.raises(UserError) as caught:
        Options(**bad)
    assert "\n" not in str(caught.value)


def test_a_picture_of_half_tokens_is_refused(folders: dict[str, Path]) -> None:
    example = next(e for e in tasks.examples("life/B3S23", "train", 20) if e.canvas[0] % 2 == 0)
    assert arm(folders["5B"], style="video-16").frame(example)  # an even number of cells fits all the same
    example = type(example)(example.question[:5, :5], example.answer[:5, :5], (5, 5))
    with pytest.raises(UserError, match=r"multiples of 32.*video-32") as caught:
        arm(folders["5B"], style="video-16").frame(example)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("variant", ["2.1", "5B"])
@pytest.mark.parametrize("frames", [5, 9, 13])
def test_legal_lengths_come_back(variant: str, frames: int, folders: dict[str, Path]) -> None:
    ours = arm(folders[variant], frames=frames)
    video = np.zeros((1, frames, 32, 32, 3), np.uint8)
    assert ours.encode(video).shape[1] == (frames - 1) // 4 + 1
    assert ours.decode(ours.encode(video)).shape == video.shape


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_image_control_is_one_frame(variant: str, folders: dict[str, Path]) -> None:
    """Also where the picture is the first latent: the answer's one latent stands behind it and is decoded alone."""
    ours = arm(folders[variant], transition="image")
    both = samples(ours)
    batch = ours.collate(both, [1, 2])
    assert batch["z"].shape[1] == 1 and torch.isfinite(ours.loss(batch))
    answer = ours.predict([both[0].given], [0])[0]
    assert answer.raw.shape == (1, *both[0].given.picture.shape)


def test_the_codec_reads_what_the_vae_draws(folders: dict[str, Path]) -> None:
    """A random VAE draws no puzzle, so the true answer cannot come back at this size: what is read is the VAE's own clip."""
    ours = arm(folders["5B"])
    both = samples(ours)
    for sample, answer in zip(both, ours.codec(both), strict=True):
        assert np.array_equal(answer.raw, ours.decode(ours.encode(sample.wanted[None]))[0])


def test_watching_shows_the_estimate_and_can_stop(folders: dict[str, Path]) -> None:
    ours = arm(folders["5B"])
    seen = []

    def watch(step: int, steps: int, partial: object) -> bool:
        seen.append((step, steps, partial().shape))  # type: ignore[operator]
        return step < 2

    image = picture_of("5B")
    with pytest.raises(UserError, match="Cancelled"):
        ours.sample(image[None], [0], watch)
    assert seen == [(1, 4, (1, 9, *image.shape)), (2, 4, (1, 9, *image.shape))]


def test_published_parameter_counts() -> None:
    """On the meta device, at the numbers of diffusers' scripts/convert_wan_to_diffusers.py (`get_transformer_config`)."""
    assert set(wan.PUBLISHED) == {name for name, f in wan.FLAVOURS.items() if f.published}
    with torch.device("meta"):
        for name, parts in wan.PUBLISHED.items():
            configs = [config for part, config in parts.items() if part.startswith("transformer")]
            count = sum(p.numel() for config in configs for p in WanTransformer3DModel(**config).parameters())
            assert count == wan.FLAVOURS[name].parameters
