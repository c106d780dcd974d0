"""compose: rows from recipes, a weight of each from the members' and its block's coefficients.

v = x_0; for m = 1..M-1 in order, where a[m] is not 0: v = v + a[m] (x_m - x_0)

A weighted average of weights, one weighting a block, as in model soups (Wortsman et al. 2022) and
AdaMerging (Yang et al., ICLR 2024). float32, each operation rounded: a launch passes
enable_fp_fusion=False. In the non-negative tail v becomes half the least of the members' weights
where it is not above 0; what is not finite, once rounded to storage, becomes x_0.

A program owns a tile of columns and makes four recipes' parts of it at a time. They share what was
loaded and the difference to member 0, and four members' rows are asked for before the first is
used. Where a tile lies in one segment, as most do, a coefficient is one number for all of it;
elsewhere every weight looks up its own, for one recipe at a time.
Bytes per column: M reads and K writes of the storage type, while the tiles of the programs on a
multiprocessor stay in its L1 cache (16 bits: up to about 20 members, float32: 10) or there is one
group of recipes; further groups then read through L2.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from deevo_ext.backends.checks import check_segments
from deevo_ext.backends.triton.launch import (
    in_units,
    launch,
    require_device,
    require_rounding,
    stored,
    wide,
)
from deevo_ext.backends.triton.mutation import gene_of, row_stride, tile_columns, within
from deevo_ext.backends.triton.storage import to_storage, widen

WARPS = 4
TILE = 8 * 32 * WARPS  # eight weights of a row a thread
REGISTERS = 128  # of a thread: four programs on a multiprocessor, 64 KiB of rows on their way


@triton.jit
def member_row(population, stride, m, num_rows, column, exists):
    """Stored weights of member m, [1, TILE]; of the last one where there is no m."""
    return tl.load(population + tl.minimum(m, num_rows - 1) * stride + column, mask=exists, other=0)


@triton.jit
def add_member(v, difference, recipe, block, m, num_rows, LOOK_UP: tl.constexpr):
    """v + a[m] difference where a[m] is not 0 and there is an m; block: where a block's a begin."""
    a = tl.load(recipe + tl.minimum(m, num_rows - 1) + block)
    a = tl.where(m < num_rows, a, 0.0)
    if LOOK_UP:
        return tl.where(a == 0.0, v, v + a * difference)
    else:
        if a != 0.0:
            v += a * difference
        return v


@triton.jit
def add_to_four(v0, v1, v2, v3, base, x, recipe0, recipe1, recipe2, recipe3, block, m, num_rows,
                RECIPES: tl.constexpr, LOOK_UP: tl.constexpr):  # fmt: skip
    """Adds member m, whose row is x, to as many of four recipes' sums as there are."""
    difference = widen(x) - base
    v0 = add_member(v0, difference, recipe0, block, m, num_rows, LOOK_UP)
    if RECIPES > 1:
        v1 = add_member(v1, difference, recipe1, block, m, num_rows, LOOK_UP)
        v2 = add_member(v2, difference, recipe2, block, m, num_rows, LOOK_UP)
        v3 = add_member(v3, difference, recipe3, block, m, num_rows, LOOK_UP)
    return v0, v1, v2, v3


@triton.jit
def least_of(population, stride, num_rows, column, exists, base):
    """The least of the members' weights."""
    least = base
    for m in range(1, num_rows):
        x = widen(member_row(population, stride, m, num_rows, column, exists))
        least = tl.where(x < least, x, least)
    return least


@triton.jit
def write(out, v, k, num_recipes, first_row, least, stride, column, local, exists, tail_from):
    """Rounds recipe k's sums to storage and stores them, if there is such a recipe."""
    if k < num_recipes:
        v = tl.where((local >= tail_from) & ((v > 0.0) == 0), 0.5 * least, v)
        rounded, finite = to_storage(v, first_row.dtype)
        tl.store(out + k * stride + column, tl.where(finite, rounded, first_row), mask=exists)


@triton.jit
def compose_tile(
    population, recipes, out, num_rows, num_recipes, blocks, stride, out_stride, block,
    start, local, exists, tail_from,
    TILE: tl.constexpr, RECIPES: tl.constexpr, LOOK_UP: tl.constexpr,
):  # fmt: skip
    """All recipes' parts of a tile; block: the tile's, or if LOOK_UP each column's [1, TILE]."""
    column = start + local
    first_row = tl.load(population + column, mask=exists, other=0)
    base = widen(first_row)
    least = base
    if tail_from < TILE:
        least = least_of(population, stride, num_rows, column, exists, base)
    block *= num_rows
    apart = tl.cast(blocks, tl.int64) * num_rows
    for k in range(0, num_recipes, RECIPES):
        last = num_recipes - 1  # stands in for those that there are not
        recipe0, recipe1 = recipes + k * apart, recipes + tl.minimum(k + 1, last) * apart
        recipe2 = recipes + tl.minimum(k + 2, last) * apart
        recipe3 = recipes + tl.minimum(k + 3, last) * apart
        four = recipe0, recipe1, recipe2, recipe3, block
        v0, v1, v2, v3 = base, base, base, base
        for m in range(1, num_rows, 4):
            x0 = member_row(population, stride, m, num_rows, column, exists)
            x1 = member_row(population, stride, m + 1, num_rows, column, exists)
            x2 = member_row(population, stride, m + 2, num_rows, column, exists)
            x3 = member_row(population, stride, m + 3, num_rows, column, exists)
            v0, v1, v2, v3 = add_to_four(
                v0, v1, v2, v3, base, x0, *four, m, num_rows, RECIPES, LOOK_UP
            )
            v0, v1, v2, v3 = add_to_four(
                v0, v1, v2, v3, base, x1, *four, m + 1, num_rows, RECIPES, LOOK_UP
            )
            v0, v1, v2, v3 = add_to_four(
                v0, v1, v2, v3, base, x2, *four, m + 2, num_rows, RECIPES, LOOK_UP
            )
            v0, v1, v2, v3 = add_to_four(
                v0, v1, v2, v3, base, x3, *four, m + 3, num_rows, RECIPES, LOOK_UP
            )
        place = num_recipes, first_row, least, out_stride, column, local, exists, tail_from
        write(out, v0, k, *place)
        if RECIPES > 1:
            write(out, v1, k + 1, *place)
            write(out, v2, k + 2, *place)
            write(out, v3, k + 3, *place)


@triton.jit(
    do_not_specialize=[
        "columns",
        "num_rows",
        "num_recipes",
        "blocks",
        "segments",
        "population_stride",
        "out_stride",
        "nonneg_start",
    ]
)
def compose_kernel(
    population, recipes, starts, block_of, out,
    columns, num_rows, num_recipes, blocks, segments, population_stride, out_stride,
    nonneg_start: tl.int64,
    TILE: tl.constexpr, RECIPES: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    start, local, exists = tile_columns(tl.program_id(0), columns, TILE, WIDE)
    stride, out_stride = row_stride(population_stride, WIDE), row_stride(out_stride, WIDE)
    tail_from = within(nonneg_start - start, TILE)
    first = gene_of(starts, start, 0, segments - 1)
    last = gene_of(starts, start + (TILE - 1), first, segments - 1)
    rows = population, recipes, out, num_rows, num_recipes, blocks, stride, out_stride
    place = start, local, exists, tail_from
    if first == last:
        compose_tile(*rows, tl.load(block_of + first), *place, TILE, RECIPES, False)
    else:  # one recipe at a time: addresses of every weight's coefficient fill the registers
        block = block_of + gene_of(starts, start + local, first, last)
        compose_tile(*rows, tl.load(block), *place, TILE, 1, True)


def compose_shape(recipes: int) -> dict[str, int]:
    """Returns how many recipes are made at a time and the columns of a tile."""
    return {"RECIPES": 4 if recipes > 1 else 1, "TILE": TILE}


def compose(
    population: torch.Tensor,
    recipes: torch.Tensor,
    starts: torch.Tensor,
    block_of: torch.Tensor,
    nonneg_start: int,
    out: torch.Tensor,
) -> None:
    """Does what `deevo_ext.backends.reference.compose` does.

    On a CUDA device no value is read back, so none is checked: segments must be a layout's.
    """
    require_device("compose", compose_kernel, population.device)
    require_rounding("compose", population.device)
    (num_rows, columns), (num_recipes, blocks) = population.shape, recipes.shape[:2]
    if population.device.type == "cpu":
        check_segments("compose", starts, block_of, blocks)
    if num_recipes == 0:
        return
    in_blocks = wide(population, out)
    shape = compose_shape(num_recipes)
    launch(
        compose_kernel,
        (triton.cdiv(columns, shape["TILE"]),),
        population.device,
        stored(population),
        recipes,
        starts,
        block_of,
        stored(out),
        in_units(columns, in_blocks),
        num_rows,
        num_recipes,
        blocks,
        starts.numel(),
        in_units(population.stride(0), in_blocks),
        in_units(out.stride(0), in_blocks),
        nonneg_start,
        **shape,
        WIDE=in_blocks,
        num_warps=WARPS,
        maxnreg=REGISTERS,
    )
