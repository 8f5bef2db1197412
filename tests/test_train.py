"""The loop: pure functions of the step, exact resumption, and the same curve on one process or two."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import begun
import fake_family
import forked
import pytest
import torch
from accelerate import DistributedType, FullyShardedDataParallelPlugin, PartialState
from accelerate.state import AcceleratorState
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

import adapters
import tasks
from adapters.base import Arm
from pretrain.loop import processes
from tasks.augment import views
from tasks.base import UserError
from tasks.split import refuse_leak
from vdmreason import config, jobs, predict, store, train
from vdmreason.config import Optim, Run

ROOT = Path(__file__).resolve().parent.parent
REAL = adapters.families()

# Train in another process: our fake families installed, one thread, and slow enough to be killed on the way.
CODE = f"""
import sys, time
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
import torch, fake_family
torch.set_num_threads(1)
fake_family.install()
from vdmreason import config, train
from vdmreason.__main__ import one_line_errors
with one_line_errors():
    train.train(config.load(sys.argv[1]), sys.argv[2], on_step=lambda record: time.sleep(float(sys.argv[3])))
"""
TINY: dict[str, str] = {}  # family -> flavour, where it is not called "tiny"
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


@pytest.fixture(autouse=True, scope="module")
def _families(tmp_path_factory):
    """Our fakes, one thread, and for a backbone that is built on shipped weights a small copy where none ship yet."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with fake_family.installed(), pytest.MonkeyPatch.context() as patch:
        cache = tmp_path_factory.mktemp("cache")
        patch.setenv("VDMREASON_CACHE", str(cache))
        patch.setitem(ENV, "VDMREASON_CACHE", str(cache))
        if "cogvideox" in REAL and not (adapters.family("cogvideox").ZOO / "vae").exists():
            from test_cogvideox import published

            TINY["cogvideox"] = str(published(tmp_path_factory.mktemp("cogvideox")))
        yield
    TINY.clear()
    torch.set_num_threads(threads)


def run_of(family: str = "fake", updates: int = 12, **changes) -> Run:
    """A short run of a family at its tiny flavour (the fakes: small), with dropout so that its seed is tested too."""
    optim = {"updates": updates, "batch": 4, "warmup": 2, "schedule": "cosine", **changes.pop("optim", {})}
    lora = {"dropout": 0.1, **changes.pop("lora", {})}
    flavour = TINY.get(family, "tiny") if family in REAL else "small"
    least = {"task": "life/B3S23", "n": 6, "family": family, "flavour": flavour, "test": 4, "checkpoint_every": 5}
    return config.resolve({**least, "lora": lora, "optim": optim, **changes})


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (path,) = (folder / "adapter").glob("*.safetensors")
    return load_file(path)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def metrics(folder: Path) -> list[dict]:
    return store.read_lines(folder / "metrics.jsonl")


# ---------------------------------------------------------------------------------------------------------------------
# Pure functions


@given(n=st.integers(1, 40), batch=st.integers(1, 50), seed=st.integers(0, 9))
def test_every_epoch_sees_every_example_once(n: int, batch: int, seed: int) -> None:
    stream = [i for step in range(3 + 2 * n // batch) for i in train.indices_at(step, n, batch, seed)]
    for epoch in range(len(stream) // n):
        assert sorted(stream[epoch * n : (epoch + 1) * n]) == list(range(n))


def test_order_depends_on_the_seed_and_the_epoch_only() -> None:
    assert train.indices_at(7, 30, 4, 0) == train.indices_at(7, 30, 4, 0)
    assert train.indices_at(0, 30, 30, 0) != train.indices_at(1, 30, 30, 0) != train.indices_at(1, 30, 30, 1)
    # the same stream whatever the batch
    by_2 = [i for step in range(6) for i in train.indices_at(step, 7, 2, 3)]
    by_3 = [i for step in range(4) for i in train.indices_at(step, 7, 3, 3)]
    assert by_2 == by_3


def test_learning_rate() -> None:
    optim = Optim(lr=1.0, updates=110, warmup=10)
    assert [train.lr_at(s, optim) for s in (0, 4, 9, 10, 109)] == pytest.approx([0.1, 0.5, 1.0, 1.0, 1.0])
    linear, cosine = (Optim(lr=1.0, updates=110, warmup=10, schedule=s) for s in ("linear", "cosine"))
    assert [train.lr_at(s, linear) for s in (10, 60, 109)] == pytest.approx([1.0, 0.5, 0.01])
    assert [train.lr_at(s, cosine) for s in (10, 60)] == pytest.approx([1.0, 0.5])
    assert 0 < train.lr_at(109, cosine) < 0.001
    assert train.lr_at(0, Optim(lr=1.0, updates=3, warmup=0)) == 1.0
    assert train.lr_at(2, Optim(lr=1.0, updates=3, warmup=9)) == pytest.approx(1 / 3)  # a warm-up longer than the run


def test_sample_seeds_differ() -> None:
    seeds = {train.sample_seed(r, s, p) for r in range(5) for s in range(20) for p in range(20)}
    assert len(seeds) == 2000 and all(0 <= seed < 2**63 for seed in seeds)


@given(processes=st.integers(1, 4), share=st.integers(1, 6), micro=st.integers(1, 6))
def test_shares_cut_the_batch_without_gap(processes: int, share: int, micro: int) -> None:
    batch = processes * share
    if share % min(micro, share):
        with pytest.raises(UserError, match=r"optim\.micro_batch"):
            train.shares(batch, micro, 0, processes)
        return
    parts = [part for process in range(processes) for part in train.shares(batch, micro, process, processes)]
    assert [p for part in parts for p in part] == list(range(batch)) and len({len(part) for part in parts}) == 1


def test_a_batch_that_cannot_be_shared() -> None:
    with pytest.raises(UserError, match=r"optim\.batch: 8 examples cannot be shared equally by 3"):
        train.shares(8, None, 0, 3)


# ---------------------------------------------------------------------------------------------------------------------
# One process


def test_it_learns_and_leaves_a_whole_folder(tmp_path) -> None:
    run = run_of(
        updates=150, optim={"batch": 16}, n=100, lora={"dropout": 0.0, "rank": 8}, preview_every=50, previews=2
    )
    seen: list[dict] = []
    train.train(run, tmp_path, on_step=seen.append)
    lines = metrics(tmp_path)
    assert lines == seen and [line["step"] for line in lines] == list(range(1, 151))
    assert sum(r["loss"] for r in lines[-10:]) < 0.5 * sum(r["loss"] for r in lines[:10])
    assert all(math.isfinite(r["grad_norm"]) and r["seconds"] > 0 and r["samples_per_second"] > 0 for r in lines)
    assert [r["step"] for r in lines if "preview_exact" in r] == [50, 100, 150]
    assert len(store.read_lines(tmp_path / "previews" / "step-000000" / "predictions.jsonl")) == 2
    state = store.read_state(tmp_path)
    assert state["state"] == "done" and state["step"] == state["updates"] == 150 and state["eta"] is None
    assert [c.name for c in store.checkpoints(tmp_path)] == ["step-000145", "step-000150"]
    assert store.read_config(tmp_path) == run
    facts = store.read_json(tmp_path / "result.json")["provenance"]
    assert facts["data"] == store.data_hash(tasks.examples(run.task, "train", run.n, run.seed))


def test_a_person_s_own_files_stay(tmp_path) -> None:
    """A config that says this run keeps its comments; a README that is no card of ours is kept; what is no run is refused."""
    run = run_of(updates=2)
    text = f"# mine\n{config.to_yaml(run)}"
    (tmp_path / "config.yaml").write_text(text)
    (tmp_path / "README.md").write_text("# My thesis\n")
    train.train(run, tmp_path)
    assert (tmp_path / "adapter").is_dir() and (tmp_path / "README.md").read_text() == "# My thesis\n"
    assert (tmp_path / "config.yaml").read_text() == text
    (tmp_path / "README.md").unlink()
    predict.predict(tmp_path, indices=[0])
    card = (tmp_path / "README.md").read_text()
    predict.predict(tmp_path, indices=[0, 1])
    assert "vdmreason:" in card and (tmp_path / "README.md").read_text() != card  # ours is of today

    short = tmp_path / "short"  # what it leaves out may be another tomorrow
    short.mkdir()
    (short / "config.yaml").write_text("# mine\ntask: life/B3S23\nn: 3\nfamily: fake\n")
    store.claim(short, config.load(short / "config.yaml", ["optim.micro_batch=1", "note=x"]))
    assert "# mine" not in (short / "config.yaml").read_text() and store.read_config(short).note == "x"

    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "README.md").write_text("theirs")
    with pytest.raises(UserError, match=r"holds README\.md and no run. Name a new folder with --folder"):
        train.train(run, tmp_path / "theirs")
    assert os.listdir(tmp_path / "theirs") == ["README.md"]


def test_what_never_began_is_no_run(tmp_path) -> None:
    """Too many examples, a model that is not here: a report of the folder above must not miss what was never there."""
    for name, run in (
        ("many", run_of(task="maze/7x7", n=100_000)),
        ("none", run_of(family="causal_lm", flavour="./no-such-model")),
    ):
        with pytest.raises(UserError):
            train.train(run, tmp_path / name)
    assert store.find_runs(tmp_path) == []
    begun = run_of(updates=2)
    train.train(begun, tmp_path / "begun", stop=lambda: True)
    with pytest.raises(UserError, match="holds another run"):
        train.train(run_of(task="maze/7x7", n=100_000), tmp_path / "begun")
    assert store.read_config(tmp_path / "begun") == begun


def test_views_of_the_examples_are_learned_from_too(tmp_path, monkeypatch) -> None:
    """Each of the n examples under so many views, and data stays the n examples: both arms still learn from the same."""
    seen = []

    def spy(arm, example):
        seen.append(example)
        return fake_family.frame(example, arm.options)

    monkeypatch.setattr(fake_family.Fake, "frame", spy)
    runs = [run_of(updates=2, augment=count) for count in (1, 4)]
    for run in runs:
        train.train(run, tmp_path / run.id)
    plain, more = seen[: runs[0].n], seen[runs[0].n :]
    assert len(more) == 4 * len(plain)
    task = tasks.get(runs[0].task)
    assert [e.key for e in more[: len(plain)]] == [e.key for e in plain]
    assert len({e.key for e in more}) > 3 * len(plain) and all(task.check(e.answer, e).right for e in more)
    data = [store.read_json(tmp_path / run.id / "result.json")["provenance"]["data"] for run in runs]
    assert data[0] == data[1]


def test_a_view_that_is_a_test_pair_is_not_learned() -> None:
    """arc1/training/4522001f: one demonstration, turned, is the test."""
    run = config.resolve({"task": "arc1/training/4522001f", "family": "fake", "augment": 8})
    learned, tested = ({e.key for e in found} for found in (config.learned_examples(run), config.test_examples(run)))
    task = tasks.get(run.task)
    plain = {e.key for e in config.train_examples(run)}
    every = {view.example(e).key for view in views(task, 8, run.seed) for e in config.train_examples(run)}
    twins = {view.example(e).key for view in views(task, 8, run.seed) for e in config.test_examples(run)}
    assert every & tested and not learned & tested and learned == plain | (every - twins)


def test_killed_while_the_adapter_is_saved_keeps_where_the_numbers_come_from(tmp_path, monkeypatch) -> None:
    run = run_of()

    def killed(self, *_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Arm, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        train.train(run, tmp_path)
    monkeypatch.undo()
    assert store.read_json(tmp_path / "result.json")["provenance"]["run"] == run.id
    train.train(run, tmp_path)
    assert store.whole_folder(tmp_path / "adapter")


def test_the_process_that_trained_answers(tmp_path, monkeypatch) -> None:
    """With the arm at hand; a run that was stopped has nothing to answer with."""
    run, file, folder = run_of(updates=2), tmp_path / "run.yaml", tmp_path / "run"
    file.write_text(config.to_yaml(run))
    monkeypatch.setattr(predict, "load_adapted", lambda *_: pytest.fail("loaded again"))
    folder.mkdir()
    (folder / jobs.STOP).write_text("")
    words = ["--config", str(file), "--folder", str(folder), "--answer"]
    with pytest.raises(SystemExit) as ended:  # no success for a script that goes on from it
        train.main(words)
    assert ended.value.code == 2 and store.read_state(folder)["state"] == "stopped"
    assert len(metrics(folder)) == 1 and not (folder / "predictions.jsonl").exists()
    train.main(words)
    assert len(store.read_lines(folder / "predictions.jsonl")) == run.test
    assert store.read_state(folder)["state"] == "done"


def test_answers_are_part_of_the_job(tmp_path, monkeypatch) -> None:
    """While it answers a run is at work, hears a wish to stop, and goes on where it was; killed, it is no finished run."""
    run, file, folder = run_of(updates=2, test=predict.BATCH + 1), tmp_path / "run.yaml", tmp_path / "run"
    file.write_text(config.to_yaml(run))
    words = ["--config", str(file), "--folder", str(folder), "--answer"]
    seen, answer = [], predict.answer

    def watched(*given):
        seen.append(jobs.status(folder).state)
        (folder / jobs.STOP).write_text("")
        return answer(*given)

    monkeypatch.setattr(predict, "answer", watched)
    with pytest.raises(SystemExit):
        train.main(words)
    assert seen == ["running"] and store.read_state(folder)["state"] == "stopped"
    assert len(store.read_lines(folder / "predictions.jsonl")) == predict.BATCH and not (folder / jobs.STOP).exists()
    monkeypatch.setattr(predict, "answer", answer)
    train.main(words)
    assert len(store.read_lines(folder / "predictions.jsonl")) == run.test
    assert store.read_state(folder)["state"] == "done"


def test_every_sitting_of_a_training_is_written_down(tmp_path, monkeypatch) -> None:
    """What began on uncommitted code and ended on a commit is not the commit's alone; nor are answers that other code gave."""
    run, folder = run_of(updates=4, checkpoint_every=2), tmp_path / "run"
    monkeypatch.setattr(store, "code", lambda: ("a" * 40, True))
    train.train(run, folder, stop=lambda: True)
    assert store.checkpoints(folder)
    monkeypatch.setattr(store, "code", lambda: ("b" * 40, False))
    train.train(run, folder)
    made = store.read_json(folder / "result.json")["provenance"]
    assert [sat["commit"][0] for sat in made["sittings"]] == ["a", "b"] and made["commit"] == "b" * 40 and made["dirty"]
    assert made["published"] is False
    monkeypatch.setattr(store, "code", lambda: ("c" * 40, False))
    predict.predict(folder)
    result = store.read_json(folder / "result.json")
    assert [sat["commit"][0] for sat in result["answered"]] == ["c"] and result["provenance"] == made
    alone = tmp_path / "alone"
    train.train(run, alone)
    assert "sittings" not in store.read_json(alone / "result.json")["provenance"]


def test_done_is_not_done_again(tmp_path) -> None:
    train.train(run_of(updates=3), tmp_path)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    arm = train.train(run_of(updates=3), tmp_path)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    arm.save(tmp_path / "again")
    assert same(weights(tmp_path), load_file(tmp_path / "again" / "adapter_model.safetensors"))


def test_both_arms_see_the_same_examples_in_the_same_order(tmp_path) -> None:
    arms = [train.train(run_of(family, n=5), tmp_path / family) for family in ("fake", "fake_video")]
    assert arms[0].seen == arms[1].seen and len(arms[0].seen) == 12 * 4  # type: ignore[attr-defined]
    hashes = {store.read_json(tmp_path / f / "result.json")["provenance"]["data"] for f in ("fake", "fake_video")}
    assert len(hashes) == 1


def test_micro_batches_change_nothing(tmp_path) -> None:
    plain = {"lora": {"dropout": 0.0}}
    with no_dropout():
        whole = train.train(run_of(**plain, options={"noise": 0.3}), tmp_path / "whole")
        cut = train.train(run_of(**plain, options={"noise": 0.3}, optim={"micro_batch": 1}), tmp_path / "cut")
    assert (whole.collated, cut.collated) == (12, 48)  # type: ignore[attr-defined]
    for a, b in zip(metrics(tmp_path / "whole"), metrics(tmp_path / "cut"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4), a["step"]
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-3)


@contextmanager
def no_dropout() -> Iterator[None]:
    """But for LoRA's, which the run's config sets."""
    fake_family.Net.dropout = 0.0
    try:
        yield
    finally:
        fake_family.Net.dropout = 0.1


def test_stop_and_go_on_is_the_same_run(tmp_path) -> None:
    run = run_of()
    train.train(run, tmp_path / "whole")
    stopped = tmp_path / "stopped"
    train.train(run, stopped, stop=lambda: len(metrics(stopped)) >= 6)
    assert store.read_state(stopped)["state"] == "stopped" and not (stopped / "adapter").exists()
    assert store.checkpoints(stopped)[-1].name == "step-000007"  # asked before update 7 was written, heard with it
    (stopped / "STOP").write_text("")
    train.train(run, stopped)  # the file asks again: one more update, and the wish is used up
    assert store.read_state(stopped)["step"] == 8 and not (stopped / "STOP").exists()
    train.train(run, stopped)
    assert same(weights(tmp_path / "whole"), weights(stopped))
    drop = ("seconds", "samples_per_second")
    lines = [
        [{k: v for k, v in r.items() if k not in drop} for r in metrics(tmp_path / f)] for f in ("whole", "stopped")
    ]
    assert lines[0] == lines[1]


def test_a_run_goes_on_from_one_checkpoint_on_all_machines(tmp_path) -> None:
    """Two processes whose folders are not the same: one would go on where the other begins. Both say so, and nothing is lost."""
    run, config_file = run_of(), tmp_path / "run.yaml"
    config_file.write_text(config.to_yaml(run))
    train.train(run, tmp_path / "run0", stop=lambda: True)
    apart = CODE.replace("sys.argv[2]", "sys.argv[2] + os.environ['RANK']").replace("import sys", "import os, sys", 1)
    started = forked.start(apart, str(config_file), str(tmp_path / "run"), "0", env=ENV, processes=2)
    for process in started:
        assert process.wait() == 2
        assert "is not the same to all processes (steps done: 0, 1)" in process.said()
    assert [c.name for c in store.checkpoints(tmp_path / "run0")] == ["step-000001"]
    assert store.read_config(tmp_path / "run0") == run and len(metrics(tmp_path / "run0")) == 1


WAITS = """
import os
from pathlib import Path
import torch
from transformers.distributed.fsdp import is_fsdp_enabled
from vdmreason import train
train.make_accelerator(None, Path("."))
group = torch.distributed.group.WORLD._get_backend(torch.device("cpu"))
print(is_fsdp_enabled(), group.options._timeout)
"""


def test_processes_load_whole_weights_and_wait_for_one_that_works_alone() -> None:
    """Under what accelerate's launcher exports for FSDP by itself, transformers would load zeros in all but one."""
    env = {**ENV, "ACCELERATE_USE_FSDP": "true", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}
    started = forked.start(WAITS, env=env, processes=2)
    forked.finish(started)
    assert [process.said().splitlines()[-1] for process in started] == ["False 2:00:00"] * 2


def test_one_process_of_fsdp_is_a_plain_training(tmp_path, monkeypatch) -> None:
    """The launch file for sharding with one process: what accelerate says on a GPU, with a group of one."""
    run = run_of(updates=2, optim={"micro_batch": 2})
    train.train(run, tmp_path / "plain")
    train.make_accelerator(None, tmp_path)
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
    for state in (PartialState._shared_state, AcceleratorState._shared_state):
        monkeypatch.setitem(state, "distributed_type", DistributedType.FSDP)
    monkeypatch.setitem(AcceleratorState._shared_state, "fsdp_plugin", plugin)
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        train.train(run, tmp_path / "fsdp")
    finally:
        torch.distributed.destroy_process_group()
    assert same(weights(tmp_path / "plain"), weights(tmp_path / "fsdp"))


def test_another_config_is_refused_and_named(tmp_path) -> None:
    train.train(run_of(updates=2), tmp_path)
    with pytest.raises(UserError, match=r"optim\.lr: 0\.02 -> 0\.5") as caught:
        train.train(run_of(updates=2, optim={"lr": 0.5}), tmp_path)
    assert "optim.updates" not in str(caught.value)
    train.train(run_of(updates=2, note="only a note"), tmp_path)


def test_a_gradient_that_is_no_number_may_be_the_kernel_s(tmp_path) -> None:
    """Where cuDNN attends, how to do without it is said."""
    said = []
    for kernels in (["CUDNN_ATTENTION", "MATH"], ["MATH"]):
        with pytest.raises(UserError, match="the gradient norm is nan at step 3") as caught:
            train.refuse_non_finite(1.0, math.nan, 3, tmp_path, kernels)
        said.append("torch.backends.cuda.enable_cudnn_sdp(False)" in str(caught.value))
    assert said == [True, False]


def test_a_large_backbone_on_a_cpu_is_said_before_it_is_loaded(tmp_path, monkeypatch, capsys) -> None:
    def load(*a: object, **k: object) -> None:
        said.append(capsys.readouterr().err)
        raise UserError("enough")

    said: list[str] = []
    for family, flavour in (("causal_lm", "Qwen/Qwen3-8B"), ("causal_lm", "tiny")):
        monkeypatch.setattr(adapters.family(family), "load", load)
        with pytest.raises(UserError, match="enough"):
            train.train(config.resolve({**config.to_dict(run_of(family)), "flavour": flavour}), tmp_path / flavour)
    assert "may take days" in said[0] and said[1] == ""


def test_previews_let_go_of_what_only_answers_need(tmp_path, monkeypatch) -> None:
    done: list[str] = []
    answer = predict.answer
    monkeypatch.setattr(predict, "answer", lambda *a: (answer(*a), done.append("answered"))[0])
    monkeypatch.setattr(fake_family.Fake, "rest", lambda self: done.append("rested"))
    train.train(run_of(updates=2, preview_every=1, previews=1), tmp_path)
    assert done == ["answered", "rested"] * 3


def test_a_loss_that_is_no_number_stops_and_keeps_the_checkpoint(tmp_path) -> None:
    run = run_of(options={"explode_at": 9})
    with pytest.raises(UserError, match=r"the loss is nan at step 9; step-000005 is kept\. Lower optim\.lr"):
        train.train(run, tmp_path)
    state = store.read_state(tmp_path)
    assert state["state"] == "failed" and "step 9" in state["error"] and len(metrics(tmp_path)) == 8
    kept = load_file(store.checkpoints(tmp_path)[-1] / "lora.safetensors")
    assert all(torch.isfinite(value).all() for value in kept.values())


@pytest.mark.parametrize("file", ["lora.safetensors", "optimizer.safetensors", "trainer.json"])
def test_a_damaged_checkpoint_is_one_line(tmp_path, file: str) -> None:
    run = run_of()
    train.train(run, tmp_path, stop=lambda: len(metrics(tmp_path)) >= 6)
    path = store.checkpoints(tmp_path)[-1] / file
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"step-000007: is damaged .* to go on from step-000005") as caught:
        train.train(run, tmp_path)
    assert "\n" not in str(caught.value)


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path, monkeypatch) -> None:
    import errno

    run, replace = run_of(), os.replace

    def full(source, target):
        if "step-000010" in str(target):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match="disk is full"):
        train.train(run, tmp_path)
    monkeypatch.undo()
    assert [c.name for c in store.checkpoints(tmp_path)] == ["step-000005"]
    assert store.read_state(tmp_path)["state"] == "failed"
    train.train(run, tmp_path)
    train.train(run, tmp_path / "whole")
    assert same(weights(tmp_path), weights(tmp_path / "whole"))


def test_bf16_computes_and_keeps_fp32_weights(tmp_path) -> None:
    train.train(run_of(updates=2, precision="bf16"), tmp_path)
    assert {value.dtype for value in weights(tmp_path).values()} == {torch.float32}
    assert all(math.isfinite(r["loss"]) for r in metrics(tmp_path))


def test_previews_do_not_change_the_training(tmp_path) -> None:
    train.train(run_of(), tmp_path / "without")
    train.train(run_of(preview_every=3, previews=2), tmp_path / "with")
    assert same(weights(tmp_path / "without"), weights(tmp_path / "with"))


def test_a_checkpoint_asked_for_stays_and_goes_on_to_the_same_weights(tmp_path) -> None:
    """SAVE and PREVIEW are heard after the step, once, and change nothing; the checkpoint outlives later ones."""
    run = run_of(updates=22)
    train.train(run, tmp_path / "whole")
    asked = tmp_path / "asked"

    def ask(record: dict) -> None:
        if record["step"] == 3:
            jobs.ask(asked, jobs.SAVE)
        if record["step"] == 8:
            jobs.ask(asked, jobs.PREVIEW)

    train.train(run, asked, on_step=ask, stop=lambda: len(metrics(asked)) >= 20)
    # 4: asked for; 15, 20: the last two that were due, and one for the stop; 5 and 10 made room
    assert [c.name[-2:] for c in store.checkpoints(asked)] == ["04", "20", "21"]
    assert [path.name for path in (asked / "previews").iterdir()] == ["step-000009"]
    assert [line["step"] for line in metrics(asked) if "preview_exact" in line] == [9]
    assert not (asked / jobs.SAVE).exists() and not (asked / jobs.PREVIEW).exists()
    with pytest.raises(UserError, match="is not running"):
        jobs.ask(asked, jobs.SAVE)

    assert store.go_back(asked, 4) == ["step-000020", "step-000021"]
    assert [c.name for c in store.checkpoints(asked)] == ["step-000004"]
    train.train(run, asked)
    assert [line["step"] for line in metrics(asked)] == list(range(1, 23))
    assert same(weights(tmp_path / "whole"), weights(asked))


# ---------------------------------------------------------------------------------------------------------------------
# Real families, real processes, real kills


@pytest.mark.parametrize("family", REAL)
def test_sigkill_at_a_random_step_changes_no_bit(tmp_path, family: str) -> None:
    updates = 14
    run = run_of(family, updates=updates, checkpoint_every=2)
    config_file, killed, whole = tmp_path / "run.yaml", tmp_path / "killed", tmp_path / "whole"
    config_file.write_text(config.to_yaml(run))
    step = random.randint(3, 6)  # there is a checkpoint
    process = forked.Process(CODE, str(config_file), str(killed), "0.05", env=ENV)
    deadline = time.monotonic() + 120
    while len(metrics(killed)) < step:
        assert process.poll() is None and time.monotonic() < deadline, process.said()
        time.sleep(0.01)
    time.sleep(random.random() * 0.25)  # some updates, in which every moment is as likely
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (killed / "adapter").exists(), "killed too late"

    begun.mark(killed)
    train.train(run, killed)
    assert begun.went_on(killed)
    train.train(run, whole)
    assert same(weights(killed), weights(whole)), f"killed at step {step}"
    assert [r["loss"] for r in metrics(killed)] == [r["loss"] for r in metrics(whole)]
    assert [r["step"] for r in metrics(killed)] == list(range(1, updates + 1))


def test_one_that_was_to_be_many_says_so(tmp_path, monkeypatch) -> None:
    """accelerate's launcher starts one process on a CPU, whatever it is asked for."""
    script = tmp_path / "one.py"
    script.write_text(CODE)
    config_file = tmp_path / "run.yaml"
    config_file.write_text(config.to_yaml(run_of(updates=2)))
    words = "--cpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no".split()
    words += ["--main_process_port", str(forked.free_port()), str(script), str(config_file), str(tmp_path / "run"), "0"]
    launch = [sys.executable, "-m", "accelerate.commands.launch", *words]
    done = subprocess.run(launch, env=ENV, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0 and "torchrun --nproc-per-node 2 -m vdmreason.train" in done.stderr
    assert "train.py" not in done.stderr and not (tmp_path / "run" / "metrics.jsonl").exists()
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    monkeypatch.setenv("MASTER_PORT", "29500")
    with pytest.raises(ValueError, match="torchrun --nproc-per-node 2"):
        processes()


@pytest.mark.parametrize("family", REAL)
def test_two_processes_give_the_curve_of_one(tmp_path, family: str) -> None:
    # fp32 sums in another order, and Adam's first steps divide by them: tiny differences are all that is allowed
    run = run_of(family, updates=6, lora={"dropout": 0.0}, optim={"schedule": "constant", "lr": 1e-3, "batch": 4})
    config_file = tmp_path / "run.yaml"
    config_file.write_text(config.to_yaml(run))
    # What is kept, such as latents, the two have to make themselves.
    env = {**ENV, "VDMREASON_CACHE": str(tmp_path / "cache")}
    forked.run(CODE, str(config_file), str(tmp_path / "two"), "0", env=env, processes=2)
    train.train(run, tmp_path / "one")
    one, two = metrics(tmp_path / "one"), metrics(tmp_path / "two")
    assert [r["step"] for r in two] == list(range(1, 7))  # written once, by one process
    for a, b in zip(one, two, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=2e-4), a["step"]
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=2e-3), a["step"]


def test_what_one_of_two_processes_hears_both_do(tmp_path) -> None:
    """A STOP that reaches one of them alone, as a launcher's SIGTERM may: both end after the same update, with a checkpoint, and
    go on from there. So with a checkpoint that was asked for."""
    run = run_of(updates=60, checkpoint_every=1000, lora={"dropout": 0.0})
    config_file, folder = tmp_path / "run.yaml", tmp_path / "run"
    config_file.write_text(config.to_yaml(run))
    started = forked.start(CODE, str(config_file), str(folder), "0.05", env=ENV, processes=2)
    wait_for(lambda: len(metrics(folder)) > 2, started[0])
    (folder / jobs.SAVE).write_text("")
    wait_for(lambda: not (folder / jobs.SAVE).exists(), started[0])
    os.kill(started[1].pid, signal.SIGTERM)  # the one that writes nothing down
    forked.finish(started)
    state = store.read_state(folder)
    asked, ended = (int(path.name.removeprefix("step-")) for path in store.checkpoints(folder))
    assert state["state"] == "stopped" and asked < ended == state["step"] == len(metrics(folder)) < 60
    forked.run(CODE, str(config_file), str(folder), "0", env=ENV, processes=2)
    forked.run(CODE, str(config_file), str(tmp_path / "through"), "0", env=ENV, processes=2)
    assert [r["step"] for r in metrics(folder)] == list(range(1, 61))
    again, through = weights(folder), weights(tmp_path / "through")
    assert all(torch.equal(again[name], through[name]) for name in through)


def wait_for(seen: Callable[[], bool], process: forked.Process) -> None:
    for _ in range(1200):
        if seen():
            return
        assert process.poll() is None, process.said()
        time.sleep(0.05)
    raise TimeoutError(process.said())


@pytest.mark.parametrize("family", REAL)
def test_only_lora_learns_and_the_sample_list_is_shared(tmp_path, family: str) -> None:
    run = run_of(family, updates=2)
    arm = train.load_arm(run, "cpu")
    frozen = {k: v.clone() for k, v in arm.model.state_dict().items() if "lora_" not in k}
    assert all("lora_" in name for name in arm.trainable())
    after = train.train(run, tmp_path).model.state_dict()
    assert all(torch.equal(after[k], v) for k, v in frozen.items())
    data = store.read_json(tmp_path / "result.json")["provenance"]["data"]
    assert data == store.data_hash(tasks.examples("life/B3S23", "train", 6, 0))


@pytest.mark.parametrize("family", REAL)
def test_an_adapter_refuses_other_weights_of_its_backbone(tmp_path, family: str) -> None:
    """Shapes fit, numbers would come out, and they would be wrong. In another precision it is the same backbone."""
    run = run_of(family, updates=1)
    arm = train.train(run, tmp_path)
    again = train.load_arm(run, "cpu")
    assert again.backbone == arm.backbone == store.read_json(tmp_path / "result.json")["provenance"]["backbone"]
    assert train.load_arm(config.resolve({**config.to_dict(run), "precision": "bf16"}), "cpu").backbone == arm.backbone
    again.restore(tmp_path / "adapter")

    def other_weights(*a: object, **k: object) -> object:
        made = module.load(*a, **k)
        with torch.no_grad():
            next(made.model.parameters()).view(-1)[0] += 1
        return made

    module = adapters.family(family)
    again = other_weights(adapters.base.flavour(module, run.flavour), run.arm_options(), seed=run.seed)
    again.attach(run.lora, run.seed)
    with pytest.raises(UserError, match="other weights"):
        again.restore(tmp_path / "adapter")


def test_a_puzzle_whose_test_is_among_its_demos_is_refused(tmp_path) -> None:
    pair, other = ({"input": [[v, 0, 1]], "output": [[1, 0, v]]} for v in (2, 3))
    file = tmp_path / "leaky.json"
    file.write_text(json.dumps({"train": [other, pair], "test": [pair]}))
    leaky = {**config.to_dict(run_of()), "task": f"arc:{file}", "n": 2, "test": 1}
    with pytest.raises(UserError, match="test pair 0 is also training pair 1"):
        train.train(config.resolve(leaky), tmp_path / "run")
    assert not (tmp_path / "run" / "adapter").exists()


@pytest.mark.parametrize("finished", [False, True])
def test_a_puzzle_that_changes_under_a_run_is_refused(tmp_path, finished: bool) -> None:
    """What was learned stays what it was, and putting the file back goes on."""
    file = tmp_path / "mine.json"

    def puzzle(*values: int) -> str:
        test, *demos = ({"input": [[v, 0, 1]], "output": [[1, 0, v]]} for v in (9, *values))
        return json.dumps({"train": demos, "test": [test]})

    file.write_text(puzzle(2, 3))
    run = config.resolve({**config.to_dict(run_of(updates=4)), "task": f"arc:{file}", "n": 2, "test": 1})
    train.train(run, tmp_path / "run", stop=None if finished else lambda: True)
    learned = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    file.write_text(puzzle(2, 5))
    with pytest.raises(UserError, match="learned from other examples"):
        train.train(run, tmp_path / "run")
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == learned
    if finished:
        for ask in (predict.predict, lambda folder: predict.asked_otherwise(folder, ["votes=2"], tmp_path / "voting")):
            with pytest.raises(UserError, match="learned from other examples"):
                ask(tmp_path / "run")
        assert not (tmp_path / "run" / "predictions.jsonl").exists() and not (tmp_path / "voting").exists()
    file.write_text(puzzle(2, 3))
    train.train(run, tmp_path / "run")
    assert store.read_state(tmp_path / "run")["state"] == "done"


@pytest.mark.parametrize("family", REAL)
def test_a_checkpoint_refuses_other_weights_of_its_backbone(tmp_path, monkeypatch, family: str) -> None:
    run, module = run_of(family, updates=2), adapters.family(family)
    train.train(run, tmp_path, stop=lambda: True)
    load = module.load

    def other_weights(*a: object, **k: object) -> object:
        made = load(*a, **k)
        with torch.no_grad():
            next(made.model.parameters()).view(-1)[0] += 1
        return made

    monkeypatch.setattr(module, "load", other_weights)
    with pytest.raises(UserError, match="other weights of this backbone"):
        train.train(run, tmp_path)


def test_no_arc_puzzle_leaks_into_itself_and_many_into_each_other() -> None:
    """The number that the guard exists for, counted: puzzles of one set whose test pairs another set trains on."""
    trained = {
        example.key
        for name in tasks.variants("arc2/training")
        for split in ("train", "test")
        for example in tasks.get(name).stock(split) or ()
    }
    leaking = 0
    for name in tasks.variants("arc1/evaluation"):
        task = tasks.get(name)
        refuse_leak(task.stock("train"), task.stock("test"))
        leaking += all(example.key in trained for example in task.stock("test"))
    assert leaking == 376


def test_trackers_are_optional_and_named(tmp_path) -> None:
    with pytest.raises(UserError, match="Did you mean 'wandb'"):
        train.train(run_of(), tmp_path, report_to="wandbb")
    import importlib.util

    if importlib.util.find_spec("wandb") is None:
        with pytest.raises(UserError, match="pip install wandb"):
            train.train(run_of(), tmp_path, report_to="wandb")


def test_main_is_the_same_loop(tmp_path) -> None:
    config_file, folder = tmp_path / "run.yaml", tmp_path / "run"
    config_file.write_text(json.dumps({"task": "life/B3S23", "n": 3, "family": "fake"}))
    train.main(
        ["--config", str(config_file), "--folder", str(folder), "--set", "optim.updates=2", "--set", "optim.batch=2"]
    )
    assert store.read_state(folder)["state"] == "done" and len(metrics(folder)) == 2
    with pytest.raises(SystemExit) as caught:
        train.main(["--config", str(config_file), "--folder", str(folder), "--set", "optim.udpates=2"])
    assert caught.value.code == 2
