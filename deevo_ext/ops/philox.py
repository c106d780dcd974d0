"""Philox4x32-R of Salmon et al. (SC 2011) in NumPy, and how deevo counts with it.

Counter = (purpose, generation, member or 0xFFFFFFFF, block), key = (seed low, seed high).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from deevo_ext.ops.tables import Purpose

MASK_ROUNDS = 7
ROUNDS = 10

Words = tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.uint64], NDArray[np.uint64]]
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)


def philox4x32(counter: tuple[Any, Any, Any, Any], key: tuple[int, int], rounds: int) -> Words:
    """Returns four arrays of 32-bit words, in uint64, for counters that are integers or arrays."""
    c0, c1, c2, c3 = np.broadcast_arrays(*(np.asarray(c, dtype=np.uint64) for c in counter))
    k0, k1 = key
    for _ in range(rounds):
        product0 = np.uint64(0xD2511F53) * c0
        product1 = np.uint64(0xCD9E8D57) * c2
        c0, c1, c2, c3 = (
            (product1 >> _SHIFT) ^ c1 ^ np.uint64(k0),
            product1 & _LOW,
            (product0 >> _SHIFT) ^ c3 ^ np.uint64(k1),
            product0 & _LOW,
        )
        k0 = (k0 + 0x9E3779B9) & 0xFFFFFFFF
        k1 = (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c0, c1, c2, c3


def key_of(seed: int) -> tuple[int, int]:
    """Returns the key of a seed in 0..2^63-1."""
    return seed & 0xFFFFFFFF, seed >> 32


def draw(
    purpose: Purpose, generation: int, member: int, block: int, seed: int
) -> tuple[int, int, int, int]:
    """Returns the four words of one counter."""
    words = philox4x32((int(purpose), generation, member, block), key_of(seed), ROUNDS)
    w0, w1, w2, w3 = (int(word) for word in words)
    return w0, w1, w2, w3


def words(
    purpose: Purpose, generation: int, member: int, count: int, seed: int
) -> NDArray[np.uint64]:
    """Returns the first `count` words of blocks 0, 1, ..., uint32 values in uint64."""
    blocks = np.arange((count + 3) // 4, dtype=np.uint64)
    counter = (int(purpose), generation, member, blocks)
    return np.stack(philox4x32(counter, key_of(seed), ROUNDS), axis=1).reshape(-1)[:count]


def uniform(word: int) -> float:
    """Returns a word as a uniform number on (0, 1), exact in float64."""
    return (word + 0.5) * 2.0**-32


def mulhi(word: int, n: int) -> int:
    """Returns a word as a uniform number on 0..n-1."""
    return (word * n) >> 32


def mask_draws(
    purpose: Purpose, first: int, count: int, generation: int, member: int, seed: int
) -> NDArray[np.uint16]:
    """Returns 16 random bits for each of weights or genes first..first+count-1 (first: 8 n)."""
    blocks = np.arange(first // 8, (first + count + 7) // 8, dtype=np.uint64)
    counter = (int(purpose), generation, member, blocks & _LOW)
    words = np.stack(philox4x32(counter, key_of(seed), MASK_ROUNDS), axis=1)
    halves = np.stack([words & np.uint64(0xFFFF), words >> np.uint64(16)], axis=2)
    return halves.reshape(-1)[:count].astype(np.uint16)
