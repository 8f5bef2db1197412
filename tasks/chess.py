"""Chess, mate in one for White (arXiv 2510.24448, "Chess Mate-in-1"): the board after the mating move.

    chess/mate-in-1        positions made here
    chess/mate-in-1:FILE   positions from a file of your own, one FEN a line, or a CSV with a column FEN

The picture says all: castling and en-passant rights are taken away first, White is always to move. Every mate is right,
and one position in seven has several; the stored answer is one of them, drawn at random. Published data counts the
recorded one alone.

Made here: half of the positions come from play in which half of the moves are captures, half from 6 to 12 pieces put
down at random; both are kept only where White mates in one. The library, python-chess, is under GPL-3 and therefore not
installed by default: pip install -e '.[chess]'.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from tasks.base import Apart, Example, Grid, Missing, Split, Task, UserError, as_path, grid_bytes, split_by, wrong_size

if TYPE_CHECKING:
    import chess

PIECES = ("pawn", "knight", "bishop", "rook", "queen", "king")  # values 1 to 6 White, 7 to 12 Black, as published
VARIANTS = ("mate-in-1",)
LONGEST = 60  # moves of a playout


@dataclass(frozen=True)
class Chess(Task):
    file: str = ""

    @property
    def about(self) -> str:
        return "White moves and mates: the board after that move."

    @property
    def colours(self) -> Mapping[int, str]:
        white = {i: f"white {piece}" for i, piece in enumerate(PIECES, 1)}
        return {0: "empty"} | white | {i: f"black {piece}" for i, piece in enumerate(PIECES, 7)}

    @property
    def turns(self) -> Sequence[int]:
        return (0, 4)  # left and right exchanged: there is no castling

    @property
    def apart(self) -> Apart:
        return Apart("answer", 0.01)

    @property
    def within_reach(self) -> int:
        return 30  # a third of a second each

    def make(self, rng: random.Random) -> Example:
        while True:
            board = _played(rng) if rng.random() < 0.5 else _put_down(rng)
            if board is not None:
                return _example(board, rng)

    def stock(self, split: Split) -> list[Example] | None:
        return _from_file(self.file, _written(self.file))[split] if self.file else None

    def fault(self, proposed: Grid, question: Grid) -> str:
        """The board after some legal move of White that mates."""
        if wrong := wrong_size(proposed, question):
            return wrong
        board = from_grid(question)
        for move in board.legal_moves:
            board.push(move)
            if np.array_equal(to_grid(board), proposed):
                return "" if board.is_checkmate() else "the move is legal, but it does not mate"
            board.pop()
        return "no legal move of White leads to this board"

    def canonical(self, question: Grid) -> bytes:
        """Equal for the mirror image: without castling left and right are alike."""
        return min(grid_bytes(question), grid_bytes(question[:, ::-1]))


def to_grid(board: chess.Board) -> Grid:
    """int8 (8, 8), White at the bottom."""
    grid = np.zeros((8, 8), np.int8)
    for square, piece in board.piece_map().items():
        grid[7 - square // 8, square % 8] = piece.piece_type + (0 if piece.color else 6)
    return grid


def from_grid(grid: Grid) -> chess.Board:
    """The position with White to move, without castling and en passant."""
    library = _chess()
    board = library.Board(None)
    for (row, column), value in np.ndenumerate(grid):
        if 1 <= value <= 12:
            kind, white = (int(value) - 1) % 6 + 1, bool(value <= 6)
            board.set_piece_at(8 * (7 - row) + column, library.Piece(kind, white))
    return board


def mates(board: chess.Board) -> list[chess.Move]:
    """The moves that mate."""
    found = []
    for move in board.legal_moves:
        board.push(move)
        if board.is_checkmate():
            found.append(move)
        board.pop()
    return found


def _example(board: chess.Board, rng: random.Random) -> Example:
    """The puzzle of a position that has a mate."""
    question, moves = to_grid(board), mates(board)
    move = rng.choice(moves)
    piece = PIECES[(board.piece_type_at(move.from_square) or 1) - 1]
    facts = {"move": board.san(move), "mates": len(moves), "piece": piece, "pieces": int((question > 0).sum())}
    board.push(move)
    return Example(question, to_grid(board), (8, 8), (), facts)


def _stripped(board: chess.Board) -> chess.Board | None:
    """The position without hidden rights, if White is to move, all is legal, and there is a mate."""
    if not board.turn:
        return None
    bare = board.copy(stack=False)
    bare.castling_rights, bare.ep_square, bare.promoted = 0, None, 0
    return bare if bare.is_valid() and mates(bare) else None


def _played(rng: random.Random) -> chess.Board | None:
    """Random play in which half of the moves are captures where there is one, until White can mate."""
    board = _chess().Board()
    for _ in range(LONGEST):
        if found := _stripped(board):
            return found
        moves = list(board.legal_moves)
        if not moves:
            return None
        captures = [move for move in moves if board.is_capture(move)]
        board.push(rng.choice(captures if captures and rng.random() < 0.5 else moves))
    return None


def _put_down(rng: random.Random) -> chess.Board | None:
    """Both kings and 4 to 10 other pieces anywhere; no pawns on the outer rows."""
    library = _chess()
    board = library.Board(None)
    squares = rng.sample(range(64), 2 + rng.randint(4, 10))
    for i, square in enumerate(squares):
        if i < 2:
            piece = library.Piece(library.KING, i == 0)
        else:
            kind = rng.choices(range(1, 6), (5, 2, 2, 2, 1))[0]
            if kind == library.PAWN and square // 8 in (0, 7):
                kind = library.KNIGHT
            piece = library.Piece(kind, rng.random() < 0.6)
        board.set_piece_at(square, piece)
    return _stripped(board) if board.is_valid() else None


def _written(text: str) -> int:
    path = as_path(text)
    return path.stat().st_mtime_ns if path.exists() else 0


@cache
def _from_file(text: str, written: int) -> dict[Split, list[Example]]:
    """The puzzles of a file, shared out by the hash of each position as everywhere else; `written`: when (ns)."""
    task = Chess("chess/mate-in-1")
    found: dict[Split, list[Example]] = {"train": [], "test": []}
    seen: set[bytes] = set()  # a position that stands twice, or its mirror image, is one puzzle
    for line, fen in _fens(as_path(text)):
        try:
            board = _chess().Board(fen)
        except ValueError as error:
            raise UserError(f"{text}: line {line} is not a position ({error})") from None
        if not board.turn:
            board = board.mirror()
        bare = from_grid(to_grid(board))
        if not bare.is_valid() or not mates(bare):
            raise UserError(f"{text}: line {line} has no mate in one without castling and en passant")
        example = _example(bare, random.Random(f"{text}/{line}"))
        canonical = task.canonical(example.question)
        if canonical not in seen:
            seen.add(canonical)
            found[split_by(canonical)].append(example)
    for split, examples in found.items():
        if not examples:
            raise UserError(f"{text}: no position falls to the {split} split; give a longer file")
    return found


def _fens(path: Path) -> Iterator[tuple[int, str]]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    head = [name.strip().lower() for name in next(csv.reader(lines[:1]), [])]
    if "fen" in head:
        column = head.index("fen")
        yield from ((i, row[column]) for i, row in enumerate(csv.reader(lines[1:]), 2) if len(row) > column)
    else:
        yield from ((i, line.strip()) for i, line in enumerate(lines, 1) if line.strip() and not line.startswith("#"))


def _chess() -> ModuleType:
    try:
        import chess as library
    except ModuleNotFoundError:
        raise Missing(
            "chess positions need python-chess, which is under GPL-3 and so not installed by default; "
            "run: pip install 'chess>=1.11'"
        ) from None
    return library


def task(variant: str) -> Chess:
    name, colon, file = variant.partition(":")
    if name not in VARIANTS or (colon and not file):
        raise UserError(f"unknown chess puzzle {variant!r}; there is 'chess/mate-in-1', and 'chess/mate-in-1:<file>'")
    _chess()
    return Chess(f"chess/{variant}", file)
