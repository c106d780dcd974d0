"""Philox against Random123's published vectors, and how deevo counts with it."""

from __future__ import annotations

import numpy as np
import pytest

from deevo_ext import _extension
from deevo_ext.ops import philox
from deevo_ext.ops.tables import Purpose
from support.operators import BIG_SEED
from support.oracles import mask_bits, philox_words, words

PI = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344, 0xA4093822, 0x299F31D0)
# Random123, tests/kat_vectors: rounds, counter and key, words.
VECTORS = [
    (7, (0,) * 6, (0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48)),
    (7, (0xFFFFFFFF,) * 6, (0x5207DDC2, 0x45165E59, 0x4D8EE751, 0x8C52F662)),
    (7, PI, (0x4DFCCABA, 0x190A87F0, 0xC47362BA, 0xB6B5242A)),
    (10, (0,) * 6, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (10, (0xFFFFFFFF,) * 6, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (10, PI, (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
]


@pytest.mark.parametrize(("rounds", "numbers", "expected"), VECTORS)
def test_published_vectors(
    rounds: int, numbers: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    counter, key = numbers[:4], numbers[4:]
    in_numpy = philox.philox4x32(counter, key, rounds)
    assert tuple(int(word) for word in in_numpy) == expected
    assert _extension.load().philox4x32(rounds, *counter, *key) == expected
    assert tuple(philox_words(counter, key, rounds)) == expected  # the tests' own oracle


@pytest.mark.parametrize("rounds", [7, 10])
def test_backends_agree_on_random_counters(rounds: int) -> None:
    compiled = _extension.load()
    numbers = np.random.default_rng(3).integers(0, 2**32, size=(2000, 6))
    for row in numbers.tolist():
        expected = tuple(philox_words(tuple(row[:4]), tuple(row[4:]), rounds))
        assert compiled.philox4x32(rounds, *row) == expected
    key = (123, 456)
    in_numpy = np.stack(philox.philox4x32(tuple(numbers.T[:4]), key, rounds), axis=1)
    assert in_numpy.tolist() == [philox_words(tuple(r[:4]), key, rounds) for r in numbers.tolist()]


def test_compiled_has_the_two_round_counts_only() -> None:
    with pytest.raises(ValueError, match="7 or 10"):
        _extension.load().philox4x32(8, 0, 0, 0, 0, 0, 0)


@pytest.mark.parametrize(
    ("seed", "key"),
    [
        (0, (0, 0)),
        (2**32 - 1, (0xFFFFFFFF, 0)),
        (2**32, (0, 1)),
        (BIG_SEED, (0x89ABCDEF, 0x7A5C0123)),
        (2**63 - 1, (0xFFFFFFFF, 0x7FFFFFFF)),
    ],
)
def test_key_is_the_seed_in_two_words(seed: int, key: tuple[int, int]) -> None:
    assert philox.key_of(seed) == key
    expected = philox_words((3, 9, 4, 1), key, 10)
    assert list(philox.draw(Purpose.CHOICE, 9, 4, 1, seed)) == expected
    assert list(_extension.load().philox4x32(10, 3, 9, 4, 1, *key)) == expected


def test_purposes_are_the_contracts() -> None:
    assert [(purpose.name, purpose.value) for purpose in Purpose] == [
        ("MASK", 1),
        ("GENE_MASK", 2),
        ("CHOICE", 3),
        ("PARENTS", 4),
        ("F", 5),
        ("CR", 6),
        ("FREQUENCY", 7),
        ("J_RAND", 8),
        ("ARCHIVE", 9),
        ("PERMUTATION", 10),
        ("BATCH", 11),
        ("DIRECTION", 12),
        ("FIRST_VIRTUAL", 13),
        ("PART", 14),
    ]


def test_mask_order() -> None:
    """Weight 8b + 2w + h uses word w of block b, h = 0 its low 16 bits; 7 rounds."""
    seed, generation, member = BIG_SEED, 12, 345
    draws = philox.mask_draws(Purpose.MASK, 16, 24, generation, member, seed)
    for b in range(3):
        block = words(1, generation, member, 2 + b, seed)
        for w in range(4):
            assert draws[8 * b + 2 * w] == block[w] & 0xFFFF
            assert draws[8 * b + 2 * w + 1] == block[w] >> 16


@pytest.mark.parametrize("first", [0, 8, 2**31, 2**35 - 16])
def test_masks_of_any_slice(first: int) -> None:
    """Also where the block number passes 2^32 and wraps."""
    draws = philox.mask_draws(Purpose.MASK, first, 37, 2, 1, 77).tolist()
    assert draws == [mask_bits(first + j, 2, 1, 77) for j in range(37)]


def test_uniform_is_inside_0_1_and_exact() -> None:
    assert philox.uniform(0) == 2.0**-33
    assert philox.uniform(0xFFFFFFFF) == 1.0 - 2.0**-33
    assert philox.uniform(2**31) == 0.5 + 2.0**-33
    for word in np.random.default_rng(0).integers(0, 2**32, size=1000).tolist():
        assert philox.uniform(word) * 2.0**33 == 2 * word + 1


def test_mulhi_splits_the_words_evenly() -> None:
    """mulhi(word, n) = floor(word n / 2^32): n contiguous ranges of words, equal to within one."""
    for n in (1, 2, 3, 7, 199, 65537):
        starts = [-(-k * 2**32 // n) for k in range(n + 1)]
        for k in {0, 1 % n, n // 2, n - 1}:
            assert philox.mulhi(starts[k], n) == k
            assert philox.mulhi(starts[k + 1] - 1, n) == k


def test_words_are_those_of_the_first_blocks() -> None:
    for count in (1, 4, 10):
        drawn = philox.words(Purpose.FIRST_VIRTUAL, 7, 3, count, 2**40 + 5)
        blocks = [philox.draw(Purpose.FIRST_VIRTUAL, 7, 3, b, 2**40 + 5) for b in range(3)]
        assert drawn.tolist() == [word for block in blocks for word in block][:count]
