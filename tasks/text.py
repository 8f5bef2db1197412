"""A grid as compact JSON, and back. The parser is strict and says where a text went wrong."""

from __future__ import annotations

import re

import numpy as np

from tasks.base import MAX_SIDE, VALUES, Grid, UserError

_SPACE = re.compile(r"[ \t\r\n]*")  # JSON's own white space
_NUMBER = re.compile(r"-?[0-9][0-9.eE+-]*")


class ParseError(UserError):
    """The text is not a grid. `position` counts characters from 0; `line` and `column` count from 1."""

    def __init__(self, problem: str, text: str, position: int):
        self.position = position
        self.line = text.count("\n", 0, position) + 1
        self.column = position - (text.rfind("\n", 0, position) + 1) + 1
        super().__init__(f"{problem} (line {self.line}, column {self.column})")


def write(grid: Grid) -> str:
    """The grid as JSON without spaces: "[[0,1],[2,3]]"."""
    return "[" + ",".join("[" + ",".join(str(v) for v in row) + "]" for row in grid.tolist()) + "]"


def parse(text: str) -> Grid:
    """The grid in a text that holds one JSON array of rows and nothing else but white space around its marks.

    Every row is equally long, at most 30 x 30, values are whole numbers 0..15. Raises ParseError.
    """
    rows: list[list[int]] = []
    at = _expect(text, 0, "[", "an opening bracket")
    while True:
        row_start = _skip(text, at)
        if len(rows) == MAX_SIDE:
            raise ParseError(f"more than {MAX_SIDE} rows", text, row_start)
        row, at = _row(text, at)
        if rows and len(row) != len(rows[0]):
            raise ParseError(f"row {len(rows) + 1} has {len(row)} values, row 1 has {len(rows[0])}", text, row_start)
        rows.append(row)
        mark, at = _comma_or_close(text, at)
        if mark == "]":
            break
    rest = _skip(text, at)
    if rest < len(text):
        raise ParseError(f"{text[rest]!r} after the end of the grid", text, rest)
    return np.array(rows, dtype=np.int8)


def _row(text: str, at: int) -> tuple[list[int], int]:
    """One "[...]" at `at`: its values, and the position after it."""
    at = _expect(text, at, "[", "an opening bracket of a row")
    row: list[int] = []
    while True:
        at = _skip(text, at)
        if len(row) == MAX_SIDE:
            raise ParseError(f"more than {MAX_SIDE} values in a row", text, at)
        number = _NUMBER.match(text, at)
        if number is None:
            raise ParseError(f"expected a number, found {_found(text, at)}", text, at)
        word = number.group()
        if not word.isdigit():
            raise ParseError(f"{_short(word)} is not one of the whole numbers 0 to {VALUES - 1}", text, at)
        if len(word) > 1 and word[0] == "0":
            raise ParseError(f"{_short(word)} has a leading zero", text, at)
        if len(word) > 2 or int(word) >= VALUES:
            raise ParseError(f"{_short(word)} is too large, values are 0 to {VALUES - 1}", text, at)
        row.append(int(word))
        mark, at = _comma_or_close(text, number.end())
        if mark == "]":
            return row, at


def _skip(text: str, at: int) -> int:
    space = _SPACE.match(text, at)
    assert space is not None  # the pattern matches the empty string
    return space.end()


def _expect(text: str, at: int, mark: str, name: str) -> int:
    at = _skip(text, at)
    if not text.startswith(mark, at):
        raise ParseError(f"expected {name}, found {_found(text, at)}", text, at)
    return at + 1


def _comma_or_close(text: str, at: int) -> tuple[str, int]:
    at = _skip(text, at)
    if text[at : at + 1] not in (",", "]"):
        raise ParseError(f"expected a comma or a closing bracket, found {_found(text, at)}", text, at)
    return text[at], at + 1


def _found(text: str, at: int) -> str:
    return repr(text[at]) if at < len(text) else "the end of the text"


def _short(word: str) -> str:
    return word if len(word) <= 12 else word[:9] + "..."


class Grammar:
    """Which characters may follow what was written so far, for constrained decoding of what `write` writes.

    It admits exactly the compact arrays of 1..30 equally long rows of 1..30 values 0..15, no spaces, and it has no
    dead ends: every text it admits can be completed. `allowed` is empty when the grid is complete.

        grammar = Grammar()
        for character in "[[1,": grammar.advance(character)
        grammar.allowed()    # {"0", ..., "9"}
    """

    def __init__(self, text: str = ""):
        self.rows = 0  # finished rows
        self.values = 0  # values of the open row, an unfinished one included
        self.width: int | None = None  # the length of the first row, once known
        self.before = ""  # the last character
        self.depth = 0  # open brackets
        self.two_digits = False  # the open value is 10..15
        for character in text:
            self.advance(character)

    @property
    def done(self) -> bool:
        """Whether the grid is complete."""
        return self.depth == 0 and self.before == "]"

    def allowed(self) -> set[str]:
        """The characters that may come next."""
        if self.done:
            return set()
        if self.depth == 0:
            return {"["}
        if self.depth == 1:  # between rows
            if self.before != "]":
                return {"["}
            return {"]", ","} if self.rows < MAX_SIDE else {"]"}
        if self.before in "[,":
            return set("0123456789")
        after_value = set()
        if self.values < (self.width or MAX_SIDE):
            after_value.add(",")
        if self.width is None or self.values == self.width:
            after_value.add("]")
        if self.before == "1" and not self.two_digits:
            after_value |= set("012345")
        return after_value

    def advance(self, character: str) -> None:
        """Takes the next character. Raises UserError if it is not allowed; the state is then unchanged."""
        if character not in self.allowed():
            allowed = " ".join(sorted(self.allowed())) or "nothing"
            raise UserError(f"{character!r} cannot follow here; allowed: {allowed}")
        if character == "[":
            self.depth += 1
            self.values = 0
        elif character == "]":
            if self.depth == 2:
                self.rows += 1
                self.width = self.values
            self.depth -= 1
        elif character != ",":
            self.two_digits = self.before.isdigit()
            self.values += not self.two_digits
        self.before = character

    def copy(self) -> Grammar:
        """An independent copy, to try the characters of a token."""
        other = Grammar()
        other.__dict__.update(self.__dict__)
        return other

    def admits(self, text: str) -> bool:
        """Whether all of `text` may follow; the state is unchanged."""
        trial = self.copy()
        for character in text:
            if character not in trial.allowed():
                return False
            trial.advance(character)
        return True
