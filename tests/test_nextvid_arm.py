"""The NExT-Vid arm: it is asked a picture and draws the next frame, and what is true of every arm is true of it."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import tasks
from adapters import nextvid as family
from adapters.base import Cancelled, Flavour, Lora
from adapters.nextvid import Options
from pretrain import nextvid
from tasks.base import Example, UserError
from tasks.render import read

TINY = family.FLAVOURS["tiny"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("backbone")
    torch.manual_seed(5)
    model = nextvid.NextVid(replace(nextvid.FLAVOURS["tiny"], patch=8))
    with torch.no_grad():  # as after a training: no gate is closed
        for p in model.parameters():
            p.add_(0.05 * torch.randn(p.shape))
    nextvid.save(out, model)
    return out


def arm(options: Options | None = None, base: str = "", **given: str) -> family.NextVidArm:
    flavour = Flavour("mine", base, "", published=True) if base else TINY
    return family.load(flavour, options or Options(), **given)  # type: ignore[arg-type]


def samples(count: int = 3, name: str = "life/B3S23") -> list:
    return [family.frame(e, Options()) for e in tasks.examples(name, "train", count)]


def test_given_does_not_know_the_answer() -> None:
    example = tasks.examples("maze/7x7", "train", 1)[0]
    other = Example(example.question, np.zeros_like(example.answer), example.canvas)
    one, two = (family.frame(e, Options()).given for e in (example, other))
    assert np.array_equal(one.picture, two.picture) and one.canvas == two.canvas


def test_the_clip_is_the_question_then_the_answer() -> None:
    example = tasks.examples("life/B3S23", "train", 1)[0]
    clip = family.frame(example, Options(context=6)).wanted
    assert clip.shape == (8, 64, 64, 3)
    style = family.style_of(Options(), (8, 8))
    assert all(np.array_equal(read(frame, style).grid, example.question) for frame in clip[:6])
    assert all(np.array_equal(read(frame, style).grid, example.answer) for frame in clip[6:])
    large = Example(example.question, np.zeros((9, 8), np.int8), (8, 8))
    assert family.frame(large, Options()).wanted is None
    with pytest.raises(UserError, match="larger than the picture"):
        arm().collate([family.frame(large, Options())], [0])


def test_the_loss_is_pretraining_s_for_that_frame() -> None:
    """What pretraining's own steps give for the whole clip with nothing hidden, at that frame, times and noises alike: no
    later frame and no other frame's noise has a part in it."""
    one, some, seeds = arm(), samples(), [1, 2, 3]
    batch = one.collate(some, seeds)
    model, config = one.model, one.model.config
    assert model.teacher is None and not [name for name in model.state_dict() if "teacher" in name]
    clips = torch.from_numpy(np.stack([s.wanted for s in some]))
    bare = replace(config, masks=(), align=0.0, plain=True)
    other = nextvid.NextVid(bare)
    weights = model.state_dict()
    weights["predictor.queries"] = weights["predictor.queries"][-1:]
    other.load_state_dict(weights)
    grid = (3, 8, 8)
    asked = torch.arange(64, 192).expand(3, -1)
    noise, time = torch.randn(1, 3, 128, model.target.width), torch.rand(1, 3, 2)
    noise[0, :, 64:], time[0, :, 1:] = batch["noise"], batch["time"]
    pixels = nextvid.to_pixels(clips)
    context, at = other.context(pixels), nextvid.gather(nextvid.coordinates(grid)[None], asked)
    z = other.predict(context, at)
    guess = other.guess(
        other.process.mixed(other.target.encode(pixels)[:, 64:], noise[0], time[0].repeat_interleave(64, 1)[..., None]),
        z, time[0], at,
    )  # fmt: skip
    wanted = (guess[:, 64:] - batch["clean"]).square().mean()
    assert config.asked_for == "clean" and one.loss(batch).item() == pytest.approx(wanted.item(), rel=1e-4)


def test_each_sample_has_its_own_noise_and_mean() -> None:
    one, some = arm(), samples(4)
    whole = one.loss(one.collate(some, [1, 2, 3, 4])).item()
    parts = [one.loss(one.collate(some[k : k + 2], [1 + k, 2 + k])).item() for k in (0, 2)]
    assert whole == pytest.approx(np.mean(parts), rel=1e-5)
    again = one.collate(some[1:2], [2])
    assert torch.equal(again["noise"][0], one.collate(some, [1, 2, 3, 4])["noise"][1])


def test_answers_depend_on_the_seed_and_not_on_the_batch() -> None:
    one, givens = arm(Options(steps=2, batch=2)), [s.given for s in samples(3)]
    together = one.predict(givens, [1, 2, 3])
    alone = [one.predict([g], [s])[0] for g, s in zip(givens, [1, 2, 3], strict=True)]
    for a, b in zip(together, alone, strict=True):
        assert a.raw.shape == (6, 64, 64, 3) and np.abs(a.raw.astype(int) - b.raw).max() <= 1
        assert np.array_equal(a.raw[0], a.raw[3])
    assert not np.array_equal(one.predict(givens[:1], [9])[0].raw, together[0].raw)


def test_it_answers_and_learns_in_bf16(folder: Path) -> None:
    """As on a GPU: weights in bf16, noise and loss in fp32."""
    one = arm(Options(steps=2), base=str(folder), dtype="bfloat16")
    one.attach(Lora(rank=2))
    loss = one.loss(one.collate(samples(), [1, 2, 3]))
    loss.backward()
    whole = arm(Options(steps=2), base=str(folder))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(whole.loss(whole.collate(samples(), [1, 2, 3])).item(), rel=0.05)
    assert one.predict([samples(1)[0].given], [0])[0].raw.shape == (6, 64, 64, 3)


def test_watching_and_cancelling() -> None:
    one, given = arm(Options(steps=3)), samples(1)[0].given
    seen = []
    one.predict([given], [0], lambda step, steps, partial: seen.append((step, steps, partial().shape)))
    assert seen == [(k, 3, (1, 6, 64, 64, 3)) for k in (1, 2, 3)]
    with pytest.raises(Cancelled):
        one.predict([given], [0], lambda step, steps, partial: step < 2)


@pytest.mark.parametrize("name", ["maze/7x7", "life/B3S23", "eca/110", "arc1/evaluation/00576224"])
def test_the_true_answer_survives_the_codec(name: str) -> None:
    examples = tasks.examples(name, "train", 2)
    for example, answer in zip(examples, arm().codec([family.frame(e, Options()) for e in examples]), strict=True):
        assert np.array_equal(answer.grid, example.answer), answer.problem


@pytest.mark.parametrize("size", [(1, 1), (1, 30), (5, 17), (30, 30)])
def test_every_colour_and_size_comes_back(size: tuple[int, int]) -> None:
    grid = np.random.default_rng(size).integers(0, 16, size).astype(np.int8)
    example = Example(np.zeros_like(grid), grid, (size[0], size[1]))
    assert np.array_equal(arm().codec([family.frame(example, Options())])[0].grid, grid)


def test_a_lora_on_all_three_parts_is_saved_and_restored(folder: Path, tmp_path: Path) -> None:
    """On encoder, predictor and decoder; it changes the loss; it comes back; and a LoRA of other weights is refused."""
    one = arm(base=str(folder))
    one.attach(Lora(rank=2))
    parts = {name.partition(".")[0] for name in one.trainable()}
    assert parts == {"encoder", "predictor", "decoder"}
    kinds = {name.split(".lora_")[0].rpartition(".")[2] for name in one.trainable()}
    assert kinds == {"q", "kv", "out", "fc1", "fc2"}
    assert not [n for n in one.trainable() if n.startswith(("decoder.out", "predictor.out"))]
    batch = one.collate(samples(), [1, 2, 3])
    before = one.loss(batch).item()
    with torch.no_grad():
        for p in one.trainable().values():
            p.add_(0.1)
    after = one.loss(batch).item()
    one.save(tmp_path)
    other = arm(base=str(folder))
    other.attach(Lora(rank=2))
    assert other.loss(batch).item() == pytest.approx(before, rel=1e-5) != pytest.approx(after, rel=1e-4)
    other.restore(tmp_path)
    assert other.loss(batch).item() == pytest.approx(after, rel=1e-5)
    stranger = arm()
    stranger.attach(Lora(rank=2))
    with pytest.raises(UserError, match="other weights"):
        stranger.restore(tmp_path)
    otherwise = arm(Options(context=2), base=str(folder))
    otherwise.attach(Lora(rank=2))
    with pytest.raises(UserError, match="context = 4, this run has 2"):
        otherwise.restore(tmp_path)


def test_random_weights_follow_the_seed_and_leave_a_lora_something_to_work_with(folder: Path) -> None:
    one, two, three = (arm(base=str(folder), init="random", seed=s) for s in (1, 1, 2))  # type: ignore[arg-type]
    loaded = arm(base=str(folder))
    weights = [a.model.encoder.embed.weight for a in (one, two, three, loaded)]
    assert torch.equal(weights[0], weights[1])
    assert not any(torch.equal(a, b) for a, b in itertools.combinations([weights[0], *weights[2:]], 2))
    one.attach(Lora(rank=4))
    one.loss(one.collate(samples(), [1, 2, 3])).backward()
    gradients = {n: p.grad.abs().max().item() for n, p in one.trainable().items() if "lora_B" in n}
    assert all(g > 0 for g in gradients.values()), [n for n, g in gradients.items() if not g]


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"style": "vidio-8"}, "Did you mean"),
        ({"context": 0}, "at least 1"),
        ({"steps": 0}, "at least 1"),
        ({"shift": 0.0}, "above 0"),
    ],
)
def test_options_are_checked(bad: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        Options(**bad)


def test_options_that_do_not_fit_the_backbone() -> None:
    with pytest.raises(UserError, match="multiple of the backbone's tubelet, 2"):
        arm(Options(context=3))
    with pytest.raises(UserError, match="not whole patches"):
        arm(Options(style="paper"))


def test_what_cannot_be_loaded_is_one_line(folder: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    data = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(data[: len(data) // 2])
    for base in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError) as error:
            arm(base=str(base))
        assert "\n" not in str(error.value)
