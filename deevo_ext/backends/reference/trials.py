"""trials: mutation and binomial crossover.

`v = row[base]`; for m in table order `v = v + c[m] (row[idx[m]] - row[base])` in float32, each
operation rounded; `u = v` where the weight's 16 random bits < threshold (or its gene's bit is
set, or it is the forced one), else the parent's value.
Only `*`, `+` and `-` are used: torch's addcmul, lerp and add(alpha=) round differently.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from deevo_ext.backends.checks import check_choices, check_genes, require_subnormals
from deevo_ext.ops.philox import mask_draws
from deevo_ext.ops.tables import ChoiceColumn, Purpose


@dataclass(frozen=True)
class Limits:
    """Which columns a row has, and what values they may take."""

    nonneg_start: int
    first_weight: int
    lower: float
    upper: float


@dataclass(frozen=True)
class Generation:
    """What trials and commit share; the fields are the operators' arguments."""

    population: torch.Tensor
    archive: torch.Tensor
    choices: torch.Tensor
    coefficients: torch.Tensor
    genes: torch.Tensor
    gene_mask: torch.Tensor
    seed: int
    limits: Limits


def widen(row: torch.Tensor) -> torch.Tensor:
    """A stored row in float32; exact."""
    if row.dtype == torch.bfloat16:
        return (row.view(torch.int16).to(torch.int32) << 16).view(torch.float32)
    return row.float()


def to_storage(row: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """float32 rounded to the nearest stored value, halves to even.

    bfloat16 by integer arithmetic (conversion instructions flush subnormals on some machines),
    where infinity and NaN become infinity.
    """
    if dtype != torch.bfloat16:
        return row.to(dtype)
    bits = row.contiguous().view(torch.int32).to(torch.int64) & 0xFFFFFFFF
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    special = (bits & 0x7F800000) == 0x7F800000
    rounded = torch.where(special, 0x7F80, rounded)
    signed = torch.where(rounded >= 0x8000, rounded - 0x10000, rounded)
    return signed.to(torch.int16).view(torch.bfloat16)


def mutant(g: Generation, member: int) -> torch.Tensor:
    """The donor vector in float32, [D]."""

    def row(index: int) -> torch.Tensor:
        size = g.population.shape[0]
        return widen(g.population[index] if index < size else g.archive[index - size])

    choice = g.choices[member].tolist()
    base = row(choice[ChoiceColumn.BASE_ROW])
    v = base
    for m in range(choice[ChoiceColumn.TERMS]):
        v = v + g.coefficients[member, m] * (row(choice[ChoiceColumn.ROWS + m]) - base)
    return v


def repaired(limits: Limits, v: torch.Tensor, parent: torch.Tensor) -> torch.Tensor:
    """The mutant inside its limits: a value beyond one lies half way from it to the parent's.

    Bounds as in SHADE (Tanabe & Fukunaga 2013); beyond nonneg_start the limit is 0, exclusive.
    """
    tail = torch.arange(v.numel()) >= limits.nonneg_start
    result = torch.where(tail & ~(v > 0.0), 0.5 * parent, v)
    if limits.lower > -math.inf:
        result = torch.where(~tail & (v < limits.lower), 0.5 * (limits.lower + parent), result)
    if limits.upper < math.inf:
        result = torch.where(~tail & (v > limits.upper), 0.5 * (limits.upper + parent), result)
    return result


def crossover(g: Generation, member: int) -> torch.Tensor:
    """Which weights take the mutant, bool [D]."""
    choice = g.choices[member].tolist()
    columns = g.population.shape[1]
    flat = torch.arange(g.limits.first_weight, g.limits.first_weight + columns)
    if g.genes.numel() > 0:
        gene = torch.searchsorted(g.genes, flat, right=True) - 1
        return (g.gene_mask[member][gene // 32] >> (gene % 32)) & 1 == 1
    generation = choice[ChoiceColumn.GENERATION]
    draws = mask_draws(Purpose.MASK, g.limits.first_weight, columns, generation, member, g.seed)
    drawn = torch.from_numpy(draws.astype("int32")) < choice[ChoiceColumn.THRESHOLD]
    return drawn | (flat == choice[ChoiceColumn.FORCED])


def trial(g: Generation, member: int) -> torch.Tensor:
    """The trial vector of one member, [D] in the population's dtype."""
    parent = g.population[member]
    v = repaired(g.limits, mutant(g, member), widen(parent))
    stored = to_storage(v, parent.dtype)
    return torch.where(torch.isfinite(stored) & crossover(g, member), stored, parent)


def trials(
    population: torch.Tensor,
    archive: torch.Tensor,
    choices: torch.Tensor,
    coefficients: torch.Tensor,
    genes: torch.Tensor,
    gene_mask: torch.Tensor,
    members: torch.Tensor,
    seed: int,
    nonneg_start: int,
    first_weight: int,
    lower: float,
    upper: float,
    out: torch.Tensor,
) -> None:
    """Writes the trial of members[e] to out[e]."""
    require_subnormals()
    numbers = members.tolist()
    check_choices("trials", choices.tolist(), numbers, population.shape[0], archive.shape[0])
    check_genes("trials", genes)
    limits = Limits(nonneg_start, first_weight, lower, upper)
    g = Generation(population, archive, choices, coefficients, genes, gene_mask, seed, limits)
    for e, member in enumerate(numbers):
        out[e] = trial(g, member)
