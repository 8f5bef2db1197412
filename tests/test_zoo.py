"""The backbones and adapters that ship: whole, small enough, honest, and good enough to write every answer."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import adapters
import tasks
from adapters import cogvideox
from adapters.base import Sample, safetensors_header
from tasks.base import Example
from vdmreason import store

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = sorted(p.parent for p in (ROOT / "adapters" / "zoo").glob("*/config.yaml"))


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VDMREASON_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@cache
def video() -> cogvideox.CogVideoX:
    return cogvideox.load(cogvideox.FLAVOURS["small"], cogvideox.Options())


def codec(grids: list[np.ndarray]) -> list[np.ndarray | None]:
    """Each grid as the answer of a transition, through the shipped VAE and back."""
    samples: list[Sample] = []
    for grid in grids:
        question = np.zeros_like(grid)
        samples.append(video().frame(Example(question, grid, (grid.shape[0], grid.shape[1]))))
    return [answer.grid for answer in video().codec(samples)]


@pytest.mark.parametrize("size", [(1, 1), (1, 30), (3, 3), (5, 17), (8, 8), (13, 13), (21, 21), (30, 30)])
def test_every_colour_comes_back_through_the_shipped_vae(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(size)
    grids = [
        rng.integers(0, 16, size).astype(np.int8) for _ in range(2 if max(size) < 20 else 1)
    ]  # large ones take long
    for grid, read in zip(grids, codec(grids), strict=True):
        assert np.array_equal(grid, read)


@pytest.mark.parametrize("value", range(16))
def test_a_flat_grid_comes_back_through_the_shipped_vae(value: int) -> None:
    grid = np.full((6, 9), value, np.int8)
    assert np.array_equal(codec([grid])[0], grid)


@pytest.mark.parametrize("family", ["cogvideox", "causal_lm", "nextvid", "internvideo_next", "lvmae"])
@pytest.mark.parametrize(
    "name", ["maze/7x7", "life/B3S23", "eca/110", "colour_moves/mirror", "arc1/evaluation/00576224"]
)
def test_the_true_answer_survives_each_arms_codec(family: str, name: str) -> None:
    module = adapters.family(family)
    arm = video() if family == "cogvideox" else module.load(module.FLAVOURS["small"], module.Options())
    examples = tasks.examples(name, "train", 2)
    for example, answer in zip(examples, arm.codec([arm.frame(e) for e in examples]), strict=True):
        assert np.array_equal(answer.grid, example.answer), answer.problem


def test_backbones_and_adapters_stay_small() -> None:
    weights = [p for folder in ("pretrain", "adapters") for p in (ROOT / folder / "zoo").rglob("*.safetensors")]
    assert 2 <= len(weights) and sum(p.stat().st_size for p in weights) < 60e6
    assert not [
        p
        for folder in ("pretrain", "adapters")
        for p in (ROOT / folder / "zoo").rglob("*")
        if p.suffix in {".bin", ".pt", ".pkl"}
    ]


@pytest.mark.parametrize("family", ["cogvideox", "causal_lm", "nextvid", "internvideo_next", "lvmae"])
def test_cards_say_what_a_backbone_is(family: str) -> None:
    text = (ROOT / "pretrain" / "zoo" / family / "README.md").read_text()
    for word in ("pretrained by us", "Command", "minutes", "Machine", "sha256"):
        assert word.lower() in text.lower(), f"the card of {family} does not say: {word}"


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda p: p.name)
def test_shipped_adapters_are_runs(folder: Path) -> None:
    """Config, adapter, answers, scores and card of one run; rescoring the answers gives the scores on the card."""
    run = store.read_config(folder)
    (weights,) = (folder / "adapter").glob("*.safetensors")
    notes = json.loads(safetensors_header(weights)["vdmreason"])
    assert notes["id"] == run.id
    lines = store.read_lines(folder / "predictions.jsonl")
    task = tasks.get(run.task)
    for line in lines:
        example = Example(np.array(line["question"], np.int8), np.array(line["answer"], np.int8), tuple(line["canvas"]))
        proposed = None if line["proposed"] is None else np.array(line["proposed"], np.int8)
        assert task.check(proposed, example).exact == line["exact"]
    result = store.read_json(folder / "result.json") or {}
    assert result["scores"]["exact"]["value"] == pytest.approx(np.mean([line["exact"] for line in lines]))
    assert (folder / "README.md").exists() and result["provenance"]["commit"]
