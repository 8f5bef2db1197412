"""Views of puzzles: there and back is the same, on every ARC puzzle there is; and how votes are counted."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tasks
from tasks.augment import VALUES, View, leave_one_out, twin_of_any, view, views, vote
from tasks.base import Example, UserError

grids = st.tuples(st.integers(1, 30), st.integers(1, 30), st.integers(0, 2**32 - 1)).map(
    lambda t: np.random.default_rng(t[2]).integers(0, VALUES, t[:2]).astype(np.int8)
)
some_views = st.builds(View, st.integers(0, 7), st.permutations(range(VALUES)).map(tuple))


@given(grids, some_views)
def test_there_and_back(grid, seen):
    assert np.array_equal(seen.undo(seen.apply(grid)), grid)
    assert np.array_equal(seen.apply(seen.undo(grid)), grid)
    assert view(seen.name) == seen


def test_there_and_back_on_every_arc_puzzle():
    names = tasks.variants("arc")
    assert len(names) == 400 + 400 + 1000 + 120 + 160
    some = views(tasks.get(names[0]), 9, seed=3)
    for number, name in enumerate(names):
        seen = some[number % len(some)]
        for split in ("train", "test"):
            for example in tasks.get(name).stock(split):
                there = seen.example(example)
                assert np.array_equal(seen.undo(there.question), example.question)
                assert np.array_equal(seen.undo(there.answer), example.answer)
                assert all(a >= b for a, b in zip(there.canvas, there.question.shape, strict=True))


@given(st.integers(1, 60), st.integers(0, 5))
def test_views_differ_and_begin_with_the_plain_one(count, seed):
    task = tasks.get("arc1/training/007bbfb7")
    made = views(task, count, seed)
    assert len({v.name for v in made}) == count and made[0] == View()
    assert all(v.colours[0] == 0 and v.colours[10:] == tuple(range(10, VALUES)) for v in made)
    assert views(task, count + 5, seed)[:count] == made


ALL = [name for family in tasks.families() if family != "arc" for name in tasks.variants(family)]


@pytest.mark.parametrize("name", ALL)
def test_the_rule_holds_under_every_view_that_a_task_allows(name):
    """The rules decide: the turned answer is right for the turned question, and lies in the same split."""
    task = tasks.get(name)
    at_hand = min(24, len(task.turns) * (40 if task.free_colours else 1))
    for example in tasks.examples(task, "train", 12):
        for seen in views(task, at_hand, seed=1):
            there = seen.example(example)
            verdict = task.check(there.answer, there)
            assert verdict.right, (seen.name, verdict.reason)
            assert task.split_of(there.question) == "train"  # a view of a training example is never a test example


def test_more_views_than_there_are():
    with pytest.raises(UserError, match="langton/2 has 1 view, 2 were asked for"):
        views(tasks.get("langton/2"), 2)
    assert len(views(tasks.get("maze/13x13"), 2)) == 2
    with pytest.raises(UserError, match="maze/13x13 has 2 views, 3 were asked for"):
        views(tasks.get("maze/13x13"), 3)


@pytest.mark.parametrize("name", ["", "t8-0123456789abcdef", "t1-00", "t1-0023456789abcdef", "x1-0123456789abcdef"])
def test_names_that_name_no_view(name):
    with pytest.raises(UserError, match="view"):
        view(name)


def test_most_votes_then_first_seen():
    a, b, c = (np.full((2, 2), v, np.int8) for v in range(3))
    votes = vote([(a, 0.2), (None, 0.9), (b, 0.9), (c, 1.0), (a, 0.4), (b, 0.5)])
    assert [v.grid[0, 0] for v in votes] == [0, 1, 2] and [v.count for v in votes] == [2, 2, 1]
    assert votes[1].certainty == pytest.approx(0.7)  # told, but an arm that has none loses no tie by it
    assert vote([(None, 0.5)]) == []


@pytest.mark.parametrize("name", ["arc1/evaluation/0607ce86", "life/B3S23", "maze/7x7", "eca/110"])
def test_a_twin_is_known_under_every_view(name):
    task = tasks.get(name)
    first, second = tasks.examples(name, "train", 2)
    key = twin_of_any(task, first)
    there_are = len(task.turns) * math.factorial(len(task.free_colours))
    assert all(twin_of_any(task, v.example(first)) == key for v in views(task, min(24, there_are), seed=3))
    assert twin_of_any(task, second) != key


def test_leave_one_out():
    demos = [Example(np.full((1, 1), v, np.int8), np.full((1, 1), v, np.int8), (1, 1)) for v in range(3)]
    folds = leave_one_out(demos)
    assert [test.key for _, test in folds] == [d.key for d in demos]
    assert all(len(rest) == 2 and test not in rest for rest, test in folds)
