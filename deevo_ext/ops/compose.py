"""`torch.ops.deevo.compose`: rows from recipes, which weigh the members block by block."""

from __future__ import annotations

import torch

from deevo_ext.ops.checks import STORAGE, Checker
from deevo_ext.ops.library import register


def check(
    population: torch.Tensor,
    recipes: torch.Tensor,
    starts: torch.Tensor,
    block_of: torch.Tensor,
    nonneg_start: int,
    out: torch.Tensor,
) -> None:
    """Writes to out[k] the network that recipes[k] makes of the members.

    population [M, D] and out [K, D] in one dtype, float32, bfloat16 or float16, with any row
    stride; recipes float32 [K, blocks, M]: a block's coefficients, one a member, which their owner
    has checked to add up to 1; starts int64 [S], ascending, where each segment of a row starts, the
    first at 0; block_of int32 [S], the block of each segment: a block is any set of segments.
    A weight is x_0 + sum over m = 1..M-1 in order of a[m] (x_m - x_0), in float32, each operation
    rounded, terms whose coefficient is 0 left out; what is not finite, once rounded to the dtype,
    is x_0. In columns from nonneg_start on, where the members hold no negative weight, one that is
    not above 0 becomes half the least of the members'. A row depends on no other recipe.
    Traffic: M rows read, K rows written. Raises DeevoError naming the argument at fault.
    """
    c = Checker("compose", population.device)
    c.rows("population", population, STORAGE, None, None)
    members, columns = population.shape
    if members < 1 or columns < 1:
        c.fail("population", f"of shape {tuple(population.shape)}", "at least one row and column")
    c.tensor("recipes", recipes, torch.float32, None, None, members)
    c.rows("out", out, (population.dtype,), recipes.shape[0], columns)
    c.tensor("starts", starts, torch.int64, None)
    if starts.numel() < 1:
        c.fail("starts", "empty", "at least one segment")
    c.tensor("block_of", block_of, torch.int32, starts.numel())
    if nonneg_start < 0:
        c.fail("nonneg_start", nonneg_start, "0 or more (D for no non-negative tail)")


register("compose", check, mutated=("out",))
