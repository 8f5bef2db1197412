"""The rules of each game against a second, slow and plain implementation; and wrong answers of every kind."""

import itertools
from collections import deque

import networkx as nx
import numpy as np
import pytest
from how_many import many

import tasks
from tasks import hanoi, hitori, paths, sudoku
from tasks.base import Example, UserError
from tasks.paths import END, PATH, SOLUTION, START, WALL

# --- sudoku ------------------------------------------------------------------------------------------------------


def all_solutions(question):
    """Exact cover without cover: try digits in the first empty cell, in a dozen lines."""
    empty = np.argwhere(question == 0)
    if not len(empty):
        yield question.copy()
        return
    side = len(question)
    box = {9: 3, 4: 2}[side]
    options = []
    for r, c in empty:
        near = question[r // box * box : r // box * box + box, c // box * box : c // box * box + box]
        used = {*question[r].tolist(), *question[:, c].tolist(), *near.ravel().tolist()}
        options.append(([d for d in range(1, side + 1) if d not in used], r, c))
    digits, r, c = min(options, key=lambda option: len(option[0]))
    for digit in digits:
        question[r, c] = digit
        yield from all_solutions(question)
        question[r, c] = 0


@pytest.mark.parametrize("name", tasks.variants("sudoku"))
def test_sudoku_has_one_solution_and_as_many_givens_as_asked(name):
    task = tasks.get(name)
    for example in tasks.examples(task, "train", 20 if "9x9" in name else many(300)):
        assert (example.question > 0).sum() == task.givens
        found = list(itertools.islice(all_solutions(example.question.copy()), 2))
        assert len(found) == 1 and np.array_equal(found[0], example.answer)


def test_sudoku_solver_counts_what_the_slow_one_counts():
    for example in tasks.examples("sudoku/4x4", "train", 60):
        question = example.question.copy()
        for r, c in np.argwhere(question)[:4]:  # too few givens now
            question[r, c] = 0
        assert sudoku.solutions(question, 1000) == len(list(all_solutions(question.copy())))
    assert sudoku.solutions(np.zeros((4, 4), np.int8), 1000) == 288
    impossible = np.zeros((9, 9), np.int8)
    impossible[0, 0] = impossible[0, 8] = 5
    assert sudoku.solutions(impossible) == 0


def test_sudoku_solutions_are_spread_over_all():
    """The published 4x4 generator reaches 96 of the 288; its 9x9 ones repeat the same three digits in every band."""
    answers = {e.answer.tobytes() for split in ("train", "test") for e in tasks.examples("sudoku/4x4", split, 1500)}
    assert len(answers) == 288
    shuffled = 0
    for example in tasks.examples("sudoku/9x9", "train", 50):
        triples = [frozenset(example.answer[r, c : c + 3].tolist()) for r in range(3) for c in (0, 3, 6)]
        shuffled += len(set(triples)) == 3
    assert shuffled < 10  # by chance about one in 28


def test_sudoku_says_what_is_wrong():
    task = tasks.get("sudoku/9x9")
    example = tasks.examples(task, "train", 1)[0]
    other = example.answer.copy()
    r, c = np.argwhere(example.question)[0]
    other[r, c] = other[r, c] % 9 + 1
    assert task.fault(other, example.question) == "a given was changed"
    assert "does not hold each" in task.fault(example.question, example.question)


@pytest.mark.parametrize("variant", ["9x9-12", "9x9-81", "4x4-3", "6x6", "9x9-harder", "4x4-", "9x9x9"])
def test_sudokus_that_there_are_not(variant):
    with pytest.raises(UserError, match="sudoku"):
        tasks.get(f"sudoku/{variant}")


# --- hitori ------------------------------------------------------------------------------------------------------


def masks(side):
    """Every mask that obeys the two rules about touching and hanging together, as sets of shaded cells."""
    cells = list(itertools.product(range(side), repeat=2))
    lattice = nx.grid_2d_graph(side, side)

    def extend(k, shaded):
        if k == len(cells):
            if nx.is_connected(lattice.subgraph(set(cells) - shaded)):
                yield frozenset(shaded)
            return
        yield from extend(k + 1, shaded)
        if not any(near in shaded for near in lattice[cells[k]]):
            yield from extend(k + 1, shaded | {cells[k]})

    return list(extend(0, set()))


def test_hitori_has_one_solution():
    """By brute force over all masks of 4x4; the rules of 5x5 and more are the same."""
    every = masks(4)
    for example in tasks.examples("hitori/4x4", "train", many(60)):
        q = example.question
        solving = []
        for mask in every:
            white = [[(q[r, c], r, c) for c in range(4) if (r, c) not in mask] for r in range(4)]
            columns = [[v for row in white for v, _, k in row if k == c] for c in range(4)]
            if all(len({v for v, _, _ in row}) == len(row) for row in white) and all(
                len(set(c)) == len(c) for c in columns
            ):
                solving.append(mask)
        assert solving == [frozenset(map(tuple, np.argwhere(example.answer).tolist()))]
        assert hitori.solutions(q, 5) == 1


@pytest.mark.parametrize("name", tasks.variants("hitori"))
def test_hitori_answers_obey_the_rules(name):
    for example in tasks.examples(name, "train", many(300)):
        shaded = example.answer == 1
        for lines, marks in ((example.question, shaded), (example.question.T, shaded.T)):
            for line, mark in zip(lines, marks, strict=True):
                assert len(set(line[~mark].tolist())) == (~mark).sum()
        side = len(shaded)
        lattice = nx.grid_2d_graph(side, side)
        white = lattice.subgraph([(r, c) for r, c in lattice if not shaded[r, c]])
        black = lattice.subgraph([(r, c) for r, c in lattice if shaded[r, c]])
        assert nx.is_connected(white) and black.number_of_edges() == 0


def test_hitori_says_what_is_wrong():
    task = tasks.get("hitori/5x5")
    example = tasks.examples(task, "train", 1)[0]
    none = np.zeros((5, 5), np.int8)
    assert "repeats" in task.fault(none, example.question)
    assert task.fault(none + 1, example.question) == "two shaded cells share a side"
    assert task.fault(none + 2, example.question) == "a mask holds 0 and 1 only"
    ring = none.copy()
    ring[[0, 1], [1, 0]] = 1
    latin = np.array([[(r + c) % 5 + 1 for c in range(5)] for r in range(5)], np.int8)
    assert task.fault(ring, latin) == "the unshaded cells do not hang together"


# --- connect 4 ---------------------------------------------------------------------------------------------------


def four(board, player):
    """Whether a player has four in a line: by looking at every window of the board."""
    for r, c, dr, dc in itertools.product(range(6), range(7), (0, 1), (-1, 0, 1)):
        cells = [(r + k * dr, c + k * dc) for k in range(4)]
        if (dr, dc) > (0, 0) and all(0 <= a < 6 and 0 <= b < 7 and board[a, b] == player for a, b in cells):
            return True
    return False


def test_connect4_every_winning_column_is_right_and_no_other():
    task = tasks.get("connect4/win-in-1")
    lines = []
    for example in tasks.examples(task, "train", many(300)):
        q = example.question
        assert not four(q, 1) and not four(q, 2)
        assert ((q[:-1] == 0) | (q[1:] != 0)).all()  # nothing floats
        assert (q == 2).sum() - (q == 1).sum() in (0, 1)  # player 1 is to move
        right = []
        for column in range(7):
            if q[0, column]:
                continue
            moved = q.copy()
            moved[np.flatnonzero(q[:, column] == 0)[-1], column] = 1
            verdict = task.check(moved, example)
            assert verdict.valid == four(moved, 1)
            right += [moved] if verdict.valid else []
        assert any(np.array_equal(example.answer, moved) for moved in right)
        assert len(right) == example.facts["winning_columns"]
        lines.append(example.facts["line"])
    assert min(lines.count(line) for line in ("upright", "level", "slanting")) > many(300) / 5


def test_connect4_says_what_is_wrong():
    task = tasks.get("connect4/win-in-1")
    example = tasks.examples(task, "train", 1)[0]
    floating, theirs = example.answer.copy(), example.answer.copy()
    (r, c), *_ = np.argwhere(example.answer != example.question)
    theirs[r, c] = 2
    floating[r, c] = 0
    free = next(c for c in range(7) if (example.question[:, c] == 0).sum() > 1)
    floating[0, free] = 1
    assert task.fault(floating, example.question) == "the disc floats: it falls to the lowest empty cell"
    assert task.fault(theirs, example.question) == "a move puts a disc of player 1 on an empty cell"
    assert task.fault(example.question, example.question).startswith("0 cells")


# --- chess -------------------------------------------------------------------------------------------------------


def attacked(grid, square, by_white):
    """Whether a side attacks a square: every piece's way of taking, written out."""
    (row, column), offset = square, 0 if by_white else 6
    for r, c in np.ndindex(8, 8):
        kind = grid[r, c] - offset
        if not 1 <= kind <= 6:
            continue
        dr, dc = row - r, column - c
        if (dr, dc) == (0, 0):
            continue
        if kind == 1 and dr == (-1 if by_white else 1) and abs(dc) == 1:
            return True
        if kind == 2 and {abs(dr), abs(dc)} == {1, 2}:
            return True
        if kind == 6 and max(abs(dr), abs(dc)) == 1:
            return True
        straight, slanting = dr == 0 or dc == 0, abs(dr) == abs(dc)
        if (kind in (4, 5) and straight) or (kind in (3, 5) and slanting):
            n = max(abs(dr), abs(dc))
            between = [(r + k * dr // n, c + k * dc // n) for k in range(1, n)]
            if all(grid[cell] == 0 for cell in between):
                return True
    return False


def chess_moves(grid, white):
    """Boards after every legal move, without castling and taking in passing: try all pairs of squares."""
    offset, their_offset = (0, 6) if white else (6, 0)
    for r, c in np.ndindex(8, 8):
        kind = grid[r, c] - offset
        if not 1 <= kind <= 6:
            continue
        for row, column in np.ndindex(8, 8):
            target = grid[row, column]
            if target and 1 <= target - offset <= 6:
                continue
            dr, dc = row - r, column - c
            if kind == 1:
                forward = -1 if white else 1
                start = 6 if white else 1
                step = dc == 0 and dr == forward and not target
                leap = dc == 0 and dr == 2 * forward and r == start and not target and not grid[r + forward, c]
                if not (step or leap or (abs(dc) == 1 and dr == forward and target)):
                    continue
            else:
                alone = np.where((np.arange(64).reshape(8, 8) == 8 * r + c), grid, np.where(grid, 1 + their_offset, 0))
                if not attacked(alone, (row, column), white):
                    continue
            for placed in (2, 3, 4, 5) if kind == 1 and row in (0, 7) else (kind,):
                after = grid.copy()
                after[r, c], after[row, column] = 0, placed + offset
                king = tuple(np.argwhere(after == 6 + offset)[0])
                if not attacked(after, king, not white):
                    yield after


def mate(grid, before):
    """Whether Black, to move, is mated by the move that led here. A pawn's leap may be answered by taking it in passing."""
    king = tuple(np.argwhere(grid == 12)[0])
    if not attacked(grid, king, True) or next(chess_moves(grid, False), None) is not None:
        return False
    for column in range(8):
        if before[6, column] == 1 and grid[6, column] == 0 and before[4, column] == 0 and grid[4, column] == 1:
            for beside in (column - 1, column + 1):
                if 0 <= beside < 8 and grid[4, beside] == 7:
                    after = grid.copy()
                    after[4, column] = after[4, beside] = 0
                    after[5, column] = 7
                    if not attacked(after, king, True):
                        return False
    return True


@pytest.mark.timeout(3600)  # the study asks of a thousand, a third of a second each
def test_chess_every_mate_is_right_and_no_other_move():
    task = tasks.get("chess/mate-in-1")
    several = 0
    for example in tasks.examples(task, "train", many(3)):
        boards = {after.tobytes(): after for after in chess_moves(example.question, True)}
        mating = [after for after in boards.values() if mate(after, example.question)]
        assert example.answer.tobytes() in {after.tobytes() for after in mating}
        assert len(mating) == example.facts["mates"]
        several += len(mating) > 1
        for after in boards.values():
            assert task.check(after, example).right == any(np.array_equal(after, m) for m in mating)
        assert "no legal move" in task.fault(example.question, example.question)
    assert several < many(3)


def test_chess_from_a_file_of_ones_own(tmp_path):
    fens = [
        "6k1/5ppp/8/8/8/8/8/4R1K1 w - - 0 1", "7k/8/5K2/6Q1/8/8/8/8 w - - 0 1", "k7/8/K7/8/8/8/8/7R w - - 0 1",
        "4r1k1/8/8/8/8/8/5PPP/6K1 b - - 0 1",
    ]  # fmt: skip
    solved = fens + [f"6k1/5ppp/8/8/8/{n}P{7 - n}/8/4R1K1 w - - 0 1" for n in (1, 2, 3, 5, 6)]
    plain, table = tmp_path / "mates.txt", tmp_path / "mates.csv"
    plain.write_text("# mine\n" + "\n".join(solved), encoding="utf-8")
    table.write_text("Id,FEN\n" + "\n".join(f"{i},{fen}" for i, fen in enumerate(solved)), encoding="utf-8")
    for path in (plain, table):
        task = tasks.get(f"chess/mate-in-1:{path}")
        sizes = [tasks.count(task, split) for split in ("train", "test")]
        assert sum(sizes) == len(solved) - 1 and all(sizes)  # the one with black to move is the first, seen from there
        for split, n in zip(("train", "test"), sizes, strict=True):
            assert all(task.check(e.answer, e).right for e in tasks.examples(task, split, n))
    plain.write_text("\n".join(solved * 3), encoding="utf-8")
    assert [tasks.count(f"chess/mate-in-1:{plain}", split) for split in ("train", "test")] == sizes
    for nowhere in ("~nobody-of-this-name/f", "x" * 5000):
        with pytest.raises(UserError, match="is no path"):
            tasks.count(f"chess/mate-in-1:{nowhere}", "train")
    plain.write_text("6k1/8/8/8/8/8/8/4R1K1 w - - 0 1\nnonsense", encoding="utf-8")
    with pytest.raises(UserError, match="line 1 has no mate"):
        tasks.count(f"chess/mate-in-1:{plain}", "train")
    plain.write_text("nonsense", encoding="utf-8")
    with pytest.raises(UserError, match="line 1 is not a position"):
        tasks.count(f"chess/mate-in-1:{plain}", "train")


# --- Langton's ant -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", tasks.variants("langton"))
def test_langton(name):
    steps = int(name.partition("/")[2])
    for example in tasks.examples(name, "train", many(300)):
        black = {(r, c) for r, c in map(tuple, np.argwhere(example.question == 1).tolist())}
        at, facing = 4 + 4j, -1  # rows are the real part: up is -1, and a right turn is a factor of -1j
        for _ in range(steps):
            cell = (int(at.real), int(at.imag))
            facing *= 1j if cell in black else -1j
            black ^= {cell}
            at = complex((at + facing).real % 8, (at + facing).imag % 8)
        wanted = np.zeros((8, 8), int)
        for cell in black:
            wanted[cell] = 1
        wanted[int(at.real), int(at.imag)] = 2
        assert np.array_equal(example.answer, wanted)
        assert len(example.frames) == steps + 1


# --- ways --------------------------------------------------------------------------------------------------------


def graph(question):
    free = nx.grid_2d_graph(*question.shape)
    free.remove_nodes_from([(int(r), int(c)) for r, c in np.argwhere(question == WALL)])
    return free


def test_shortest_path_is_shortest_and_so_is_every_other():
    task = tasks.get("shortest_path/15x15")
    for example in tasks.examples(task, "train", many(100)):
        q = example.question
        assert (q == START).sum() == (q == END).sum() == 1
        start, end = paths.the(q, START), paths.the(q, END)
        assert abs(start[0] - end[0]) + abs(start[1] - end[1]) >= 15
        free = graph(q)
        steps = nx.shortest_path_length(free, start, end)
        assert example.facts["steps"] == steps
        for way in itertools.islice(nx.all_shortest_paths(free, start, end), 3):
            drawn = q.copy()
            for cell in way[1:-1]:
                drawn[cell] = SOLUTION
            verdict = task.check(drawn, example)
            assert verdict.right and verdict.measures == {"path_success": 1.0, "relative_length": 1.0}
            assert verdict.exact == np.array_equal(drawn, example.answer)


def test_a_longer_way_is_valid_and_not_right():
    question = np.full((15, 15), PATH, np.int8)
    question[[0, -1]] = question[:, [0, -1]] = WALL
    question[7, 1], question[7, 13] = START, END
    straight, detour, stray = question.copy(), question.copy(), question.copy()
    straight[7, 2:13] = SOLUTION
    detour[5:8, 2] = detour[5, 2:13] = detour[5:8, 12] = SOLUTION
    stray[7, 2:13] = stray[3, 3] = SOLUTION
    task, example = tasks.get("shortest_path/15x15"), Example(question, straight, (15, 15))
    verdict = task.check(detour, example)
    assert verdict.valid and not verdict.right and verdict.reason
    assert verdict.measures == {"path_success": 1.0, "relative_length": 16 / 12}
    verdict = task.check(stray, example)
    assert not verdict.valid and verdict.measures == {"path_success": 1.0}
    broken = straight.copy()
    broken[7, 6] = PATH
    assert task.check(broken, example).measures == {"path_success": 0.0}


# --- Tower of Hanoi ----------------------------------------------------------------------------------------------


def hanoi_graph(disks):
    """States as nodes, moves as edges, from the rule itself: only a peg's smallest disk moves, never onto a smaller."""
    states = list(itertools.product(range(3), repeat=disks))
    moves = nx.Graph()
    moves.add_nodes_from(states)
    for a, b in itertools.combinations(states, 2):
        moved = [d for d in range(disks) if a[d] != b[d]]
        if len(moved) == 1 and all(a[d] not in (a[moved[0]], b[moved[0]]) for d in range(moved[0])):
            moves.add_edge(a, b)
    return moves


@pytest.mark.parametrize("disks", [4, 5])
def test_hanoi_steps_are_the_only_shortest(disks):
    moves = hanoi_graph(disks)
    for example in tasks.examples(f"hanoi/{disks}-step", "train", many(60, most=140)):  # of 240
        (state, goal), (after, same) = hanoi.read(example.question), hanoi.read(example.answer)
        assert same == goal and np.array_equal(hanoi.draw(state, goal), example.question)
        ways = list(nx.all_shortest_paths(moves, state, (goal,) * disks))
        assert [way[1] for way in ways] == [after]


@pytest.mark.parametrize("disks", [3, 4])
def test_hanoi_plans(disks):
    moves, task = hanoi_graph(disks), tasks.get(f"hanoi/{disks}-plan")
    several = 0
    for example in tasks.examples(task, "train", many(80, most=300)):  # of 624
        start, goal = (tuple((example.question[row] - 1).tolist()) for row in (0, -1))
        ways = list(nx.all_shortest_paths(moves, start, goal))
        several += len(ways) > 1
        for way in ways:
            assert task.check(written(example.question, way), example).right
        assert example.facts["moves"] == len(ways[0]) - 1
        longer = next((w for w in nx.all_simple_paths(moves, start, goal, 2**disks - 1) if len(w) > len(ways[0])), None)
        if longer:
            verdict = task.check(written(example.question, longer), example)
            assert verdict.valid and not verdict.right
    assert several


def written(question, way):
    grid = question.copy()
    grid[1 : len(way) - 1] = np.array(way[1:-1]) + 1
    return grid


def test_hanoi_plans_that_break_the_rules():
    task = tasks.get("hanoi/3-plan")
    question = np.zeros((8, 3), np.int8)
    question[0], question[-1] = (1, 1, 1), (3, 1, 1)
    assert task.fault(question, question) == ""  # one move, nothing to fill in
    gap, jump, goal = question.copy(), question.copy(), question.copy()
    gap[2] = (2, 1, 1)
    jump[1] = (1, 2, 1)  # the middle disk from under the smallest
    goal[-1] = (1, 1, 3)
    assert "blank" in task.fault(gap, question)
    assert "no one move leads to row 2" in task.fault(jump, question)
    assert task.fault(goal, question) == "the start or the goal was changed"


def test_hanoi_distances_are_breadth_first():
    reached, queue = {(0, 0, 0): 0}, deque([(0, 0, 0)])
    moves = hanoi_graph(3)
    while queue:
        state = queue.popleft()
        for near in moves[state]:
            if near not in reached:
                reached[near] = reached[state] + 1
                queue.append(near)
    assert hanoi.distances((0, 0, 0)) == reached and max(reached.values()) == 7
