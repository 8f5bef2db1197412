"""The text corpus: items are a function of their number, nothing of the exam is in it; a killed run ends as a whole one."""

import ast
import itertools
import json
import os
from pathlib import Path
from random import Random

import begun
import forked
import pytest
from safetensors.torch import load_file

import pretrain.text
from pretrain.text import Document, document, source_files

FORBIDDEN = ("maze", "sudoku", "cellular automat", "game of life", "conway", "hanoi", "arc-agi")


def test_items_are_a_function_of_seed_and_number():
    forward = [document(i, seed=3) for i in range(40)]
    backward = [document(i, seed=3) for i in reversed(range(40))][::-1]
    assert forward == backward
    assert len({d.parts for d in forward}) == 40
    assert not {d.parts for d in forward} & {document(i, seed=4).parts for i in range(40)}


def test_held_out_files_and_documents_are_never_trained_on():
    assert not set(source_files()) & set(source_files(held_out=True))
    assert len(source_files()) > 200 and len(source_files(held_out=True)) >= 5
    trained = {document(i).parts for i in range(300)}
    assert not trained & {document(i, held_out=True).parts for i in range(300)}


def test_no_puzzle_in_the_standard_library_files():
    assert not {"test", "turtledemo", "idlelib", "site-packages"} & {
        part for p in source_files() for part in p.parts[-3:]
    }
    for path in source_files():
        text = path.read_text(encoding="utf-8", errors="ignore").lower()
        found = [word for word in FORBIDDEN if word in text]
        assert not found, f"{path} holds {found}"


def test_the_corpus_imports_nothing_of_the_exam():
    tree = ast.parse(Path(pretrain.text.__file__).read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    ours = {"tasks", "adapters", "vdmreason", "pretrain"}
    assert not {name for name in imported if name.split(".")[0] in ours}


def fallen(t):
    columns = [[0] * c.count(0) + [v for v in c if v] for c in zip(*t, strict=True)]
    return [list(row) for row in zip(*columns, strict=True)]


EXAM = {
    "mirrored left to right": lambda t: [row[::-1] for row in t],
    "mirrored top to bottom": lambda t: t[::-1],
    "turned half round": lambda t: [row[::-1] for row in t[::-1]],
    "fallen": fallen,
    "shifted down": lambda t: [[0] * len(t[0]), *t[:-1]],
    "shifted up": lambda t: [*t[1:], [0] * len(t[0])],
    "shifted right": lambda t: [[0, *row[:-1]] for row in t],
    "shifted left": lambda t: [[*row[1:], 0] for row in t],
    **{f"rows round by {k}": lambda t, k=k: t[k:] + t[:k] for k in range(1, 6)},
    **{f"columns round by {k}": lambda t, k=k: [row[k:] + row[:k] for row in t] for k in range(1, 6)},
}


def test_no_rule_is_an_exam_rule():
    """Every rule, drawn often, on tables rich enough to tell rules apart: none mirrors, shifts or lets fall."""
    kinds = set()
    for n in range(250):
        rng = Random(n)
        tables = [[[rng.randint(0, 4) for _ in range(6)] for _ in range(6)] for _ in range(3)]
        for name, rule, _ in pretrain.text._table_rules(rng, 6, 6, lambda rng=rng: rng.randint(0, 4), True):
            for forbidden, move in EXAM.items():
                assert any(rule(t) != move(t) for t in tables), f"{name}: {forbidden}"
            kinds.add(name.split()[0])
    assert len(kinds) >= 18


@pytest.mark.parametrize(
    ("rows", "columns", "mirrors"),
    [(1, 3, {"swap columns"}), (2, 3, {"swap rows", "swap columns"}), (3, 3, {"swap rows", "swap columns"}),
     (3, 4, {"swap rows"}), (4, 4, set())],
)  # fmt: skip
def test_on_small_tables_only_what_is_told_comes_to_an_exam_rule(rows, columns, mirrors):
    """A swap of the outer columns of three, or of the outer rows of two or three, mirrors, and on one or two rows a sum of
    neighbours of which one lies outside shifts. Of a single row shifted down zeros are left, which other rules give, too."""
    found = set()
    for n in range(300):
        rng = Random(n)
        tables = [[[rng.randint(1, 9) for _ in range(columns)] for _ in range(rows)] for _ in range(12)]
        rules = pretrain.text._table_rules(rng, rows, columns, lambda rng=rng: rng.randint(1, 9), True)
        for (name, rule, _), (forbidden, move) in itertools.product(rules, EXAM.items()):
            moved = [move(t) for t in tables]
            if moved == tables or any(rule(t) != to for t, to in zip(tables, moved, strict=True)):
                continue
            kind, outer = " ".join(name.split()[:2]), {int(k) for k in name.split() if k.isdigit()}
            if kind == "neighbours with":
                assert rows < 3
            elif kind in ("swap rows", "swap columns"):
                most = rows if kind == "swap rows" else columns
                assert most in ((2, 3) if kind == "swap rows" else (3,)) and outer == {0, most - 1}, name
                found |= {kind} if forbidden.startswith("mirrored") else set()
            else:
                assert rows == 1 and not any(any(row) for t in moved for row in t), f"{name}: {forbidden}"
    assert found == mirrors


@pytest.mark.parametrize(
    ("kind", "given", "wanted"),
    [
        ("transpose", "[[1,2,3],[4,5,6]]", "[[1,4],[2,5],[3,6]]"),
        ("sort each row", "[[3,1,2]]", "[[1,2,3]]"),
        ("add a row of sums", "[[1,2,0],[3,4,1]]", "[[1,2,0],[3,4,1],[4,6,1]]"),
        ("equals the entry above", "[[1,2,0],[1,3,0]]", "[[0,0,0],[1,0,1]]"),
        ("totals down columns", "[[1,2,0],[3,4,1]]", "[[1,2,0],[4,6,1]]"),
    ],
)
def test_rules_do_what_they_say(kind, given, wanted):
    rules = pretrain.text._table_rules(Random(0), 2, 3, lambda: 1, True)
    (rule,) = [rule for name, rule, _ in rules if name == kind]
    assert rule(json.loads(given)) == json.loads(wanted)


def test_a_page_of_conversation_is_pairs_by_one_rule():
    kinds = {document(i).kind.split()[0] for i in range(600)}
    assert {"source", "copy", "transpose", "map", "swap", "sort", "neighbours"} <= kinds
    for i in range(600):
        roles = [role for role, _ in document(i).parts]
        assert roles in (["text"], ["user", "assistant"] * (len(roles) // 2))


def test_resume_equals_uninterrupted(tmp_path, monkeypatch):
    """A run that is stopped right after a checkpoint, and one stopped between two, end with the same weights."""
    import pretrain.causal_lm as lm
    import pretrain.loop as loop

    whole, torn = tmp_path / "whole", tmp_path / "torn"
    lm.pretrain(whole, updates=12, size="tiny")
    fit, rows = loop.fit, lm.Rows.__call__

    def stop(step):
        def rows_until(self, s, share):
            if s == step:
                raise KeyboardInterrupt
            return rows(self, s, share)

        monkeypatch.setattr(lm.Rows, "__call__", rows_until)
        monkeypatch.setattr(lm, "fit", lambda *a, **k: fit(*a, **k, checkpoint_minutes=1e-9 if step == 5 else 60))
        with pytest.raises(KeyboardInterrupt):
            lm.pretrain(torn, updates=12, size="tiny")
        assert not (torn / "pretrain.json").exists()

    stop(5)
    stop(9)
    monkeypatch.setattr(lm.Rows, "__call__", rows)
    begun.mark(torn)
    lm.pretrain(torn, updates=12, size="tiny")
    assert begun.went_on(torn)
    a, b = (load_file(folder / "model.safetensors") for folder in (whole, torn))
    assert a.keys() == b.keys() and all(a[k].equal(b[k]) for k in a)
    logs = [(folder / "work" / "metrics.jsonl").read_text().splitlines() for folder in (whole, torn)]
    assert logs[0][1:] == logs[1][1:] and len(logs[0]) == 12


def test_a_token_weighs_the_same_on_whatever_process_it_is(tmp_path, monkeypatch):
    """The mean over processes of their losses and gradients is that of the whole batch, however unequal their counts."""
    import torch

    import pretrain.causal_lm as lm

    lm.pretrain(tmp_path, updates=1, size="tiny")
    tokenizer = lm.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    torch.manual_seed(0)
    loss = lm.Loss(lm.build(lm.SIZES["tiny"], tokenizer))
    batch = lm.Rows(tokenizer, lm.SIZES["tiny"])(0)
    batch["labels"] = batch["input_ids"].clone()
    batch["labels"][2:, 5:] = lm.IGNORED  # little is learned on the second process

    def gradient(whole: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(whole, loss.model.lm_head.weight)[0]

    whole = loss(**batch)
    halves = [{name: rows[part] for name, rows in batch.items()} for part in (slice(2), slice(2, 4))]
    counts = [(half["labels"][:, 1:] != lm.IGNORED).sum() for half in halves]
    assert len(batch["labels"]) == 4 and counts[0] > 5 * counts[1] > 0
    monkeypatch.setattr(lm, "mean_over_processes", lambda count: sum(counts) / 2)
    parts = torch.stack([loss(**half) for half in halves]).mean()
    assert torch.allclose(parts, whole, rtol=1e-5) and torch.allclose(gradient(parts), gradient(whole), atol=1e-6)


_COUNTS = """
import torch, sys
torch.distributed.init_process_group("gloo")
from pretrain.loop import mean_over_processes
mean = mean_over_processes(torch.tensor([3, 7][torch.distributed.get_rank()]))
assert mean == 5, mean
"""


def test_a_count_is_the_same_on_all_processes():
    import torch

    from pretrain.loop import mean_over_processes

    forked.run(_COUNTS, env={**os.environ, "OMP_NUM_THREADS": "1"}, processes=2)
    assert mean_over_processes(torch.tensor(3)) == 3


def test_rows_that_processes_cannot_share_are_refused_at_the_start(tmp_path, monkeypatch):
    """Not at the eighth update, whose rows are four times as long."""
    import pretrain.causal_lm as lm

    class Two:
        num_processes = 2

    monkeypatch.setattr(lm, "processes", Two)
    with pytest.raises(ValueError, match="a batch of 1 does not divide among 2 processes"):
        lm.pretrain(tmp_path, updates=2, size="tiny")
    assert not list(tmp_path.iterdir())


def test_another_seed_or_size_is_refused_before_anything_is_written(tmp_path):
    import pretrain.causal_lm as lm

    lm.pretrain(tmp_path, updates=2, size="tiny")
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    for other, said in (({"seed": 1}, "seed = 0, not 1"), ({"size": "small"}, "size = 'tiny', not 'small'")):
        with pytest.raises(ValueError, match=f"holds a training with {said}"):
            lm.pretrain(tmp_path, updates=2, **{"size": "tiny", **other})
    assert before == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}


def test_only_what_can_be_predicted_is_learned_and_the_layout_is_the_published_one(tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import pretrain.causal_lm as lm

    record = lm.pretrain(tmp_path, updates=2, size="tiny")
    assert record["updates"] == 2 and record["tokens"] == 512 and record["held_out_loss"] > 0
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, use_safetensors=True, dtype=torch.float32)
    assert model.config.model_type == "qwen3" and model.config.tie_word_embeddings

    rows = lm.Rows(tokenizer, lm.SIZES["tiny"])
    d = Document((("user", "[[1,2]]"), ("assistant", "[[2,1]]")), "x")
    learned = [token for token, yes in rows.encode(d) if yes]
    assert tokenizer.decode(learned) == "[[2,1]]<|im_end|>"
    shown = tokenizer.decode([token for token, _ in rows.encode(d)])
    template = tokenizer.apply_chat_template([{"role": r, "content": t} for r, t in d.parts], tokenize=False)
    assert shown == template + "<|endoftext|>"

    ids = tokenizer.encode("x = 2024", add_special_tokens=False)
    assert [tokenizer.decode([i]) for i in ids][-4:] == ["2", "0", "2", "4"]
    text = "def f(a):\n    return 'ä€😀'\n"
    assert tokenizer.decode(tokenizer.encode(text)) == text
