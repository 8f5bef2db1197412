"""Arms of our own backbones: asked a picture they draw what follows. The same questions to each."""

from __future__ import annotations

import importlib
import itertools
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import tasks
from adapters import nextvid as nextvid_arm
from adapters.base import Cancelled, Flavour, Lora
from adapters.next_frame import NextFrameArm
from adapters.pictures import style_of
from pretrain import internvideo_next, lvmae, nextvid, tokenizer
from pretrain.recipe import to_pixels
from pretrain.vit3d import coordinates, gather
from tasks.base import Example, UserError
from tasks.render import read

FAMILIES = ("nextvid", "internvideo_next", "lvmae")
DRAWN = FAMILIES[:2]  # from noise; an LVMAE says codes, in one step


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> ModuleType:
    return importlib.import_module(f"adapters.{request.param}")


def draws(family: ModuleType) -> bool:
    return family.__name__.rpartition(".")[2] in DRAWN


def length(family: ModuleType) -> int:
    return family.Options().context + family.Options().answer


@pytest.fixture(scope="module")
def folder(family: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("backbone")
    torch.manual_seed(5)
    recipe, model = nextvid, nextvid.NextVid(replace(nextvid.FLAVOURS["tiny"], patch=8))
    if family.__name__.endswith("internvideo_next"):
        recipe, model = internvideo_next, internvideo_next.InternVideoNext(internvideo_next.FLAVOURS["tiny"])  # type: ignore[assignment]
    if family.__name__.endswith("lvmae"):
        recipe, model = lvmae, lvmae.LVMAE(lvmae.FLAVOURS["tiny"], tokenizer.load("tiny"))  # type: ignore[assignment]
    with torch.no_grad():  # as after a training: no gate is closed
        for p in model.parameters():
            p.add_(0.05 * torch.randn(p.shape))
    recipe.save(out, model)  # type: ignore[arg-type]
    return out


def arm(family: ModuleType, base: str = "", options: dict[str, Any] | None = None, **given: Any) -> NextFrameArm:
    flavour = Flavour("mine", base, "", published=True) if base else family.FLAVOURS["tiny"]
    return family.load(flavour, family.Options(**(options or {})), **given)


def samples(family: ModuleType, count: int = 3, name: str = "life/B3S23") -> list:
    return [family.frame(e, family.Options()) for e in tasks.examples(name, "train", count)]


def test_given_does_not_know_the_answer(family: ModuleType) -> None:
    example = tasks.examples("maze/7x7", "train", 1)[0]
    other = Example(example.question, np.zeros_like(example.answer), example.canvas)
    one, two = (family.frame(e, family.Options()).given for e in (example, other))
    assert np.array_equal(one.picture, two.picture) and one.canvas == two.canvas


def test_the_clip_is_the_question_then_the_answer(family: ModuleType) -> None:
    example = tasks.examples("life/B3S23", "train", 1)[0]
    clip = family.frame(example, family.Options(context=6, answer=2)).wanted
    assert clip.shape == (8, 64, 64, 3)
    style = style_of(family.Options(), (8, 8))
    assert all(np.array_equal(read(frame, style).grid, example.question) for frame in clip[:6])
    assert all(np.array_equal(read(frame, style).grid, example.answer) for frame in clip[6:])
    large = Example(example.question, np.zeros((9, 8), np.int8), (8, 8))
    assert family.frame(large, family.Options()).wanted is None
    with pytest.raises(UserError, match="larger than the picture"):
        arm(family).collate([family.frame(large, family.Options())], [0])


def test_the_loss_of_nextvid_is_pretraining_s_for_that_frame() -> None:
    """What pretraining's own steps give for the whole clip with nothing hidden, at that frame, times and noises alike: no
    later frame and no other frame's noise has a part in it."""
    family = importlib.import_module("adapters.nextvid")
    one, some, seeds = arm(family), samples(family), [1, 2, 3]
    batch = one.collate(some, seeds)
    model, config = one.model, one.model.config
    assert model.teacher is None and not [name for name in model.state_dict() if "teacher" in name]
    clips = torch.from_numpy(np.stack([s.wanted for s in some]))
    bare = replace(config, masks=(), align=0.0, plain=True)
    other = nextvid.NextVid(bare)
    weights = model.state_dict()
    weights["predictor.queries"] = weights["predictor.queries"][-1:]
    other.load_state_dict(weights)
    asked = torch.arange(64, 192).expand(3, -1)
    noise, time = torch.randn(1, 3, 128, model.target.width), torch.rand(1, 3, 2)
    noise[0, :, 64:], time[0, :, 1:] = batch["noise"], batch["time"]
    pixels = to_pixels(clips)
    context, at = other.context(pixels), gather(coordinates((3, 8, 8))[None], asked)
    z = other.predict(context, at)
    guess = other.guess(
        other.process.mixed(other.target.encode(pixels)[:, 64:], noise[0], time[0].repeat_interleave(64, 1)[..., None]),
        z, time[0], at,
    )  # fmt: skip
    wanted = (guess[:, 64:] - batch["clean"]).square().mean()
    assert config.asked_for == "clean" and one.loss(batch).item() == pytest.approx(wanted.item(), rel=1e-4)


def test_the_loss_of_internvideo_next_is_pretraining_s_pass_ahead() -> None:
    """A step of Stage 1 without alignment whose only pass hides the answer's frames, noise and times alike."""
    family = importlib.import_module("adapters.internvideo_next")
    one, some = arm(family), samples(family)
    batch = one.collate(some, [1, 2, 3])
    model = one.model
    assert not [n for n in model.state_dict() if n.startswith(("align", "pool", "latent", "reference"))]
    bare = replace(model.config, align=0.0, pool=0.0, mask="blocks", blocks=())
    assert bare.passes == ("ahead",)
    other = internvideo_next.InternVideoNext(bare)
    other.load_state_dict(model.state_dict())
    clips = torch.from_numpy(np.stack([s.wanted for s in some]))
    everything = torch.arange(128).expand(3, -1)
    given = {"keeps": [everything], "picks": [everything], "noises": [batch["noise"]], "times": [batch["time"]]}
    assert batch["time"].shape == (3, 128)
    wanted = other(clips, **given, uniform=torch.zeros(3, 4, 64))["loss"]
    assert one.loss(batch).item() == pytest.approx(wanted.item(), rel=1e-5)


def test_the_loss_of_lvmae_is_pretraining_s_for_the_next_frame() -> None:
    """The pass of pretraining that asks for the next frame, with that frame's codes for a target."""
    family = importlib.import_module("adapters.lvmae")
    one, some = arm(family), samples(family)
    batch = one.collate(some, [1, 2, 3])
    model, clips = one.model, torch.from_numpy(np.stack([s.wanted for s in some]))
    assert torch.equal(batch["clean"], model.tokenizer.encode(to_pixels(clips[:, 2:])))  # the answer's own
    drawn = lvmae.draw(model.config, (2, 8, 8), range(3), 0).batch()
    wanted = model(clips, **drawn)
    assert drawn["ahead"] == 1 and one.loss(batch).item() == pytest.approx(wanted["ahead"].item(), rel=1e-5)


def test_each_sample_has_its_own_noise_and_mean(family: ModuleType) -> None:
    one, some = arm(family), samples(family, 4)
    whole = one.loss(one.collate(some, [1, 2, 3, 4])).item()
    parts = [one.loss(one.collate(some[k : k + 2], [1 + k, 2 + k])).item() for k in (0, 2)]
    assert whole == pytest.approx(np.mean(parts), rel=1e-5)
    again = one.collate(some[1:2], [2])
    assert torch.equal(again["noise"][0], one.collate(some, [1, 2, 3, 4])["noise"][1])


def test_answers_depend_on_the_seed_and_not_on_the_batch(family: ModuleType) -> None:
    one, givens = arm(family, "", {"steps": 2, "batch": 2}), [s.given for s in samples(family, 3)]
    together = one.predict(givens, [1, 2, 3])
    alone = [one.predict([g], [s])[0] for g, s in zip(givens, [1, 2, 3], strict=True)]
    for a, b in zip(together, alone, strict=True):
        assert a.raw.shape == (length(family), 64, 64, 3) and np.abs(a.raw.astype(int) - b.raw).max() <= 1
        assert np.array_equal(a.raw[0], a.raw[length(family) - 3]) and not np.array_equal(a.raw[0], a.raw[-1])
    apart = np.abs(one.predict(givens[:1], [9])[0].raw.astype(int) - together[0].raw).max()
    assert (apart > 1) == draws(family)


def test_it_answers_and_learns_in_bf16(family: ModuleType, folder: Path) -> None:
    """As on a GPU: weights in bf16, noise and loss in fp32."""
    one = arm(family, str(folder), {"steps": 2}, dtype="bfloat16")
    one.attach(Lora(rank=2))
    loss = one.loss(one.collate(samples(family), [1, 2, 3]))
    loss.backward()
    whole = arm(family, str(folder), {"steps": 2})
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(whole.loss(whole.collate(samples(family), [1, 2, 3])).item(), rel=0.05)
    assert one.predict([samples(family, 1)[0].given], [0])[0].raw.shape == (length(family), 64, 64, 3)


def test_watching_and_cancelling(family: ModuleType) -> None:
    one, given = arm(family, "", {"steps": 3}), samples(family, 1)[0].given
    seen = []
    one.predict([given], [0], lambda step, steps, partial: seen.append((step, steps, partial().shape)))
    steps = 3 if draws(family) else 1
    assert seen == [(k, steps, (1, length(family), 64, 64, 3)) for k in range(1, steps + 1)]
    with pytest.raises(Cancelled):
        one.predict([given], [0], lambda step, steps, partial: step < steps and step < 2)


@pytest.mark.parametrize("name", ["maze/7x7", "life/B3S23", "eca/110", "arc1/evaluation/00576224"])
def test_the_true_answer_survives_the_codec(family: ModuleType, name: str) -> None:
    if not draws(family):
        pytest.skip("a tokenizer's codes are not exact; what ships is asked in test_zoo")
    examples = tasks.examples(name, "train", 2)
    for example, answer in zip(
        examples, arm(family).codec([family.frame(e, family.Options()) for e in examples]), strict=True
    ):
        assert np.array_equal(answer.grid, example.answer), answer.problem


@pytest.mark.parametrize(("patch", "style"), [(14, "video-14"), (16, "video-16")])
@pytest.mark.parametrize("pixels", [0, 200])
def test_a_published_patch_sits_the_exam(patch: int, style: str, pixels: int, tmp_path: Path) -> None:
    """InternVideo-Next's patch is 14, NExT-Vid's 16; every task has a picture of whole patches."""
    torch.manual_seed(0)
    config = replace(internvideo_next.FLAVOURS["tiny"], patch=patch)
    internvideo_next.save(tmp_path, internvideo_next.InternVideoNext(config))
    family = importlib.import_module("adapters.internvideo_next")
    one = arm(family, str(tmp_path), {"style": style, "pixels": pixels, "steps": 1})
    for name in ("maze/7x7", "life/B3S23", "eca/110", "arc1/evaluation/00576224"):
        some = [one.frame(e) for e in tasks.examples(name, "train", 1)]
        assert np.isfinite(one.loss(one.collate(some, [0])).item())
        assert len(one.predict([s.given for s in some], [0])) == 1


@pytest.mark.parametrize("size", [(1, 1), (1, 30), (5, 17), (30, 30)])
def test_every_colour_and_size_comes_back(family: ModuleType, size: tuple[int, int]) -> None:
    if not draws(family):
        pytest.skip("a tokenizer's codes are not exact; what ships is asked in test_zoo")
    grid = np.random.default_rng(size).integers(0, 16, size).astype(np.int8)
    example = Example(np.zeros_like(grid), grid, (size[0], size[1]))
    assert np.array_equal(arm(family).codec([family.frame(example, family.Options())])[0].grid, grid)


def test_a_lora_on_all_three_parts_is_saved_and_restored(family: ModuleType, folder: Path, tmp_path: Path) -> None:
    """On encoder, predictor and decoder; it changes the loss; it comes back; and a LoRA of other weights is refused."""
    one = arm(family, str(folder))
    one.attach(Lora(rank=2))
    parts = {name.partition(".")[0] for name in one.trainable()}
    assert parts == ({"encoder", "predictor", "decoder"} if draws(family) else {"encoder", "decoder"})
    kinds = {name.split(".lora_")[0].rpartition(".")[2] for name in one.trainable()}
    assert kinds == {"q", "kv", "out", "fc1", "fc2"}
    assert not [n for n in one.trainable() if n.startswith(("decoder.out", "predictor.out"))]
    batch = one.collate(samples(family), [1, 2, 3])
    before = one.loss(batch).item()
    with torch.no_grad():
        for p in one.trainable().values():
            p.add_(0.1)
    after = one.loss(batch).item()
    one.save(tmp_path)
    other = arm(family, str(folder))
    other.attach(Lora(rank=2))
    assert other.loss(batch).item() == pytest.approx(before, rel=1e-5) != pytest.approx(after, rel=1e-4)
    other.restore(tmp_path)
    assert other.loss(batch).item() == pytest.approx(after, rel=1e-5)
    stranger = arm(family)
    stranger.attach(Lora(rank=2))
    with pytest.raises(UserError, match="other weights"):
        stranger.restore(tmp_path)
    otherwise = arm(family, str(folder), {"context": 6})
    otherwise.attach(Lora(rank=2))
    with pytest.raises(UserError, match=f"context = {family.Options().context}, this run has 6"):
        otherwise.restore(tmp_path)


def test_a_lora_reaches_a_predictor_that_is_a_modernbert(tmp_path: Path) -> None:
    from transformers import ModernBertConfig, ModernBertModel

    config = ModernBertConfig(vocab_size=9, hidden_size=24, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2,
                              pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2)  # fmt: skip
    ModernBertModel(config).save_pretrained(tmp_path / "bert")
    internvideo_next.pretrain(tmp_path / "iv", updates=2, size="tiny", stages="1", bert=str(tmp_path / "bert"))
    one = arm(importlib.import_module("adapters.internvideo_next"), str(tmp_path / "iv"))
    one.attach(Lora(rank=2))
    kinds = {name.split(".lora_")[0].rpartition(".")[2] for name in one.trainable() if name.startswith("predictor")}
    assert kinds == {"Wqkv", "Wo", "Wi"}


def test_random_weights_follow_the_seed_and_leave_a_lora_something_to_work_with(
    family: ModuleType, folder: Path
) -> None:
    one, two, three = (arm(family, str(folder), init="random", seed=s) for s in (1, 1, 2))
    loaded = arm(family, str(folder))
    weights = [a.model.encoder.embed.weight for a in (one, two, three, loaded)]
    assert torch.equal(weights[0], weights[1])
    assert not any(torch.equal(a, b) for a, b in itertools.combinations([weights[0], *weights[2:]], 2))
    one.attach(Lora(rank=4))
    one.loss(one.collate(samples(family), [1, 2, 3])).backward()
    gradients = {n: p.grad.abs().max().item() for n, p in one.trainable().items() if "lora_B" in n}
    assert all(g > 0 for g in gradients.values()), [n for n, g in gradients.items() if not g]


def test_a_random_backbone_can_still_write_an_answer(family: ModuleType, folder: Path) -> None:
    """What makes pixels of features is kept, as CogVideoX's VAE and LVMAE's tokenizer are: the control is of what was learnt
    about videos, not of whether random features can be a flat patch."""
    trained, drawn = arm(family, str(folder)).model, arm(family, str(folder), init="random").model
    for part in family.codec(trained) if hasattr(family, "codec") else ("tokenizer",):
        for one, two in zip(
            trained.get_submodule(part).parameters(), drawn.get_submodule(part).parameters(), strict=True
        ):
            assert torch.equal(one, two)


@pytest.mark.parametrize(("head", "kept"), [("linear", "decoder"), ("mlp", "decoder.4"), ("diffusion", "decoder.out")])
def test_a_random_control_keeps_the_last_layer_of_every_head(head: str, kept: str, tmp_path: Path) -> None:
    internvideo_next.pretrain(tmp_path, updates=2, size="tiny", stages="1", overrides={"head": head})
    trained, drawn = (
        arm(importlib.import_module("adapters.internvideo_next"), str(tmp_path), init=init).model
        for init in ("pretrained", "random")
    )
    ours, theirs = (model.get_submodule(kept).state_dict() for model in (trained, drawn))
    assert ours and all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert not torch.equal(trained.encoder.embed.weight, drawn.encoder.embed.weight)


@pytest.mark.skipif(not (nextvid_arm.ZOO / "model.safetensors").exists(), reason="it ships with a checkout")
def test_the_shipped_nextvid_has_every_flat_patch_in_its_range() -> None:
    model = nextvid.load(nextvid_arm.ZOO)
    out = model.decoder.out
    colours = torch.linspace(-1, 1, 5)
    flat = torch.cartesian_prod(colours, colours, colours)[:, :, None, None, None].expand(-1, 3, 2, 8, 8)
    wanted = model.encoded(flat).flatten(1) - out.bias
    range_, _ = torch.linalg.qr(out.weight)  # (channels, width), orthonormal
    reached = wanted @ range_ @ range_.T
    assert (wanted - reached).square().sum() < 1e-3 * wanted.square().sum()


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"style": "vidio-8"}, "Did you mean"),
        ({"context": 0}, "at least 1"),
        ({"answer": 0}, "at least 1"),
        ({"steps": 0}, "at least 1"),
        ({"shift": 0.0}, "above 0"),
    ],
)
def test_options_are_checked(family: ModuleType, bad: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        family.Options(**bad)


def test_options_that_do_not_fit_the_backbone(family: ModuleType) -> None:
    if family.FLAVOURS["tiny"] and arm(family).model.config.tubelet == 2:
        for bad in ({"context": 3}, {"answer": 1}):
            with pytest.raises(UserError, match="multiple of the backbone's tubelet, 2"):
                arm(family, "", bad)
        with pytest.raises(UserError, match="answer = 4: "):
            arm(family, "", {"answer": 4})
    for given in ({"style": "paper"}, {"style": "video-14", "pixels": 224}):
        with pytest.raises(UserError, match=r"not whole patches of 8 px\. These are: video-8"):
            arm(family, "", given)


def test_what_cannot_be_loaded_is_one_line(family: ModuleType, folder: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    data = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(data[: len(data) // 2])
    for base in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError) as error:
            arm(family, str(base))
        assert "\n" not in str(error.value)
