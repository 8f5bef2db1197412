"""Procedural video and the pretraining of the small CogVideoX: reproducible, resumable, and innocent of the exam."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import begun
import forked
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from pretrain import cogvideox, data, loop
from pretrain.data import FIELDS, MOTIONS, SHAPES, clip, named_rng
from pretrain.stored import sum_of

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


def ruled(cases: np.ndarray, after: np.ndarray, kinds: int) -> tuple[int, ...] | None:
    """What becomes of each of the kinds of cases, -1 where none was met; None where it depends on something else, too."""
    least, most = np.full(kinds, 2), np.full(kinds, -1)
    np.minimum.at(least, cases, after)
    np.maximum.at(most, cases, after)
    return tuple(most) if (least[most >= 0] == most[most >= 0]).all() else None


def test_the_field_rule_is_an_automaton_only_of_the_simplest_kind() -> None:
    """Draws of the weighted sum, on cells of every density: which follow a rule of three cells of a row, and which count their
    eight neighbours alike. The counts are those that `pretrain/data.py` tells."""
    rng = np.random.default_rng(0)
    rows, life, two = Counter[int](), Counter[str](), 0
    for i in range(4000):
        _, step, colours = data._influence(named_rng("influence", i), 8, 8)
        if len(colours) != 2:
            continue
        two += 1
        cells = np.concatenate([(rng.random((12, 48)) < share).astype(int) for share in (0.15, 0.4, 0.65, 0.9)])
        inner, after = cells[1:-1, 1:-1].ravel(), step(cells)[1:-1, 1:-1].ravel()
        three = (4 * cells[1:-1, :-2] + 2 * cells[1:-1, 1:-1] + cells[1:-1, 2:]).ravel()
        if (rule := ruled(three, after, 8)) is not None:
            rows[sum(int(to) << k for k, to in enumerate(rule))] += 1
        count = sum(np.roll(cells, at, (0, 1))[1:-1, 1:-1].ravel() for at in data._AROUND)
        if (rule := ruled(9 * inner + count, after, 18)) is not None:
            born, stays = ("".join(str(n) for n in range(9) if rule[9 * was + n] == 1) for was in (0, 1))
            life[f"B{born}/S{stays}"] += 1
    assert (two, rows.total(), life.total()) == (2691, 184, 194)
    assert (rows[0], rows[204], rows[255]) == (92, 47, 6) and max(rows[k] for k in rows if k not in (0, 204, 255)) <= 5
    assert not {110, 124, 137, 193} & set(rows)
    assert (life["B/S"], life["B/S012345678"]) == (92, 47) and "B12345678/S012345678" in life
    assert not any(name.startswith("B3/") for name in life)


def test_the_corpus_holds_no_automaton_of_the_exam() -> None:
    """Clips of two colours that change once, which the draws above become: none by B3/S23, none row by row by rule 110 or its
    mirror image, whichever colour is taken for alive."""
    met = 0
    for i in range(600):
        c = clip(i)
        if c.labels.get("motion") != "influence" or c.labels["block"] != 8 or c.labels["steps"] != 1:
            continue
        before, after = (c.frames[f, 4::8, 4::8].astype(int) @ (1, 256, 65536) for f in (0, -1))
        values = np.unique(before)
        if len(values) != 2:
            continue
        met += 1
        for colour in values:
            alive = np.pad(before == colour, 1).astype(int)
            inner = alive[1:-1, 1:-1]
            count = sum(np.roll(alive, at, (0, 1))[1:-1, 1:-1] for at in data._AROUND)
            three = 4 * alive[1:-1, :-2] + 2 * inner + alive[1:-1, 2:]
            life = (count == 3) | ((inner == 1) & (count == 2))
            for rule, becomes in (("B3/S23", life), ("110", 110 >> three & 1), ("124", 124 >> three & 1)):
                same = np.array_equal(becomes, after == colour)
                assert not (same and becomes.any()), f"clip {i} follows {rule}"  # a colour may die out by any
    assert met > 25


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


def test_the_first_updates_which_are_slow_are_no_part_of_the_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that goes on with the updates: five seconds for each of the first two, one for the others."""
    now = [0.0]

    def batch(step: int, share: loop.Share) -> dict[str, torch.Tensor]:
        now[0] += 5 if step < 2 else 1
        return _batch(step, share)

    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: now[0]))
    done = loop.fit(_Line(), batch, tmp_path, minutes=1.0)
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["seconds_an_update"] == pytest.approx(1.0) and done["updates"] == plan["updates"] == 60


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


def test_settings_that_came_later_are_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A training that noted none goes on; other files may be meant, and are told of once; what is refused notes nothing."""
    work = tmp_path / "work"
    loop.check_settings(work, {})
    loop.check_settings(work, {"seed": 0})
    with pytest.raises(ValueError, match="holds a training with seed = 0, not 7"):
        loop.check_settings(work, {"seed": 7, "files of its data": "one"})
    loop.check_settings(work, {"seed": 0, "files of its data": "one"})
    assert capsys.readouterr().out == ""
    with pytest.raises(ValueError, match="not 7"):
        loop.check_settings(work, {"seed": 7, "files of its data": "other"})
    for said in (1, 0):
        loop.check_settings(work, {"seed": 0, "files of its data": "other"})
        assert capsys.readouterr().out.count("are others than when it began") == said


def test_what_could_not_be_read_is_kept_with_the_checkpoint(tmp_path: Path) -> None:
    """Of all starts; and told again by a call that has nothing left to do."""

    def fitted(updates: int, bad: dict[str, str]) -> dict[str, str]:
        def batch(step: int, share: loop.Share) -> dict[str, torch.Tensor]:
            if step == updates - 1:
                bad[f"{updates}.mp4"] = "it is empty"
            return _batch(step, share)

        return loop.fit(_Line(), batch, tmp_path, updates=updates, bad=bad)["bad"]

    assert set(fitted(3, {})) == {"3.mp4"}
    kept = tmp_path / "checkpoint" / "loop.json"
    said = json.loads(kept.read_text())
    kept.write_text(json.dumps({key: value for key, value in said.items() if key != "bad"}))
    assert set(fitted(4, {})) == {"4.mp4"}  # a checkpoint from before that was kept goes on
    kept.write_text(json.dumps(json.loads(kept.read_text()) | {"bad": said["bad"]}))
    assert set(fitted(5, {})) == {"3.mp4", "5.mp4"} == set(fitted(5, {}))
    assert "bad" not in loop.fit(_Line(), _batch, tmp_path, updates=5)


_BAD = """
import os, sys, torch
torch.set_num_threads(1)
from pathlib import Path
from pretrain import loop
class Line(torch.nn.Linear):
    def forward(self, x):
        return super().forward(x).square().mean()
def batch(step, share):
    return share.cut({"x": torch.ones(4, 3)})
bad = {f"{os.environ['RANK']}.mp4": "it is empty"}
log = loop.fit(Line(3, 1), batch, Path(sys.argv[1]), updates=3, bad=bad)
assert set(log["bad"]) == {"0.mp4", "1.mp4"}, log
"""


def test_what_other_processes_could_not_read_is_told_too(tmp_path: Path) -> None:
    forked.run(_BAD, str(tmp_path), env={**os.environ, "OMP_NUM_THREADS": "1"}, processes=2)
    assert set(json.loads((tmp_path / "checkpoint" / "loop.json").read_text())["bad"]) == {"0.mp4", "1.mp4"}


def test_two_kills_between_the_renames_lose_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first leaves the old checkpoint alone; the second comes while the next is put in its place."""
    loop.fit(_Line(), _batch, tmp_path, updates=3)
    (tmp_path / "checkpoint").rename(tmp_path / "checkpoint.old")
    rename = Path.rename

    def killed(self: Path, target: Path) -> Path:
        if self.name == "checkpoint.new":
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            loop.fit(_Line(), _batch, tmp_path, updates=5)
    assert loop.begun(tmp_path)
    begun.mark(tmp_path)
    assert loop.fit(_Line(), _batch, tmp_path, updates=5)["updates"] == 5 and begun.went_on(tmp_path)


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


def test_another_seed_or_size_is_refused_before_anything_is_written(pretrained: Path, tmp_path: Path) -> None:
    shutil.copytree(pretrained, tmp_path / "x")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "x").rglob("*") if p.is_file()}
    given = {"updates": 24, "size": "tiny", "clips": 512, "batch": 4}
    for other, said in (({"seed": 1}, "seed = 0, not 1"), ({"size": "small"}, "size = 'tiny', not 'small'")):
        with pytest.raises(ValueError, match=f"holds a training with {said}"):
            cogvideox.pretrain(tmp_path / "x", **{**given, **other})  # type: ignore[arg-type]
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "x").rglob("*") if p.is_file()}


def test_no_transformer_goes_on_above_another_vae(pretrained: Path, tmp_path: Path) -> None:
    """With a larger budget its latents would be another's; and latents lie by the weights that they were made with."""
    shutil.copytree(pretrained, tmp_path / "x")
    with pytest.raises(ValueError, match="has begun its transformer, and with a larger budget"):
        cogvideox.pretrain(tmp_path / "x", updates=60, size="tiny", clips=512, batch=4)
    assert (tmp_path / "x" / "work" / "vae-clips" / "metrics.jsonl").read_text() == (
        pretrained / "work" / "vae-clips" / "metrics.jsonl"
    ).read_text()
    (folder,) = (pretrained / "work" / "latents").iterdir()
    vae = cogvideox.build_vae("tiny")
    loss = cogvideox.VAELoss(vae)
    loss.load_state_dict(load_file(pretrained / "work" / "vae-clips" / "checkpoint" / "model.safetensors"))
    assert folder.name == sum_of(vae)[:16] and [p.name for p in folder.iterdir()] == ["00000.safetensors"]


def test_the_transformer_s_loss_is_made_where_its_weights_are() -> None:
    """On a device that is not the CPU, of which "meta" is one that every machine has, no tensor is left behind."""
    loss = cogvideox.TransformerLoss(cogvideox.build_transformer("tiny")).to("meta")
    z = torch.zeros(2, 4, 4, 8, 8, device="meta")
    made = loss(z, z[:, 0], z, torch.zeros(2, dtype=torch.long, device="meta"))
    assert made.device.type == "meta" and made.shape == ()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_it_trains_on_a_gpu(tmp_path: Path) -> None:
    record = cogvideox.pretrain(tmp_path, updates=24, size="tiny", clips=512, batch=4)
    assert record["transformer"]["updates"] == 18


def test_the_published_layout_loads_in_a_stock_pipeline(pretrained: Path) -> None:
    from diffusers import CogVideoXImageToVideoPipeline

    pipeline = CogVideoXImageToVideoPipeline.from_pretrained(pretrained, text_encoder=None, tokenizer=None)
    assert pipeline.transformer.config.patch_size_t == 2
    record = json.loads((pretrained / "pretrain.json").read_text())
    assert record["transformer"]["updates"] == 18
