"""Calls of trials and commit: their arguments, random ones, rows of extreme numbers."""

from __future__ import annotations

import copy
import functools
import math
from dataclasses import dataclass, field
from typing import Any

import torch

from deevo_ext import backends
from deevo_ext.ops.tables import MAX_TERMS, NUM_CHOICE_COLUMNS, ChoiceColumn, gene_words
from support.operators import OPERATORS

# A column of the choices of a member among six with two archive rows, what may not stand there, and
# what operators say to it.
BROKEN_CHOICES = [
    (ChoiceColumn.BASE_ROW, 8, "choices name a row that does not exist"),
    (ChoiceColumn.BASE_ROW, -1, "choices name a row that does not exist"),
    (ChoiceColumn.ROWS + 4, 8, "choices name a row that does not exist"),
    (ChoiceColumn.ROWS, -(2**31), "choices name a row that does not exist"),
    (ChoiceColumn.TERMS, 6, "choices hold a bad term count"),
    (ChoiceColumn.TERMS, -1, "choices hold a bad term count"),
    (ChoiceColumn.THRESHOLD, 65537, "choices hold a bad threshold"),
    (ChoiceColumn.THRESHOLD, -1, "choices hold a bad threshold"),
]


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


@functools.cache
def reference_trials(
    dtype: torch.dtype, columns: int, members: int
) -> tuple[Weights, torch.Tensor]:
    """Random arguments, and what the reference makes of them; shared, so not to be changed."""
    w = random_weights(members, columns, dtype, seed=7, draw=columns, nonneg=columns // 3 + 5)
    w.nonneg_start = max(w.nonneg_start, 0)
    with backends.use("reference"):
        return w, w.trials()
