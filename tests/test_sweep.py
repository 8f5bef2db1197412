"""Sweeps: every trial once, whatever is killed; what goes wrong is seen, and counts for nothing."""

from __future__ import annotations

import errno
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import fake_family
import psutil
import pytest
import torch
import yaml

import adapters
from tasks.base import Unreachable, UserError
from vdmreason import config, evaluate, jobs, launchers, speed, store, sweep, train
from vdmreason.sweep import claims, commands, driver, worker

ROOT = Path(__file__).resolve().parent.parent
PROTOCOLS = sorted((ROOT / "protocols").glob("*.yaml"))
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
SMALL = {
    "name": "little",
    "tasks": ["life/B3S23", "eca/110"],
    "n": [3, 6],
    "seeds": [0, 1],
    "arms": {"video": {"family": "fake_video"}, "language": {"family": "fake"}},
    "set": {"test": 3, "optim": {"updates": 4, "batch": 2}, "lora.rank": 2},
}


@pytest.fixture(autouse=True, scope="module")
def _families():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with fake_family.installed():
        yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(worker, "PAUSE", 0.0)
    monkeypatch.setattr(store, "code", lambda: ("0" * 40, False))  # asks git
    monkeypatch.setattr(store, "_sync", lambda path: None)  # waits for the disk


def written(folder: Path, **changes) -> Path:
    """SMALL with changes (None takes a key out), as a file."""
    sheet = {k: v for k, v in {**SMALL, **changes}.items() if v is not None}
    path = folder / "sheet.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(sheet, sort_keys=False))
    return path


def planned(tmp_path: Path, **changes) -> Path:
    """A sweep's folder with its plan, and nothing done."""
    sweep.write_plan(tmp_path / "sweep", sweep.read(written(tmp_path, **changes)))
    return tmp_path / "sweep"


ONE = {"tasks": ["life/B3S23"], "n": [3], "seeds": [0], "arms": {"language": {"family": "fake"}}}
THREE = {**ONE, "seeds": [0, 1, 2]}


def states(folder: Path) -> dict[str, int]:
    return dict(Counter(s.state for s in sweep.look(folder)))


def places(folder: Path) -> list[Path]:
    return [folder / entry["folder"] for entry in sweep.read_plan(folder)["trials"]]


def outcome(folder: Path) -> dict[str, tuple]:
    """What a sweep found, without when and how fast."""
    found = {}
    for place in places(folder):
        answers = [
            {k: v for k, v in a.items() if k != "seconds"} for a in store.read_lines(place / "predictions.jsonl")
        ]
        result = store.read_json(place / "result.json")
        result.pop("seconds_per_answer")
        for key in ("date", "command"):
            result["provenance"].pop(key)
        losses = [(m["step"], m["loss"]) for m in store.read_lines(place / "metrics.jsonl")]
        found[place.name] = (answers, result, losses)
    return found


def in_process(folder: Path):
    """A launcher whose worker is this process, for the driver's own doings."""

    class Here:
        workers, deaths, hopeless = 1, 0, False

        def tend(self, wanted: int) -> None:
            if wanted:
                sweep.work(folder, "here")

        def alive(self) -> int:
            return 0

        def stop(self, hard: bool = False) -> None: ...

        def why(self) -> str:
            return ""

    return lambda driver: Here()


def started(monkeypatch) -> list[str]:
    """The ids of trials whose training is started from now on, in order."""
    ids: list[str] = []
    real = train.train

    def counting(run, *rest, **more):
        ids.append(run.id)
        return real(run, *rest, **more)

    monkeypatch.setattr(train, "train", counting)
    return ids


# ---------------------------------------------------------------------------------------------------------------------
# The file


def test_a_file_is_its_axes(tmp_path) -> None:
    found = sweep.read(written(tmp_path, controls=["random"], axes={"lora.alpha": [2, 4]}))
    assert len(found.trials) == 2 * 2 * 2 * 2 * 2 * 2
    for trial in found.trials:
        run = trial.run
        assert run.init == (trial.control or "pretrained") and run.lora.alpha == trial.set["lora.alpha"]
        assert run.lora.rank == 2 and run.optim.updates == 4 and run.test == 3
        assert trial.folder == f"trials/{run.name}"
        assert config.resolve(json.loads(json.dumps(trial.entry()))["config"]).id == run.id == trial.entry()["id"]
    assert len({trial.run.id for trial in found.trials}) == len(found.trials)


def test_a_file_that_asks_for_too_much_is_refused_before_any_trial_is_made(tmp_path) -> None:
    numbers = [*range(1, 3000)]
    sheet = written(tmp_path, n=numbers, seeds=numbers, axes={"lora.rank": numbers, "optim.updates": numbers})
    with pytest.raises(UserError, match="asks for more than 100 trials"):
        sweep.read(sheet, most=100)
    assert len(sweep.read(written(tmp_path), most=16).trials) == 16


def test_an_arm_may_have_axes_of_its_own(tmp_path) -> None:
    arms = {"a": {"family": "fake"}, "b": {"family": "fake_video", "n": [3], "controls": [], "seeds": [7]}}
    found = sweep.read(written(tmp_path, arms=arms, controls=["random"])).trials
    assert {(t.run.n, t.run.seed, t.control) for t in found if t.arm == "b"} == {(3, 7, "")}
    assert len([t for t in found if t.arm == "a"]) == 2 * 2 * 2 * 2


def test_scales_lie_over_the_file(tmp_path) -> None:
    scales = {"small": {"n": [3], "set": {"test": 1}}, "paper": {"tasks": ["life/B3S23"], "axes": {"votes": [1, 2]}}}
    path = written(tmp_path, scales=scales)
    small, paper = sweep.read(path, "small"), sweep.read(path, "paper")
    assert {(t.run.n, t.run.test, t.run.optim.updates) for t in small.trials} == {(3, 1, 4)}
    assert {(t.run.task, t.run.votes) for t in paper.trials} == {("life/B3S23", 1), ("life/B3S23", 2)}
    assert small.folder.name == "little-small" and paper.folder.name == "little-paper"
    with pytest.raises(UserError, match="has the scales small, paper; say which"):
        sweep.read(path)
    with pytest.raises(UserError, match="Did you mean 'small'"):
        sweep.read(path, "smal")


@pytest.mark.parametrize(
    "changes, complaint",
    [
        ({"taks": ["maze/7x7"]}, "taks: unknown key. Did you mean 'tasks'"),
        ({"arms": {"a": {"famly": "fake"}}}, "arms.a.famly: unknown key. Did you mean 'family'"),
        ({"set": {"optim": {"udpates": 3}}}, "udpates: unknown key. Did you mean 'updates'"),
        ({"set": {"tets": 3}}, "set.tets: unknown key. Did you mean 'test'"),
        ({"axes": {"lora.rnk": [1]}}, "lora.rnk: unknown key. Did you mean 'rank'"),
        ({"axes": {"lora.rank": 1}}, "axes.lora.rank: must be a list"),
        ({"axes": {"seed": [1]}}, "axes.seed: is an axis of its own; write seeds"),
        ({"n": ["three"]}, "n: must hold whole numbers"),
        ({"seeds": 1}, "seeds: must be a list"),
        ({"controls": ["randm"]}, "unknown 'randm'. Did you mean 'random'"),
        ({"tasks": ["maze/8x"]}, "maze"),
        ({"tasks": None}, "tasks: is missing"),
        ({"arms": None}, "arms: is missing"),
        ({"name": None}, "name: is missing"),
        ({"tasks": [{"sample": 500, "of": "arc1/evaluation"}]}, "has 400 tasks, not 500"),
        ({"scales": {"small": {"naem": 3}}}, "scales.small.naem: unknown key"),
        ({"scales": {1: {}}}, "--scale small: unknown"),
        ({"name": ".."}, "names no folder"),
        (
            {"arms": {"a": {"family": "fake"}, "b": {"family": "fake", "speed": {"compile": "off"}}}},
            "arms.b: is the same run as arms.a",
        ),
        ({"axes": {"note": ["x", "y"]}}, "note y: is the same run as arms.video, note x"),
    ],
)
def test_a_fault_of_the_file_is_one_line(tmp_path, changes, complaint) -> None:
    path = written(tmp_path, **changes)
    with pytest.raises(UserError) as caught:
        sweep.read(path, "small" if "scales" in changes else "")
    assert complaint in str(caught.value) and "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_an_empty_key_of_an_arm_is_the_file_s(tmp_path) -> None:
    path = written(tmp_path, arms={"a": {"family": "fake", "tasks": None, "n": None}})
    assert {(t.run.task, t.run.n) for t in sweep.read(path).trials} == {
        (t, n) for t in SMALL["tasks"] for n in SMALL["n"]
    }


def test_what_cannot_exist_is_left_out_and_told(tmp_path, capsys) -> None:
    path = written(tmp_path, tasks=["arc1/evaluation/00576224", "life/B3S23"], n=[2, 5], set={"optim.updates": 4})
    found = sweep.read(path)
    assert sum(found.left_out.values()) == 2 * 2  # the puzzle has two demonstrations
    assert {t.run.n for t in found.trials if t.run.task.startswith("arc1")} == {2}
    sweep.run_sweep(found, tmp_path / "sweep", in_process(tmp_path), dry_run=True)
    out = capsys.readouterr().out
    assert "4 that cannot exist" in out and not (tmp_path / "sweep").exists()
    with pytest.raises(UserError, match="no trial that can exist"):
        sweep.read(written(tmp_path, tasks=["arc1/evaluation/00576224"], n=[5], set=None))


def test_a_sample_is_named_by_its_hash_and_grows(tmp_path) -> None:
    def chosen(number: int) -> set[str]:
        found = sweep.read(
            written(
                tmp_path, **{**ONE, "tasks": [{"sample": number, "of": "arc1/evaluation"}], "n": ["all"], "set": None}
            )
        )
        assert str(number) in found.samples[0]
        return {t.run.task for t in found.trials}

    few, more = chosen(5), chosen(20)
    assert few < more and len(few) == 5 and len(more) == 20


def test_cheap_first_and_seed_by_seed(tmp_path) -> None:
    trials = sweep.read(written(tmp_path, controls=["random"], axes={"optim.updates": [8, 2]}, set={"test": 1})).trials
    cost = [(t.run.optim.updates * t.run.optim.batch, t.run.n) for t in trials]
    assert cost == sorted(cost)
    for point in set(cost):
        tied = [t for t, c in zip(trials, cost, strict=True) if c == point]
        assert [t.run.seed for t in tied] == sorted(t.run.seed for t in tied)
        half = tied[: len(tied) // 2]  # the first seed, with every arm and task
        assert len({(t.arm, t.control, t.run.task) for t in half}) == len(half) == len(tied) // 2


@pytest.mark.parametrize("scale", ["small", "paper"])
@pytest.mark.parametrize("path", PROTOCOLS, ids=lambda path: path.stem)
def test_every_protocol_resolves(path: Path, scale: str) -> None:
    found = sweep.read(path, scale)
    given = yaml.safe_load(path.read_text())
    wanted = {**given, **given["scales"][scale]}
    assert {t.arm for t in found.trials} == set(wanted["arms"]) and not found.left_out
    by_point: dict[object, set[object]] = {}
    for trial in found.trials:  # arms of one point get the same budget, which is also what the report calls out
        run = trial.run
        asked = tuple(trial.set.get(name) for name in ("optim.updates", "optim.batch", "lora.rank"))
        key = (run.task, run.n, run.seed, *asked)
        budget = (run.optim.updates, run.optim.batch, run.test, run.augment, run.votes, run.lora.rank, run.lora.targets)
        by_point.setdefault(key, set()).add(budget)
    assert all(len(shares) == 1 for shares in by_point.values())


# ---------------------------------------------------------------------------------------------------------------------
# Claims


def dead_process() -> dict[str, object]:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    created = psutil.Process(process.pid).create_time()
    process.kill()
    process.wait()
    return {**claims.identity(), "pid": process.pid, "created": created, "token": "dead", "driver": "d"}


def test_a_disk_that_gives_no_answer_takes_no_claim_away(tmp_path, monkeypatch) -> None:
    mine = claims.claim(tmp_path / "trial")
    read = Path.read_text

    def stale(path, *given, **named):
        if path.name == claims.CLAIM:
            raise OSError(errno.ESTALE, "stale")
        return read(path, *given, **named)

    monkeypatch.setattr(claims, "BEAT", 0.01)
    with mine.beating():
        monkeypatch.setattr(Path, "read_text", stale)
        time.sleep(0.2)
        assert not mine.lost
        monkeypatch.setattr(Path, "read_text", read)
        mine.path.write_text(json.dumps({"token": "another's"}))
        deadline = time.monotonic() + 10
        while not mine.lost:
            assert time.monotonic() < deadline


def test_one_claim_for_one_trial(tmp_path) -> None:
    mine = sweep.claim(tmp_path)
    assert mine and mine.mine() and sweep.claim(tmp_path) is None
    mine.release()
    assert not (tmp_path / sweep.CLAIM).exists() and sweep.claim(tmp_path)


def test_a_dead_owner_here_and_a_silent_one_elsewhere(tmp_path) -> None:
    path = tmp_path / sweep.CLAIM
    store.write_json(path, dead_process())
    taken = sweep.claim(tmp_path, "d")
    assert taken and taken.record["vanished"] == 1 and sweep.claim(tmp_path, "d") is None
    elsewhere = {**claims.identity(), "host": "another", "token": "x"}
    store.write_json(path, elsewhere)
    assert sweep.claim(tmp_path) is None
    assert not taken.mine()
    taken.release()  # is not its own any more, and stays
    assert path.exists()
    long_ago = time.time() - 2 * claims.STALE
    os.utime(path, (long_ago, long_ago))
    assert sweep.claim(tmp_path)


def test_a_torn_claim_is_nobodys_after_a_while(tmp_path) -> None:
    path = tmp_path / sweep.CLAIM
    path.touch()
    assert sweep.claim(tmp_path) is None
    os.utime(path, (1e9, 1e9))
    assert sweep.claim(tmp_path)


def test_a_heart_beats_while_the_work_goes_on(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(claims, "BEAT", 0.02)
    mine = sweep.claim(tmp_path)
    assert mine
    os.utime(mine.path, (1e9, 1e9))
    with mine.beating():
        deadline = time.monotonic() + 10
        while mine.path.stat().st_mtime < 2e9 and time.monotonic() < deadline and mine.path.stat().st_mtime == 1e9:
            time.sleep(0.01)
        assert mine.path.stat().st_mtime > 1e9 and not mine.lost
        store.write_json(mine.path, {**mine.record, "token": "another's"})
        while not mine.lost:
            assert time.monotonic() < deadline
            time.sleep(0.01)


# ---------------------------------------------------------------------------------------------------------------------
# To the end, and a changed file


def test_done_and_only_once(tmp_path, monkeypatch, capsys) -> None:
    path, folder, ids = written(tmp_path), tmp_path / "sweep", started(monkeypatch)
    run = lambda: sweep.run_sweep(sweep.read(path), folder, in_process(folder))  # noqa: E731
    run()
    assert states(folder) == {"done": 16} and len(ids) == len(set(ids)) == 16
    for place in places(folder):
        done = store.read_json(place / sweep.DONE)
        assert done["sha256"] == sweep.hashes(place) and done["versions"]["torch"] and done["seconds"] > 0
        assert not (place / sweep.CLAIM).exists() and not (place / "checkpoints").exists()
        assert store.read_json(place / "result.json")["complete"]
    assert (folder / sweep.SHEET).read_text() == path.read_text()
    run()
    assert len(ids) == 16
    assert "done 16" in capsys.readouterr().out

    # A changed file adds what is new; what it has no more is kept, and marked.
    gone = {e["id"] for e in sweep.read_plan(folder)["trials"] if e["n"] == 6}
    path = written(tmp_path, n=[3, 4])
    run = lambda: sweep.run_sweep(sweep.read(path), folder, in_process(folder))  # noqa: E731
    run()
    assert len(ids) == len(set(ids)) == 16 + 8
    plan = sweep.read_plan(folder)
    assert set(plan["dropped"]) == gone and states(folder) == {"done": 16}
    assert len(list((folder / "trials").iterdir())) == 24
    out = capsys.readouterr().out
    assert "8: in an earlier version of the file" in out and "from the 8 finished here" in out
    path = written(tmp_path)
    run = lambda: sweep.run_sweep(sweep.read(path), folder, in_process(folder))  # noqa: E731
    run()
    assert len(ids) == 24 and not set(sweep.read_plan(folder)["dropped"]) & gone


def test_a_warm_worker_gives_what_a_cold_run_gives(tmp_path) -> None:
    """The backbone stays loaded between trials; a trial's result does not depend on what came before it."""
    folder = planned(tmp_path, controls=["random"])
    sweep.work(folder)
    entry = sweep.read_plan(folder)["trials"][-1]
    alone = tmp_path / "alone"
    from vdmreason.predict import predict

    train.train(config.resolve(entry["config"]), alone)
    predict(alone)

    def answers(where: Path) -> list[dict]:
        return [{k: v for k, v in a.items() if k != "seconds"} for a in store.read_lines(where / "predictions.jsonl")]

    assert answers(alone) == answers(folder / entry["folder"])


def test_trials_that_only_ask_otherwise_share_one_training(tmp_path, monkeypatch) -> None:
    """And have the answers of a training of their own."""
    asked = {**ONE, "seeds": [0, 1], "axes": {"votes": [1, 2], "test": [2, 3]}}
    folder = planned(tmp_path, **asked)
    assert sweep.work(folder) == 8 and states(folder) == {"done": 8}
    entries = sweep.read_plan(folder)["trials"]
    assert len({entry["training"] for entry in entries}) == 2
    trained = [entry for entry in entries if (folder / entry["folder"] / "metrics.jsonl").exists()]
    assert sorted(entry["seed"] for entry in trained) == [0, 1]
    shared = outcome(folder)
    monkeypatch.setattr(worker, "_borrow", lambda *given: None)
    alone = planned(tmp_path / "alone", **asked)
    sweep.work(alone)
    for name, (answers, result, losses) in outcome(alone).items():
        assert losses and answers == shared[name][0] and result["scores"] == shared[name][1]["scores"]


def test_of_two_that_claim_at_once_what_one_training_serves_one_waits(tmp_path, monkeypatch) -> None:
    """Between the look at a trial's twins and its claim another worker may have claimed one of them."""
    folder = planned(tmp_path, **ONE, axes={"votes": [1, 2]})
    found: list[worker.Claim] = []

    def beaten(place: Path, driver: str = "") -> worker.Claim | None:
        if not found:
            found.append(claims.claim(next(other for other in places(folder) if other != place)))
        return claims.claim(place, driver)

    monkeypatch.setattr(worker, "claim", beaten)
    assert worker._next(folder, set(), "", "") == "wait"
    assert [sweep.standing(folder, entry).state for entry in sweep.read_plan(folder)["trials"]].count("running") == 1
    found[0].release()
    taken = worker._next(folder, set(), "", "")
    assert isinstance(taken, tuple) and taken[1].record["token"] != found[0].record["token"]


def test_parts_on_machines_that_share_no_disk_are_the_whole(tmp_path) -> None:
    """Copies of a folder, each with a worker for its part: every trial is done in one of them, and no training in two."""
    asked = {**ONE, "seeds": [0, 1, 2, 3], "axes": {"votes": [1, 2]}}
    whole = planned(tmp_path / "whole", **asked)
    sweep.work(whole)
    together, trainings = planned(tmp_path / "together", **asked), []
    for k in (1, 2, 3):
        folder = planned(tmp_path / str(k), **asked)
        done = sweep.work(folder, part=(k, 3))
        mine = [s.entry for s in sweep.look(folder) if s.state == "done"]
        assert len(mine) == done
        trainings += {entry["training"] for entry in mine}
        for entry in mine:
            shutil.copytree(folder / entry["folder"], together / entry["folder"])
    assert len(trainings) == len(set(trainings)) == 4
    assert states(together) == {"done": 8} and outcome(together) == outcome(whole)


@pytest.mark.parametrize("part", ["0/3", "4/3", "2", "a/b", "-1/2", "1/0"])
def test_a_part_that_is_none_is_one_line(tmp_path, part: str) -> None:
    folder = planned(tmp_path, **ONE)
    with pytest.raises(UserError, match="say which of how many, such as 2/3"):
        commands.worker_command(folder, part=part)


def test_a_file_that_asks_for_more_tests_trains_nothing_again(tmp_path) -> None:
    folder = planned(tmp_path, **ONE)
    assert sweep.work(folder) == 1
    (old,) = sweep.read_plan(folder)["trials"]
    sweep.write_plan(folder, sweep.read(written(tmp_path, **ONE, set={**SMALL["set"], "test": 5})))
    assert sweep.work(folder) == 1
    (new,) = sweep.read_plan(folder)["trials"]
    assert new["id"] != old["id"] and not (folder / new["folder"] / "metrics.jsonl").exists()
    first, more = (store.read_lines(folder / e["folder"] / "predictions.jsonl") for e in (old, new))
    assert len(more) == 5 and [a["proposed"] for a in more[:3]] == [a["proposed"] for a in first]
    sweep.write_plan(folder, sweep.read(written(tmp_path, **ONE, set={**SMALL["set"], "optim.updates": 5})))
    assert sweep.work(folder) == 1  # another training is made
    (other,) = sweep.read_plan(folder)["trials"]
    assert (folder / other["folder"] / "metrics.jsonl").exists()


def test_a_stop_that_comes_as_a_job_begins_is_heard(tmp_path, monkeypatch) -> None:
    """`jobs.start` clears what an earlier job left; what is there when the driver looks was meant for it."""
    folder = planned(tmp_path)
    found = sweep.read(written(tmp_path))
    monkeypatch.setenv(jobs.IN_JOB, str(folder.resolve()))
    (folder / jobs.STOP).write_text("")
    with pytest.raises(jobs.Stopped):
        driver.run_sweep(found, folder, lambda name: launchers.Local(folder, 1, [], name))
    assert not any(place.exists() for place in places(folder))
    assert store.read_state(folder)["state"] == "stopped"


def test_what_belongs_to_a_training_parts_it() -> None:
    def training(**changes) -> str:
        return config.resolve({"task": "life/B3S23", "n": 3, "family": "cogvideox", **changes}).training_id

    assert training() == training(votes=4, test=7, far_from=30, options={"steps": 1})
    assert (
        training(augment=2) == training(augment=2, votes=4) != training(augment=2, test=7)
    )  # views that are tests are left out
    for changes in ({"n": 4}, {"seed": 1}, {"init": "random"}, {"lora": {"rank": 2}}, {"options": {"shift": 2.0}}):
        assert training(**changes) != training()


def test_nobody_trains_what_another_is_training(tmp_path, monkeypatch) -> None:
    """The second of two workers waits for the adapter; where the first is lost, it trains."""
    folder = planned(tmp_path, **ONE, axes={"votes": [1, 2]})
    first, second = sweep.read_plan(folder)["trials"]
    theirs = sweep.claim(folder / first["folder"], "other")
    waits = []

    def lost(seconds: float, wish: worker.Wish) -> None:
        waits.append(states(folder))
        theirs.release()

    monkeypatch.setattr(worker, "_pause", lost)
    ids = started(monkeypatch)
    assert sweep.work(folder) == 2 and waits == [{"running": 1, "waiting": 1}]
    assert ids == [first["id"], second["id"]] and not (folder / second["folder"] / "metrics.jsonl").exists()


def test_a_lent_adapter_says_nothing_of_how_long_training_takes(tmp_path) -> None:
    folder = planned(tmp_path, **{**ONE, "n": [3, 6]}, axes={"votes": [1, 2]})
    sweep.work(folder)
    now = sweep.look(folder)
    every, ones = sweep.Forecast(folder), sweep.Forecast(folder)
    every.learn(now)
    ones.learn(s for s in now if s.entry["set"] == {"votes": 1})
    run = now[0].entry["config"]
    learning = [f.seconds(run) - f.seconds(run, trained=False) for f in (every, ones)]
    assert learning[0] == pytest.approx(learning[1]) and learning[0] > 0
    new = {**now[0].entry, "training": "another"}
    assert every.total([new, new])[0] == pytest.approx(every.seconds(run) + every.seconds(run, trained=False))


def test_a_task_s_own_trials_say_how_long_it_takes(tmp_path) -> None:
    """Where one is finished; another task's mean is the best that is known before."""
    folder = planned(tmp_path, **{**ONE, "tasks": ["life/B3S23", "eca/110", "maze/7x7"]})
    sweep.work(folder, part=(1, 3))
    sweep.work(folder, part=(2, 3))
    now = sweep.look(folder)
    for standing, seconds in zip((s for s in now if s.state == "done"), (40.0, 400.0), strict=True):
        path = folder / standing.entry["folder"] / sweep.DONE
        store.write_json(path, {**store.read_json(path), "training": seconds, "answering": 0.0, "seconds": seconds})
    forecast = sweep.Forecast(folder)
    forecast.learn(now)
    told = {s.entry["task"]: forecast.seconds(s.entry["config"]) for s in now}
    known = [told[s.entry["task"]] for s in now if s.state == "done"]
    (unknown,) = [told[s.entry["task"]] for s in now if s.state != "done"]
    assert known == pytest.approx([40, 400]) and unknown == pytest.approx(220)


def test_the_last_trial_is_one_worker_s(tmp_path) -> None:
    folder = planned(tmp_path, **{**ONE, "n": [3, 6]})
    sweep.work(folder)
    now = sweep.look(folder)
    forecast = sweep.Forecast(folder)
    forecast.learn(now)
    new = [{**s.entry, "training": f"another {i}"} for i, s in enumerate(now)]
    each = [forecast.seconds(entry["config"]) for entry in new]
    assert forecast.total(new[:1], 8)[0] == pytest.approx(each[0])
    assert forecast.total(new, 8)[0] == pytest.approx(max(each)) and forecast.total(new, 1)[0] == pytest.approx(
        sum(each)
    )
    assert forecast.total(new * 10, 2)[0] < sum(each) * 10 / 2  # one training of each, the rest ask its adapter
    assert forecast.guess(new, 1) == pytest.approx(sum(each)) and sweep.Forecast(folder).guess(new) is None
    strange = {**new[0], "config": {**new[0]["config"], "family": "fake_video"}, "training": "strange"}
    assert forecast.total([strange]) == (0.0, {"fake_video small"}) and forecast.guess([strange]) == pytest.approx(
        each[0], rel=0.5
    )


def test_one_folder_one_sweep(tmp_path) -> None:
    folder = planned(tmp_path)
    with pytest.raises(UserError, match="holds the sweep little"):
        sweep.write_plan(folder, sweep.read(written(tmp_path, name="other")))
    with pytest.raises(UserError, match="not a sweep's folder"):
        sweep.look(tmp_path)


def test_stop_and_go_on(tmp_path) -> None:
    folder = planned(tmp_path, **THREE)
    assert sweep.cancel(folder) == 0
    with pytest.raises(jobs.Stopped):
        sweep.work(folder)
    assert "cancelled" in "\n".join(sweep.status_lines(folder)) and states(folder) == {"waiting": 3}
    sweep.run_sweep(sweep.read(tmp_path / "sheet.yaml"), folder, in_process(folder))
    assert states(folder) == {"done": 3}


def test_a_stop_in_a_training_leaves_a_checkpoint(tmp_path, monkeypatch) -> None:
    folder = planned(tmp_path, **{**ONE, "set": {"test": 2, "optim": {"updates": 30, "batch": 2}}})
    real = train._loop

    def stopping(*given):
        return real(*given[:-1], lambda record: sweep.cancel(folder) if record["step"] == 5 else None)

    monkeypatch.setattr(train, "_loop", stopping)
    with pytest.raises(jobs.Stopped):
        sweep.work(folder)
    (place,) = places(folder)
    assert [c.name for c in store.checkpoints(place)] == ["step-000006"]  # it asks before it tells
    assert states(folder) == {"stopped": 1}
    monkeypatch.setattr(train, "_loop", real)
    (folder / jobs.STOP).unlink()
    assert sweep.work(folder) == 1
    assert [m["step"] for m in store.read_lines(place / "metrics.jsonl")] == list(range(1, 31))


# ---------------------------------------------------------------------------------------------------------------------
# What goes wrong


def test_a_trial_that_raises_is_kept_with_its_log(tmp_path) -> None:
    arms = {"good": {"family": "fake"}, "bad": {"family": "fake", "options": {"explode_at": 3}}}
    path, folder = written(tmp_path, **{**ONE, "arms": arms}), tmp_path / "sweep"
    with pytest.raises(UserError, match=r"1 done, 1 failed.*at step 3"):
        sweep.run_sweep(sweep.read(path), folder, in_process(folder))
    assert states(folder) == {"done": 1, "failed": 1}
    (place,) = [folder / e["folder"] for e in sweep.read_plan(folder)["trials"] if e["arm"] == "bad"]
    failed = store.read_json(place / sweep.FAILED)
    assert failed["attempts"] == 1 and failed["final"] and not failed["machine"] and "Traceback" in failed["log"]
    assert not (place / sweep.DONE).exists()
    assert any("failed" in line and "at step 3" in line for line in sweep.status_lines(folder))
    assert sweep.work(folder) == 0  # not by itself
    with pytest.raises(UserError, match="1 failed"):
        sweep.run_sweep(sweep.read(path), folder, in_process(folder), retry_failed=True)
    assert (place / "failed-1.json").exists() and states(folder) == {"done": 1, "failed": 1}


def test_a_full_disk_is_tried_again_and_then_ends_the_worker(tmp_path, monkeypatch) -> None:
    folder, ids = planned(tmp_path, **THREE), started(monkeypatch)
    replace = os.replace

    def full(source, target):
        if "/adapter" in str(target) and "trials" in str(target):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(worker.DiskFull, match="disk is full"):
        sweep.work(folder)
    assert len(ids) == 1 + worker.RETRIES and states(folder) == {"failed": 1, "waiting": 2}
    assert any("disk is full" in line for line in sweep.status_lines(folder))
    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(UserError, match="2 done, 1 failed"):
        sweep.run_sweep(sweep.read(tmp_path / "sheet.yaml"), folder, in_process(folder))
    sweep.run_sweep(sweep.read(tmp_path / "sheet.yaml"), folder, in_process(folder), retry_failed=True)
    assert states(folder) == {"done": 3}


def test_out_of_memory_once_is_tried_again(tmp_path, monkeypatch) -> None:
    folder, real, tries = planned(tmp_path, **ONE), train.train, []

    def once(*given, **more):
        tries.append(1)
        if len(tries) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(*given, **more)

    monkeypatch.setattr(train, "train", once)
    assert sweep.work(folder) == 1 and len(tries) == 2 and states(folder) == {"done": 1}
    assert not (places(folder)[0] / sweep.FAILED).exists()


def test_a_vanished_worker_is_seen_and_its_trial_done_by_another(tmp_path) -> None:
    folder = planned(tmp_path, **THREE)
    first, second, _ = places(folder)
    store.write_json(first / sweep.CLAIM, dead_process())
    store.write_json(second / sweep.CLAIM, {**dead_process(), "vanished": worker.RETRIES})
    assert states(folder) == {"lost": 2, "waiting": 1}
    assert sum("is gone" in line for line in sweep.status_lines(folder)) == 2
    assert sweep.work(folder, "d") == 2
    assert states(folder) == {"done": 2, "failed": 1}
    assert "vanished 3 times" in store.read_json(second / sweep.FAILED)["error"]


@pytest.mark.parametrize("file", sweep.VOUCHED)
@pytest.mark.parametrize("how", ["changed", "torn", "gone"])
def test_a_corrupted_result_does_not_count_and_is_made_anew(tmp_path, file: str, how: str) -> None:
    folder = planned(tmp_path, **ONE)
    sweep.work(folder)
    (place,) = places(folder)
    before = outcome(folder)
    path = place / file
    if how == "changed":
        path.write_text(path.read_text().replace("0", "1", 1))
    elif how == "torn":
        path.write_text(path.read_text()[:40])
    else:
        path.unlink()
    assert states(folder) == {"damaged": 1} and not sweep.is_done(place)
    assert any("damaged" in line for line in sweep.status_lines(folder))
    with pytest.raises(UserError, match="1 damaged"):
        driver.verdict(folder)
    sweep.run_sweep(sweep.read(tmp_path / "sheet.yaml"), folder, in_process(folder))
    assert states(folder) == {"done": 1} and outcome(folder) == before


def test_answers_scored_anew_need_no_new_training(tmp_path, monkeypatch) -> None:
    folder = planned(tmp_path, **ONE)
    sweep.work(folder)
    (place,) = places(folder)
    assert evaluate.evaluate(place) and states(folder) == {"done": 1}  # by the same rules: the same file
    result = store.read_json(place / "result.json")
    store.write_json(place / "result.json", {**result, "scores": {}})
    monkeypatch.setattr(train, "_loop", lambda *given: pytest.fail("trained again"))
    monkeypatch.setattr("vdmreason.predict.answer", lambda *given: pytest.fail("asked again"))
    sweep.run_sweep(sweep.read(tmp_path / "sheet.yaml"), folder, in_process(folder))
    assert states(folder) == {"done": 1} and store.read_json(place / "result.json")["scores"] == result["scores"]


def test_a_plan_that_this_code_reads_otherwise(tmp_path) -> None:
    folder = planned(tmp_path, **ONE)
    plan = sweep.read_plan(folder)
    plan["trials"][0]["id"] = "0" * 12
    store.write_json(folder / sweep.PLAN, plan)
    with pytest.raises(worker.Unfit, match="Run the sweep's file again"):
        sweep.work(folder)
    assert states(folder) == {"waiting": 1}  # it is no trial's fault, and a worker with the plan's code can do it


def test_a_worker_without_a_library_leaves_the_trials_to_others(tmp_path, monkeypatch) -> None:
    folder = planned(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr("vdmreason.predict.predict", lambda *a, **k: importlib.import_module("no_such_library"))
        with pytest.raises(worker.Unfit, match="no_such_library"):
            sweep.work(folder)
    assert set(states(folder)) <= {"waiting", "stopped"}
    assert sweep.work(folder) == len(sweep.read_plan(folder)["trials"])


@pytest.mark.parametrize(
    "asked", [lambda: adapters.base.Lazy("no_such_library").x, lambda: speed.quantise(None, "nf4", None)]
)
def test_nor_does_one_whose_library_is_named_in_a_line(tmp_path, monkeypatch, asked) -> None:
    """What says in one line what to install is still no trial's fault."""
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    folder = planned(tmp_path)
    monkeypatch.setattr("vdmreason.predict.predict", lambda *a, **k: asked())
    with pytest.raises(worker.Unfit, match="pip install"):
        sweep.work(folder)
    assert set(states(folder)) <= {"waiting", "stopped"}


def test_what_another_process_holds_or_the_network_does_not_give_is_tried_again(tmp_path) -> None:
    held = store.Held(f"{tmp_path}: another process is working there. Wait for it, or stop it first.")
    for error, counted in ((held, 0), (Unreachable("'a/b' is not on this machine"), 1)):  # a wait is no try
        failed = worker._failure(tmp_path, error)
        assert failed["machine"] and not failed["final"] and failed["attempts"] == counted
    assert worker._failure(tmp_path, UserError("no such task"))["final"]


def test_a_trial_that_is_held_holds_up_no_other(tmp_path, monkeypatch) -> None:
    """Somebody answers the first trial by hand: the others are done meanwhile, and it when that is over."""
    monkeypatch.setattr(worker, "PAUSE", 0.3)
    folder = planned(tmp_path, tasks=["life/B3S23"], n=[3], seeds=[0, 1])
    first, *others = places(folder)
    first.mkdir(parents=True)
    order = []

    def finished() -> None:
        while not all((place / sweep.DONE).exists() for place in others):
            time.sleep(0.05)
        order.append("others")
        release.set()

    release = threading.Event()

    def hold() -> None:
        with store.lock(first):
            taken.set()
            release.wait(60)

    taken = threading.Event()
    threads = [threading.Thread(target=hold), threading.Thread(target=finished)]
    threads[0].start()
    taken.wait(10)
    threads[1].start()
    assert sweep.work(folder) == 1 + len(others) and order == ["others"]
    assert not (first / sweep.FAILED).exists()
    for thread in threads:
        thread.join()


# ---------------------------------------------------------------------------------------------------------------------
# Processes that are killed. One that has torch loaded forks drivers, and they their workers, so that each starts at once.

HARNESS = """
import os, random, signal, sys, time, traceback
from pathlib import Path
import peft, torch, fake_family  # peft: or each worker imports it anew
torch.set_num_threads(1)
fake_family.install()
from vdmreason import jobs, launchers, predict, store, sweep, train
from vdmreason.sweep import claims, worker
store.code = lambda: ("0" * 40, False)
store._sync = lambda path: None  # a killed process loses nothing that it wrote; only a power cut does
store._command = lambda: ""
worker.PAUSE, worker.RETRIES = 0.0, 9
started = os.open(sys.argv[3], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
real = train.train

def counting(run, *rest, **more):
    os.write(started, (run.id + "\\n").encode())
    return real(run, *rest, **more)

train.train = counting


class Child:
    def __init__(self, job):
        self.returncode, self.pid = None, os.fork()
        if self.pid == 0:
            code = 1
            try:
                signal.signal(signal.SIGINT, signal.SIG_DFL)
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                job()
                code = 0
            except jobs.Stopped:
                code = 2
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)

    def poll(self):
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def send(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self.send(signal.SIGKILL)

    def terminate(self):
        self.send(signal.SIGTERM)

    def wait(self):
        while self.poll() is None:
            time.sleep(0.01)
        return self.returncode


class Forked(launchers.Local):
    def _start(self, seat):
        parent = os.getpid()

        def job():
            os.environ[launchers.PARENT] = str(parent)
            sweep.work(self.folder, self.driver)

        return Child(job)


def driver(sheet, folder, workers):
    def job():
        sys.stdout = open(os.devnull, "w")
        sweep.run_sweep(sweep.read(sheet), folder, lambda name: Forked(folder, workers, [], name), workers)

    return Child(job)


def workers_of(folder):
    found = []
    for path in folder.glob("trials/*/claim.json"):
        record = claims.read_claim(path)
        if record and jobs.is_alive(record["pid"], record["created"]):
            found.append(record["pid"])
    return found


sheet, folder = sys.argv[1], Path(sys.argv[2])
"""

KILLING = """
random.seed(int(sys.argv[4]))
total = 60
running, kills, whom = driver(sheet, folder, 2), 0, []
while kills < 10:
    # each kill at a random moment of its own tenth of the way
    goal = int((kills + random.random()) * total / 10.5)
    while len(list(folder.glob("trials/*/done.json"))) < goal and running.poll() is None:
        time.sleep(0.002)
    time.sleep(random.random() * 0.1)
    assert running.poll() is None, f"ended after {kills} kills with {running.returncode}"
    prey = random.choice(["driver", "worker", "all"])
    pids = workers_of(folder)
    if prey != "driver":
        for pid in pids if prey == "all" else pids[:1]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
    if prey != "worker":
        running.kill()
        running.wait()
        running = driver(sheet, folder, 2)
    kills += 1
    whom.append((prey, len(pids)))
print(whom, file=sys.stderr)
sys.exit(running.wait())
"""

TWO = """
both = [driver(sheet, folder, 2), driver(sheet, folder, 1)]
sys.exit(max(one.wait() for one in both))
"""

PLAIN = "sys.exit(driver(sheet, folder, 2).wait())"


def harness(code: str, sheet: Path, folder: Path, *more: str) -> list[str]:
    """Run it; the ids whose training was started."""
    log = folder.with_suffix(".started")
    words = [sys.executable, "-c", HARNESS + code, str(sheet), str(folder), str(log), *more]
    done = subprocess.run(words, env=ENV, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return log.read_text().split()


SIXTY = {
    "name": "sixty",
    "n": [3, 6, 9],
    "seeds": [0, 1, 2, 3, 4],
    "set": {"test": 3, "lora": {"dropout": 0.1, "rank": 2}, "checkpoint_every": 2, "optim": {"updates": 5, "batch": 2}},
}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("uninterrupted")
    sheet = written(root, **SIXTY)
    ids = harness(PLAIN, sheet, root / "sweep")
    assert len(ids) == len(set(ids)) == 60
    return sheet, root / "sweep"


def test_sixty_trials_and_ten_kills_end_where_none_was_killed(tmp_path, uninterrupted) -> None:
    sheet, whole = uninterrupted
    seed = str(int.from_bytes(os.urandom(4), "big"))
    ids = harness(KILLING, sheet, tmp_path / "sweep", seed)
    assert states(tmp_path / "sweep") == {"done": 60}, f"kills by seed {seed}"
    assert set(ids) == {e["id"] for e in sweep.read_plan(whole)["trials"]}
    a, b = outcome(whole), outcome(tmp_path / "sweep")
    assert a.keys() == b.keys()
    for name in a:
        assert a[name] == b[name], f"{name}, kills by seed {seed}"


def test_two_drivers_do_no_trial_twice(tmp_path, uninterrupted) -> None:
    sheet, whole = uninterrupted
    ids = harness(TWO, sheet, tmp_path / "sweep")
    assert len(ids) == len(set(ids)) == 60 and states(tmp_path / "sweep") == {"done": 60}
    assert outcome(whole) == outcome(tmp_path / "sweep")


# ---------------------------------------------------------------------------------------------------------------------
# The commands, real processes, a real family


def real_sheet(tmp_path: Path, **changes) -> Path:
    least = {**ONE, "arms": {"language": {"family": "causal_lm", "flavour": "tiny"}}, "seeds": [0, 1]}
    return written(tmp_path, **{**least, "set": {"test": 2, "optim": {"updates": 2, "batch": 2}}, **changes})


def vdmreason(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vdmreason", "sweep", *words]
    return subprocess.run(command, env={**ENV, **env}, capture_output=True, text=True, timeout=120, cwd=ROOT)


@pytest.mark.skipif("causal_lm" not in adapters.families(), reason="not here")
def test_the_command_line_from_the_plan_to_the_end(tmp_path) -> None:
    sheet, folder = real_sheet(tmp_path), tmp_path / "runs" / "sweeps" / "little"
    runs = {"VDMREASON_RUNS": str(tmp_path / "runs")}
    plan = vdmreason("run", str(sheet), "--dry-run", **runs)
    assert plan.returncode == 0 and "2 trials" in plan.stdout and not folder.exists()
    done = vdmreason("run", str(sheet), **runs)
    assert done.returncode == 0, done.stderr
    assert "all 2 trials are done" in done.stdout and "first one is timed" in done.stdout and "2/2" in done.stderr
    assert states(folder) == {"done": 2}
    status = vdmreason("status", str(sheet), **runs)
    assert status.returncode == 0 and "2 of 2 trials are done" in status.stdout
    bad = vdmreason("run", str(written(tmp_path, taks=[])), **runs)
    assert bad.returncode == 2 and bad.stderr.count("\n") == 1 and "Did you mean" in bad.stderr


@pytest.mark.skipif("causal_lm" not in adapters.families(), reason="not here")
def test_a_signal_to_the_driver_stops_its_workers(tmp_path) -> None:
    sheet = real_sheet(tmp_path, set={"test": 2, "optim": {"updates": 100000, "batch": 2}}, seeds=[0])
    folder = tmp_path / "sweep"
    words = [sys.executable, "-m", "vdmreason", "sweep", "run", str(sheet), "--out", str(folder)]
    process = subprocess.Popen(words, env=ENV, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 60
        while not list(folder.glob("trials/*/metrics.jsonl")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 2 and "stopped; the same command goes on" in errors
    assert states(folder) == {"stopped": 1}
    (place,) = places(folder)
    assert store.checkpoints(place) and not (place / sweep.CLAIM).exists()


def test_submitit_runs_the_same_worker(tmp_path) -> None:
    pytest.importorskip("submitit")
    folder = planned(tmp_path, **ONE)
    make = lambda driver: launchers.Slurm(folder, 2, {"cluster": "debug", "timeout_min": 5}, driver)  # noqa: E731
    sweep.run_sweep(sweep.read(tmp_path / "sheet.yaml"), folder, make)
    assert states(folder) == {"done": 1}


@pytest.mark.skipif("causal_lm" not in adapters.families(), reason="not here")
def test_ray_with_one_of_two_workers_killed_ends_where_none_was(tmp_path, monkeypatch) -> None:
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    changes = {"seeds": [0, 1, 2], "set": {"test": 2, "optim": {"updates": 20, "batch": 2}, "checkpoint_every": 4}}
    sheet, folder, whole = real_sheet(tmp_path, **changes), tmp_path / "sweep", tmp_path / "whole"
    killed = []

    def kill_one() -> None:
        while not killed:
            for path in folder.glob("trials/*/checkpoints/*"):
                owner = claims.read_claim(path.parents[1] / sweep.CLAIM)
                if owner:
                    os.kill(owner["pid"], signal.SIGKILL)
                    killed.append(owner["pid"])
                    return
            time.sleep(0.01)

    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    try:
        sweep.run_sweep(sweep.read(sheet), folder, lambda driver: launchers.Ray(folder, 2, 0, driver), 2)
    finally:
        ray.shutdown()
    assert killed and states(folder) == {"done": 3} and not list((tmp_path / "home").iterdir())
    sweep.run_sweep(sweep.read(sheet), whole, in_process(whole))
    ours, theirs = outcome(whole), outcome(folder)
    for found in (*ours.values(), *theirs.values()):
        for key in ("commit", "dirty"):  # this process does not ask git
            found[1]["provenance"].pop(key)
    assert ours == theirs


def test_a_launcher_that_is_not_installed_is_one_line(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[slurm\]'"):
        launchers.Slurm(tmp_path, 1, {}, "")


def test_options_for_slurm_are_values_or_one_line() -> None:
    assert commands._options(["gpus=2", "slurm_partition=a=b"]) == {"gpus": 2, "slurm_partition": "a=b"}
    for text, words in (("gpus=[", r"^--slurm gpus: is not YAML"), ("gpus", "must look like")):
        with pytest.raises(UserError, match=words):
            commands._options([text])


def test_workers_that_die_at_once_end_the_driver(tmp_path) -> None:
    folder = planned(tmp_path, **ONE)
    command = [sys.executable, "-c", "import sys; sys.exit('no such library')"]
    with pytest.raises(UserError, match="no such library"):
        sweep.run_sweep(
            sweep.read(tmp_path / "sheet.yaml"), folder, lambda driver: launchers.Local(folder, 1, [], driver, command)
        )
    assert states(folder) == {"waiting": 1}
    shutil.rmtree(folder)
