"""The text corpus: what the small language backbones learn from.

Document `i` of a corpus is a pure function of `(seed, i)`: any length, random access, nothing to download.

What is in it:

- **The standard library's source**, which every Python has: code, comments and docstrings, and the language reference
  in `pydoc_data`. Left out are the test suites, idlelib, lib2to3, turtledemo (it holds two puzzles), the character
  tables of `encodings`, and everything installed on top. Every 50th file is held out for validation.
- **Procedural text**: counting, lists, nested brackets, indented blocks, key-value JSON, tables in CSV and Markdown;
  and lists and tables that are given in one form and wanted in another: copied, one entry replaced, values replaced
  by a map, rows and columns numbered, sorted, swapped, repeated, filled, removed or added, transposed, flattened, cut to
  a width, entries compared with the one above or before, running totals, sums of entries that lie side by side. Flat
  lists are also reversed and rotated. Often several pairs follow one another by the same hidden rule, as plain
  "A -> B" lines or as turns of a conversation; or the rule is said in words.

What is *not* in it: no task of the exam on purpose, and no puzzle. There is no maze, no sudoku, no cellular automaton (sums of
neighbouring entries are written as plain numbers, along rows and columns with random weights; none is turned into a
state, none counts eight neighbours), and no picture-like rule on a table: none mirrors or shifts tables, lets anything
fall or draws. On small tables three of the rules come to the same: a swap of the outer columns of three, or of the outer
rows of two or three, mirrors, and on one or two rows a sum of neighbours of which one lies outside shifts. 47 of the
first 12,000 documents of seed 0 are mirrored throughout by such a swap, 5 shifted by such a sum.
"""

from __future__ import annotations

import string
import sysconfig
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

SKIPPED = {"test", "tests", "idlelib", "lib2to3", "turtledemo", "encodings", "site-packages", "__pycache__"}
SOURCE_SHARE = 0.15  # of the documents, which is a quarter of the tokens; the rest is procedural
HELD_OUT = 50  # every 50th file of the standard library is kept for validation

Table = list[list[Any]]
Rule = Callable[[Any], Any]


@dataclass(frozen=True)
class Document:
    """Parts in order. A part is (role, text): role "text", or "user" and "assistant" of a conversation."""

    parts: tuple[tuple[str, str], ...]
    kind: str  # for reports: "source", or the name of the procedure


def document(i: int, seed: int = 0, long: bool = False, held_out: bool = False) -> Document:
    """Document `i` of corpus `seed`. `long` allows tables of up to 20 x 20 and longer passages."""
    rng = Random(f"text/{seed}/{i}/{'held-out' if held_out else 'train'}")
    if rng.random() < SOURCE_SHARE:
        return Document((("text", _source(rng, 6000 if long else 1800, held_out)),), "source")
    if rng.random() < 0.08:
        make = rng.choice(PLAIN)
        return Document((("text", make(rng)),), make.__name__.strip("_"))
    return _transformation(rng, long)


# The standard library


@cache
def source_files(held_out: bool = False) -> tuple[Path, ...]:
    """The files of the standard library that are read, sorted by name."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = [p for p in sorted(root.rglob("*.py")) if not SKIPPED & set(p.relative_to(root).parts)]
    files = [p for p in files if not any(part.startswith("config-") for part in p.relative_to(root).parts)]
    return tuple(p for n, p in enumerate(files) if (n % HELD_OUT == HELD_OUT - 1) == held_out)


@cache
def _texts(held_out: bool) -> tuple[list[str], list[int]]:
    texts = [p.read_text(encoding="utf-8", errors="ignore") for p in source_files(held_out)]
    sizes, total = [], 0
    for text in texts:
        total += len(text)
        sizes.append(total)
    return texts, sizes


def _source(rng: Random, size: int, held_out: bool) -> str:
    """A passage of about `size` characters that starts at a line, from a file drawn by its length."""
    texts, sizes = _texts(held_out)
    (text,) = rng.choices(texts, cum_weights=sizes)
    start = text.rfind("\n", 0, rng.randrange(max(1, len(text) - size // 2))) + 1
    return text[start : start + size]


# Plain procedural text

_SYLLABLES = (
    "ba be bi bo bu da de do ka ke ki ko la le li lo lu ma me mi mo na ne no pa pe po ra re ri ro sa se so ta te ti to"
).split()
_KEYS = (
    "name size kind count level state owner width height colour price total first last next left right old new id"
).split()


def _word(rng: Random) -> str:
    return "".join(rng.choice(_SYLLABLES) for _ in range(rng.randint(1, 3)))


def _counting(rng: Random) -> str:
    start, step = rng.randint(0, 200), rng.choice((1, 1, 1, 2, 3, 5, 10, -1, -2))
    mark = rng.choice((" ", ", ", ",", "\n", "; "))
    return mark.join(str(start + step * n) for n in range(rng.randint(8, 60))) + "\n"


def _numbered_list(rng: Random) -> str:
    form = rng.choice(("{n}. {w}", "{n}) {w}", "- {w}", "* {w} {n}", "[{n}] {w}"))
    return "".join(form.format(n=n, w=_word(rng)) + "\n" for n in range(1, rng.randint(4, 20)))


def _brackets(rng: Random) -> str:
    """Well-nested brackets, a few lines."""

    def nest(depth: int) -> str:
        a, b = rng.choice(("()", "[]", "{}"))
        inside = "".join(nest(depth - 1) for _ in range(rng.randint(0, 3))) if depth else ""
        return a + inside + b

    return "".join(nest(rng.randint(1, 4)) + "\n" for _ in range(rng.randint(2, 6)))


def _blocks(rng: Random) -> str:
    """Indented code-like blocks."""
    lines = []

    def block(depth: int) -> None:
        for _ in range(rng.randint(1, 3)):
            a, b = _word(rng), _word(rng)
            if depth < 3 and rng.random() < 0.5:
                head = rng.choice(("for {a} in {b}:", "if {a} == {b}:", "while {a} < {n}:", "def {a}({b}):"))
                lines.append("    " * depth + head.format(a=a, b=b, n=rng.randint(2, 99)))
                block(depth + 1)
            else:
                body = rng.choice(("{a} = {b} + {n}", "{a}({b})", "return {a}", "{a}[{n}] = {b}"))
                lines.append("    " * depth + body.format(a=a, b=b, n=rng.randint(0, 99)))

    block(0)
    return "\n".join(lines) + "\n"


def _two_forms(rng: Random) -> str:
    """One table as CSV, as Markdown and as JSON, in any order."""
    head: list[Any] = rng.sample(_KEYS, rng.randint(2, 4))
    rows: Table = [
        [_word(rng) if n == 0 else rng.randint(0, 99) for n in range(len(head))] for _ in range(rng.randint(2, 5))
    ]
    csv = "\n".join(",".join(map(str, row)) for row in [head, *rows])
    markdown = "\n".join("| " + " | ".join(map(str, row)) + " |" for row in [head, ["---"] * len(head), *rows])
    records = json_text([dict(zip(head, row, strict=True)) for row in rows])
    forms = [csv, markdown, records]
    rng.shuffle(forms)
    return "\n\n".join(forms) + "\n"


PLAIN: tuple[Callable[[Random], str], ...] = (_counting, _numbered_list, _brackets, _blocks, _two_forms)


def json_text(value: Any) -> str:
    """Compact JSON without spaces, for lists, dicts, words and numbers."""
    if isinstance(value, list):
        return "[" + ",".join(map(json_text, value)) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f'"{k}":{json_text(v)}' for k, v in value.items()) + "}"
    return f'"{value}"' if isinstance(value, str) else str(value)


# Something in one form, wanted in another


def _transformation(rng: Random, long: bool) -> Document:
    """One hidden rule, one or several pairs; said in words, or left to be found out."""
    (world,) = rng.choices((_tables, _lists, _records), (0.65, 0.3, 0.05))
    several = rng.random() < 0.6
    name, draw, rule, write = world(rng, long, several)
    # Several pairs share a page of about 512 tokens, a long page holds four times as much.
    room = 4000 if long else 1000
    pairs: list[tuple[str, str]] = []
    while not pairs or (several and room > 0 and len(pairs) < 24):
        given = draw()
        pairs.append((write(given), write(rule(given))))
        room -= len(pairs[-1][0]) + len(pairs[-1][1])
    told = rng.random() < (0.25 if several else 0.85)
    if rng.random() < 0.25:
        arrow = rng.choice((" -> ", " => ", "\n", "\n-> ", ": "))
        gap = rng.choice(("\n", "\n\n"))
        head = name + gap if told else ""
        return Document((("text", head + gap.join(a + arrow + b for a, b in pairs) + "\n"),), name)
    lead = rng.choice(_LEADS)
    parts: list[tuple[str, str]] = []
    for n, (a, b) in enumerate(pairs):
        said = "\n".join(filter(None, (name if told and n == 0 else "", lead)))
        parts += [("user", f"{said}\n{a}" if said else a), ("assistant", b)]
    return Document(tuple(parts), name)


_LEADS = (
    "",
    "Answer with JSON.",
    "Answer with a JSON array.",
    "Answer with a JSON array and nothing else.",
    "JSON in, JSON out.",
    "Input:",
)

World = tuple[str, Callable[[], Any], Rule, Callable[[Any], str]]


def _entries(rng: Random) -> Callable[[], Any]:
    """What a table holds: few or many digits, numbers, now and then words or letters."""
    kinds = {"digits": 0.32, "sparse": 0.2, "runs": 0.12, "numbers": 0.14, "letters": 0.14, "words": 0.08}
    (kind,) = rng.choices(list(kinds), list(kinds.values()))
    if kind == "numbers":
        return lambda: rng.randint(0, 99)
    if kind == "letters":
        letters = rng.sample(string.ascii_lowercase, rng.randint(2, 6))
        return lambda: rng.choice(letters)
    if kind == "words":
        words = [_word(rng) for _ in range(rng.randint(2, 6))]
        return lambda: rng.choice(words)
    digits = rng.sample(range(10), rng.randint(2, 10 if kind == "digits" else 5))
    if kind == "digits":
        return lambda: rng.choice(digits)
    share = rng.uniform(0.6, 0.95)
    if kind == "sparse":  # one value nearly everywhere
        return lambda: digits[0] if rng.random() < share else rng.choice(digits)
    last = [digits[0]]

    def run() -> int:  # the last value again, nearly always
        if rng.random() > share - 0.2:
            last[0] = rng.choice(digits)
        return last[0]

    return run


def _tables(rng: Random, long: bool, several: bool) -> World:
    cells = 400 if long and not several else 64 if several else 100
    most = rng.choice((3, 3, 4, 4, 5, 6, 8, 8) if several else (4, 6, 8, 8, 10, 20 if long else 10))
    entry = _entries(rng)
    fixed = rng.random() < 0.6  # all tables of one document equally large
    rows, columns = rng.randint(1, most), rng.randint(3, most)
    rows = max(1, min(rows, cells // columns))

    def draw() -> Table:
        r, c = (rows, columns) if fixed else (rng.randint(1, rows), rng.randint(3, columns))
        return [[entry() for _ in range(c)] for _ in range(r)]

    example = draw()
    number = all(isinstance(v, int) for row in example for v in row)
    rules = _table_rules(rng, rows, columns, entry, number)
    ((name, rule, _),) = rng.choices(rules, [weight for _, _, weight in rules])
    if "neighbours" in name or "totals" in name or "sums" in name:  # small values, so that sums stay short
        inner = draw

        def draw() -> Table:
            return [[v % 5 for v in row] for row in inner()]

    return name, draw, rule, json_text


def _table_rules(
    rng: Random, rows: int, columns: int, entry: Callable[[], Any], number: bool
) -> list[tuple[str, Rule, float]]:
    """(name in words, rule, weight). Numbers in a rule are drawn once a document; indices wrap where tables vary."""
    r, s, c, d = rng.randrange(rows), rng.randrange(rows), rng.randrange(columns), rng.randrange(columns)
    old, new = entry(), entry() if rng.random() < 0.5 else rng.randint(0, 9)
    values = list(range(10))
    shuffled = rng.sample(values, 10)
    book = dict(zip(values, shuffled, strict=True))
    weights = [rng.choice((0, 1, 1, 2)) for _ in range(5)]  # the entry itself, then left, right, above, below
    if sum(map(bool, weights)) < 2:  # a single neighbour would be a shift
        weights = [1, 1, 0, 1, 0]
    width = rng.randint(2, 8)

    def replaced(t: Table, row: int, column: int, value: Any) -> Table:
        out = [list(x) for x in t]
        out[row % len(t)][column % len(t[0])] = value
        return out

    def swapped(t: Table) -> Table:
        out = [list(x) for x in t]
        i, j = r % len(t), s % len(t)
        out[i], out[j] = out[j], out[i]
        return out

    def columns_swapped(t: Table) -> Table:
        out = [list(x) for x in t]
        i, j = c % len(t[0]), d % len(t[0])
        for row in out:
            row[i], row[j] = row[j], row[i]
        return out

    def totals(row: Sequence[int]) -> list[int]:
        return [sum(row[: n + 1]) for n in range(len(row))]

    def neighbours(t: Table) -> Table:
        def at(i: int, j: int) -> int:
            return t[i][j] if 0 <= i < len(t) and 0 <= j < len(t[0]) else 0

        steps = ((0, 0), (0, -1), (0, 1), (-1, 0), (1, 0))
        return [
            [sum(w * at(i + a, j + b) for w, (a, b) in zip(weights, steps, strict=True)) for j in range(len(t[0]))]
            for i in range(len(t))
        ]

    def above(t: Table, compare: Callable[[Any, Any], Any], at_top: Callable[[Any], Any]) -> Table:
        """Each entry compared with the one above it."""
        return [[compare(v, t[i - 1][j]) if i else at_top(v) for j, v in enumerate(x)] for i, x in enumerate(t)]

    def without_column(t: Table) -> Table:
        return [[v for n, v in enumerate(x) if n != c % len(x)] for x in t]

    def without_row(t: Table) -> Table:
        return [x for n, x in enumerate(t) if n != r % len(t)] or t

    def row_filled(t: Table) -> Table:
        return [[new] * len(x) if n == r % len(t) else x for n, x in enumerate(t)]

    def column_filled(t: Table) -> Table:
        return [[new if n == c % len(x) else v for n, v in enumerate(x)] for x in t]

    def turned(t: Table) -> Table:
        return [list(x) for x in zip(*t, strict=True)]

    rules: list[tuple[str, Rule, float]] = [
        ("copy", lambda t: t, 4.0),
        (f"put {new} at row {r} column {c}", lambda t: replaced(t, r, c, new), 1.0),
        (f"copy entry {r},{c} to {s},{d}", lambda t: replaced(t, s, d, t[r % len(t)][c % len(t[0])]), 0.7),
        (f"replace {old} by {new}", lambda t: [[new if v == old else v for v in x] for x in t], 1.5),
        ("transpose", turned, 2.0),
        (f"swap rows {r} and {s}", swapped, 0.8),
        (f"swap columns {c} and {d}", columns_swapped, 1.0),
        ("sort the rows", lambda t: sorted(t), 0.5),
        ("sort each row", lambda t: [sorted(x) for x in t], 1.0),
        ("repeat each row", lambda t: [x for x in t for _ in (0, 1)], 0.5),
        ("repeat each entry", lambda t: [[v for v in x for _ in (0, 1)] for x in t], 0.4),
        (f"remove column {c}", without_column, 0.6),
        (f"remove row {r}", without_row, 0.5),
        (f"row {r} below", lambda t: [*t, t[r % len(t)]], 0.5),
        (f"fill row {r} with {new}", row_filled, 0.5),
        (f"fill column {c} with {new}", column_filled, 0.7),
        (f"each entry equals {old}", lambda t: [[int(v == old) for v in x] for x in t], 0.8),
        ("equals the entry above", lambda t: above(t, lambda v, up: int(v == up), lambda v: 0), 1.0),
        (
            "equals the entry before",
            lambda t: [[int(j > 0 and x[j - 1] == v) for j, v in enumerate(x)] for x in t],
            0.6,
        ),
        ("the larger of the entry and the one above", lambda t: above(t, max, lambda v: v), 1.0),
        (f"count of {old} in each row", lambda t: [[*x, x.count(old)] for x in t], 0.5),
        ("number the rows", lambda t: [[n, *x] for n, x in enumerate(t)], 0.5),
        ("which row", lambda t: [[n] * len(x) for n, x in enumerate(t)], 1.0),
        ("which column", lambda t: [list(range(len(x))) for x in t], 1.0),
        ("count through", lambda t: _cut(list(range(len(t) * len(t[0]))), len(t[0])), 0.5),
        ("flatten", lambda t: [v for x in t for v in x], 0.5),
        (f"rows of {width}", lambda t: _cut([v for x in t for v in x], width), 0.7),
    ]
    if not number:
        return rules
    said = " ".join(f"{a}:{b}" for a, b in book.items())
    return [
        *rules,
        (f"map {said}", lambda t: [[book.get(v, v) for v in x] for x in t], 3.0),
        ("neighbours with weights " + " ".join(map(str, weights)), neighbours, 2.0),
        ("totals along rows", lambda t: [totals(x) for x in t], 0.6),
        ("totals down columns", lambda t: turned([totals(x) for x in turned(t)]), 0.6),
        ("add a row of sums", lambda t: [*t, [sum(x) for x in turned(t)]], 0.6),
        ("add sums of rows", lambda t: [[*x, sum(x)] for x in t], 0.6),
        (f"add {width}", lambda t: [[v + width for v in x] for x in t], 0.6),
        (f"at most {width}", lambda t: [[min(v, width) for v in x] for x in t], 0.6),
    ]


def _cut(flat: list[Any], width: int) -> Table:
    return [flat[n : n + width] for n in range(0, len(flat), width)]


def _lists(rng: Random, long: bool, several: bool) -> World:
    entry = _entries(rng)
    most = rng.choice((4, 4, 6, 8, 12) if several else (6, 10, 20, 60 if long else 40))
    turn, n = rng.randint(1, 3), rng.randint(0, 5)
    old, new = entry(), entry()
    name, rule = rng.choice(
        (
            ("copy", lambda x: x),
            ("reverse", lambda x: x[::-1]),
            ("sort", lambda x: sorted(x)),
            (f"rotate by {turn}", lambda x: x[turn:] + x[:turn]),
            ("without repetitions", lambda x: list(dict.fromkeys(x))),
            (f"replace {old} by {new}", lambda x: [new if v == old else v for v in x]),
            (f"remove entry {n}", lambda x: [v for i, v in enumerate(x) if i != n]),
            ("every second", lambda x: x[::2]),
            ("twice", lambda x: x + x),
            ("pairs", lambda x: _cut(x, 2)),
            ("number the entries", lambda x: [[i, v] for i, v in enumerate(x)]),
            ("length", lambda x: [len(x)]),
            ("first and last", lambda x: [x[0], x[-1]]),
            (f"put {new} first", lambda x: [new, *x]),
        )
    )
    write = json_text if rng.random() < 0.7 else lambda x: " ".join(map(str, _flat(x)))

    def draw() -> list[Any]:
        return [entry() for _ in range(rng.randint(2, most))]

    return name, draw, rule, write


def _flat(x: list[Any]) -> list[Any]:
    return [w for v in x for w in (_flat(v) if isinstance(v, list) else [v])]


def _records(rng: Random, long: bool, several: bool) -> World:
    keys = rng.sample(_KEYS, rng.randint(2, 5))
    key, other = rng.sample(keys, 2)
    value = rng.randint(0, 99)

    def draw() -> dict[str, Any]:
        return {k: _word(rng) if rng.random() < 0.5 else rng.randint(0, 99) for k in keys}

    name, rule = rng.choice(
        (
            ("copy", lambda x: x),
            (f"value of {key}", lambda x: x[key]),
            (f"set {key} to {value}", lambda x: {**x, key: value}),
            (f"remove {key}", lambda x: {k: v for k, v in x.items() if k != key}),
            (f"swap {key} and {other}", lambda x: {**x, key: x[other], other: x[key]}),
            ("keys and values", lambda x: [[k, v] for k, v in x.items()]),
            ("sort by key", lambda x: dict(sorted(x.items()))),
        )
    )
    return name, draw, rule, json_text
