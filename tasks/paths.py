"""Ways on a grid, for the families that draw one: what is a way, how long is the shortest."""

from __future__ import annotations

from collections import deque

import numpy as np

from tasks.base import Grid, dihedral, grid_bytes, size_text

WALL, PATH, END, START, SOLUTION = range(5)  # the paper's values
NAMES = {WALL: "wall", PATH: "path", END: "end", START: "start", SOLUTION: "way"}

Cell = tuple[int, int]  # (row, col)


def shortest(question: Grid) -> list[Cell]:
    """The cells of a shortest way from start to end, both included; [] where there is none.

    Of several it is the one that breadth-first search meets first when it looks down, right, up, left: the published
    tie-break.
    """
    start, end = the(question, START), the(question, END)
    rows, columns = question.shape
    walls = (question == WALL).tolist()  # a list of lists: much faster to ask cell by cell than an array
    came_from = {start: start}
    queue = deque([start])
    while queue:
        r, c = at = queue.popleft()
        if at == end:
            way = [end]
            while way[-1] != start:
                way.append(came_from[way[-1]])
            return way[::-1]
        for near in ((r + 1, c), (r, c + 1), (r - 1, c), (r, c - 1)):
            inside = 0 <= near[0] < rows and 0 <= near[1] < columns
            if inside and near not in came_from and not walls[near[0]][near[1]]:
                came_from[near] = at
                queue.append(near)
    return []


def fault(proposed: Grid, question: Grid) -> str:
    """Why the marked cells are not one simple way from start to end; "" if they are, and nothing else was changed."""
    if proposed.shape != question.shape:
        return f"the size is {size_text(proposed.shape)}, not {size_text(question.shape)}"
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
    return min(grid_bytes(twin) for way in (question, exchanged) for twin in dihedral(way))


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
