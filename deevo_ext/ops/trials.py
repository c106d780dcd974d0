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
    c.population(population, archive)
    c.plan(population.shape[0], choices, coefficients)
    c.tensor("members", members, torch.int64, None)
    c.rows("out", out, (population.dtype,), members.numel(), population.shape[1])
    c.seed(seed)
    c.columns(nonneg_start, first_weight)
    c.genes(population.shape[0], genes, gene_mask)
    c.bounds(lower, upper, population.dtype)


register("trials", check, mutated=("out",))
