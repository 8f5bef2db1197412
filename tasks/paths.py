"""Ways on a grid, for the families that draw one: what is a way, how long is the shortest."""

from __future__ import annotations

import numpy as np
from numba import njit

from tasks.base import Grid, twins_key, wrong_size

WALL, PATH, END, START, SOLUTION = range(5)  # the paper's values
NAMES = {WALL: "wall", PATH: "path", END: "end", START: "start", SOLUTION: "way"}

Cell = tuple[int, int]  # (row, col)


@njit(cache=True)
def along(question, way):  # type: ignore[no-untyped-def]
    """The question, then with each further cell of the way between start and end marked: int8 (frames, rows, cols)."""
    frames = np.empty((len(way) - 1, *question.shape), np.int8)
    flat = frames.reshape(len(frames), question.size)  # one loop over all cells is the faster copy
    frames[0] = question
    for k in range(1, len(frames)):
        flat[k] = flat[k - 1]
        frames[k, way[k, 0], way[k, 1]] = SOLUTION
    return frames


@njit(cache=True)
def solved(question):  # type: ignore[no-untyped-def]
    """`along` the shortest way."""
    return along(question, shortest(question))


@njit(cache=True)
def shortest(question):  # type: ignore[no-untyped-def]
    """The cells of a shortest way from start to end, both included, int64 (cells, 2); none where there is no way.

    Of several it is the one that breadth-first search meets first when it looks down, right, up, left: the published
    tie-break.
    """
    rows, columns = question.shape
    came_from = np.full(rows * columns, -1, np.int64)
    queue = np.empty(rows * columns, np.int64)
    end, first, last = -1, 0, 0
    for r in range(rows):
        for c in range(columns):
            cell = r * columns + c
            if question[r, c] == START:
                came_from[cell], queue[0], last = cell, cell, 1
            elif question[r, c] == END:
                end = cell
    while first < last and came_from[end] < 0:
        cell = queue[first]
        first += 1
        for step in range(4):  # down, right, up, left
            r = cell // columns + (step == 0) - (step == 2)
            c = cell % columns + (step == 1) - (step == 3)
            near = r * columns + c
            if 0 <= r < rows and 0 <= c < columns and came_from[near] < 0 and question[r, c] != WALL:
                came_from[near], queue[last] = cell, near
                last += 1
    if came_from[end] < 0:
        return np.empty((0, 2), np.int64)
    length, cell = 1, end
    while came_from[cell] != cell:
        cell = came_from[cell]
        length += 1
    way, cell = np.empty((length, 2), np.int64), end
    for k in range(length - 1, -1, -1):
        way[k, 0], way[k, 1] = cell // columns, cell % columns
        cell = came_from[cell]
    return way


def fault(proposed: Grid, question: Grid) -> str:
    """Why the marked cells are not one simple way from start to end; "" if they are, and nothing else was changed."""
    if wrong := wrong_size(proposed, question):
        return wrong
    changed = proposed != question
    if np.any(changed & (question != PATH)):
        return "a wall, the start or the end was changed"
    if np.any(changed & (proposed != SOLUTION)):
        return "a cell of the path became something else than the marked way"
    start, end = the(question, START), the(question, END)
    on_way = _marked(proposed) | {start, end}
    if any(len(_near(cell, on_way)) != (1 if cell in (start, end) else 2) for cell in on_way):
        return "the marked way branches, breaks off or ends in a dead end"
    if len(_reached(start, on_way)) != len(on_way):  # a loop beside the way keeps every degree right
        return "the marked cells are not one way"
    return ""


def success(proposed: Grid, question: Grid) -> bool:
    """Whether marked cells on free ground join start and end, whatever else was drawn: the path success of PSR."""
    if proposed.shape != question.shape:
        return False
    start, end = the(question, START), the(question, END)
    drawn = {cell for cell in _marked(proposed) if question[cell] == PATH}
    return end in _reached(start, drawn | {start, end})


def canonical(question: Grid) -> bytes:
    """Equal for the eight rotations and reflections, and for start and end exchanged."""
    exchanged = question.copy()
    exchanged[question == START], exchanged[question == END] = END, START
    return twins_key(question, exchanged)


def the(question: Grid, value: int) -> Cell:
    """The one cell of a value."""
    r, c = np.argwhere(question == value)[0]
    return int(r), int(c)


def _marked(proposed: Grid) -> set[Cell]:
    return {(int(r), int(c)) for r, c in np.argwhere(proposed == SOLUTION)}


def _near(cell: Cell, among: set[Cell]) -> list[Cell]:
    r, c = cell
    return [near for near in ((r + 1, c), (r, c + 1), (r - 1, c), (r, c - 1)) if near in among]


def _reached(start: Cell, among: set[Cell]) -> set[Cell]:
    reached, todo = {start}, [start]
    while todo:
        new = [near for near in _near(todo.pop(), among) if near not in reached]
        reached.update(new)
        todo.extend(new)
    return reached
