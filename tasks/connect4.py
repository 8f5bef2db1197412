"""Connect 4, to win in one move (arXiv 2510.24448, "Connect 4"): add player 1's disc that makes four in a line.

Positions come from random play in which nobody takes a win, until player 1 can win by the kind of line that was drawn
beforehand: upright, level and slanting lines are equally common. (By nature one in five is slanting.) Every winning
column is right, and about one position in ten has several; the stored answer is one of them, drawn at random.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numba import njit

from tasks.base import Apart, Example, Grid, Task, UserError, grid_bytes, wrong_size
from tasks.fast import below, stream

ROWS, COLUMNS = 6, 7
EMPTY, MINE, THEIRS = range(3)
LINES = ("upright", "level", "slanting")
VARIANTS = ("win-in-1",)


@dataclass(frozen=True)
class Connect4(Task):
    @property
    def about(self) -> str:
        return "Drop one disc of player 1 so that four of them stand in a line."

    @property
    def colours(self) -> Mapping[int, str]:
        return {EMPTY: "empty", MINE: "player 1, to move", THEIRS: "player 2"}

    @property
    def turns(self) -> Sequence[int]:
        return (0, 4)  # left and right exchanged

    @property
    def apart(self) -> Apart:
        return Apart("answer", 0.25)

    def make(self, rng: random.Random) -> Example:
        question, column, line, ways = _position(stream(rng))
        answer = question.copy()
        answer[_landing(question, column), column] = MINE
        return Example(question, answer, (ROWS, COLUMNS), (), {"line": LINES[line], "winning_columns": ways})

    def fault(self, proposed: Grid, question: Grid) -> str:
        """One disc of player 1 is new, it has fallen as far as it can, and it makes four in a line."""
        if wrong := wrong_size(proposed, question):
            return wrong
        changed = np.argwhere(proposed != question)
        if len(changed) != 1:
            return f"{len(changed)} cells were changed, a move changes one"
        row, column = changed[0]
        if question[row, column] != EMPTY or proposed[row, column] != MINE:
            return "a move puts a disc of player 1 on an empty cell"
        if row != _landing(question, column):
            return "the disc floats: it falls to the lowest empty cell"
        return "" if _lines(question, row, column, MINE) else "the disc makes no four in a line"

    def canonical(self, question: Grid) -> bytes:
        """Equal for the mirror image."""
        return min(grid_bytes(question), grid_bytes(question[:, ::-1]))


@njit(cache=True)
def _landing(board, column):  # type: ignore[no-untyped-def]
    """The row on which a disc comes to lie, or -1 where the column is full."""
    row = len(board) - 1
    while row >= 0 and board[row, column]:
        row -= 1
    return row


@njit(cache=True)
def _lines(board, row, column, player):  # type: ignore[no-untyped-def]
    """Which kinds of lines of four a disc here would make, as bits in the order of LINES."""
    found = 0
    for kind, dr, dc in ((0, 1, 0), (1, 0, 1), (2, 1, 1), (2, 1, -1)):
        length = 1
        for sign in (-1, 1):
            r, c = row + sign * dr, column + sign * dc
            while 0 <= r < board.shape[0] and 0 <= c < board.shape[1] and board[r, c] == player:
                length += 1
                r, c = r + sign * dr, c + sign * dc
        if length >= 4:
            found |= 1 << kind
    return found


@njit(cache=True)
def _position(draw):  # type: ignore[no-untyped-def]
    """(board int8 (6, 7) with player 1 to move, a winning column, the kind of its line, how many columns win)."""
    wanted = below(draw, 3)
    while True:
        board = np.zeros((6, 7), np.int8)
        player = 1 + below(draw, 2)
        while True:
            quiet, winning, lines = np.zeros(7, np.int64), np.zeros(7, np.int64), np.zeros(7, np.int64)
            quiets = winnings = 0
            asked = False
            for column in range(7):
                row = _landing(board, column)
                if row < 0:
                    continue
                found = _lines(board, row, column, player)
                if found:
                    winning[winnings], lines[winnings] = column, found
                    winnings += 1
                    asked |= found >> wanted & 1 == 1
                else:
                    quiet[quiets] = column
                    quiets += 1
            if player == 1 and asked:
                while True:
                    k = below(draw, winnings)
                    if lines[k] >> wanted & 1:
                        return board, winning[k], wanted, winnings
            if not quiets:
                break
            column = quiet[below(draw, quiets)]
            board[_landing(board, column), column] = player
            player = 3 - player


def task(variant: str) -> Connect4:
    if variant not in VARIANTS:
        raise UserError(f"unknown game {variant!r}; there is 'connect4/{VARIANTS[0]}'")
    return Connect4(f"connect4/{variant}")
