"""Calls of compose: their arguments, and random ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from support.operators import OPERATORS
from support.weights import random_rows


@dataclass
class Recipes:
    """Arguments of compose but for the output."""

    population: torch.Tensor
    recipes: torch.Tensor
    starts: torch.Tensor
    block_of: torch.Tensor
    nonneg_start: int

    def arguments(self, out: torch.Tensor) -> tuple[Any, ...]:
        inputs = (self.population, self.recipes, self.starts, self.block_of)
        return (*inputs, self.nonneg_start, out)

    def rows(self) -> torch.Tensor:
        """Composed into rows with a stride of their own, whose surroundings are checked."""
        recipes, columns = self.recipes.shape[0], self.population.shape[1]
        wide = self.population.new_full((recipes, columns + 5), 7.0)
        OPERATORS.compose(*self.arguments(wide[:, 2:-3]))
        assert bool((wide[:, :2] == 7.0).all()) and bool((wide[:, -3:] == 7.0).all())
        return wide[:, 2:-3].contiguous()

    def blocks(self) -> torch.Tensor:
        """The block of each column."""
        columns = torch.arange(self.population.shape[1])
        return self.block_of.long()[torch.searchsorted(self.starts, columns, right=True) - 1]


def random_recipes(
    members: int = 5,
    columns: int = 700,
    dtype: torch.dtype = torch.float32,
    recipes: int = 3,
    segments: int = 9,
    draw: int = 0,
) -> Recipes:
    """Weights of many magnitudes in rows that lie apart; a third of the coefficients are 0."""
    generator = torch.Generator().manual_seed(77 + draw)
    population = torch.zeros(members, columns + 3, dtype=dtype)[:, 1:-2]
    population.copy_(random_rows(members, columns, dtype, generator))
    nonneg_start = columns - columns // 3
    population[:, nonneg_start:].abs_()
    segments = min(segments, columns)
    cuts = (torch.randperm(columns - 1, generator=generator)[: segments - 1] + 1).sort().values
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), cuts])
    blocks = (segments + 1) // 2
    block_of = torch.randint(0, blocks, (segments,), generator=generator, dtype=torch.int32)
    table = torch.randn(recipes, blocks, members, generator=generator)
    table[torch.rand(table.shape, generator=generator) < 0.3] = 0.0
    return Recipes(population, table, starts, block_of, nonneg_start)


def aligned(r: Recipes) -> Recipes:
    """The same with rows that lie as layouts make them, and segments that fill vectors."""
    columns = r.population.shape[1]
    rows = torch.zeros(r.population.shape[0], -(-columns // 64) * 64, dtype=r.population.dtype)
    r.population = rows[:, :columns].copy_(r.population)
    r.starts = (r.starts // 8 * 8).unique()
    r.block_of = r.block_of[: r.starts.numel()].contiguous()
    return r
