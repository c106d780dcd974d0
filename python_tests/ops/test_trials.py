"""trials against a NumPy oracle, reference against cpu, and what a trial may never be."""

from __future__ import annotations

import functools
import hashlib
import math
import multiprocessing
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection

import pytest
import torch

from deevo_ext import backends
from deevo_ext.errors import DeevoError
from deevo_ext.ops.tables import ChoiceColumn
from deevo_ext.search.presets import configure
from support.operators import (
    BIG_SEED,
    OPERATORS,
    evolution,
    flush_denormal,
    in_reach,
    instruction_set,
    instruction_sets,
    num_threads,
    same_bits,
    serving,
)
from support.oracles import bfloat16_nearest, oracle_trial
from support.weights import BROKEN_CHOICES, Weights, random_choices, random_weights

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SETS = instruction_sets()
SMALL = (1, 3, 7, 8, 9, 31, 64, 127, 129)
LARGE = (2**16 - 1, 2**16 + 1)


@pytest.fixture(params=serving("trials"))
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    with backends.use(request.param):
        yield request.param


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


# Oracles


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


# reference == cpu


@functools.cache
def expected(dtype: torch.dtype, columns: int, members: int) -> tuple[Weights, torch.Tensor]:
    w = random_weights(members, columns, dtype, seed=7, draw=columns, nonneg=columns // 3 + 5)
    w.nonneg_start = max(w.nonneg_start, 0)
    with backends.use("reference"):
        return w, w.trials()


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_backends_agree(dtype: torch.dtype, name: str, threads: int) -> None:
    with instruction_set(name), num_threads(threads):
        for columns in (*SMALL, *LARGE):
            w, out = expected(dtype, columns, 6)
            assert same_bits(w.trials(), out), columns
        for members in (4, 63, 200):  # tiles become narrower with more rows
            w, out = expected(dtype, 1025, members)
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
    w, everyone = expected(torch.float32, in_reach(backend, columns), 6)
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
    w, everyone = expected(dtype, 70001, 6)
    members = torch.arange(6).repeat(480 // dtype.itemsize // 3 + 16)
    out = torch.zeros(members.numel(), 70004, dtype=dtype)[:, 1:70002]
    assert out.numel() * dtype.itemsize > 2**26
    with instruction_set(name):
        OPERATORS.trials(*w.trials_arguments(members, out))
    for e in range(0, members.numel(), 6):
        assert same_bits(out[e : e + 6], everyone)


def test_a_slice_is_a_slice_of_the_whole(backend: str) -> None:
    w, whole = expected(torch.float32, 4097, 6)
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


# Float environment


@pytest.mark.parametrize("threads", [1, 3])
def test_cpu_keeps_subnormals_where_the_caller_flushes_them(threads: int) -> None:
    def flushing() -> bool:
        return (torch.tensor([2e-38]) * 0.1).item() == 0.0

    w, expected_out = expected(torch.float32, 70001, 6)
    with num_threads(threads), flush_denormal():
        assert flushing()
        out = w.trials()
        assert flushing()  # put back
        again = w.clone()
        accepted = torch.ones(6, dtype=torch.uint8)
        again.commit(accepted, torch.full((6,), -1, dtype=torch.int32))
        assert flushing()
    assert not flushing()
    assert same_bits(out, expected_out)
    assert same_bits(again.population, expected_out)


def test_cpu_plan_and_tell_keep_subnormals() -> None:
    def run() -> list[torch.Tensor]:
        e = evolution(configure("paper"), fitness, seed=3)
        e.plan()
        e.tell(trial_fitness)
        return list(e.tensors().values())

    def bits(values: list[int]) -> torch.Tensor:
        return torch.tensor(values).view(torch.float64)  # multiples of 2^-1074

    fitness, trial_fitness = bits([9, 8, 7, 6, 5, 4]), bits([8, 2, 9, 6, 1, 3])
    expected_tensors = run()
    assert expected_tensors[-2].tolist() == [1, 1, 0, 0, 1, 1]  # accepted
    with flush_denormal():
        flushed = run()
    assert all(same_bits(a, b) for a, b in zip(flushed, expected_tensors, strict=True))


def test_reference_refuses_to_flush_subnormals() -> None:
    w = random_weights(4, 8)
    e = evolution(configure("paper"), torch.ones(4, dtype=torch.float64))
    e.plan()
    members = torch.arange(4)
    accepted, slots = torch.ones(4, dtype=torch.uint8), torch.full((4,), -1, dtype=torch.int32)
    losses = torch.zeros(4, dtype=torch.float64)
    out = torch.zeros(4, 8)
    with backends.use("reference"), flush_denormal():
        for call in (
            lambda: OPERATORS.trials(*w.trials_arguments(members, out)),
            lambda: w.commit(accepted, slots),
            e.plan,
            lambda: e.tell(losses),
        ):
            with pytest.raises(DeevoError, match="needs subnormal numbers"):
                call()
    assert (out == 0.0).all()


STARTED_WHILE_FLUSHING = """
import torch
import deevo_ext.ops
from deevo_ext import backends
from deevo_ext.backends.checks import require_subnormals
torch.set_num_threads(2)
torch.set_flush_denormal(True)
torch.ones(2**20).mul_(2.0)
torch.set_flush_denormal(False)
require_subnormals()
"""


def test_reference_looks_at_torchs_threads_too() -> None:
    """They keep the setting of the thread that started them."""
    result = subprocess.run(
        [sys.executable, "-c", STARTED_WHILE_FLUSHING], capture_output=True, text=True, timeout=120
    )
    if "openmp" in torch.__config__.parallel_info().lower():
        assert "a thread of this process flushes them to zero" in result.stderr


# Threads and processes


def test_gil_is_free_during_trials() -> None:
    """Another Python thread wakes up many times within one call."""
    w = random_weights(4, 2_000_000, torch.bfloat16, archive_rows=0)
    w.choices[:, ChoiceColumn.THRESHOLD] = 30000
    members = torch.arange(4).repeat(16)
    out = torch.empty(64, 2_000_000, dtype=torch.bfloat16)
    wakes, stop = [0], threading.Event()

    def wake() -> None:
        while not stop.is_set():
            wakes[0] += 1
            time.sleep(0.0005)

    thread = threading.Thread(target=wake)
    interval = sys.getswitchinterval()
    with instruction_set("baseline"), num_threads(1):
        thread.start()
        sys.setswitchinterval(10.0)  # no thread takes the GIL from one that holds it
        try:
            before = wakes[0]
            OPERATORS.trials(*w.trials_arguments(members, out))
            during = wakes[0] - before
        finally:
            sys.setswitchinterval(interval)
            stop.set()
            thread.join()
    assert during > 20


def test_two_populations_from_two_threads() -> None:
    cases = [expected(dtype, 2**16 + 1, 6) for dtype in DTYPES]
    wrong: list[int] = []

    def work(i: int) -> None:
        w, out = cases[i]
        for _ in range(20):
            if not same_bits(w.trials(), out):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def _digest(w: Weights, out: torch.Tensor) -> str:
    OPERATORS.trials(*w.trials_arguments(torch.arange(6), out))
    return hashlib.sha256(out.numpy().tobytes()).hexdigest()


def _child(connection: Connection, w: Weights, out: torch.Tensor) -> None:
    connection.send(_digest(w, out))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_fork_after_use() -> None:
    w, _ = expected(torch.float32, 70001, 6)
    out = torch.empty(6, 70001)
    with num_threads(2):
        here = _digest(w, out)
        fork = multiprocessing.get_context("fork")
        receiver, sender = fork.Pipe(duplex=False)
        child = fork.Process(target=_child, args=(sender, w, torch.zeros(6, 70001)))
        child.start()
        answered = receiver.poll(60.0)
        if not answered:
            child.kill()
        child.join()
        assert answered, "the forked process hangs"
        assert receiver.recv() == here


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
