"""`torch.ops.deevo.commit`: accepted trials replace their parents in place."""

from __future__ import annotations

import torch

from deevo_ext.ops.checks import Checker
from deevo_ext.ops.library import register


def check(
    population: torch.Tensor,
    archive: torch.Tensor,
    choices: torch.Tensor,
    coefficients: torch.Tensor,
    genes: torch.Tensor,
    gene_mask: torch.Tensor,
    accepted: torch.Tensor,
    archive_slot: torch.Tensor,
    seed: int,
    nonneg_start: int,
    first_weight: int,
    lower: float,
    upper: float,
) -> None:
    """Updates population and archive in place; the accepted trials are made again, not read.

    accepted uint8 [NP]; archive_slot int32 [NP], -1 where the replaced parent is not kept; the rest
    as for `deevo_ext.ops.trials.check`. Raises DeevoError naming the argument at fault.
    """
    c = Checker("commit", population.device)
    c.population(population, archive)
    members = population.shape[0]
    c.plan(members, choices, coefficients)
    c.tensor("accepted", accepted, torch.uint8, members)
    c.tensor("archive_slot", archive_slot, torch.int32, members)
    c.seed(seed)
    c.columns(nonneg_start, first_weight)
    c.genes(population.shape[0], genes, gene_mask)
    c.bounds(lower, upper, population.dtype)


register("commit", check, mutated=("population", "archive"))
