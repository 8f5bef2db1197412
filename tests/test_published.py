"""The same questions to every family, of a checkpoint in its published layout: shards, text encoder, tokenizer, at tiny size."""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import adapters
import tasks
from adapters.base import Flavour, Lora
from tasks.base import Example, UserError

# family, which of its published kinds, and the options that its size of patch wants
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "cogvideox-1.5": ("cogvideox", "1.5", {"style": "video-16", "steps": 2}),
    "cogvideox-1.0": ("cogvideox", "1.0", {"style": "video-16", "steps": 2, "canvas": (4, 6)}),
    "wan-2.1": ("wan", "2.1", {"style": "video-16", "steps": 2}),
    "wan-2.2": ("wan", "2.2", {"style": "video-16", "steps": 2}),
    "wan-2.2-5b": ("wan", "5B", {"style": "video-32", "steps": 2}),
    "ltx": ("ltx", "image", {"style": "video-32", "steps": 2}),
    "ltx-13b": ("ltx", "condition", {"style": "video-32", "steps": 2}),
    "qwen3": ("causal_lm", "qwen3", {"max_new_tokens": 12}),
    "llama": ("causal_lm", "llama", {"max_new_tokens": 12}),
    "gemma3": ("vlm", "gemma3", {"max_new_tokens": 12}),
    "qwen-vl": ("vlm", "qwen", {"max_new_tokens": 12}),
}
LORA = Lora(rank=2, alpha=3)


@pytest.fixture(autouse=True, scope="module")
def _alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VDMREASON_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
    torch.set_num_threads(threads)


class Case:
    """A family, a checkpoint of it, and examples that fit what it can see."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, (family, kind, self.options) = name, CASES[name]
        self.module: ModuleType = adapters.family(family)
        importlib.import_module(f"test_{family}").published(folder, kind)
        self.folder = folder
        rows, cols = self.options.get("canvas", (4, 4))
        self.examples = [
            Example(e.question[:rows, :cols], e.answer[:rows, :cols], (rows, cols))
            for e in tasks.examples("colour_moves/shift", "train", 4)
        ]

    def load(self, folder: Path | None = None, lora: Lora | None = LORA, **options: Any) -> Any:
        base = str(folder or self.folder)
        arm = self.module.load(Flavour(base, base, ""), self.module.Options(**{**self.options, **options}))
        if lora:
            arm.attach(lora, 0)
        return arm


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(request.param, tmp_path_factory.mktemp(request.param))


def stirred(arm: Any) -> Any:
    """Its LoRA drawn, so that it says something."""
    generator = torch.Generator().manual_seed(3)
    for p in arm.trainable().values():
        torch.nn.init.normal_(p, std=0.2, generator=generator)
    return arm


def loss_of(arm: Any, examples: list[Example], seeds: list[int]) -> torch.Tensor:
    return arm.loss(arm.collate([arm.frame(e) for e in examples], seeds))


def test_only_the_lora_learns_and_it_learns(case: Case) -> None:
    arm = case.load()
    frozen = {k: v.clone() for k, v in arm.model.state_dict().items() if "lora_" not in k}
    assert arm.trainable() and all("lora_" in name for name in arm.trainable())
    optimizer = torch.optim.Adam(arm.trainable().values(), lr=2e-2)
    losses = []
    for _ in range(12):
        loss = loss_of(arm, case.examples[:2], [1, 2])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    after = arm.model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in frozen.items())


def test_what_is_given_knows_nothing_of_the_answer_nor_its_size(case: Case) -> None:
    arm = case.load(lora=None)
    example = case.examples[0]
    other = Example(example.question, np.full((2, 3), 7, np.int8), example.canvas)
    one, two = arm.frame(example).given, arm.frame(other).given
    assert type(one) is type(two)
    for key, value in vars(one).items():
        assert np.array_equal(value, vars(two)[key]), key


def test_a_batch_is_the_mean_of_its_halves(case: Case) -> None:
    arm = stirred(case.load())
    whole = loss_of(arm, case.examples, [1, 2, 3, 4])
    halves = [loss_of(arm, case.examples[i : i + 2], [i + 1, i + 2]) for i in (0, 2)]
    assert whole.item() == pytest.approx(sum(half.item() for half in halves) / 2, rel=1e-4)


def test_saved_and_restored_it_answers_the_same(case: Case, tmp_path: Path) -> None:
    arm = stirred(case.load())
    givens = [arm.frame(e).given for e in case.examples[:2]]
    before = arm.predict(givens, [5, 6])
    arm.save(tmp_path)
    assert not [p for p in tmp_path.rglob("*") if p.suffix in (".bin", ".pt", ".pth", ".pkl", ".ckpt")]
    again = case.load()
    again.restore(tmp_path)
    for one, two in zip(before, again.predict(givens, [5, 6]), strict=True):
        assert np.array_equal(one.raw, two.raw) if isinstance(one.raw, np.ndarray) else one.raw == two.raw
        assert one.problem == two.problem
    with pytest.raises(UserError, match="another backbone, rank or set of layers"):
        case.load(lora=Lora(rank=3)).restore(tmp_path)


def test_the_lora_comes_off_again(case: Case) -> None:
    arm = case.load(lora=None)
    before = {k: v.clone() for k, v in arm.model.state_dict().items()}
    arm.attach(LORA, 1)
    arm.detach()
    after = arm.model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(after[k], v) for k, v in before.items())


def shards(folder: Path) -> list[Path]:
    """Weights of the model that learns: what is named by an index, else the largest file."""
    parts = sorted(folder.rglob("*-of-*.safetensors"))
    return parts or sorted(folder.rglob("*.safetensors"), key=lambda p: -p.stat().st_size)[:1]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder, shard: shard.unlink(), "missing"),
        (lambda folder, shard: shard.write_bytes(shard.read_bytes()[:-40]), "cut off"),
        (lambda folder, shard: shard.write_bytes(b""), "cut off"),
        (lambda folder, shard: (shard.parent / "config.json").write_text("{"), "no JSON"),
    ],
    ids=["missing", "truncated", "empty", "config"],
)
def test_an_incomplete_checkpoint_is_one_line_that_names_the_file(
    case: Case, tmp_path: Path, spoil: Callable[[Path, Path], Any], said: str
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(case.folder, broken)
    shard = shards(broken)[-1]
    spoil(broken, shard)
    with pytest.raises(UserError, match=said) as caught:
        case.load(broken)
    assert "\n" not in str(caught.value) and (shard.name in str(caught.value) or "config.json" in str(caught.value))


def test_another_familys_checkpoint_is_one_line(case: Case, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A language model where a video model is wanted, and the other way round."""
    other = "qwen3" if case.module.ARM == "video" else "cogvideox-1.5"
    stranger = Case(other, tmp_path_factory.mktemp("stranger"))
    with pytest.raises(UserError) as caught:
        case.load(stranger.folder)
    assert "\n" not in str(caught.value)
