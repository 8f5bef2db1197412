"""Test examples to predictions.jsonl, with the codec ceiling beside them. Resumable: nothing is asked twice.

The seed of an answer is named by the run's seed and the example's number, so an answer does not depend on how many
were asked before it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import tasks
from adapters.base import Answer, Arm
from tasks import augment
from tasks.base import Example, Grid, Task, UserError
from tasks.split import refuse_leak
from vdmreason import config, evaluate, jobs, store
from vdmreason.config import Run, named_seed
from vdmreason.progress import progress

BATCH = 16  # examples handed to the arm at once; it may cut them further

OnAnswer = Callable[[dict[str, Any]], None]


def predict(
    folder: str | Path,
    arm: Arm | None = None,
    indices: Sequence[int] | None = None,
    stop: Callable[[], bool] | None = None,
    on_answer: OnAnswer | None = None,
    batch: int = BATCH,
    codec: bool = True,
) -> list[dict[str, Any]]:
    """Answer a run's test examples, score them and write result.json. Returns the lines of predictions.jsonl, by i.

    `arm` saves loading when the adapted arm is at hand. `indices` picks test examples (default: all of `run.test`).
    `stop` is asked between batches. `codec` measures the ceiling too: the true answers through the arm's own codec.

    Raises UserError when the run has no adapter yet, and when stored predictions belong to other examples. An `arm`
    whose training was stopped half way is refused too: its answers would pass for the finished run's.
    """
    folder = Path(folder)
    run = store.read_config(folder)
    require_adapter(folder)
    refuse_other_examples(run, folder)
    test = config.test_examples(run, max([run.test, *(i + 1 for i in indices or [])]))
    wanted = list(range(run.test)) if indices is None else sorted(set(indices))
    with store.lock(folder):
        known = {record["i"]: record for record in store.read_lines(folder / "predictions.jsonl")}
        for i, record in known.items():
            if i < len(test) and (record["key"] != test[i].key or record.get("views", 1) != run.votes):
                raise UserError(f"{folder}: predictions.jsonl answers other examples. Delete it and predict again.")
        missing = [i for i in wanted if i not in known]
        ceiling = (store.read_json(folder / "result.json") or {}).get("codec") or {"n": 0}
        measure = codec and ceiling["n"] < sum(not test[i].open for i in wanted)
        if missing or measure:
            arm = arm or load_adapted(run, folder)
        if missing:
            assert arm is not None
            tell_who_answers(folder, arm, anew=not known)
            title = f"{run.name}: answers"
            with store.Lines(folder / "predictions.jsonl") as lines, progress(title, len(wanted)) as show:
                # Whole batches always, also after an interruption: in low precision an answer can depend on company.
                for start in range(0, len(wanted), batch):
                    part = wanted[start : start + batch]
                    if not set(part) & set(missing):
                        continue
                    if stop and stop():
                        raise jobs.Stopped
                    for record in answer(run, arm, [(i, test[i]) for i in part], folder):
                        if record["i"] in missing:
                            lines.write(record)
                            known[record["i"]] = record
                            if on_answer:
                                on_answer(record)
                    show(start + len(part), None, "")
        if measure:
            assert arm is not None
            measured = codec_ceiling(run, arm, [test[i] for i in wanted])
            result = store.read_json(folder / "result.json") or {}
            store.write_json(folder / "result.json", result | {"codec": measured})
    evaluate.evaluate(folder)
    return [known[i] for i in wanted]


def tell_who_answers(folder: Path, arm: Arm, anew: bool) -> None:
    """Which code answers, with what and on what, in result.json: not always what trained the adapter."""
    from vdmreason.train import device_name  # torch, only now: an arm is here

    device = next(iter(arm.trainable().values())).device
    result = store.read_json(folder / "result.json") or {}
    before = () if anew else result.get("answered", [store.UNKNOWN])
    store.write_json(
        folder / "result.json", result | {"answered": store.sat(before, store.sitting(device_name(device)))}
    )


def asked_otherwise(folder: str | Path, overrides: Sequence[str], out: str | Path | None = None) -> Path:
    """A folder for the same adapter asked otherwise: "votes=8", "test_task=maze/21x21". Its answers are `predict`'s to make.

    Raises UserError where an override would need another training, or where a test example was learned from.
    """
    require_adapter(Path(folder))
    run = store.read_config(folder)
    asked = config.resolve(config.to_dict(run), overrides)
    fixed = sorted({line.partition(":")[0] for line in config.differences(run, asked)} - set(run.asked))
    if fixed:
        raise UserError(f"{', '.join(fixed)}: belongs to the training. After it may change: {', '.join(run.asked)}.")
    out = Path(out) if out else store.runs_root() / asked.name
    if (out / "config.yaml").is_file() and store.read_config(out).id != asked.id:
        raise UserError(f"{out}: holds another run. Take another --out.")
    store.refuse_foreign(out, "--out")
    share_adapter(Path(folder), asked, out)
    return out


def share_adapter(folder: Path, asked: Run, out: Path) -> None:
    """Give `out`, the folder of `asked`, the adapter of another run with the same `training_id`; nothing where it has one.

    Raises UserError where a test example was learned from.
    """
    run = store.read_config(folder)
    refuse_other_examples(run, folder)
    refuse_leak(config.learned_examples(run), config.test_examples(asked))
    if store.whole_folder(out / "adapter"):
        return
    store.claim(out, asked)  # first: the next call knows the folder again, wherever this one ends
    made = (store.read_json(folder / "result.json") or {}).get("provenance", {})
    store.write_json(out / "result.json", {"provenance": made | {"run": asked.id, "adapter_of": run.id}})
    with store.new_folder(out / "adapter") as new:
        shutil.copytree(folder / "adapter", new, dirs_exist_ok=True)
    store.write_state(out, state="done", step=run.optim.updates, updates=run.optim.updates, eta=None)


def load_adapted(run: Run, folder: str | Path) -> Arm:
    """The run's arm with the LoRA of its adapter/ folder, on the best device here."""
    folder = Path(folder)
    require_adapter(folder)
    from vdmreason.train import load_arm, make_accelerator  # torch, only now

    arm = load_arm(run, str(make_accelerator(None, folder).device))
    arm.restore(folder / "adapter")
    return arm


def require_adapter(folder: Path) -> None:
    """Refuse a run whose training has not ended."""
    if not store.whole_folder(folder / "adapter"):
        if (folder / "predictions.jsonl").exists():
            raise UserError(f"{folder}: has answers and no adapter, which stayed where it was trained. Ask it there.")
        raise UserError(f"{folder}: has no adapter yet. Train it first: vdmreason train --folder {folder}")


def _by_canvas(arm: Arm, examples: Sequence[Example], seeds: Sequence[int]) -> list[Answer]:
    """The arm's answers to the questions; a quarter turn changes a canvas, and pictures of one batch are of one size."""
    found: dict[int, Answer] = {}
    for canvas in dict.fromkeys(example.canvas for example in examples):
        rows = [k for k, example in enumerate(examples) if example.canvas == canvas]
        givens = [arm.frame(examples[k]).given for k in rows]  # never `wanted`
        found |= dict(zip(rows, arm.predict(givens, [seeds[k] for k in rows]), strict=True))
    return [found[k] for k in range(len(examples))]


@contextmanager
def attending(run: Run, arm: Arm) -> Iterator[None]:
    """The attention that the arm learned with, which is the fastest, and on a CPU in bf16 rounds otherwise than torch's own."""
    import torch

    from vdmreason import speed, train

    device = next((p.device for p in arm.model.parameters()), torch.device("cpu"))
    with speed.best_attention(device, torch.bfloat16 if train.use_bf16(run, device) else None):
        yield


def refuse_other_examples(run: Run, folder: Path) -> None:
    """Refuse an adapter that was learned from other examples than the run's are now: a puzzle's file may have changed."""
    made = (store.read_json(folder / "result.json") or {}).get("provenance", {})
    store.refuse_other(folder, {"data": made.get("data")}, {"data": store.data_hash(config.train_examples(run))})


def answer(run: Run, arm: Arm, numbered: Sequence[tuple[int, Example]], folder: Path) -> list[dict[str, Any]]:
    """Answer numbered test examples: lines as in predictions.jsonl; clips go to folder/clips/.

    With `run.votes` each question is answered under so many views, the answers are turned back, and the one that most of
    them gave is proposed. What stands in `raw` is the plain view's.
    """
    task = tasks.get(run.tested)
    views = augment.views(task, run.votes, run.seed)
    asked = [(i, view.example(example), view) for i, example in numbered for view in views]
    seen = [example for _, example, _ in asked]
    with attending(run, arm):
        answers = _by_canvas(arm, seen, [_answer_seed(run, i, view) for i, _, view in asked])
    records = []
    for k, (i, example) in enumerate(numbered):
        mine = answers[k * len(views) : (k + 1) * len(views)]
        proposed, certainty, problem = mine[0].grid, mine[0].certainty, mine[0].problem
        voted: dict[str, Any] = {}
        if run.votes > 1:
            proposed, certainty, voted = elect(task, views, mine, example)
            problem = problem if proposed is None else ""
        records.append(
            {
                "i": i,
                "key": example.key,
                "question": example.question,
                "answer": example.answer,
                "canvas": list(example.canvas),
                "proposed": proposed,
                "certainty": None if certainty is None else np.round(certainty.astype(float), 3),
                "raw": _store_raw(mine[0], i, folder),
                "problem": problem,
                "seconds": round(sum(given.seconds for given in mine), 4),
                **evaluate.as_record(task.check(proposed, example), problem if proposed is None else ""),
                **voted,
            }
        )
    return [{k: store.plain(v) if isinstance(v, np.ndarray) else v for k, v in r.items()} for r in records]


def _answer_seed(run: Run, i: int, view: augment.View) -> int:
    plain = view == augment.View()
    return named_seed("answer", run.seed, i) if plain else named_seed("answer", run.seed, i, view.name)


def elect(
    task: Task, views: Sequence[augment.View], answers: Sequence[Answer], example: Example
) -> tuple[Grid | None, np.ndarray | None, dict[str, Any]]:
    """The grid that most of a question's answers are once turned back, the share of them that agrees on each of its cells,
    and what a prediction's line says of the vote: how many views there were, the grids with their counts, best first, and the
    place of the first that is right by the rules (None: nobody gave one, so that no way of voting could have found it)."""
    back = [None if a.grid is None else view.undo(a.grid) for view, a in zip(views, answers, strict=True)]
    sure = [0.0 if a.certainty is None else float(np.mean(a.certainty)) for a in answers]
    votes = augment.vote(list(zip(back, sure, strict=True)))
    right = (place for place, v in enumerate(votes, 1) if task.check(v.grid, example).right)  # of an open one, none
    voted = {
        "views": len(views),
        "votes": [{"grid": store.plain(v.grid), "count": v.count, "certainty": round(v.certainty, 4)} for v in votes],
        "rank": next(right, None),
    }
    if not votes:
        return None, None, voted
    best = votes[0].grid
    alike = [grid == best for grid in back if grid is not None and grid.shape == best.shape]
    return best, np.sum(alike, axis=0) / len(answers), voted


def _store_raw(given: Answer, i: int, folder: Path) -> str:
    """A text as it is; a clip as a file, by its path inside the folder."""
    if isinstance(given.raw, np.ndarray):
        name = f"clips/{i:04d}.webp"
        store.write_clip(folder / name, given.raw)
        return name
    return str(given.raw)


def codec_ceiling(run: Run, arm: Arm, examples: Sequence[Example]) -> dict[str, Any]:
    """What the arm could score at best: the true answers, written and read back by its own codec."""
    task = tasks.get(run.tested)
    examples = [example for example in examples if not example.open]
    verdicts, unreadable = [], 0
    for start in range(0, len(examples), BATCH):
        part = examples[start : start + BATCH]
        for example, read in zip(part, arm.codec([arm.frame(e) for e in part]), strict=True):
            verdicts.append(task.check(read.grid, example))
            unreadable += read.grid is None
    return evaluate.score(verdicts, unreadable)
