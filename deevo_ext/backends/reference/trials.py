"""trials: mutation and binomial crossover.

``v = row[base]``; for m in table order ``v = v + c[m] (row[idx[m]] - row[base])`` in float32, each
operation rounded; ``u = v`` where the weight's 16 random bits < threshold, else the parent's value.
Only ``*``, ``+`` and ``-`` are used: torch's addcmul, lerp and add(alpha=) round differently.
"""

from __future__ import annotations

import torch

from deevo_ext.backends.reference.checks import check_choices, require_subnormals
from deevo_ext.backends.reference.philox import mask_draws
from deevo_ext.tables import ChoiceColumn


def widen(row: torch.Tensor) -> torch.Tensor:
    """A stored row in float32; exact."""
    if row.dtype == torch.bfloat16:
        return (row.view(torch.int16).to(torch.int32) << 16).view(torch.float32)
    return row


def to_storage(row: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """float32 rounded to the nearest stored value, halves to even, by integer arithmetic.

    (Conversion instructions flush subnormals on some machines.) Infinity and NaN become infinity.
    """
    if dtype == torch.float32:
        return row
    bits = row.contiguous().view(torch.int32).to(torch.int64) & 0xFFFFFFFF
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    special = (bits & 0x7F800000) == 0x7F800000
    rounded = torch.where(special, 0x7F80, rounded)
    signed = torch.where(rounded >= 0x8000, rounded - 0x10000, rounded)
    return signed.to(torch.int16).view(torch.bfloat16)


def mutant(
    population: torch.Tensor,
    archive: torch.Tensor,
    choice: list[int],
    coefficients: torch.Tensor,
) -> torch.Tensor:
    """The donor vector in float32, [D]."""

    def row(index: int) -> torch.Tensor:
        size = population.shape[0]
        return widen(population[index] if index < size else archive[index - size])

    base = row(choice[ChoiceColumn.BASE_ROW])
    v = base
    for m in range(choice[ChoiceColumn.TERMS]):
        v = v + coefficients[m] * (row(choice[ChoiceColumn.ROWS + m]) - base)
    return v


def trial(
    population: torch.Tensor,
    archive: torch.Tensor,
    choices: torch.Tensor,
    coefficients: torch.Tensor,
    member: int,
    seed: int,
    nonneg_start: int,
    first_weight: int,
) -> torch.Tensor:
    """The trial vector of one member, [D] in the population's dtype."""
    choice = choices[member].tolist()
    parent = population[member]
    v = mutant(population, archive, choice, coefficients[member])
    tail = torch.arange(parent.numel()) >= nonneg_start
    v = torch.where(tail & ~(v > 0.0), 0.5 * widen(parent), v)
    stored = to_storage(v, population.dtype)
    take = torch.isfinite(stored)
    draws = mask_draws(first_weight, parent.numel(), choice[ChoiceColumn.GENERATION], member, seed)
    take &= torch.from_numpy(draws.astype("int32")) < choice[ChoiceColumn.THRESHOLD]
    return torch.where(take, stored, parent)


def trials(
    population: torch.Tensor,
    archive: torch.Tensor,
    choices: torch.Tensor,
    coefficients: torch.Tensor,
    members: torch.Tensor,
    seed: int,
    nonneg_start: int,
    first_weight: int,
    out: torch.Tensor,
) -> None:
    """Writes the trial of members[e] to out[e]."""
    require_subnormals()
    numbers = members.tolist()
    check_choices("trials", choices.tolist(), numbers, population.shape[0], archive.shape[0])
    for e, member in enumerate(numbers):
        out[e] = trial(
            population,
            archive,
            choices,
            coefficients,
            member,
            seed,
            nonneg_start,
            first_weight,
        )
