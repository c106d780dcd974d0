"""`torch.ops.deevo.fold_trials`: the folded weights of trials that are never stored."""

from __future__ import annotations

import torch

from deevo_ext.ops.checks import Checker
from deevo_ext.ops.fold import check_folding
from deevo_ext.ops.library import register


def check(
    population: torch.Tensor,
    archive: torch.Tensor,
    choices: torch.Tensor,
    coefficients: torch.Tensor,
    genes: torch.Tensor,
    gene_mask: torch.Tensor,
    members: torch.Tensor,
    seed: int,
    nonneg_start: int,
    lower: float,
    upper: float,
    statistics: torch.Tensor,
    constants: torch.Tensor,
    table: torch.Tensor,
    eps: torch.Tensor,
    weights: torch.Tensor,
    vectors: torch.Tensor,
) -> None:
    """Writes what `fold` would make of the trials of members[e], bit for bit, to row e.

    The first eleven arguments are those of `deevo_ext.ops.trials` (whole rows: first_weight 0), the
    rest those of `deevo_ext.ops.fold`; statistics [E, S] are the trials'. A trial's weights exist
    only in fast memory. Traffic: NP rows read, E folded networks written.
    Raises DeevoError naming the argument at fault.
    """
    c = Checker("fold_trials", population.device)
    c.rows("population", population)
    c.rows("archive", archive, population)
    c.plan(population.shape[0], choices, coefficients)
    c.tensor("members", members, torch.int64, None)
    c.seed(seed)
    c.columns(nonneg_start, 0)
    c.genes(population.shape[0], genes, gene_mask)
    c.bounds(lower, upper, population.dtype)
    columns, count = population.shape[1], members.numel()
    check_folding(c, columns, count, statistics, constants, table, eps, weights, vectors)
    c.disjoint(
        population=population,
        archive=archive,
        choices=choices,
        coefficients=coefficients,
        genes=genes,
        gene_mask=gene_mask,
        members=members,
        statistics=statistics,
        constants=constants,
        table=table,
        eps=eps,
        weights=weights,
        vectors=vectors,
    )


register(
    "fold_trials(Tensor population, Tensor archive, Tensor choices, Tensor coefficients, "
    "Tensor genes, Tensor gene_mask, Tensor members, int seed, int nonneg_start, float lower, "
    "float upper, Tensor statistics, Tensor constants, Tensor table, Tensor eps, "
    "Tensor(a!) weights, Tensor(b!) vectors) -> ()",
    check,
    mutated=(15, 16),
)
