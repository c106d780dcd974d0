"""Operator calls for the tests: random plans, whole generations, oracles written from the contract.

The oracles are plain Python and NumPy and share nothing with `deevo_ext.backends`.
"""

from __future__ import annotations

import contextlib
import copy
import math
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import deevo_ext.ops  # noqa: F401 (registers torch.ops.deevo)
from deevo_ext import _extension
from deevo_ext.ops.tables import (
    MAX_TERMS,
    NUM_CHOICE_COLUMNS,
    NUM_PARAMETER_COLUMNS,
    ChoiceColumn,
    gene_words,
)
from deevo_ext.search.configuration import Configuration, configure
from deevo_ext.search.strategies import Strategy, compile_pool
from support import cuda_on_host

# The last one runs the CUDA kernels' sources.
NATIVE_BACKENDS = ("reference", "cpu", cuda_on_host.NAME)
# Triton's kernels take CPU tensors in its interpreter only; see conftest.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
BACKENDS = (*NATIVE_BACKENDS, "triton") if INTERPRETED else NATIVE_BACKENDS
cuda_on_host.register()
OPERATORS = torch.ops.deevo
BIG_SEED = 0x7A5C_0123_89AB_CDEF

# Every pool of algorithms.md: the paper's, SaDE's four with trigonometric mutation, SHADE's.
SADE = (
    Strategy("rand1", "r1 + F*(r2 - r3)"),
    Strategy("rand-to-best2", "target + F*(best - target) + F*(r1 - r2) + F*(r3 - r4)"),
    Strategy("rand2", "r1 + F*(r2 - r3) + F*(r4 - r5)"),
    Strategy("current-to-rand1", "target + U*(r1 - target) + F*(r2 - r3)", "none"),
    Strategy("trig", "trig(r1, r2, r3)", "none", fixed=0.05),
)
SHADE = (Strategy("pbest", "target + F*(pbest - target) + F*(r1 - archive)"),)
MIXED = (
    *SADE,
    Strategy("shade", "target + F*(pbest - target) + F*(r1 - archive)", cap=0.3),
    Strategy("soup", "0.5*r1 + 0.5*best", cap=0.3),
    Strategy("trig-bin", "trig(target, best, r1)", "bin", odds=0.5),
)


def configurations() -> dict[str, Configuration]:
    """Configurations that together reach every branch of plan and tell."""
    return {
        "paper": configure("paper", generations=24),
        "preset": configure("sa-shade-tri-ensin", generations=24),
        "sade": configure("paper", strategies=SADE, generations=24, f_init=0.2, cr_max=1.0),
        "shade": configure(
            "paper",
            strategies=SHADE,
            sinusoid="none",
            f_distribution="cauchy",
            f_init=0.05,
            f_std=0.1,
            f_max=1.0,
            cr_init=0.05,
            cr_std=0.1,
            cr_max=1.0,
            archive_size=7,
            pbest_min=0.0,
            pbest_max=0.4,
        ),
        "mixed": configure(
            "paper",
            strategies=MIXED,
            generations=20,
            adapt_start=5,
            strategy_period=3,
            sinusoid_period=2,
            memory_size=2,
            frequency_init=0.05,
            sinusoid_1_frequency=0.3,
            cr_mean="arithmetic",
            trig_offset=True,
            best_excludes_target=True,
            archive_size=3,
        ),
        "still": configure(
            "paper",
            strategies=MIXED,
            sinusoid="increasing",
            switch=1.0,
            generations=50,
            adapt_strategies=False,
            adapt_memories=False,
            archive_size=5,
        ),
        "reduced": configure(
            "paper",
            strategies=MIXED,
            generations=12,
            archive_size=4,
            population_min=6,
            j_rand=True,
        ),
    }


def in_reach(backend: str, columns: int) -> int:
    """That many columns, fewer where Triton's interpreter would take long; still several tiles."""
    return min(columns, 3001) if backend == "triton" else columns


def instruction_sets() -> list[Any]:
    """Parameters for every set of loops; those that this CPU lacks are skipped."""
    compiled = _extension.load()
    parameters = []
    for name in ("baseline", "avx2", "avx512"):
        lacking = not compiled.use_instruction_set(name)
        mark = pytest.mark.skipif(lacking, reason=f"this CPU lacks {name}")
        parameters.append(pytest.param(name, marks=mark))
    compiled.use_instruction_set("")
    return parameters


@contextlib.contextmanager
def instruction_set(name: str) -> Iterator[None]:
    """The compiled loops of one instruction set, for the process; the fastest again at the end."""
    compiled = _extension.load()
    assert compiled.use_instruction_set(name)
    try:
        assert compiled.instruction_set() == name
        yield
    finally:
        compiled.use_instruction_set("")


@contextlib.contextmanager
def num_threads(count: int) -> Iterator[None]:
    """torch.get_num_threads() == count inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def flush_denormal() -> Iterator[None]:
    """This thread flushes subnormals inside; torch's own threads do not, being started before."""
    torch.ones(2**16 * torch.get_num_threads()).mul_(2.0)
    assert torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Same dtype, shape and bits; NaN equals itself, -0 is not 0."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


# One run's small tensors


@dataclass
class Evolution:
    """The tensors that plan and tell work on, and the calls."""

    configuration: Configuration
    seed: int
    settings: torch.Tensor
    strategies: torch.Tensor
    state: torch.Tensor
    fitness: torch.Tensor
    alive: torch.Tensor
    generation: torch.Tensor
    choices: torch.Tensor
    parameters: torch.Tensor
    coefficients: torch.Tensor
    gene_mask: torch.Tensor
    accepted: torch.Tensor
    archive_slot: torch.Tensor

    @property
    def members(self) -> int:
        return self.fitness.numel()

    def clone(self) -> Evolution:
        return copy.deepcopy(self)

    def plan_arguments(self) -> tuple[Any, ...]:
        return (
            *(self.settings, self.strategies, self.state, self.fitness, self.alive),
            *(self.generation, self.seed, self.choices, self.parameters, self.coefficients),
            self.gene_mask,
        )

    def tell_arguments(self, trial_fitness: torch.Tensor) -> tuple[Any, ...]:
        return (
            *(self.settings, self.strategies, trial_fitness, self.choices, self.parameters),
            *(self.seed, self.state, self.fitness, self.alive, self.generation),
            *(self.accepted, self.archive_slot),
        )

    def plan(self) -> None:
        OPERATORS.plan(*self.plan_arguments())

    def tell(self, trial_fitness: torch.Tensor) -> None:
        OPERATORS.tell(*self.tell_arguments(trial_fitness))

    def tensors(self) -> dict[str, torch.Tensor]:
        return {k: v for k, v in vars(self).items() if isinstance(v, torch.Tensor)}

    def assert_same(self, other: Evolution) -> None:
        for name, tensor in self.tensors().items():
            assert same_bits(tensor, getattr(other, name)), name


def evolution(
    configuration: Configuration,
    fitness: torch.Tensor,
    seed: int = 1,
    generation: int = 1,
    weights: int = 0,
    genes: int = 0,
) -> Evolution:
    """A run before its first plan; weights and genes: see Configuration.settings."""
    members = fitness.numel()
    return Evolution(
        configuration=configuration,
        seed=seed,
        settings=configuration.settings(weights, genes),
        strategies=compile_pool(configuration.strategies),
        state=configuration.initial_state(),
        fitness=fitness.clone().double(),
        alive=torch.ones(members, dtype=torch.uint8),
        generation=torch.tensor([generation]),
        choices=torch.full((members, NUM_CHOICE_COLUMNS), -7, dtype=torch.int32),
        parameters=torch.full((members, NUM_PARAMETER_COLUMNS), torch.nan, dtype=torch.float64),
        coefficients=torch.full((members, MAX_TERMS), torch.nan),
        gene_mask=torch.full((members, gene_words(genes)), -7, dtype=torch.int32),
        accepted=torch.full((members,), 7, dtype=torch.uint8),
        archive_slot=torch.full((members,), -7, dtype=torch.int32),
    )


# Weights


@dataclass
class Weights:
    """Arguments of trials and commit."""

    population: torch.Tensor
    archive: torch.Tensor
    choices: torch.Tensor
    coefficients: torch.Tensor
    seed: int
    nonneg_start: int
    first_weight: int = 0
    genes: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    gene_mask: torch.Tensor | None = None
    bounds: tuple[float, float] = (-math.inf, math.inf)

    def __post_init__(self) -> None:
        if self.gene_mask is None:
            shape = self.population.shape[0], gene_words(self.genes.numel())
            self.gene_mask = torch.zeros(shape, dtype=torch.int32)

    def trials(self, members: torch.Tensor | None = None) -> torch.Tensor:
        """Trial vectors of these members, all of them by default."""
        if members is None:
            members = torch.arange(self.population.shape[0])
        out = self.population.new_full((members.numel(), self.population.shape[1]), torch.nan)
        OPERATORS.trials(*self.trials_arguments(members, out))
        return out

    def trials_arguments(self, members: torch.Tensor, out: torch.Tensor) -> tuple[Any, ...]:
        return (
            *(self.population, self.archive, self.choices, self.coefficients),
            *(self.genes, self.gene_mask, members),
            *(self.seed, self.nonneg_start, self.first_weight, *self.bounds, out),
        )

    def commit(self, accepted: torch.Tensor, archive_slot: torch.Tensor) -> None:
        OPERATORS.commit(*self.commit_arguments(accepted, archive_slot))

    def commit_arguments(
        self, accepted: torch.Tensor, archive_slot: torch.Tensor
    ) -> tuple[Any, ...]:
        return (
            *(self.population, self.archive, self.choices, self.coefficients),
            *(self.genes, self.gene_mask, accepted, archive_slot),
            *(self.seed, self.nonneg_start, self.first_weight, *self.bounds),
        )

    def clone(self) -> Weights:
        return copy.deepcopy(self)


def random_choices(
    members: int, rows: int, generator: torch.Generator, generation: int = 3
) -> tuple[torch.Tensor, torch.Tensor]:
    """choices and coefficients: any number of terms, any of `rows` rows, thresholds with 0, 1,
    65535 and 65536 among them."""

    def integers(low: int, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=generator, dtype=torch.int32)

    choices = torch.zeros(members, NUM_CHOICE_COLUMNS, dtype=torch.int32)
    choices[:, ChoiceColumn.GENERATION] = generation
    thresholds = integers(0, 65537, members)
    special = torch.tensor([0, 1, 65535, 65536], dtype=torch.int32)
    chosen = integers(0, 8, members)
    thresholds = torch.where(chosen < 4, special[chosen.clamp(max=3).long()], thresholds)
    choices[:, ChoiceColumn.THRESHOLD] = thresholds
    choices[:, ChoiceColumn.TERMS] = integers(0, MAX_TERMS + 1, members)
    choices[:, ChoiceColumn.BASE_ROW : ChoiceColumn.FORCED] = integers(
        0, rows, members, 1 + MAX_TERMS
    )
    choices[:, ChoiceColumn.FORCED] = -1
    coefficients = torch.randn(members, MAX_TERMS, generator=generator)
    return choices, coefficients


def random_rows(
    rows: int, columns: int, dtype: torch.dtype, generator: torch.Generator
) -> torch.Tensor:
    """Finite weights of many magnitudes: ordinary, huge, subnormal, zeros of both signs."""
    x = torch.randn(rows, columns, generator=generator)
    kind = torch.randint(0, 40, (rows, columns), generator=generator)
    x = torch.where(kind == 0, x * 2.0**126, x)
    x = torch.where(kind == 1, x * 2.0**-127 * 2.0**-10, x)
    x = torch.where(kind == 2, torch.tensor(0.0), x)
    x = torch.where(kind == 3, torch.tensor(-0.0), x)
    x = torch.where(kind == 4, torch.tensor(1e-45) * torch.sign(x), x)
    largest = torch.finfo(dtype).max
    return x.clamp(-largest, largest).to(dtype)


def random_weights(
    members: int = 6,
    columns: int = 129,
    dtype: torch.dtype = torch.float32,
    archive_rows: int = 2,
    seed: int = 5,
    nonneg: int | None = None,
    draw: int = 0,
    genes: int = 0,
    forced: bool = False,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> Weights:
    """Random arguments; nonneg: length of the non-negative tail (a third by default).

    genes: how many segments crossover exchanges; forced: every other member forces one weight's
    mutant; bounds: the population's weights lie inside, and mutants often do not.
    """
    generator = torch.Generator().manual_seed(1000 + draw)
    population = random_rows(members, columns, dtype, generator)
    archive = random_rows(archive_rows, columns, dtype, generator)
    nonneg_start = columns - (columns // 3 if nonneg is None else nonneg)
    population[:, nonneg_start:] = population[:, nonneg_start:].abs()
    archive[:, nonneg_start:] = archive[:, nonneg_start:].abs()
    choices, coefficients = random_choices(members, members + archive_rows, generator)
    w = Weights(population, archive, choices, coefficients, seed, nonneg_start, bounds=bounds)
    for rows in (population, archive):
        rows[:, :nonneg_start] = rows[:, :nonneg_start].clamp(*bounds)
    if forced:
        choices[::2, ChoiceColumn.FORCED] = torch.randint(
            0, columns, (len(choices[::2]),), generator=generator, dtype=torch.int32
        )
    if genes > 0:
        starts = torch.randperm(columns - 1, generator=generator)[: genes - 1] + 1
        w.genes = torch.cat([torch.zeros(1, dtype=torch.int64), starts.sort().values])
        shape = members, gene_words(genes)
        w.gene_mask = torch.randint(-(2**31), 2**31, shape, generator=generator).to(torch.int32)
        w.gene_mask[:, -1] &= (1 << genes % 32) - 1 if genes % 32 else -1
    return w


# Oracles


def philox_words(counter: tuple[int, ...], key: tuple[int, int], rounds: int) -> list[int]:
    """Philox4x32 in Python integers, from the paper: S-P network over (L, R) pairs."""
    low = 0xFFFFFFFF
    x, k = list(counter), list(key)
    for _ in range(rounds):
        p, q = x[0] * 0xD2511F53, x[2] * 0xCD9E8D57
        x = [(q >> 32) ^ x[1] ^ k[0], q & low, (p >> 32) ^ x[3] ^ k[1], p & low]
        k = [(k[0] + 0x9E3779B9) & low, (k[1] + 0xBB67AE85) & low]
    return x


def words(purpose: int, generation: int, member: int, block: int, seed: int) -> list[int]:
    """The contract's four words of one counter (masks: 7 rounds, everything else 10)."""
    key = (seed % 2**32, seed // 2**32)
    return philox_words((purpose, generation, member, block), key, 7 if purpose == 1 else 10)


def mask_bits(weight: int, generation: int, member: int, seed: int) -> int:
    """Weight 8b + 2w + h uses word w of block b, h = 0 its low 16 bits."""
    block, rest = divmod(weight, 8)
    word, half = divmod(rest, 2)
    drawn = words(1, generation, member, block % 2**32, seed)[word]
    return drawn // 65536 if half else drawn % 65536


def bfloat16_nearest(value: float) -> int:
    """Bits of the bfloat16 nearest to a float32, ties to even, found among its two neighbours."""
    bits = struct.unpack("<I", struct.pack("<f", value))[0]
    sign, magnitude = bits >> 31, bits & 0x7FFFFFFF
    down = magnitude >> 16

    def exact(pattern: int) -> Fraction:
        if pattern == 0x7F80:  # where the next value would be
            return Fraction(2) ** 128
        return Fraction(struct.unpack("<f", struct.pack("<I", pattern << 16))[0])

    x = Fraction(struct.unpack("<f", struct.pack("<I", magnitude))[0])
    below, above = x - exact(down), exact(down + 1) - x
    up = above < below or (above == below and down % 2 == 1)
    return sign << 15 | (down + 1 if up else down)


def float16_nearest(value: float) -> int:
    """Bits of the IEEE half nearest to a number, ties to even; infinity beyond the largest."""
    try:
        return struct.unpack("<H", struct.pack("<e", value))[0]
    except OverflowError:
        return 0xFC00 if value < 0 else 0x7C00


def numpy_rows(rows: torch.Tensor) -> NDArray[np.float32]:
    """Stored rows in float32."""
    if rows.dtype != torch.bfloat16:
        return rows.numpy().astype(np.float32)
    bits = rows.contiguous().view(torch.int16).numpy().view(np.uint16).astype(np.uint32)
    return (bits << np.uint32(16)).view(np.float32)


def oracle_trial(w: Weights, member: int) -> torch.Tensor:
    """The trial of one member: NumPy float32 arithmetic, masks and rounding weight by weight."""
    rows = np.concatenate([numpy_rows(w.population), numpy_rows(w.archive)])
    choice = w.choices[member].tolist()
    factors = w.coefficients[member].numpy()
    base = rows[choice[5]]
    with np.errstate(all="ignore"):
        v = base.copy()
        for m in range(choice[4]):
            difference = rows[choice[6 + m]] - base
            v = v + factors[m] * difference
        assert v.dtype == np.float32
        half = np.float32(0.5) * rows[member]
        lower, upper = (np.float32(bound) for bound in w.bounds)
        below, above = (np.float32(0.5) * (bound + rows[member]) for bound in (lower, upper))
    parent = w.population[member]
    out = parent.clone()
    stored = out.view(torch.int32 if parent.dtype == torch.float32 else torch.int16)
    for j in range(parent.numel()):
        if not _crosses(w, member, w.first_weight + j):
            continue
        x = v[j]
        if j >= w.nonneg_start:
            x = x if x > 0 else half[j]
        else:
            x = below[j] if x < lower else above[j] if x > upper else x
        if not np.isfinite(x):
            continue
        if parent.dtype == torch.float32:
            stored[j] = int(x.view(np.int32))
            continue
        half_precision = parent.dtype == torch.float16
        bits = float16_nearest(float(x)) if half_precision else bfloat16_nearest(float(x))
        if bits & 0x7FFF == (0x7C00 if half_precision else 0x7F80):
            continue
        stored[j] = bits - 65536 if bits >= 32768 else bits
    return out


def _crosses(w: Weights, member: int, flat: int) -> bool:
    choice = w.choices[member].tolist()
    if len(w.genes) > 0:
        gene = max(k for k, start in enumerate(w.genes.tolist()) if start <= flat)
        assert w.gene_mask is not None
        return w.gene_mask[member].tolist()[gene // 32] >> gene % 32 & 1 == 1
    return flat == choice[11] or mask_bits(flat, choice[0], member, w.seed) < choice[3]
