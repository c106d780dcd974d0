"""The compiled CPU backend where it differs from a plain loop: instruction sets, tiles, threads."""

from __future__ import annotations

import math
import mmap
import os
import threading
import time
from typing import Any

import numpy as np
import pytest
import torch

from deevo_ext import backends
from deevo_ext.backends.native import cpu
from deevo_ext.errors import DeevoError
from deevo_ext.ops.library import BoundOperator
from deevo_ext.ops.tables import ChoiceColumn
from support.operators import (
    BIG_SEED,
    OPERATORS,
    instruction_set,
    instruction_sets,
    num_threads,
    same_bits,
)
from support.weights import Weights, random_weights

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SETS = instruction_sets()
VARIANTS: dict[str, dict[str, Any]] = {
    "draws": {},
    "genes": {"genes": 150},
    "forced": {"forced": True},
    "bounds": {"bounds": (-0.5, 1.25)},
    "all": {"genes": 33, "forced": True, "bounds": (-1.0, math.inf)},
}


def outcome(w: Weights) -> tuple[torch.Tensor, torch.Tensor]:
    """Two of three members accepted, the first of them with an archive slot each."""
    members, archive = w.population.shape[0], w.archive.shape[0]
    accepted = (torch.arange(members) % 3 != 1).to(torch.uint8)
    slots = torch.full((members,), -1, dtype=torch.int32)
    kept = accepted.nonzero().reshape(-1)[:archive]
    slots[kept] = torch.arange(kept.numel(), dtype=torch.int32).flip(0)
    return accepted, slots


def results(w: Weights) -> tuple[torch.Tensor, ...]:
    """Trials, and population and archive after a commit; w stays."""
    changed = w.clone()
    trials = changed.trials()
    changed.commit(*outcome(changed))
    return trials, changed.population, changed.archive


def assert_as_reference(w: Weights, names: tuple[str, ...] = ("",)) -> None:
    with backends.use("reference"):
        expected = results(w)
    for name in names:
        if name:
            with instruction_set(name):
                actual = results(w)
        else:
            actual = results(w)
        for a, b in zip(actual, expected, strict=True):
            assert same_bits(a, b), name


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_instruction_set_on_every_kind_of_crossover(
    dtype: torch.dtype, name: str, variant: str
) -> None:
    for columns in (1, 65, 1024, 4161):
        changes = dict(VARIANTS[variant])
        if "genes" in changes:
            changes["genes"] = min(changes["genes"], columns)
        w = random_weights(6, columns, dtype, 3, BIG_SEED, draw=columns, **changes)
        w.nonneg_start = columns * 3 // 4 | 1
        assert_as_reference(w, (name,))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_thousand_members(dtype: torch.dtype) -> None:
    """Tiles are at their narrowest; most rows are read by others too."""
    assert_as_reference(random_weights(1000, 130, dtype, 500, seed=5))


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_streamed_output(dtype: torch.dtype, name: str) -> None:
    """More than 64 MiB at aligned rows, which the loops write past the caches."""
    columns = 70_016
    w = random_weights(4, columns, dtype, 0, seed=9)
    w.choices[0, ChoiceColumn.THRESHOLD] = 0
    members = torch.arange(4).repeat(2**26 // (columns * dtype.itemsize) // 4 + 1)
    buffer = torch.zeros(members.numel() * columns + 64, dtype=dtype)
    skip = -buffer.data_ptr() % 64 // dtype.itemsize
    out = buffer[skip : skip + members.numel() * columns].view(-1, columns)
    assert out.numel() * dtype.itemsize > 2**26 and out.data_ptr() % 64 == 0
    with backends.use("reference"):
        expected = w.trials()
    with instruction_set(name), num_threads(2):
        OPERATORS.trials(*w.trials_arguments(members, out))
    for start in range(0, members.numel(), 4):
        assert same_bits(out[start : start + 4], expected)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_all_sixteen_bit_numbers(dtype: torch.dtype, name: str) -> None:
    """x - c x for every finite x, subnormals among them, rounded as NumPy and torch round."""
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    x = patterns[patterns.isfinite()]
    w = random_weights(3, x.numel(), dtype, 0, nonneg=0)
    w.nonneg_start = x.numel()
    w.population = torch.stack([torch.ones_like(x), x, torch.zeros_like(x)])
    w.choices[:, ChoiceColumn.THRESHOLD] = 65536
    w.choices[:, ChoiceColumn.TERMS] = 1
    w.choices[:, ChoiceColumn.BASE_ROW] = 1
    w.choices[:, ChoiceColumn.ROWS] = 2
    wide = x.float().numpy()
    for c in (0.0, 0.3, 0.5, 0.75, -0.25, -1.0, 1.0 - 2.0**-9):
        w.coefficients[:, 0] = c
        with np.errstate(over="ignore"):
            mutant = wide + np.float32(c) * (np.float32(0.0) - wide)
            if dtype == torch.float16:
                rounded = torch.from_numpy(mutant.astype(np.float16))
            else:
                rounded = torch.from_numpy(mutant).to(torch.bfloat16)
        expected = torch.where(rounded.isfinite(), rounded, torch.ones_like(x))
        with instruction_set(name):
            assert same_bits(w.trials(torch.tensor([0]))[0], expected), c


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_that_lie_beyond_two_billion_weights(dtype: torch.dtype) -> None:
    """A population of 6.4e9 weights, of which only the columns at hand are backed by memory."""
    near = random_weights(3, 4099, dtype, 0, seed=11)
    stride = 2**31 + 64
    size = (2 * stride + 4099) * dtype.itemsize
    no_reserve = 0x4000  # MAP_NORESERVE, which Python does not name before 3.13
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | no_reserve
    memory = mmap.mmap(-1, size, flags=flags)
    far = near.clone()
    far.population = torch.frombuffer(memory, dtype=dtype).as_strided((3, 4099), (stride, 1))
    far.population.copy_(near.population)
    assert same_bits(far.trials(), near.trials())
    accepted, slots = outcome(near)
    near.commit(accepted, slots)
    far.commit(accepted, slots)
    assert same_bits(far.population, near.population)


@pytest.mark.parametrize("first", [2**31 - 64, 2**31 + 8, 2**33])
@pytest.mark.parametrize("variant", ["genes", "bounds"])
def test_slices_beyond_two_billion_weights(first: int, variant: str) -> None:
    w = random_weights(4, 200, seed=3, **VARIANTS[variant])
    w.first_weight = first
    if variant == "genes":  # the segments begin before the slice and end after it
        w.genes = torch.cat([torch.zeros(1, dtype=torch.int64), first - 3 + w.genes[1:]])
    assert_as_reference(w)


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_threads_are_torchs(threads: int) -> None:
    """As many run beside each other during a call as torch is set to, and none is left over."""
    w = random_weights(6, 300_000, torch.bfloat16, 0)
    w.choices[:, ChoiceColumn.THRESHOLD] = 30000
    members = torch.arange(6).repeat(12)
    out = w.population.new_empty(members.numel(), 300_000)
    seen = []

    def tasks() -> int:
        return len(os.listdir("/proc/self/task"))

    with instruction_set("baseline"), num_threads(threads):
        before, end = tasks(), time.monotonic() + 30
        # A busy machine may look at a call only once some of its threads have ended.
        while max(seen, default=0) < threads and time.monotonic() < end:
            call = threading.Thread(
                target=lambda: OPERATORS.trials(*w.trials_arguments(members, out))
            )
            call.start()
            while call.is_alive():
                seen.append(tasks() - before)
            call.join()
        assert max(seen) == threads
        # The system takes a thread off its list a moment after Python has joined it.
        end = time.monotonic() + 10
        while tasks() != before:
            assert time.monotonic() < end
            time.sleep(0.001)


def test_two_commits_at_once() -> None:
    cases = [random_weights(6, 40_000, dtype, 3, draw=7) for dtype in DTYPES]
    expected = [results(w) for w in cases]
    wrong: list[int] = []

    def work(i: int) -> None:
        for _ in range(5):
            actual = results(cases[i])
            if not all(same_bits(a, b) for a, b in zip(actual, expected[i], strict=True)):
                wrong.append(i)

    with num_threads(2):
        callers = [threading.Thread(target=work, args=(i,)) for i in range(3)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
    assert wrong == []


# Bound operators


def test_bound_operators_check_once_and_do_the_same() -> None:
    w = random_weights(4, 500, archive_rows=2)
    members, out = torch.tensor([2, 0]), torch.zeros(2, 500)
    names = [argument.name for argument in torch.ops.deevo.trials.default._schema.arguments]
    arguments = dict(zip(names, w.trials_arguments(members, out), strict=True))
    trials = BoundOperator("trials", **arguments)
    trials()
    assert same_bits(out, w.trials(members))
    version, other = out._version, torch.zeros(1, 500)
    trials(members=torch.tensor([3]), out=other)
    assert same_bits(other, w.trials(torch.tensor([3])))
    assert out._version == version and other._version == 1
    with pytest.raises(DeevoError, match=r"deevo::trials: out is torch\.float64"):
        BoundOperator("trials", **{**arguments, "out": out.double()})
    with pytest.raises(TypeError, match="missing a required argument: 'members'"):
        BoundOperator("trials", **{k: v for k, v in arguments.items() if k != "members"})
    with pytest.raises(TypeError, match="unexpected keyword argument 'member'"):
        BoundOperator("trials", **arguments, member=members)


# Refusals


def test_what_the_extension_refuses_is_an_error_of_ours() -> None:
    """Of an evaluation's operators as well; `ops` would have refused this before."""
    losses, ranks = torch.zeros(1, 2), torch.zeros(1, 2, dtype=torch.int32)
    logits, labels = torch.zeros(1, 2, 3, dtype=torch.float64), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(DeevoError, match=r"deevo::loss_and_rank: no kernel for torch\.float64"):
        cpu.loss_and_rank(logits, labels, 0.0, losses, ranks)
