"""trials against a NumPy oracle, and backend against backend, of any members, slices, buffers."""

from __future__ import annotations

import pytest
import torch

from deevo_ext import backends
from deevo_ext.errors import DeevoError
from deevo_ext.ops.tables import ChoiceColumn
from support.operators import (
    BIG_SEED,
    OPERATORS,
    in_reach,
    instruction_set,
    instruction_sets,
    num_threads,
    same_bits,
    serving,
)
from support.oracles import bfloat16_nearest, oracle_trial
from support.weights import (
    BROKEN_CHOICES,
    Weights,
    random_choices,
    random_weights,
    reference_trials,
)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SETS = instruction_sets()
SMALL = (1, 3, 7, 8, 9, 31, 64, 127, 129)
LARGE = (2**16 - 1, 2**16 + 1)

SERVING = serving("trials")


def test_bfloat16_rounding_of_the_oracle() -> None:
    """torch's own conversion agrees on ordinary numbers."""
    x = torch.randn(2000, generator=torch.Generator().manual_seed(1)) * 100
    expected = (x.to(torch.bfloat16).view(torch.int16).int() & 0xFFFF).tolist()
    assert [bfloat16_nearest(v) for v in x.tolist()] == expected
    tie = (2.0 - 2.0**-8) * 2.0**127  # between the largest and 2^128
    assert bfloat16_nearest(tie) == 0x7F80
    assert bfloat16_nearest(-tie * (1.0 - 2.0**-23)) == 0xFF7F
    assert bfloat16_nearest(1e-45) == 0


@pytest.mark.parametrize("columns", SMALL)
@pytest.mark.parametrize("dtype", DTYPES)
def test_reference_follows_the_oracle(dtype: torch.dtype, columns: int) -> None:
    for draw in range(3):
        w = random_weights(5, columns, dtype, seed=BIG_SEED, draw=draw)
        with backends.use("reference"):
            out = w.trials()
        for member in range(5):
            assert same_bits(out[member], oracle_trial(w, member)), member


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_cpu_follows_the_oracle(dtype: torch.dtype, name: str) -> None:
    with instruction_set(name):
        for draw, columns in enumerate(SMALL):
            w = random_weights(5, columns, dtype, seed=BIG_SEED, draw=draw)
            out = w.trials()
            for member in range(5):
                assert same_bits(out[member], oracle_trial(w, member)), (columns, member)


# Backends


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_backends_agree(dtype: torch.dtype, name: str, threads: int) -> None:
    with instruction_set(name), num_threads(threads):
        for columns in (*SMALL, *LARGE):
            w, out = reference_trials(dtype, columns, 6)
            assert same_bits(w.trials(), out), columns
        for members in (4, 63, 200):  # tiles become narrower with more rows
            w, out = reference_trials(dtype, 1025, members)
            assert same_bits(w.trials(), out), members


@pytest.mark.parametrize("dtype", DTYPES)
def test_backends_agree_on_25_million_weights(dtype: torch.dtype) -> None:
    """The size of ResNet-50; the reference works slice by slice, which is a test of its own."""
    columns, members = 25_557_032, 4
    source = torch.Generator().manual_seed(2)
    population = torch.empty(members, columns, dtype=dtype).uniform_(-1, 1, generator=source)
    choices, coefficients = random_choices(members, members, source)
    choices[2, ChoiceColumn.THRESHOLD] = 40000
    choices[2, ChoiceColumn.TERMS] = 4
    archive, start = population[:0], columns - 53_121
    w = Weights(population, archive, choices, coefficients, BIG_SEED, start)
    out = w.trials(torch.tensor([2]))
    step = 2**22
    for first in range(0, columns, step):
        rows = population[:, first : first + step]
        slice_ = Weights(rows, rows[:0], choices, coefficients, BIG_SEED, max(start - first, 0))
        slice_.first_weight = first
        with backends.use("reference"):
            assert same_bits(slice_.trials(torch.tensor([2]))[0], out[0, first : first + step])


@pytest.mark.parametrize("members", [[3], [5, 0], [2, 2, 2], [4, 1, 4, 0, 5, 3], []])
@pytest.mark.parametrize("columns", [129, 70001])
def test_any_members_in_any_order(backend: str, columns: int, members: list[int]) -> None:
    w, everyone = reference_trials(torch.float32, in_reach(backend, columns), 6)
    out = w.trials(torch.tensor(members, dtype=torch.int64))
    assert same_bits(out, everyone[members])


def test_no_rows_at_all(backend: str) -> None:
    w = random_weights(4, 16)
    nothing = torch.empty(0, dtype=torch.int64)
    for rows in (0, 4):
        empty = Weights(w.population[:rows], w.archive, w.choices[:rows], w.coefficients[:rows],
                        1, 16)  # fmt: skip
        assert empty.trials(nothing).shape == (0, 16)
    narrow = Weights(w.population[:, :0], w.archive[:0], w.choices, w.coefficients, 1, 0)
    narrow.choices[:, ChoiceColumn.BASE_ROW : ChoiceColumn.FORCED] = 0
    assert narrow.trials().shape == (4, 0)


@pytest.mark.parametrize("offset", [1, 3, 8, 13])
@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_unaligned_slices_of_larger_buffers(dtype: torch.dtype, name: str, offset: int) -> None:
    with instruction_set(name):
        for columns in (1, 40, 4099):
            w = random_weights(6, columns, dtype, draw=offset)
            plain = w.trials()

            def inside(rows: torch.Tensor, left: int, right: int) -> torch.Tensor:
                buffer = rows.new_full((rows.shape[0], left + rows.shape[1] + right), 77.0)
                buffer[:, left : left + rows.shape[1]] = rows
                return buffer[:, left : left + rows.shape[1]]

            w.population = inside(w.population, offset, 2)
            w.archive = inside(w.archive, offset + 4, 1)
            target = plain.new_full((6, columns + 30), 77.0)
            out = target[:, offset + 2 : offset + 2 + columns]
            OPERATORS.trials(*w.trials_arguments(torch.arange(6), out))
            assert same_bits(out, plain)
            target[:, offset + 2 : offset + 2 + columns] = 77.0
            assert (target == 77.0).all()


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_output_too_large_for_caches(dtype: torch.dtype, name: str) -> None:
    """More than 64 MiB, which is written past the caches, at an odd address."""
    w, everyone = reference_trials(dtype, 70001, 6)
    members = torch.arange(6).repeat(480 // dtype.itemsize // 3 + 16)
    out = torch.zeros(members.numel(), 70004, dtype=dtype)[:, 1:70002]
    assert out.numel() * dtype.itemsize > 2**26
    with instruction_set(name):
        OPERATORS.trials(*w.trials_arguments(members, out))
    for e in range(0, members.numel(), 6):
        assert same_bits(out[e : e + 6], everyone)


def test_a_slice_is_a_slice_of_the_whole(backend: str) -> None:
    w, whole = reference_trials(torch.float32, 4097, 6)
    for first, end in ((0, 8), (8, 4097), (1024, 1031), (4096, 4097), (2728, 4000)):
        part = Weights(w.population[:, first:end], w.archive[:, first:end], w.choices,
                       w.coefficients, w.seed, max(w.nonneg_start - first, 0), first)  # fmt: skip
        assert same_bits(part.trials(), whole[:, first:end])


@pytest.mark.parametrize("first", [2**31 + 8, 2**33, 2**35 - 16])
def test_far_weights(backend: str, first: int) -> None:
    """Also where the block number leaves 31 and 32 bits."""
    w = random_weights(4, 37, seed=BIG_SEED)
    w.first_weight = first
    w.choices[:, ChoiceColumn.THRESHOLD] = 30000
    out = w.trials()
    for member in range(4):
        assert same_bits(out[member], oracle_trial(w, member))


# Refusals by value


@pytest.mark.parametrize(("column", "value", "message"), BROKEN_CHOICES)
def test_broken_choices_are_refused(backend: str, column: int, value: int, message: str) -> None:
    w = random_weights(6, 16)
    w.choices[:, ChoiceColumn.TERMS] = 5
    w.choices[4, column] = value
    out = torch.full((2, 16), 77.0)
    with pytest.raises(DeevoError, match=f"deevo::trials: {message}"):
        OPERATORS.trials(*w.trials_arguments(torch.tensor([0, 4]), out))
    assert (out == 77.0).all()
    OPERATORS.trials(*w.trials_arguments(torch.tensor([0, 5]), out))  # 4 is not asked for


@pytest.mark.parametrize("member", [-1, 6, 2**40])
def test_members_that_do_not_exist_are_refused(backend: str, member: int) -> None:
    w = random_weights(6, 16)
    out = torch.full((2, 16), 77.0)
    with pytest.raises(DeevoError, match="deevo::trials: members name a row that does not exist"):
        OPERATORS.trials(*w.trials_arguments(torch.tensor([0, member]), out))
    assert (out == 77.0).all()
