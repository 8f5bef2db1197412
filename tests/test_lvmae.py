"""LVMAE: what is seen, what is decoded, what is learnt; fine-tuning; streaming."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import begun
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_cli import call, refused
from test_video import folder as videos
from torch import Tensor

from pretrain import finetune, long, lvmae, masks, tokenizer
from pretrain.flow import flow_scores
from pretrain.loop import Share
from pretrain.lvmae import LVMAE, MASKS, Config, draw
from pretrain.recipe import millions, to_pixels
from pretrain.stored import Stored
from pretrain.vit3d import coordinates, gather, patchify
from vdmreason import backbones, jobs, plan, store

folder = videos  # a fixture: real files, some of them broken
TINY = lvmae.FLAVOURS["tiny"]


def model(**changes: object) -> LVMAE:
    torch.manual_seed(1)
    return LVMAE(replace(TINY, **changes), tokenizer.load("tiny"))  # type: ignore[arg-type]


def clips(count: int = 2, frames: int = 16, side: int = 32) -> Tensor:
    return long.clips(range(count), 3, frames, side)[0]


def given(one: LVMAE, video: Tensor) -> dict:
    return draw(one.config, one.grid(to_pixels(video)), range(len(video)), 0).batch()


# Sizes


@pytest.mark.parametrize(("size", "wanted"), [("vit-b", 86.2), ("vit-l", 303.9)])
def test_published_sizes(size: str, wanted: float) -> None:
    """The standard ViT-B and ViT-L, whose patches here are of two frames."""
    config = lvmae.FLAVOURS[size]
    assert (config.hidden, config.top, config.extra, config.mask, config.target) == (
        0.9,
        0.1,
        0.05,
        "adaptive",
        "codes",
    )
    assert config.decoder.width == config.encoder.width // 2 and config.decoder.depth == 4
    with torch.device("meta"):
        encoder = lvmae.Encoder(config.encoder, config.patch, config.tubelet, positions="sincos")
    assert sum(p.numel() for p in encoder.parameters()) / 1e6 == pytest.approx(wanted, rel=0.01)


@pytest.mark.parametrize(("frames", "total", "seen", "decoded"), [(16, 1568, 160, 235), (128, 12544, 1280, 1882)])
def test_published_counts(frames: int, total: int, seen: int, decoded: int) -> None:
    """20 of 196 places seen, 15 % decoded: 128 frames at 15 % are to the decoder what 32 are at 100 %."""
    config = lvmae.FLAVOURS["vit-b"]
    drawn = draw(config, (frames // 2, 14, 14), range(1), 0)
    assert drawn.uniform.shape == (1, total) and drawn.keep.shape == (1, seen)
    assert abs(sum(config.budget(total)) - decoded) <= 1
    if frames == 128:
        assert abs(seen + decoded - 3136) < 30


# What is decoded


@pytest.mark.parametrize("mask", MASKS)
def test_every_mask_decodes_hidden_tokens_of_its_kind(mask: str) -> None:
    one, video = model(mask=mask), clips(3, 28)
    drawn = given(one, video)
    grid, total = one.grid(to_pixels(video)), 14 * 16
    scores = one.scores(video)
    asked = one.chosen(scores, drawn["keep"], drawn["uniform"], grid, drawn["first"])
    assert all(not set(a.tolist()) & set(k.tolist()) for a, k in zip(asked, drawn["keep"], strict=True))
    assert all(sorted(set(a.tolist())) == a.tolist() for a in asked)
    budget = round(0.1 * total) + round(0.05 * total)
    if mask == "none":
        assert asked.shape[1] == total - drawn["keep"].shape[1]
    elif mask == "uniform":
        every = one.config.every
        assert {t % every for t in (asked[0] // 16).tolist()} == {drawn["first"] % every}
        frames = len(range(drawn["first"] % every, 14, every))
        assert asked.shape[1] == frames * (16 - drawn["keep"].shape[1] // 14)
    else:
        assert abs(asked.shape[1] - budget) <= 1
    if mask in ("adaptive", "flow", "everest", "difference"):
        hidden = masks.complement(drawn["keep"], total)
        best = scores[0, hidden[0]].topk(round(0.1 * total)).indices
        assert set(hidden[0, best].tolist()) <= set(asked[0].tolist())
        assert torch.allclose(scores.sum(1), torch.ones(3), atol=1e-4)


@pytest.mark.parametrize("mask", ["adaptive", "everest", "difference"])
def test_what_is_important_does_not_hang_on_the_precision(mask: str) -> None:
    """A training in bf16 decodes what one that has stored its scores does."""
    one, video = model(mask=mask), clips(3, 28)
    with torch.autocast("cpu", torch.bfloat16):
        scores = one.scores(video)
    assert torch.equal(scores, one.scores(video))


def test_everest_s_importance_is_how_the_embedding_changes() -> None:
    one, video = model(mask="everest"), clips()
    tokens = one.encoder.embed(patchify(to_pixels(video), 2, 8)).view(2, 8, 16, -1)
    moved = (tokens[:, 1:] - tokens[:, :-1]).norm(dim=-1)
    moved = torch.cat([moved[:, :1], moved], 1).flatten(1)
    assert torch.allclose(one.scores(video), moved / moved.sum(1, keepdim=True), atol=1e-4)


def test_flow_finds_what_moves() -> None:
    """A piece of cloth that moves to the right over one that stands: the flow is where the piece is."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 60, (1, 1, 32, 32, 3)).repeat(8, 1).astype(np.uint8)
    cloth = rng.integers(100, 255, (8, 8, 3)).astype(np.uint8)
    for t in range(8):
        frames[0, t, 16:24, 8 + t : 16 + t] = cloth
    scores = flow_scores(torch.from_numpy(frames), 2, 8)[0].view(4, 4, 4)
    assert (scores[:, 2, 1:3].mean((0, 1)) > 3 * scores[:, 0].mean()).all() and torch.isclose(
        scores.sum(), torch.ones(())
    )


# What is learnt


def test_the_loss_is_the_error_of_hidden_chosen_tokens() -> None:
    """Token by token in a loop."""
    one, video = model(ahead=False), clips()
    drawn, pixels = given(one, video), to_pixels(video)
    asked = one.chosen(one.scores(video), drawn["keep"], drawn["uniform"], (8, 4, 4), drawn["first"])
    codes = one.tokenizer.encode(pixels)
    total, count = 0.0, 0
    at = coordinates((8, 4, 4))[None]
    for b in range(2):
        z = one.encoder(pixels[b : b + 1], drawn["keep"][b : b + 1])
        said = one.decoder(z, gather(at, drawn["keep"][b : b + 1]), gather(at, asked[b : b + 1]))
        for m, token in enumerate(asked[b].tolist()):
            assert token not in drawn["keep"][b].tolist()
            total += (said[0, m] - codes[b, token]).square().mean().item()
            count += 1
    assert one(video, **drawn)["loss"].item() == pytest.approx(total / count, rel=1e-5)


def test_levels_are_classes() -> None:
    one, video = model(target="levels", ahead=False), clips()
    drawn, pixels = given(one, video), to_pixels(video)
    asked = one.chosen(one.scores(video), drawn["keep"], drawn["uniform"], (8, 4, 4), drawn["first"])
    said, codes = one.predict(pixels, drawn["keep"], asked), gather(one.tokenizer.encode(pixels), asked)
    losses, start = [], 0
    for k, levels in enumerate((8, 5, 5, 5)):
        all_levels = (torch.arange(levels) - levels // 2) / (levels // 2)
        wanted = (codes[..., k, None] - all_levels).abs().argmin(-1)
        losses.append(F.cross_entropy(said[..., start : start + levels].flatten(0, 1), wanted.flatten()))
        start += levels
    assert one(video, **drawn)["loss"].item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)


def test_pixels_are_normalised_patch_by_patch() -> None:
    one = model(target="pixels")
    target = one.target(to_pixels(clips()))
    assert target.mean(-1).abs().max() < 1e-4 and torch.allclose(
        target.std(-1, unbiased=False), torch.ones(()), atol=0.05
    )
    with pytest.raises(ValueError, match="draws nothing"):
        one.guessed(target)


@pytest.mark.parametrize("target", ["codes", "levels"])
def test_a_perfect_decoder_has_no_loss_and_says_the_codes(target: str) -> None:
    one = model(target=target)
    codes = one.tokenizer.encode(to_pixels(clips()))
    said = codes
    if target == "levels":
        level = (codes * torch.tensor([4, 2, 2, 2])).long() + torch.tensor([4, 2, 2, 2])
        said = torch.cat([50.0 * F.one_hot(level[..., k], n) for k, n in enumerate((8, 5, 5, 5))], -1)
    assert one.loss(said, codes).item() < 1e-6
    assert torch.equal(one.guessed(said), codes)


def test_hidden_pixels_reach_no_prediction() -> None:
    one, video = model(), clips(1)
    drawn = given(one, video)
    pixels = to_pixels(video).requires_grad_(True)
    asked = masks.complement(drawn["keep"], 128)
    one.predict(pixels, drawn["keep"], asked).sum().backward()
    assert pixels.grad is not None
    seen = patchify(pixels.grad, 2, 8)[0].abs().sum(-1) > 0
    assert set(seen.nonzero()[:, 0].tolist()) == set(drawn["keep"][0].tolist())


def test_the_tokenizer_stays_what_it_is(tmp_path: Path) -> None:
    one = model()
    before = {name: value.clone() for name, value in one.tokenizer.state_dict().items()}
    optimiser = torch.optim.AdamW([p for p in one.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(3):
        one(clips(), **given(one, clips()))["loss"].backward()
        optimiser.step()
    assert all(p.grad is None for p in one.tokenizer.parameters()) and not one.train().tokenizer.training
    assert all(torch.equal(before[n], v) for n, v in one.tokenizer.state_dict().items())
    lvmae.save(tmp_path, one)
    assert (tmp_path / "tokenizer.safetensors").exists()
    fresh = lvmae.load(tmp_path, random_weights=True)
    for name, value in fresh.tokenizer.state_dict().items():
        assert torch.allclose(value, before[name], atol=1e-3), name


def test_stored_values_are_those_that_would_be_computed(tmp_path: Path) -> None:
    """Codes and importance from the store give the same losses, over more than one pass; with another tokenizer they are
    made anew."""
    settings = {"updates": 6, "size": "tiny", "batch": 4, "frames": 8}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    record = lvmae.pretrain(tmp_path / "one", stored=10, **settings)  # type: ignore[arg-type]
    kept = lvmae.Batches(TINY, replace(lvmae.RECIPES["tiny"], lengths=(8,)), 0)
    kept.stored = Stored(tmp_path / "none", {}, 10, lambda numbers: {})
    seen = [kept.clip_at(n) for n in range(20)]
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10)) and seen[:10] != seen[10:]
    one = LVMAE(TINY, tokenizer.load("tiny"))
    told = {**settings, "seed": 0, "data": "", "side": 32, "fps": 4.0, "mask": "adaptive"}
    store = lvmae.keep(one, kept.clips, 10, tmp_path / "one" / "stored", told)  # type: ignore[arg-type]
    assert len(list((tmp_path / "one" / "stored").iterdir())) == 1  # found again
    kept.stored = store
    batch = kept(0, Share())
    computed = {k: v for k, v in batch.items() if k not in ("codes", "scores", "measure")}
    assert torch.allclose(one(**batch)["loss"], one(**computed)["loss"]) and record["log"]["updates"] == 6
    torch.set_num_threads(threads)


# Longer than the memory


@pytest.mark.parametrize("positions", ["sincos", "both"])
def test_one_chunk_is_the_encoder(positions: str) -> None:
    one, pixels = model(positions=positions).eval(), to_pixels(clips())
    assert torch.allclose(one.stream(pixels, 16, 0), one.encoder(pixels), atol=1e-5)
    assert torch.allclose(one.stream(pixels, 32, 7), one.encoder(pixels), atol=1e-5)


def test_a_whole_memory_is_attention_to_all_before() -> None:
    """Chunk by chunk with everything kept is one pass in which a token attends to its own chunk and those before."""
    one, pixels = model().eval(), to_pixels(clips())
    chunked = one.stream(pixels, 4, 10**6)
    at = coordinates((8, 4, 4))[None]
    encoder = one.encoder
    x = encoder.embed(patchify(pixels, 2, 8)) + lvmae.sincos(at, 24, encoder.base)
    part = at[0, :, 0] // 2
    mask = (part[:, None] >= part[None])[None, None]
    x = encoder.norm(encoder.blocks(x, lvmae.rope(at, 12, encoder.base), mask))
    assert torch.allclose(chunked, x, atol=1e-4)


def test_a_memory_carries_what_was_seen() -> None:
    """With a memory what happened in the first chunk changes what is said of the last; without it does not."""
    one, pixels = model().eval(), to_pixels(clips())
    other = pixels.clone()
    other[:, :, :4] *= -1
    for memory, carried in ((0, False), (8, True)):
        same = torch.allclose(one.stream(pixels, 4, memory)[:, -16:], one.stream(other, 4, memory)[:, -16:])
        assert same != carried
    assert torch.equal(one.stream(pixels, 4, 8), one.stream(pixels, 4, 8))
    with pytest.raises(ValueError, match="less than a tubelet"):
        one.stream(pixels, 1, 0)


# Fine-tuning


def test_rates_fall_from_block_to_block() -> None:
    rates = finetune.layer_rates(3, 0.5)
    assert rates[""] == 1 and rates["encoder.norm."] == 1
    assert [rates[f"encoder.blocks.{k}."] for k in range(3)] == [0.125, 0.25, 0.5] and rates["encoder."] == 0.0625


def test_fine_tuning_learns_resumes_and_is_told_once(tmp_path: Path) -> None:
    """A label that the first frame shows is learnt; the same command again trains no more."""
    one = model()

    class Bright:
        classes, test = 2, 40

        def __call__(self, part: str, numbers: list[int]) -> tuple[Tensor, Tensor]:
            labels = torch.tensor([n % 2 for n in numbers])
            noise = torch.randint(
                0, 100, (len(labels), 4, 32, 32, 3), generator=torch.Generator().manual_seed(numbers[0])
            )
            return (noise + 150 * labels[:, None, None, None, None]).byte(), labels

    class Dark(Bright):
        """The other way round: each question has its own head."""

        def __call__(self, part: str, numbers: list[int]) -> tuple[Tensor, Tensor]:
            video, labels = super().__call__(part, numbers)
            return video, 1 - labels

    data = {"bright": Bright(), "dark": Dark()}
    settings = {"updates": 40, "batch": 16, "lr": 3e-3, "drop": 0.5}
    classifier, log = finetune.finetune(one.encoder, data, tmp_path, **settings)  # type: ignore[arg-type]
    for name, clips_ in data.items():
        assert finetune.tested(classifier, name, clips_)["accuracy"] == 1.0  # type: ignore[arg-type]
    begun.mark(tmp_path)
    again, more = finetune.finetune(model().encoder, data, tmp_path, **settings)  # type: ignore[arg-type]
    assert begun.went_on(tmp_path)
    assert more["updates"] == log["updates"] == 40
    pairs = zip(classifier.state_dict().values(), again.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_long_clips_to_learn_from_are_not_those_of_the_test() -> None:
    data = finetune.LongClips("order", 16, 32, labels=10)
    video, labels = data("train", [3, 13, 4])
    assert torch.equal(video[0], video[1]) and labels[0] == labels[1] and not torch.equal(video[0], video[2])
    assert not torch.equal(data("test", [3])[0][0], video[0]) and data.classes == 4
    whole = long.long_clip(3, 10**7, 32, "order")
    assert np.array_equal(video[0].numpy(), whole.frames[56:72])
    for bad in ({"task": "jumps"}, {"frames": 200}):
        with pytest.raises(ValueError, match=r"no such task|a long clip has 128"):
            finetune.LongClips(**{"task": "order", "frames": 16, "side": 32, "labels": 10, **bad})  # type: ignore[arg-type]


def test_real_videos_with_labels(folder: Path, tmp_path: Path) -> None:
    good = [p for p in sorted(folder.rglob("*.mp4")) if p.name not in ("truncated.mp4", "empty.mp4", "text.mp4")]
    learnt, asked, bare = (tmp_path / f"{name}.csv" for name in ("learnt", "asked", "bare"))
    learnt.write_text("".join(f"{p},{k % 3}\n" for k, p in enumerate(good[:-2])))
    asked.write_text("".join(f"{p},2\n" for p in (*good[-2:], folder / "empty.mp4")))
    data = finetune.ListedVideos(str(learnt), str(asked), 4, 32, 4.0)
    video, labels = data("train", range(6))
    assert video.shape == (6, 4, 32, 32, 3) and data.classes == 3 and set(labels.tolist()) <= {0, 1, 2}
    one, told = data("test", range(3))
    assert (
        one.shape == (2, 4, 32, 32, 3)
        and told.tolist() == [2, 2]
        and list(data.asked.bad) == [str(folder / "empty.mp4")]
    )
    assert torch.equal(one, data("test", range(3))[0])
    with pytest.raises(ValueError, match="test on others"):
        finetune.ListedVideos(str(learnt), str(learnt), 4, 32, 4.0)
    (tmp_path / "link").symlink_to(folder)
    names = [p.relative_to(folder) for p in good[:2]]
    relative = Path(os.path.relpath(folder, tmp_path))
    for where in (relative / "." / ".." / folder.name, tmp_path / "link"):  # the same videos, named otherwise
        asked.write_text("".join(f"{where / name},1\n" for name in names))
        with pytest.raises(ValueError, match="2 videos are in"):
            finetune.ListedVideos(str(learnt), str(asked), 4, 32, 4.0)
    bare.write_text(f"{good[0]}\n")
    asked.write_text(f"{good[-1]},1\n")
    with pytest.raises(ValueError, match="has no label"):
        finetune.ListedVideos(str(bare), str(asked), 4, 32, 4.0)


# From the command line


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("backbone") / "lv"
    call("pretrain", "lvmae", "--size", "tiny", "--budget", "4u", "--out", str(out))
    return out


def test_another_tokenizer_is_refused_in_mid_training(tmp_path: Path) -> None:
    """The one in the checkpoint could not draw its codes."""
    settings = {"updates": 3, "size": "tiny", "batch": 2, "tokens": str(tmp_path / "tok")}
    tokenizer.save(tmp_path / "tok", tokenizer.load("tiny"))
    lvmae.pretrain(tmp_path / "lv", **settings)  # type: ignore[arg-type]
    other = tokenizer.load("tiny")
    torch.nn.init.normal_(other.scorer[0].weight)  # type: ignore[arg-type, union-attr]
    tokenizer.save(tmp_path / "tok", other)
    with pytest.raises(ValueError, match="weights of the tokenizer"):
        lvmae.pretrain(tmp_path / "lv", **settings)  # type: ignore[arg-type]


def test_it_is_shown_probed_and_fine_tuned(backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = [slice(20), slice(20, 60), slice(60, None)]
    monkeypatch.setattr(backbones, "shares", lambda labels: (few, 120))
    call("pretrain", "show", str(backbone), "--out", str(tmp_path / "sheet.png"))
    assert (tmp_path / "sheet.png").exists()
    short = ("--labels", "20", "--epochs", "1")
    said = call("probe", str(backbone), "--long", "order", "--frames", "8", *short, "--seeds", "1").output
    assert "order in 8 frames" in said and "chance: order 25.0" in said
    kept = json.loads((backbone / "probe.json").read_text())
    assert kept["task"] == "order" and [len(row["accuracy"]) for row in kept["rows"]] == [2, 2, 2]
    call(
        "probe",
        str(backbone),
        "--long",
        "bounces",
        "--frames",
        "8",
        "--chunk",
        "4",
        "--memory",
        "9",
        *short,
        "--seeds",
        "1",
    )
    tuned = ("finetune", str(backbone), "--long", "period", "--frames", "4", "--budget", "2u", "--batch", "2")
    said = call(*tuned, "--out", str(tmp_path / "ft")).output
    found = json.loads((tmp_path / "ft" / "finetune.json").read_text())
    assert f"accuracy {100 * found['accuracy']:.1f} %" in said and found["low"] <= found["accuracy"] <= found["high"]
    assert (tmp_path / "ft" / "classifier.safetensors").exists()
    assert "frames = 4, not 8" in refused(*tuned[:5], "8", *tuned[6:], "--out", str(tmp_path / "ft"))


def test_a_fine_tuning_is_of_one_backbone_alone_and_stops_when_asked(
    backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another backbone under the same name is refused; so is a second process; STOP is heard, and the same command goes on."""
    shutil.copytree(backbone, tmp_path / "lv")
    out = tmp_path / "ft"
    tuned = ("finetune", str(tmp_path / "lv"), "--long", "period", "--frames", "4", "--budget", "3u", "--batch", "2")
    tuned = (*tuned, "--out", str(out))
    with store.lock(out):
        assert "another process is working there" in refused(*tuned)
    forward = finetune.Classifier.forward

    def asked(self: finetune.Classifier, **given: Tensor) -> dict[str, Tensor]:
        (out / jobs.STOP).write_text("")
        return forward(self, **given)

    with monkeypatch.context() as patch:
        patch.setattr(finetune.Classifier, "forward", asked)
        assert "stopped after update 1" in call(*tuned, code=2).output
    assert store.read_state(out)["state"] == "stopped" and not (out / "finetune.json").exists()
    begun.mark(out)
    call(*tuned)
    assert begun.went_on(out) and json.loads((out / "finetune.json").read_text())["log"]["updates"] == 3
    other = lvmae.load(tmp_path / "lv")
    torch.nn.init.normal_(other.encoder.embed.weight)
    lvmae.save(tmp_path / "lv", other)
    assert "weights of the encoder" in refused(*tuned)


def test_an_encoder_is_trained_in_evaluation_mode_wherever_it_begins() -> None:
    """Random weights come in training mode, in which a large recipe passes blocks over, a pretrained encoder does not."""
    from pretrain import internvideo_next as iv

    config = replace(iv.FLAVOURS["tiny"], drop=0.5)
    torch.manual_seed(0)
    one = iv.InternVideoNext(config).train()
    video = clips(8, 4)
    assert not torch.equal(one.encoder(to_pixels(video)), one.encoder(to_pixels(video)))
    classifier = finetune.Classifier(one.encoder, {"label": 2})
    assert torch.equal(classifier.pooled(to_pixels(video)), classifier.pooled(to_pixels(video)))


def test_the_card_names_the_option_that_there_is(tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "my tok", tokenizer.load("tiny"))
    lvmae.pretrain(tmp_path / "lv", updates=1, size="tiny", batch=2, tokens=str(tmp_path / "my tok"))
    card = " ".join((tmp_path / "lv" / "README.md").read_text().split())
    assert f"--tokenizer '{tmp_path / 'my tok'}'" in card and "--tokens" not in card


def test_what_is_refused(backbone: Path, tmp_path: Path) -> None:
    out = ("--out", str(tmp_path / "x"))
    pretrain = ("pretrain", "lvmae", "--size", "tiny", *out)
    assert "Did you mean 'adaptive'" in refused(*pretrain, "--mask", "adaptiv")
    assert "codes, levels, pixels" in refused(*pretrain, "--target", "rgb")
    assert "say how many --frames" in refused(*pretrain, "--stored", "10")
    assert "tubelets of 2" in refused(*pretrain, "--frames", "7")
    assert "holds no tokenizer" in refused(*pretrain, "--tokenizer", str(tmp_path))
    assert "names another recipe" in refused(*pretrain, "--tokenizer", str(backbone))
    assert "needs a tokenizer of 2 x 16 x 16" in refused("pretrain", "lvmae", "--size", "vit-b", *out)
    assert "--long bouncs" in refused("probe", str(backbone), "--long", "bouncs")
    assert "multiples of the backbone's tubelet" in refused("probe", str(backbone), "--long", "order", "--frames", "7")
    assert "linear, attentive or both" in refused("probe", str(backbone), "--long", "order", "--kind", "all")
    assert "--data needs --test" in refused("finetune", str(backbone), "--data", "a.csv", *out)
    assert "--long jumps: one of bounces" in refused("finetune", str(backbone), "--long", "jumps", *out)
    assert "say which with --long" in refused("probe", str(backbone), "--frames", "16")
    assert "multiple of the backbone's tubelet" in refused("finetune", str(backbone), "--frames", "5", *out)


def test_an_lvmae_of_pixels_does_not_sit_the_exam(tmp_path: Path) -> None:
    import importlib

    from adapters.base import Flavour
    from tasks.base import UserError

    lvmae.save(tmp_path, model(target="pixels"))
    family = importlib.import_module("adapters.lvmae")
    with pytest.raises(UserError, match="no answer can be drawn"):
        family.load(Flavour("mine", str(tmp_path), "", published=True), family.Options())


def test_a_decoder_s_work_at_128_frames_and_15_percent_is_that_of_32_at_100() -> None:
    """The multiplications of a forward pass, counted by torch, attention too, which is most of it: published places, and a
    narrow decoder, so that what is square in the tokens weighs more than it does as published."""
    config = Config(lvmae.Size(48, 1, 2), lvmae.Size(24, 4, 2), tokenizer="")
    decoder = lvmae.Decoder(config, 6)

    def flops(frames: int, share: float) -> int:
        total = frames // 2 * 196
        seen = total // 196 * 20
        asked = round(share * total) if share < 1 else total - seen
        at = torch.zeros(1, seen + asked, 3)
        with plan.counter() as counted:
            decoder(torch.zeros(1, seen, 48), at[:, :seen], at[:, seen:])
        attention = counted.get_flop_counts()["Global"][plan.FUSED]
        assert attention > counted.get_total_flops() / 2
        return counted.get_total_flops()

    assert flops(128, 0.15) == pytest.approx(flops(32, 1.0), rel=0.05)


def test_counts_by_part() -> None:
    assert set(millions(model())) == {"encoder", "decoder", "tokenizer"}


def test_what_is_decoded_is_hidden(tmp_path: Path) -> None:
    """More than is hidden cannot be decoded, and is refused in one line; where all that is hidden is, no share is asked."""
    with pytest.raises(ValueError, match="at most hidden"):
        Config(lvmae.Size(48, 1, 2), lvmae.Size(24, 1, 2), hidden=0.1)
    for mask in ("none", "uniform"):
        assert Config(lvmae.Size(48, 1, 2), lvmae.Size(24, 1, 2), hidden=0.1, mask=mask).hidden == 0.1
    shipped = str(Path(lvmae.__file__).parent / "zoo" / "lvmae")
    assert "at most hidden" in refused("pretrain", "show", shipped, "--hidden", "0.1", "--out", str(tmp_path / "x.png"))
