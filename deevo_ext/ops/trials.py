"""`torch.ops.deevo.trials`: trial vectors of chosen members, mutation and crossover fused."""

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
    members: torch.Tensor,
    seed: int,
    nonneg_start: int,
    first_weight: int,
    lower: float,
    upper: float,
    out: torch.Tensor,
) -> None:
    """Writes the trial of members[e] to out[e].

    population [NP, D], archive [A, D] (A = 0: none) and out [E, D] in one dtype, float32, bfloat16
    or float16, with any row stride; genes int64 [G], where each segment of a row starts (G = 0:
    crossover draws per weight), with the plan's gene_mask; members int64 [E]; columns from
    nonneg_start on hold no negative weight as long as their parents hold none, those before it
    nothing outside [lower, upper] (infinite: no bounds); first_weight is the flat index of column
    0, a multiple of 8 (0 unless the rows are a slice).
    Traffic: NP rows read, E rows written. Raises DeevoError naming the argument at fault.
    """
    c = Checker("trials", population.device)
    c.rows("population", population)
    c.rows("archive", archive, population)
    c.rows("out", out, population)
    c.plan(population.shape[0], choices, coefficients)
    c.tensor("members", members, torch.int64, None)
    if out.shape[0] != members.numel():
        c.fail("out", f"of {out.shape[0]} rows", f"one per member, {members.numel()}")
    c.seed(seed)
    c.columns(nonneg_start, first_weight)
    c.genes(population.shape[0], genes, gene_mask)
    c.bounds(lower, upper, population.dtype)
    c.disjoint(
        population=population,
        archive=archive,
        choices=choices,
        coefficients=coefficients,
        genes=genes,
        gene_mask=gene_mask,
        members=members,
        out=out,
    )


register(
    "trials(Tensor population, Tensor archive, Tensor choices, Tensor coefficients, "
    "Tensor genes, Tensor gene_mask, Tensor members, int seed, int nonneg_start, int first_weight, "
    "float lower, float upper, Tensor(a!) out) -> ()",
    check,
    mutated=(12,),
)
