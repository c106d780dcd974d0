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
    members: torch.Tensor,
    seed: int,
    nonneg_start: int,
    first_weight: int,
    out: torch.Tensor,
) -> None:
    """Writes the trial of members[e] to out[e].

    population [NP, D], archive [A, D] (A = 0: none) and out [E, D] in one dtype, float32 or
    bfloat16, with any row stride; members int64 [E]; columns from nonneg_start on hold no negative
    weight as long as their parents hold none;
    first_weight is the flat index of column 0, a multiple of 8 (0 unless the rows are a slice).
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
    c.disjoint(
        population=population,
        archive=archive,
        choices=choices,
        coefficients=coefficients,
        members=members,
        out=out,
    )


register(
    "trials(Tensor population, Tensor archive, Tensor choices, Tensor coefficients, "
    "Tensor members, int seed, int nonneg_start, int first_weight, Tensor(a!) out) -> ()",
    check,
    mutated=(8,),
)
