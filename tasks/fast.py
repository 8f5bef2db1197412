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
