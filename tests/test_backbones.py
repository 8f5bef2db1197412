"""Backbones of our own from the command line: made, looked at, probed; and what is refused in one line."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from test_cli import call, refused

from pretrain import internvideo_next, nextvid
from vdmreason import backbones, jobs, store


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("backbone") / "nv"
    said = call("pretrain", "nextvid", "--size", "tiny", "--budget", "6u", "--out", str(out)).output
    assert f"pretrained: {out}" in said
    return out


def test_a_job_is_left_that_the_page_can_read(backbone: Path) -> None:
    assert json.loads((backbone / "state.json").read_text())["state"] == "done"
    assert {"config.json", "model.safetensors", "teacher.safetensors", "README.md", "pretrain.json"} <= {
        p.name for p in backbone.iterdir()
    }


def test_show_draws_masks_and_a_rollout(backbone: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "sheet.png"
    call("pretrain", "show", str(backbone), "--out", str(out))
    call("pretrain", "show", str(backbone), "--steps", "1", "--out", str(tmp_path / "one.png"))
    assert Image.open(tmp_path / "one.png").size == Image.open(out).size
    assert (tmp_path / "one.png").read_bytes() != out.read_bytes()
    picture, moving = Image.open(out), Image.open(out.with_suffix(".webp"))
    assert 2 <= moving.n_frames <= 8 and picture.width > 8 * 90  # type: ignore[attr-defined]
    films = nextvid.pictures(nextvid.load(backbone), nextvid.torch.zeros(1, 8, 32, 32, 3, dtype=nextvid.torch.uint8))
    assert picture.height > len(films) * 90
    assert [name.partition(":")[0] for name in films] == [
        "the clip",
        *["8 blocks of 15%"] * 2,
        *["2 blocks of 70%"] * 2,
        "no mask",
        "rollout from frame 4",
    ]


def test_captions_end_before_the_pictures_begin(tmp_path: Path) -> None:
    """However long: the last column before the pictures is white, and the picture wide enough for all."""
    film = np.zeros((2, 96, 96, 3), np.uint8)
    for name in ("a", "a caption of quite some length, which says what is hidden, how much of it, and why"):
        backbones.sheet({name: film}, tmp_path / "sheet.png")
        shown = np.asarray(Image.open(tmp_path / "sheet.png").convert("L"))
        black = np.flatnonzero((shown[8:104] < 10).all(0))
        assert len(black) == 2 * 96 and (shown[:, black[0] - 1] == 255).all()


def test_show_a_video_of_one_s_own(backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from test_video import SHIPPED

    call("pretrain", "show", str(backbone), "--video", str(SHIPPED / "a.mp4"), "--out", str(tmp_path / "a.png"))
    assert (tmp_path / "a.png").exists()
    (tmp_path / "no.mp4").write_text("no")
    assert "no.mp4: " in refused("pretrain", "show", str(backbone), "--video", str(tmp_path / "no.mp4"))
    monkeypatch.setitem(sys.modules, "av", None)  # as where it is not installed
    assert "pip install -e '.[video]'" in refused("pretrain", "show", str(backbone), "--video", str(SHIPPED / "a.mp4"))


FEW = lambda labels: ([slice(labels), slice(labels, labels + 40), slice(labels + 40, None)], labels + 100)  # noqa: E731


def test_probe_sets_the_backbone_beside_the_untrained_and_the_pixels(
    backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backbones, "shares", FEW)  # 1,000 clips to test on tell no more here
    said = call("probe", str(backbone), "--labels", "40", "--seeds", "2", "--kind", "linear", "--epochs", "2").output
    kept = json.loads((backbone / "probe.json").read_text())
    assert [row["features"] for row in kept["rows"]] == [str(backbone), "never trained", "pixels"]
    for row in kept["rows"]:
        assert set(row["accuracy"]) == {"shape, linear", "motion, linear", "position, linear"}
        for score in row["accuracy"].values():
            assert score["seeds"] == 2 and score["low"] <= score["value"] <= score["high"]
            assert f"{100 * score['value']:.1f}" in said
    assert "chance: shape 25.0" in said


def test_probe_reads_depth_and_tracks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backbones, "shares", FEW)
    out = tmp_path / "iv"
    call("pretrain", "internvideo-next", "--size", "tiny", "--budget", "4u", "--out", str(out))
    said = call("probe", str(out), "--labels", "30", "--seeds", "1", "--kind", "all", "--epochs", "1").output
    row = json.loads((out / "probe.json").read_text())["rows"][0]
    assert {"depth pairs", "depth ranks", "track IoU"} < set(row["accuracy"]) and 0 < row["staying"] < 1
    assert "track IoU" in said and f"{100 * row['staying']:.1f}" in said
    call("pretrain", "show", str(out), "--out", str(tmp_path / "sheet.png"))
    assert (tmp_path / "sheet.webp").exists()


@pytest.mark.parametrize(
    ("recipe", "said", "kept"),
    [
        (
            "nextvid",
            ["momentum=0.9", "masks=[[4, 0.2]]", "plain=true"],
            {"momentum": 0.9, "masks": [[4, 0.2]], "plain": True},
        ),
        (
            "internvideo-next",
            ["momentum=0.99", "head=linear", "hidden=0.6"],
            {"momentum": 0.99, "head": "linear", "hidden": 0.6},
        ),
        ("lvmae", ["top=0.2", "extra=0", "hidden=0.8"], {"top": 0.2, "extra": 0.0, "hidden": 0.8}),
    ],
)
def test_a_recipe_may_be_set_otherwise(recipe: str, said: list[str], kept: dict, tmp_path: Path) -> None:
    """By the names of its configuration: it trains so, the folder and its card say so, and the same command goes on."""
    words = [word for text in said for word in ("--set", text)]
    command = ("pretrain", recipe, "--size", "tiny", "--budget", "2u", "--out", str(tmp_path / "x"))
    call(*command, *words)
    stored = json.loads((tmp_path / "x" / "config.json").read_text())
    assert {key: stored[key] for key in kept} == kept
    record = json.loads((tmp_path / "x" / "pretrain.json").read_text())
    told = shlex.split(record["command"])
    said_back = dict(text.split("=", 1) for before, text in itertools.pairwise(told) if before == "--set")
    assert {key: yaml.safe_load(value) for key, value in said_back.items()} == kept
    call(*command, *words)
    assert "overrides" in refused(*command)
    for key in kept:
        assert key in call("pretrain", "keys", recipe).output


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ("internvideo-next", "aligned=0"),
        ("internvideo-next", "aligned=99"),
        ("internvideo-next", "registers=-1"),
        ("internvideo-next", "shift=0"),
        ("internvideo-next", "hidden=1"),
        ("internvideo-next", "drop=1"),
        ("internvideo-next", "align=0 pool=0 pixels=0"),
        ("internvideo-next", "pixels=-1"),
        ("nextvid", "align=0 flow=0"),
        ("nextvid", "shift=-1"),
        ("nextvid", "masks=[[2,-0.5]]"),
        ("nextvid", "masks=[[2,5.0]]"),
        ("nextvid", "masks=[[0,0.5]]"),
    ],
)
def test_a_recipe_that_cannot_learn_so_is_refused(recipe: str, said: str, tmp_path: Path) -> None:
    """In one line that names the key, before anything is written."""
    words = [word for text in said.split() for word in ("--set", text)]
    line = refused(
        *("pretrain", recipe, "--size", "tiny", "--budget", "1u", "--out", str(tmp_path / "x")),
        *(("--stages", "1") if recipe.startswith("intern") else ()),
        *words,
    )
    assert said.partition("=")[0] in line and not (tmp_path / "x" / "work").exists()


@pytest.mark.parametrize("blocks", ["[]", "[[0,0.5]]", "[[2,5.0]]", "[[-1,0.5],[2,0.7]]", "[[1.5,0.5]]"])
def test_stage_2_has_blocks_that_can_be(blocks: str) -> None:
    first = internvideo_next.FLAVOURS["tiny"]
    with pytest.raises(ValueError, match="blocks"):
        dataclasses.replace(first, stage=2, mask="blocks", ahead=False, blocks=tuple(map(tuple, json.loads(blocks))))


def test_two_do_not_train_in_one_folder(tmp_path: Path) -> None:
    with store.lock(tmp_path / "x"):
        line = refused("pretrain", "nextvid", "--size", "tiny", "--budget", "1u", "--out", str(tmp_path / "x"))
    assert "another process is working there" in line


def test_a_training_that_is_stopped_says_so_to_the_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the other commands do; of many processes the first one does."""
    command = ("pretrain", "nextvid", "--size", "tiny", "--budget", "3u", "--out", str(tmp_path / "x"))
    forward = nextvid.NextVid.forward

    def asked(self: nextvid.NextVid, *given: object, **named: object) -> object:
        (tmp_path / "x" / jobs.STOP).write_text("")
        return forward(self, *given, **named)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(nextvid.NextVid, "forward", asked)
        assert "stopped after update 1" in call(*command, code=2).output
        assert store.read_state(tmp_path / "x")["state"] == "stopped"
        patch.setenv("RANK", "1")
        call(*command)
        (tmp_path / "x" / jobs.STOP).unlink()
    call(*command)
    assert store.read_state(tmp_path / "x")["state"] == "done"


def test_a_full_gpu_is_told_what_this_command_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: object, **named: object) -> None:
        raise nextvid.torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(nextvid.NextVid, "forward", full)
    said = call("pretrain", "nextvid", "--size", "tiny", "--budget", "1u", "--out", str(tmp_path / "x"), code=2).stderr
    line = said[said.index("error: ") :]  # behind the bar
    assert "--micro" in line and "--batch" in line and "optim" not in line and "quantise" not in line


def test_each_stage_has_its_own_keys(tmp_path: Path) -> None:
    first = ("pretrain", "internvideo-next", "--size", "tiny", "--budget", "2u")
    call(*first, "--stages", "1", "--set", "mask=blocks", "--out", str(tmp_path / "one"))
    second = (*first, "--stages", "2", "--start", str(tmp_path / "one"), "--out", str(tmp_path / "two"))
    assert "head: is not of Stage 2" in refused(*second, "--set", "head=linear")
    assert "momentum: is not of Stage 1" in refused(
        *first, "--stages", "1", "--set", "momentum=1", "--out", str(tmp_path / "x")
    )
    assert "each stage has its own" in refused(*first, "--set", "mask=blocks", "--out", str(tmp_path / "x"))
    call(*second, "--set", "mask=semantic", "--set", "latent=image teacher")
    assert "of Stage 1" in refused("pretrain", "show", str(tmp_path / "one"), "--blocks", "4x0.1,2x0.3")
    one, two = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("one", "two"))
    assert (one["stage"], one["mask"], two["stage"], two["mask"]) == (1, "blocks", 2, "semantic")
    assert two["latent"] == "image teacher"


def test_what_is_refused(backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # it would try for half a minute
    out = ("--out", str(tmp_path / "x"))
    iv = ("internvideo-next", "--size", "tiny", *out)
    assert "needs --start" in refused("pretrain", *iv, "--stages", "2")
    assert "one of 1+2, 1, 2" in refused("pretrain", *iv, "--stages", "3")
    assert "take the one that ships" in refused("pretrain", *iv, "--teacher", "google/siglip2-nowhere")
    assert "leave --bert away" in refused("pretrain", *iv, "--bert", str(tmp_path / "no"))
    assert "there is no config.json" in refused("pretrain", *iv, "--stages", "2", "--start", str(tmp_path / "no"))
    assert "Did you mean 'nextvid'" in refused("pretrain", "nextvit", *out)
    assert "One of tiny, small, vit-l, vit-h, vit-g" in refused("pretrain", "nextvid", "--size", "huge", *out)
    assert "one of no, bf16" in refused("pretrain", "nextvid", "--precision", "fp8", *out)
    assert "no such file or folder" in refused("pretrain", "nextvid", "--size", "tiny", "--data", "nowhere", *out)
    assert "does not divide" in refused("pretrain", "nextvid", "--size", "tiny", "--side", "33", *out)
    assert "at least 4 patches" in refused("pretrain", "nextvid", "--size", "tiny", "--side", "8", *out)
    assert "no image VAE" in refused("pretrain", "nextvid", "--size", "tiny", "--target", str(tmp_path / "no"), *out)
    assert "Did you mean 'momentum'" in refused("pretrain", "nextvid", "--size", "tiny", "--set", "momentun=1", *out)
    assert "a share between 0 and 1" in refused("pretrain", "nextvid", "--size", "tiny", "--set", "momentum=7", *out)
    assert "must be a finite number" in refused("pretrain", "lvmae", "--size", "tiny", "--set", "top=much", *out)
    assert "more than none" in refused(
        "pretrain", "lvmae", "--size", "tiny", "--set", "top=0", "--set", "extra=0", *out
    )
    assert "Did you mean 'lvmae'" in refused("pretrain", "keys", "lvmea")
    assert "no config.json there names one of nextvid" in refused("pretrain", "show", str(tmp_path))
    assert "no config.json there names one of nextvid" in refused("probe", str(tmp_path))
    assert "--kind" in refused("probe", str(backbone), "--kind", "both-of-them")
    assert "Did you mean 'attentive'" in refused("probe", str(backbone), "--kind", "attentiv")
    for file in ("config.json", "teacher.safetensors"):
        (tmp_path / file).write_bytes((backbone / file).read_bytes())
    assert str(tmp_path) in refused("probe", str(tmp_path))  # no weights
    (tmp_path / "model.safetensors").write_bytes((backbone / "model.safetensors").read_bytes()[:5000])
    assert "damaged" in refused("pretrain", "show", str(tmp_path))
    (tmp_path / "config.json").write_text('{"recipe": "nextvid"}')
    assert str(tmp_path) in refused("probe", str(tmp_path))
    assert "holds a training with seed = 0, not 7" in refused(
        "pretrain", "nextvid", "--size", "tiny", "--budget", "6u", "--seed", "7", "--out", str(backbone)
    )
    (tmp_path / "config.json").write_text('{"recipe": "nextvit"}')
    assert "Did you mean 'nextvid'" in refused("probe", str(tmp_path))
