"""Procedural video and the pretraining of the small CogVideoX: reproducible, resumable, and innocent of the exam."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import begun
import forked
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain import cogvideox, loop
from pretrain.data import FIELDS, MOTIONS, SHAPES, clip

ROOT = Path(__file__).resolve().parents[1]


def test_a_clip_is_a_function_of_its_number() -> None:
    for i in range(8):
        one, two = clip(i, 3), clip(i, 3)
        assert np.array_equal(one.frames, two.frames) and one.labels == two.labels
    assert not np.array_equal(clip(1, 0).frames, clip(0, 1).frames)  # seed + i would make these the same


@settings(max_examples=60, deadline=None)
@given(i=st.integers(0, 10**9), rows=st.integers(1, 16), columns=st.integers(1, 16), frames=st.sampled_from([1, 9, 17]))
def test_every_size_can_be_made(i: int, rows: int, columns: int, frames: int) -> None:
    made = clip(i, 0, frames, (8 * rows, 8 * columns))
    assert made.frames.shape == (frames, 8 * rows, 8 * columns, 3) and made.frames.dtype == np.uint8


def test_labels_say_what_is_there() -> None:
    clips = [clip(i) for i in range(400)]
    sprites = [c.labels for c in clips if c.labels["world"] == "sprites"]
    fields = [c.labels for c in clips if c.labels["world"] == "fields"]
    assert {s for labels in sprites for s in labels["shapes"]} == set(SHAPES)
    assert {m for labels in sprites for m in labels["motions"]} == set(MOTIONS)
    assert {labels["motion"] for labels in fields} == set(FIELDS)
    for labels in sprites:
        assert len(labels["positions"][0]) == len(labels["shapes"]) == len(labels["depth_order"])


def test_most_clips_move() -> None:
    moving = sum(not np.array_equal(c.frames[0], c.frames[-1]) for c in (clip(i) for i in range(200)))
    assert moving > 130


def test_the_corpus_holds_no_automaton_of_the_exam() -> None:
    """No two-colour field obeys any Life-like rule: among cells in the same state with the same number of live
    neighbours, some live and some die, or the field does not decide enough cases to be a rule."""
    for i in range(300):
        c = clip(i)
        if c.labels.get("motion") != "influence" or c.labels["block"] != 8 or c.labels["timing"] != "cut":
            continue
        before, after = (c.frames[f, 4::8, 4::8].astype(int) @ (1, 256, 65536) for f in (0, -1))
        values = np.unique(before)
        if len(values) != 2 or c.labels["steps"] != 1:
            continue
        alive = np.pad(before == values[1], 1).astype(int)
        count = sum(np.roll(alive, (dy, dx), (0, 1)) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx)[1:-1, 1:-1]
        cases = list(zip(before.ravel(), count.ravel(), after.ravel(), strict=True))
        outcomes: dict[tuple[int, int], set[int]] = {}
        for state, n, result in cases:
            outcomes.setdefault((state, n), set()).add(result)
        decided = sum(len(o) == 1 for o in outcomes.values())
        if decided == len(outcomes) and len(outcomes) > 12 and len(set(after.ravel())) == 2:
            pytest.fail(f"clip {i} follows a totalistic rule in all {len(outcomes)} cases")


def test_pretraining_imports_nothing_of_the_exam() -> None:
    for name in ("data", "cogvideox", "loop"):
        text = (ROOT / "pretrain" / f"{name}.py").read_text()
        assert "from tasks" not in text and "import tasks" not in text and "adapters" not in text


class _Line(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.layer(x) - x.sum(1, keepdim=True)).square().mean()


def _batch(step: int, share: loop.Share) -> dict[str, torch.Tensor]:
    return {"x": torch.randn(8, 3, generator=torch.Generator().manual_seed(step))}


def test_fit_learns_and_a_second_call_adds_nothing(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = _Line()
    first = loop.fit(module, _batch, tmp_path, updates=150, schedule=loop.trapezoid(0.05, 5))
    assert first["loss"] < 0.05 and len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 150
    weights = module.layer.weight.clone()
    assert loop.fit(_Line(), _batch, tmp_path, updates=150, schedule=loop.trapezoid(0.05, 5))["updates"] == 150
    loop.fit(module, _batch, tmp_path, updates=150, schedule=loop.trapezoid(0.05, 5))
    assert torch.equal(module.layer.weight, weights)
    (tmp_path / "metrics.jsonl").write_text("")  # lost: its end is still told
    assert loop.fit(module, _batch, tmp_path, updates=150, schedule=loop.trapezoid(0.05, 5))["updates"] == 150


def test_what_was_measured_is_not_written_anew_at_every_start(tmp_path: Path) -> None:
    """A kill between a truncation and the writing would lose all of it."""
    loop.fit(_Line(), _batch, tmp_path, updates=5)
    lines = tmp_path / "metrics.jsonl"
    before = lines.stat()
    loop.fit(_Line(), _batch, tmp_path, updates=5)
    assert lines.stat() == before
    lines.write_text(lines.read_text() + '{"step": 6, "lo')
    loop.fit(_Line(), _batch, tmp_path, updates=5)
    assert len(lines.read_text().splitlines()) == 5 and not list(tmp_path.glob("*.tmp"))


def test_a_budget_in_minutes_becomes_a_plan_that_is_kept(tmp_path: Path) -> None:
    loop.fit(_Line(), _batch, tmp_path, minutes=0.02, schedule=loop.trapezoid(0.05))
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["updates"] >= loop.TIMED_UPDATES and plan["minutes"] == 0.02
    assert (
        loop.fit(_Line(), _batch, tmp_path, minutes=0.02, schedule=loop.trapezoid(0.05))["updates"] == plan["updates"]
    )


def test_another_budget_in_the_same_folder_is_planned_anew(tmp_path: Path) -> None:
    first = loop.fit(_Line(), _batch, tmp_path, minutes=0.01, schedule=loop.trapezoid(0.05))
    plan = json.loads((tmp_path / "plan.json").read_text())
    more = loop.fit(_Line(), _batch, tmp_path, minutes=0.02, schedule=loop.trapezoid(0.05))
    assert more["updates"] == int(0.02 * 60 / plan["seconds_an_update"]) >= first["updates"]


def test_a_folder_of_other_settings_is_refused(tmp_path: Path) -> None:
    loop.fit(_Line(), _batch, tmp_path / "work", updates=3, settings={"seed": 0, "size": "tiny"})
    loop.fit(_Line(), _batch, tmp_path / "work", updates=4, settings={"seed": 0, "size": "tiny"})
    with pytest.raises(ValueError, match="holds a training with seed = 0, not 7"):
        loop.fit(_Line(), _batch, tmp_path / "work", updates=4, settings={"seed": 7, "size": "tiny"})


def test_what_a_module_draws_for_itself_is_drawn_again(tmp_path: Path) -> None:
    """Stopped after any update and gone on with, by a process whose random numbers stand elsewhere: the same weights."""

    class Dropping(_Line):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(torch.nn.functional.dropout(x, 0.5))

    def fitted(folder: str, updates: int) -> torch.Tensor:
        torch.manual_seed(0)
        module = Dropping()
        torch.rand(updates)
        loop.fit(module, _batch, tmp_path / folder, updates=updates, schedule=loop.trapezoid(0.05, 5, decay=0.0))
        return module.layer.weight.detach().clone()

    whole = fitted("whole", 12)
    assert not torch.equal(fitted("parts", 5), whole) and torch.equal(fitted("parts", 12), whole)


def test_batches_made_ahead_are_the_same(tmp_path: Path) -> None:
    weights = []
    for ahead in (False, True):
        torch.manual_seed(0)
        module = _Line()
        loop.fit(module, _batch, tmp_path / str(ahead), updates=12, ahead=ahead)
        weights.append(module.layer.weight)
    assert torch.equal(*weights)

    def fails(step: int, share: loop.Share) -> dict[str, torch.Tensor]:
        if step == 3:
            raise ValueError("no more")
        return _batch(step, share)

    with pytest.raises(ValueError, match="no more"):
        loop.fit(_Line(), fails, tmp_path / "fails", updates=12, ahead=True)
    assert len((tmp_path / "fails" / "metrics.jsonl").read_text().splitlines()) == 3


def test_an_update_that_is_no_number_is_skipped_and_counted(tmp_path: Path) -> None:
    """The weights are those of a run that never saw the bad batch; and twenty in a row stop the run."""

    def batch(step: int, share: loop.Share) -> dict[str, torch.Tensor]:
        return {"x": torch.full((1, 3), float("nan"))} if step in (3, 7) else _batch(step, share)

    torch.manual_seed(0)
    module = _Line()
    assert loop.fit(module, batch, tmp_path / "a", updates=10, schedule=lambda s, u: {"": 0.05})["skipped"] == 2
    lines = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["norm"] is None] == [4, 8] and lines[-1]["skipped"] == 2
    torch.manual_seed(0)
    other, good = _Line(), [s for s in range(10) if s not in (3, 7)]
    loop.fit(
        other,
        lambda step, share: _batch(good[step], share),
        tmp_path / "b",
        updates=8,
        schedule=lambda s, u: {"": 0.05},
    )
    assert torch.equal(module.layer.weight, other.layer.weight)
    with pytest.raises(FloatingPointError, match="step 25"):
        loop.fit(
            _Line(), lambda s, _: {"x": torch.full((1, 3), float("nan") if s > 5 else 1.0)}, tmp_path / "c", updates=90
        )


_SCRIPT = """
import sys, torch
torch.set_num_threads(1)
from pathlib import Path
from pretrain import loop
loop.fit.__kwdefaults__["checkpoint_minutes"] = 0.0  # after every update
from pretrain.cogvideox import pretrain
pretrain(Path(sys.argv[1]), updates=24, size="tiny", clips=512, batch=4)
"""


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    forked.run(_SCRIPT, str(out), env=os.environ)
    return out


def test_a_killed_pretraining_resumes_to_the_same_weights(pretrained: Path, tmp_path: Path) -> None:
    process = forked.Process(_SCRIPT, str(tmp_path), env=os.environ)
    metrics = tmp_path / "work" / "transformer" / "metrics.jsonl"
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and not (metrics.exists() and len(metrics.read_text().splitlines()) >= 7):
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    begun.mark(tmp_path)
    forked.run(_SCRIPT, str(tmp_path), env=os.environ)
    assert begun.went_on(tmp_path)
    assert cogvideox.weights_hash(tmp_path) == cogvideox.weights_hash(pretrained)


def test_the_published_layout_loads_in_a_stock_pipeline(pretrained: Path) -> None:
    from diffusers import CogVideoXImageToVideoPipeline

    pipeline = CogVideoXImageToVideoPipeline.from_pretrained(pretrained, text_encoder=None, tokenizer=None)
    assert pipeline.transformer.config.patch_size_t == 2
    record = json.loads((pretrained / "pretrain.json").read_text())
    assert record["transformer"]["updates"] == 18
