"""Compiled loops for generators that search: numba, and a source of random numbers that compiles in no time.

A kernel takes `stream(rng)`, an array of one number that `below` moves on. So an example stays a function of its name,
and a kernel needs nothing of numpy's generators, which take numba many seconds to compile.
"""

from __future__ import annotations

import random

import numpy as np
import numpy.typing as npt
from numba import njit

Stream = npt.NDArray[np.uint64]  # (1,)

GAMMA, MIX_1, MIX_2 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
S27, S30, S31, S33 = np.uint64(27), np.uint64(30), np.uint64(31), np.uint64(33)


def stream(rng: random.Random) -> Stream:
    """The random numbers of one example."""
    return np.array([rng.getrandbits(64)], np.uint64)


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
