"""Operator calls for the tests: backends, configurations, plan and tell of a run."""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch

import deevo_ext.ops  # noqa: F401 (registers torch.ops.deevo)
from deevo_ext import _extension, backends
from deevo_ext.ops.tables import (
    MAX_TERMS,
    NUM_CHOICE_COLUMNS,
    NUM_PARAMETER_COLUMNS,
    gene_words,
)
from deevo_ext.search.configuration import Configuration
from deevo_ext.search.presets import configure
from deevo_ext.search.strategies import Strategy, compile_pool
from support import cuda_on_host

# Those that DEEVO_BACKEND_FILE registers, and one that runs the CUDA kernels' sources.
_ADDED = tuple(n for n in backends.DEVICES if n not in ("reference", "cpu", "cuda", "triton"))
NATIVE_BACKENDS = ("reference", "cpu", cuda_on_host.NAME, *_ADDED)
# Triton's kernels take CPU tensors in its interpreter only; see conftest.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
BACKENDS = (*NATIVE_BACKENDS, "triton") if INTERPRETED else NATIVE_BACKENDS
cuda_on_host.register()


GENERATION = ("plan", "trials", "tell", "commit")


def serving(*operators: str, among: Sequence[str] = BACKENDS) -> tuple[str, ...]:
    """Returns the backends for CPU tensors that have all of these operators."""
    return tuple(
        name
        for name in among
        if "cpu" in backends.DEVICES[name]
        and all(backends.has_operator(name, o) for o in operators)
    )


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
        "l-shade": configure("l-shade", archive_size=11, evaluations=150, generations=45),
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
