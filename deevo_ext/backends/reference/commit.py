"""commit: accepted trials replace their parents in place, replaced parents move to the archive."""

from __future__ import annotations

import torch

from deevo_ext.backends.checks import (
    check_archive_slots,
    check_choices,
    check_genes,
    require_subnormals,
)
from deevo_ext.backends.reference.trials import Generation, Limits, trial


def commit(
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
    """Updates population and archive in place.

    Every trial is made from the population and archive as they were before the first write.
    """
    require_subnormals()
    members = [member for member, taken in enumerate(accepted.tolist()) if taken]
    slots = archive_slot.tolist()
    check_choices("commit", choices.tolist(), members, population.shape[0], archive.shape[0])
    check_genes("commit", genes)
    check_archive_slots([slots[member] for member in members], archive.shape[0])
    limits = Limits(nonneg_start, first_weight, lower, upper)
    g = Generation(population, archive, choices, coefficients, genes, gene_mask, seed, limits)
    survivors = [trial(g, member) for member in members]
    parents = [population[member].clone() if slots[member] >= 0 else None for member in members]
    for member, survivor, parent in zip(members, survivors, parents, strict=True):
        population[member] = survivor
        if parent is not None:
            archive[slots[member]] = parent
