"""Compiled loops for generators that search: numba, and a source of random numbers that compiles in no time.

A kernel takes `stream(rng)`, an array of one number that `below` moves on. So an example stays a function of its name,
and a kernel needs nothing of numpy's generators, which take numba many seconds to compile.

Seeding `random.Random` takes longer than drawing most puzzles. `first_numbers` gives what many of them would give, seeded
side by side, and `streams`, `bits` and `uniform` what their methods make of it.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Sequence
from itertools import groupby

import numpy as np
import numpy.typing as npt
from numba import njit

from tasks.base import rows_as_bytes, twin_weights

Stream = npt.NDArray[np.uint64]  # (1,)

GAMMA, MIX_1, MIX_2 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
S27, S30, S31, S33 = np.uint64(27), np.uint64(30), np.uint64(31), np.uint64(33)


def stream(rng: random.Random) -> Stream:
    """The random numbers of one example."""
    return np.array([rng.getrandbits(64)], np.uint64)


def streams(numbers: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint64]:
    """`stream` of many examples, (draws, 1), from their first two numbers: the low word of the 64 bits comes first."""
    low, high = numbers[:, :1].astype(np.uint64), numbers[:, 1:2].astype(np.uint64)
    return low | high << np.uint64(32)


def bits(numbers: npt.NDArray[np.uint32]) -> npt.NDArray[np.int8]:
    """`getrandbits(1)` from every number, same shape."""
    return (numbers >> np.uint32(31)).astype(np.int8)


def uniform(numbers: npt.NDArray[np.uint32]) -> npt.NDArray[np.float64]:
    """`random()` from every two numbers, (draws, words / 2)."""
    high, low = numbers[:, 0::2] >> np.uint32(5), numbers[:, 1::2] >> np.uint32(6)
    return (high * 67108864.0 + low) / 9007199254740992.0


def first_numbers(names: Sequence[str], count: int) -> npt.NDArray[np.uint32]:
    """The first `count` 32-bit numbers of `random.Random(name)` for every name, (names, count)."""
    texts = [name.encode() for name in names]
    keys = [text + hashlib.sha512(text).digest() for text in texts]  # a seed is a large number, its highest byte first
    found = []
    for length, group in groupby(keys, len):  # draw 10 has a longer name than draw 9
        given = np.frombuffer(b"".join(group), np.uint8).reshape(-1, length)
        filled = np.pad(given, ((0, 0), (-length % 4, 0))).view(">u4")  # (names, words)
        found.append(_first_numbers(filled[:, ::-1].astype(np.uint32, order="C"), _UNSEEDED, count))
    return np.concatenate(found)


# The Mersenne twister (Matsumoto and Nishimura, TOMACS 1998) as CPython seeds and reads it: `init_by_array`, mt19937ar.c.
SIZE, MIDDLE = 624, 397
LANES = 64  # so many generators go side by side: the compiler turns a step of several into one instruction
MIX_KEY, MIX_INDEX, MATRIX = np.uint32(1664525), np.uint32(1566083941), np.uint32(0x9908B0DF)
TOP, REST, TEMPER_1, TEMPER_2 = (np.uint32(x) for x in (0x80000000, 0x7FFFFFFF, 0x9D2C5680, 0xEFC60000))
T1, T7, T11, T15, T18, T30 = (np.uint32(x) for x in (1, 7, 11, 15, 18, 30))


def _unseeded() -> npt.NDArray[np.uint32]:
    """The state, (624,), before a key is mixed in."""
    state = [19650218]
    for i in range(1, SIZE):
        state.append((1812433253 * (state[-1] ^ state[-1] >> 30) + i) % 2**32)
    return np.array(state, np.uint32)


_UNSEEDED = _unseeded()


@njit(cache=True)
def _first_numbers(keys, unseeded, count):  # type: ignore[no-untyped-def]
    """keys uint32 (draws, words), the lowest word first -> uint32 (draws, count)."""
    draws, words = keys.shape
    numbers = np.empty((draws, count), np.uint32)
    most = min(LANES, draws)
    state, drawn = np.empty((SIZE, most), np.uint32), np.empty(most, np.uint32)
    key, no_key = np.zeros((words, most), np.uint32), np.zeros(most, np.uint32)
    for first in range(0, draws, most):
        lanes = min(most, draws - first)
        for j in range(words):
            for lane in range(lanes):
                key[j, lane] = keys[first + lane, j] + np.uint32(j)
        for i in range(SIZE):
            state[i] = unseeded[i]
        j = 0
        for k in range(SIZE):
            i = k + 1 if k + 1 < SIZE else 1  # after the last word comes word 1
            _mix(state[i], state[k], MIX_KEY, key[j], np.uint32(0))
            j = j + 1 if j + 1 < words else 0
        for k in range(1, SIZE):
            i = k + 1 if k + 1 < SIZE else 1
            _mix(state[i], state[k], MIX_INDEX, no_key, np.uint32(i))
        state[0] = TOP
        for k in range(count):
            _twist(state[k % SIZE], state[(k + 1) % SIZE], state[(k + MIDDLE) % SIZE], drawn)
            for lane in range(lanes):
                numbers[first + lane, k] = drawn[lane]
    return numbers


@njit(cache=True)
def _mix(word, before, factor, plus, minus):  # type: ignore[no-untyped-def]
    """Mix a word of every lane with the one before it, uint32 (lanes,)."""
    for lane in range(len(word)):
        mixed = before[lane] ^ before[lane] >> T30
        word[lane] = (word[lane] ^ mixed * factor) + plus[lane] - minus


@njit(cache=True)
def _twist(word, after, middle, drawn):  # type: ignore[no-untyped-def]
    """Renew a word of every lane, and write the number that it gives to `drawn`, uint32 (lanes,)."""
    for lane in range(len(word)):
        number = word[lane] & TOP | after[lane] & REST
        number = middle[lane] ^ number >> T1 ^ (number & T1) * MATRIX
        word[lane] = number
        number ^= number >> T11
        number ^= number << T7 & TEMPER_1
        number ^= number << T15 & TEMPER_2
        drawn[lane] = number ^ number >> T18


def twins_keys(views: Iterable[npt.NDArray[np.int8]]) -> list[bytes]:
    """`base.twins_key` of many grids at once: each view int8 (grids, rows, cols), a key that of the least of all views."""
    found = []
    for view in views:
        shape = view.shape[1:]
        found.append(_least_hashes(np.ascontiguousarray(view).reshape(len(view), -1), twin_weights(*shape).T.copy()))
    head, least = bytes(sorted(shape)), np.minimum.reduce(found)
    return [head + row for row in rows_as_bytes(least.astype(">u8"))]


@njit(cache=True)
def _least_hashes(grids, weights):  # type: ignore[no-untyped-def]
    """grids int8 (grids, cells), weights uint64 (cells, twins) -> the least hash of every grid's twins, uint64 (grids,)."""
    cells, twins = weights.shape
    least, sums = np.empty(len(grids), np.uint64), np.empty(twins, np.uint64)
    for g in range(len(grids)):
        sums[:] = 0
        for cell in range(cells):
            value = np.uint64(grids[g, cell])
            if value:
                for twin in range(twins):
                    sums[twin] += value * weights[cell, twin]
        least[g] = sums.min()
    return least


@njit(cache=True)
def below(state, n):  # type: ignore[no-untyped-def]
    """A random whole number of 0..n-1, n < 2**31 (splitmix64: Steele, Lea and Flood, OOPSLA 2014)."""
    state[0] += GAMMA
    z = state[0]
    z = (z ^ (z >> S30)) * MIX_1
    z = (z ^ (z >> S27)) * MIX_2
    z ^= z >> S31
    return np.int64(z >> S33) % n


@njit(cache=True)
def shuffle(values, state):  # type: ignore[no-untyped-def]
    """Put an array in random order (Fisher and Yates)."""
    for i in range(len(values) - 1, 0, -1):
        j = below(state, i + 1)
        values[i], values[j] = values[j], values[i]


@njit(cache=True)
def complete(grid, regions, most, draw, shuffled):  # type: ignore[no-untyped-def]
    """Fill the zeros of `grid` int8 (side, side) so that every row, column and region holds each of 1..side once, and count
    the ways to do so up to `most`; `grid` holds the first one found, or what was given where there is none.

    `regions` int64 (side, side) numbers each cell's region; with the rows' numbers it is a Latin square. Depth first at
    the cell with the fewest candidates, digits as bits; `shuffled` tries them in random order.
    """
    side = len(grid)
    everything = (1 << side) - 1
    rows, columns, boxes = np.zeros(side, np.int64), np.zeros(side, np.int64), np.zeros(side, np.int64)
    empty = np.zeros(side * side, np.int64)
    depth_to_fill = 0
    for r in range(side):
        for c in range(side):
            if grid[r, c]:
                bit = 1 << (grid[r, c] - 1)
                b = regions[r, c]
                if (rows[r] | columns[c] | boxes[b]) & bit:
                    return 0
                rows[r] |= bit
                columns[c] |= bit
                boxes[b] |= bit
            else:
                empty[depth_to_fill] = r * side + c
                depth_to_fill += 1
    left = np.zeros(side * side, np.int64)  # candidates not tried yet, by depth
    tried = np.zeros(side * side, np.int64)  # the bit that stands there now
    solution = grid.copy()
    count = depth = 0
    descending = True
    while True:
        if descending:
            if depth == depth_to_fill:
                count += 1
                if count == 1:
                    solution[:] = grid
                if count == most:
                    break
                descending = False
                depth -= 1
                if depth < 0:
                    break
                continue
            best, fewest, candidates = depth, side + 1, 0
            for i in range(depth, depth_to_fill):
                r, c = empty[i] // side, empty[i] % side
                may = everything & ~(rows[r] | columns[c] | boxes[regions[r, c]])
                number, rest = 0, may
                while rest:
                    rest &= rest - 1
                    number += 1
                if number < fewest:
                    best, fewest, candidates = i, number, may
                    if number <= 1:
                        break
            empty[depth], empty[best] = empty[best], empty[depth]
            left[depth], tried[depth] = candidates, 0
        r, c = empty[depth] // side, empty[depth] % side
        b = regions[r, c]
        if tried[depth]:
            rows[r] ^= tried[depth]
            columns[c] ^= tried[depth]
            boxes[b] ^= tried[depth]
            grid[r, c] = 0
            tried[depth] = 0
        if not left[depth]:
            depth -= 1
            descending = False
            if depth < 0:
                break
            continue
        bit = left[depth] & -left[depth]
        if shuffled:
            options, rest = 0, left[depth]
            while rest:
                rest &= rest - 1
                options += 1
            rest = left[depth]
            for _ in range(below(draw, options)):
                rest &= rest - 1
            bit = rest & -rest
        left[depth] ^= bit
        tried[depth] = bit
        rows[r] ^= bit
        columns[c] ^= bit
        boxes[b] ^= bit
        digit = 0
        while bit >> digit:
            digit += 1
        grid[r, c] = digit
        depth += 1
        descending = True
    grid[:] = solution
    return count
