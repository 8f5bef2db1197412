"""The same questions to every recipe: it resumes to the bit, many processes are one, what is saved is what is loaded, real
video trains it and its broken files are named."""

from __future__ import annotations

import importlib
import json
import os
import shlex
import signal
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import begun
import forked
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_video import folder as videos
from torch import Tensor

from pretrain import internvideo_next, long, loop, lvmae, nextvid, tokenizer
from pretrain.recipe import Clips, record_of
from vdmreason.backbones import SHOWN

ROOT = Path(__file__).resolve().parents[1]
UPDATES = 16
folder = videos  # a fixture: real files, some of them broken

_SCRIPT = """
import importlib, sys, torch
torch.set_num_threads(1)
from pretrain import loop
loop.fit.__kwdefaults__["checkpoint_minutes"] = 0.0  # after every update
recipe = importlib.import_module("pretrain." + sys.argv[1])
recipe.pretrain(sys.argv[2], updates=int(sys.argv[3]), size="tiny", batch=4)
"""
_ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module", params=SHOWN)
def recipe(request: pytest.FixtureRequest) -> ModuleType:
    return importlib.import_module(f"pretrain.{request.param}")


def name_of(recipe: ModuleType) -> str:
    return recipe.__name__.partition(".")[2]


def words(recipe: ModuleType, out: Path) -> list[str]:
    return [name_of(recipe), str(out), str(UPDATES)]


@pytest.fixture(scope="module")
def pretrained(recipe: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp(name_of(recipe))
    forked.run(_SCRIPT, *words(recipe, out), env=_ENVIRONMENT)
    return out


def weights(out: Path) -> dict[str, Tensor]:
    """Those of the last stage's checkpoint."""
    return load_file(max((out / "work").rglob("checkpoint/model.safetensors")))


def metrics(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in logged(out)]


def logged(out: Path) -> list[str]:
    """The lines of every stage's metrics."""
    return [line for file in sorted(begun.metrics(out / "work")) for line in file.read_text().splitlines()]


@pytest.mark.parametrize("after", [5, 12])
def test_a_killed_training_resumes_to_the_bit(recipe: ModuleType, pretrained: Path, tmp_path: Path, after: int) -> None:
    """In the first half and in the second, which for some is another stage."""
    process = forked.Process(_SCRIPT, *words(recipe, tmp_path), env=_ENVIRONMENT)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if len(logged(tmp_path)) > after:
            break
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = [json.loads(file.read_text())["step"] for file in (tmp_path / "work").rglob("checkpoint*/loop.json")]
    assert kept and max(kept) > 1
    begun.mark(tmp_path)
    forked.run(_SCRIPT, *words(recipe, tmp_path), env=_ENVIRONMENT)
    assert "before" in metrics(tmp_path)[0], "it began anew"  # a later stage may have had no checkpoint yet
    one, two = weights(pretrained), weights(tmp_path)
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    assert len(metrics(tmp_path)) == len(metrics(pretrained)) == UPDATES


def test_two_processes_are_one(recipe: ModuleType, pretrained: Path, tmp_path: Path) -> None:
    """The same batches, shared: the same losses and, to rounding, the same weights."""
    forked.run(_SCRIPT, *words(recipe, tmp_path / "two"), env=_ENVIRONMENT, processes=2)
    one, two = metrics(pretrained), metrics(tmp_path / "two")
    assert [a["loss"] for a in one] == pytest.approx([b["loss"] for b in two], rel=1e-4)
    assert [a["norm"] for a in one] == pytest.approx([b["norm"] for b in two], rel=1e-3)
    alone, shared = weights(pretrained), weights(tmp_path / "two")
    worst = max(float((alone[name] - shared[name]).abs().max()) for name in alone)
    assert worst < 1e-4, worst


def test_a_batch_in_pieces_is_one_batch(
    recipe: ModuleType, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same losses and, to rounding, the same weights, in less memory."""
    threads, together, pieces_of = torch.get_num_threads(), loop._over_processes, set()
    torch.set_num_threads(1)

    def seen(accelerator: Any, found: Any) -> Any:
        pieces_of.add(len(found))
        return together(accelerator, found)

    monkeypatch.setattr(loop, "_over_processes", seen)
    recipe.pretrain(tmp_path, updates=UPDATES, size="tiny", batch=4, micro=2)
    torch.set_num_threads(threads)
    assert pieces_of == {2}
    one, two = metrics(pretrained), metrics(tmp_path)
    assert [a["loss"] for a in one] == pytest.approx([b["loss"] for b in two], rel=1e-4)
    whole, pieces = weights(pretrained), weights(tmp_path)
    worst = max(float((whole[name] - pieces[name]).abs().max()) for name in whole)
    assert worst < 1e-4, worst


def test_what_is_saved_is_what_is_loaded(recipe: ModuleType, pretrained: Path, tmp_path: Path) -> None:
    model = recipe.load(pretrained)
    stored = weights(pretrained)
    assert stored.keys() == model.state_dict().keys()
    for name, value in stored.items():
        assert torch.allclose(model.state_dict()[name], value, rtol=1e-3, atol=1e-4), name
    fresh = recipe.load(pretrained, random_weights=True)
    assert not torch.equal(next(fresh.encoder.parameters()), next(model.encoder.parameters()))
    assert recipe is tokenizer or any("rank" in line for line in metrics(pretrained))
    card, command = (pretrained / "README.md").read_text(), name_of(recipe).replace("_", "-")
    assert f"vdmreason pretrain {command} --budget {UPDATES}u --size tiny --seed 0 --batch 4" in " ".join(card.split())
    assert "Not the authors' model" in card and "procedural clips" in card
    (tmp_path / "config.json").write_text('{"recipe": "other"}')
    with pytest.raises(ValueError, match="another recipe"):
        recipe.load(tmp_path)


def test_features_have_a_token_a_place(recipe: ModuleType, pretrained: Path) -> None:
    if recipe is tokenizer:
        pytest.skip("a tokenizer has codes, not features")
    model, video = recipe.load(pretrained).eval(), torch.zeros(2, 4, 32, 48, 3, dtype=torch.uint8)
    grid = model.encoder.grid(recipe.to_pixels(video))
    assert recipe.encode(model, video).shape == (2, grid[0] * grid[1] * grid[2], model.config.encoder.width)


def test_it_trains_on_a_folder_with_broken_files(recipe: ModuleType, folder: Path, tmp_path: Path) -> None:
    given = {"size": "tiny", "data": str(folder), "batch": 3, "side": 32, "most_bad": 0.5}
    record = recipe.pretrain(tmp_path, updates=16, **given)
    assert len(metrics(tmp_path)) == 16 and all(np.isfinite(line["loss"]) for line in metrics(tmp_path))
    assert {"truncated.mp4", "empty.mp4", "text.mp4"} <= set(record["bad"])
    card = " ".join((tmp_path / "README.md").read_text().split())
    assert f"{len(record['bad'])} of them unreadable" in card and "--most-bad 0.5" in card and "--side 32" in card
    with pytest.raises(ValueError, match="holds a training with side = 32, not 48"):
        recipe.pretrain(tmp_path, updates=16, **{**given, "side": 48})


def test_what_could_not_be_read_is_told_again(
    recipe: ModuleType, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By a start that only writes the card; and files that came since are told of."""
    set_ = tmp_path / "set"
    set_.mkdir()
    for name in ("a.mp4", "b.avi", "text.mp4", "empty.mp4"):
        (set_ / name).symlink_to(folder / name)
    given = {"size": "tiny", "data": str(set_), "batch": 3, "side": 32, "most_bad": 0.6}
    first = recipe.pretrain(tmp_path / "x", updates=4, **given)
    again = recipe.pretrain(tmp_path / "x", updates=4, **given)
    assert set(first["bad"]) == {"text.mp4", "empty.mp4"} and again["bad"] == first["bad"]
    assert "2 of them unreadable" in " ".join((tmp_path / "x" / "README.md").read_text().split())
    assert "bad" not in again["log"] and "are others than when it began" not in capsys.readouterr().err
    (set_ / "late.mp4").symlink_to(folder / "a.mp4")
    recipe.pretrain(tmp_path / "x", updates=4, **given)
    told = capsys.readouterr()
    assert "are others than when it began" in told.out + told.err


def test_the_batch_that_is_asked_for_is_trained(folder: Path) -> None:
    """Of real videos always, of procedural ones where they are as large as usual; else it is whole eights, or 4, 2 or 1."""
    real, made = Clips(8, 64, 0, videos=object()), Clips(8, 64, 0)
    for asked in (1, 3, 7, 12, 20, 28, 64):
        assert real.batch(asked, *real.shape(0)) == asked == made.batch(asked, 8, 8) == made.batch(asked, 4, 16)
        for rows, times in ((8, 0.25), (8, 2.0), (12, 1.0)):
            found = made.batch(asked, rows, rows, times)
            worth = asked * times * min(1, 64 / rows**2)
            assert found % 8 == 0 or found in (1, 2, 4)
            assert abs(found - worth) <= max(4, worth / 2)


def test_a_command_on_a_card_is_one_for_a_shell(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    given = {"size": "tiny", "seed": 0, "data": "my videos/{0..9}.tar", "tokens": "it's mine"}
    given |= {"overrides": {"masks": [[4, 0.2]], "latent": "image teacher", "top": 0.2}}
    command = record_of("lvmae", None, tmp_path, "2u", given, lvmae.pretrain, {"tokens": "tokenizer"})["command"]
    assert shlex.split(command)[3:] == [
        *(
            "--budget",
            "2u",
            "--size",
            "tiny",
            "--seed",
            "0",
            "--data",
            "my videos/{0..9}.tar",
            "--tokenizer",
            "it's mine",
        ),
        *("--set", "masks=[[4,0.2]]", "--set", "latent=image teacher", "--set", "top=0.2"),
    ]


def batches_of(name: str, size: str) -> list[Any]:
    """What the steps of each stage learn from, with 16 clips of small pictures where they would be large and many."""
    published = size not in ("tiny", "small")
    if name == "nextvid":
        with torch.device("meta"):
            model = nextvid.NextVid(replace(nextvid.FLAVOURS[size], align=0.0))
        made = [nextvid.Batches(model, nextvid.RECIPES[size], 1000, 0)]
        if published:
            made[0].recipe = replace(made[0].recipe, batch=16)
    elif name == "tokenizer":
        made = [tokenizer.Batches(tokenizer.FLAVOURS[size], tokenizer.RECIPES[size], 0)]
    elif name == "lvmae":
        given = replace(lvmae.RECIPES[size], batch=16, lengths=(8,)) if published else lvmae.RECIPES[size]
        made = [lvmae.Batches(lvmae.FLAVOURS[size], given, 0)]
    else:
        given = internvideo_next.RECIPES[size]
        config = internvideo_next.FLAVOURS[size]
        stages = [replace(s, batch=16) if published else s for s in given.stages]
        configs = [config, replace(config, stage=2, mask="blocks")]
        made = [internvideo_next.Batches(c, s, given.side, 0) for c, s in zip(configs, stages, strict=True)]
    if published:
        for batches in made:
            batches.clips.side = 56 if name == "internvideo_next" else 64
    return made


@pytest.mark.parametrize(
    ("name", "size"),
    [("nextvid", s) for s in ("tiny", "small", "vit-l")]
    + [("internvideo_next", s) for s in ("tiny", "small", "base")]
    + [("lvmae", s) for s in ("tiny", "small", "vit-b")]
    + [("tokenizer", s) for s in ("tiny", "small")],
)
def test_every_number_of_processes_sees_the_same_batches(name: str, size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The batch of a step is no matter of how many share it: all sizes, all stages."""
    monkeypatch.setattr(Clips, "__call__", lambda self, numbers, *_: torch.tensor(numbers))
    monkeypatch.setattr(long, "clips", lambda numbers, *_: (torch.tensor(numbers), None))
    for batches in batches_of(name, size):
        for step in range(0, 1000, 249):
            whole = batches(step, loop.Share())
            for of in (2, 4):
                if len(whole["video"]) % of:
                    assert size == "tiny" or len(whole["video"]) < of
                    with pytest.raises(ValueError, match="does not divide"):
                        batches(step, loop.Share(0, of))
                    continue
                shares = [batches(step, loop.Share(rank, of)) for rank in range(of)]
                assert torch.cat([s["video"] for s in shares]).tolist() == whole["video"].tolist()
                for key, value in whole.items():
                    axis = 1 if name == "nextvid" and key in ("times", "noises") else 0  # where the samples are
                    parts = value if isinstance(value, list) else [value]
                    for number, part in enumerate(parts):
                        theirs = [s[key][number] if isinstance(value, list) else s[key] for s in shares]
                        if isinstance(part, torch.Tensor):
                            assert torch.equal(torch.cat(theirs, axis), part), key
                        else:
                            assert all(one == part for one in theirs), key
