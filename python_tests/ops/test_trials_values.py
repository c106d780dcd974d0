"""What weights trials make: rounding, overflow, the non-negative tail, masks."""

from __future__ import annotations

import math

import pytest
import torch

from deevo_ext import backends
from deevo_ext.ops.tables import ChoiceColumn
from support.operators import instruction_set, instruction_sets, num_threads, same_bits, serving
from support.weights import Weights, random_weights

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SETS = instruction_sets()

SERVING = serving("trials")


def two_rows(
    parent: list[float], other: list[float], dtype: torch.dtype = torch.float32, **changes: object
) -> Weights:
    """Three members: 0 tries other + c (row 2 - other), wholly; row 2 is zero."""
    zero = [0.0] * len(parent)
    w = random_weights(3, len(parent), dtype, archive_rows=0, nonneg=0)
    w.population = torch.tensor([parent, other, zero], dtype=dtype)
    w.choices.zero_()
    w.choices[:, ChoiceColumn.THRESHOLD] = 65536
    w.choices[:, ChoiceColumn.TERMS] = 1
    w.choices[:, ChoiceColumn.BASE_ROW] = 1
    w.choices[:, ChoiceColumn.ROWS] = 2
    w.coefficients.zero_()
    for name, value in changes.items():
        setattr(w, name, value)
    return w


# Examples


@pytest.mark.parametrize("name", SETS)
def test_not_finite_mutants_take_the_parent(name: str) -> None:
    huge = torch.finfo(torch.float32).max
    with instruction_set(name):
        w = two_rows([1.0, 2.0, 3.0, -0.0], [huge, -huge, 5.0, 1.0])
        w.coefficients[0, 0] = -1.0  # other + (other - 0)
        assert w.trials()[0].tolist() == [1.0, 2.0, 10.0, 2.0]
        for bad in (math.inf, -math.inf, math.nan):
            w.coefficients[0, 0] = bad
            assert same_bits(w.trials()[0], w.population[0])


@pytest.mark.parametrize("name", SETS)
def test_overflow_in_rounding_takes_the_parent(name: str) -> None:
    """A mutant that float32 holds but bfloat16 rounds to infinity."""
    largest = torch.finfo(torch.bfloat16).max  # 0x7F7F
    with instruction_set(name):
        w = two_rows([1.0, 2.0], [2.0**127, -(2.0**127)], torch.bfloat16)
        w.coefficients[0, 0] = -(1.0 - 2.0**-8)  # tie between the largest and 2^128: up to even
        assert w.trials()[0].tolist() == [1.0, 2.0]
        w.coefficients[0, 0] = -(1.0 - 2.0**-8 - 2.0**-20)
        assert w.trials()[0].tolist() == [largest, -largest]


@pytest.mark.parametrize("name", SETS)
def test_bfloat16_rounds_halves_to_even_and_keeps_subnormals(name: str) -> None:
    with instruction_set(name):
        w = two_rows([0.0] * 3, [1.0, 1.0 + 2.0**-7, 2.0**-133], torch.bfloat16)
        w.coefficients[0, 0] = -(2.0**-8)
        # 1 + 2^-8: tie to 1; (1 + 2^-7)(1 + 2^-8): above the tie; a subnormal.
        assert w.trials()[0].tolist() == [1.0, 1.0 + 2.0**-6, 2.0**-133]
        w.coefficients[0, 0] = 0.5  # half the smallest: tie to 0
        assert w.trials()[0].tolist() == [0.5, 0.50390625, 0.0]


def test_operations_are_rounded_one_by_one(backend: str) -> None:
    """c (row - base) = -(1 + 2^-11 + 2^-24), a tie, is rounded before it is added."""
    w = two_rows([0.0], [1.0 + 2.0**-12])
    w.coefficients[0, 0] = 1.0 + 2.0**-12
    assert w.trials()[0].item() == -(2.0**-12)  # fused: -(2^-12 + 2^-24)


def test_non_negative_tail(backend: str) -> None:
    """Not above zero: half the parent's value; the body may be negative."""
    parent = [4.0, 4.0, 4.0, 0.0, 1e-45]
    w = two_rows(parent, [-3.0, -3.0, 2.0, -1.0, 0.0])
    w.nonneg_start = 1
    assert w.trials()[0].tolist() == [-3.0, 2.0, 2.0, 0.0, 0.0]
    w.coefficients[0, 0] = math.nan
    assert w.trials()[0].tolist() == [4.0, 2.0, 2.0, 0.0, 0.0]
    w.choices[:, ChoiceColumn.THRESHOLD] = 0
    assert same_bits(w.trials()[0], w.population[0])


@pytest.mark.parametrize("start", [0, 1, 5, 4095, 4096, 4097, 5000, 10**12])
def test_non_negative_tail_from_anywhere(start: int) -> None:
    w = random_weights(6, 5000, draw=1)
    w.population.abs_()
    w.archive.abs_()
    w.nonneg_start = start
    with backends.use("reference"):
        out = w.trials()
    for threads in (1, 3):
        with num_threads(threads):
            assert same_bits(w.trials(), out)


# Properties


@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_rows_are_a_fixed_point(backend: str, dtype: torch.dtype) -> None:
    w = random_weights(6, 5000, dtype)
    w.population = w.population[:1].repeat(6, 1)
    w.archive = w.population[:2].clone()
    assert torch.equal(w.trials(), w.population)


def test_thresholds_0_and_65536(backend: str) -> None:
    w = random_weights(6, 3000)
    w.choices[:, ChoiceColumn.THRESHOLD] = 0
    assert same_bits(w.trials(), w.population)
    w.choices[:, ChoiceColumn.THRESHOLD] = 65536
    w.choices[:, ChoiceColumn.TERMS] = 0  # the mutant is the base row
    w.nonneg_start = 3000
    rows = torch.cat([w.population, w.archive])
    assert same_bits(w.trials(), rows[w.choices[:, ChoiceColumn.BASE_ROW].long()])


@pytest.mark.parametrize("dtype", DTYPES)
def test_crossover_takes_the_mutant_or_the_parent(dtype: torch.dtype) -> None:
    w = random_weights(6, 20000, dtype, draw=4)
    mixed = w.trials()
    w.choices[:, ChoiceColumn.THRESHOLD] = 65536
    mutant = w.trials()
    bits = torch.int32 if dtype == torch.float32 else torch.int16
    taken = mixed.view(bits) == mutant.view(bits)
    kept = mixed.view(bits) == w.population.view(bits)
    assert (taken | kept).all()


@pytest.mark.parametrize("threshold", [1, 100, 6554, 32768, 60000, 65535])
def test_mask_density(threshold: int) -> None:
    columns = 2**21
    w = two_rows([0.0] * columns, [1.0] * columns)
    w.choices[:, ChoiceColumn.THRESHOLD] = threshold
    taken = float(w.trials(torch.tensor([0])).sum(dtype=torch.float64))
    p = threshold / 65536
    assert abs(taken - columns * p) < 5.0 * math.sqrt(columns * p * (1 - p))


def test_masks_depend_on_seed_generation_and_member(backend: str) -> None:
    w = random_weights(4, 4096, archive_rows=0)
    w.population = torch.arange(4.0).repeat_interleave(4096).reshape(4, 4096)
    w.choices[:, ChoiceColumn.THRESHOLD] = 32768
    w.choices[:, ChoiceColumn.TERMS] = 0
    w.choices[:, ChoiceColumn.BASE_ROW] = torch.tensor([1, 2, 3, 0])

    def masks() -> list[torch.Tensor]:
        return list(w.trials() != w.population)

    seen = masks()
    w.seed += 2**32
    seen += masks()
    w.choices[:, ChoiceColumn.GENERATION] += 1
    seen += masks()
    for i, a in enumerate(seen):
        for b in seen[:i]:
            assert abs(int((a == b).sum()) - 2048) < 5 * 32  # independent: half agree


@pytest.mark.parametrize("dtype", DTYPES)
def test_tail_stays_positive_and_everything_finite(dtype: torch.dtype) -> None:
    for draw in range(10):
        w = random_weights(8, 3000, dtype, draw=draw, nonneg=1000)
        w.coefficients *= 10.0 ** (draw * 4)
        out = w.trials()
        assert out.isfinite().all()
        tail, parent = out[:, 2000:].float(), w.population[:, 2000:].float()
        assert (tail >= 0.0).all()
        ordinary = parent > 2.0**-120  # its half does not underflow; mutants may, when rounded
        small = torch.finfo(torch.float32).tiny
        assert ((tail > 0.0) | ~ordinary | (parent <= 0.0) | (tail < small)).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_tail_of_ordinary_weights_is_above_zero(dtype: torch.dtype) -> None:
    source = torch.Generator().manual_seed(9)
    w = random_weights(8, 3000, dtype, nonneg=3000)
    w.population = (torch.rand(8, 3000, generator=source) + 0.01).to(dtype)
    w.archive = (torch.rand(2, 3000, generator=source) + 0.01).to(dtype)
    w.coefficients *= 20.0
    assert (w.trials() > 0.0).all()


def test_trials_change_nothing_else(backend: str) -> None:
    w, random_state = random_weights(6, 129), torch.get_rng_state()
    before = w.clone()
    first = w.trials()
    assert same_bits(w.trials(), first)
    assert torch.equal(torch.get_rng_state(), random_state)
    for name in ("population", "archive", "choices", "coefficients"):
        assert same_bits(getattr(w, name), getattr(before, name))
