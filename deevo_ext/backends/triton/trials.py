"""trials: fused mutation and binomial crossover (the formula is in `mutation`).

A program owns a tile of columns and makes every member's trial for it, a few members at a time, so
that NP x TILE weights (64 KiB at most, while that leaves 64 columns) are read from memory once and
then from the L1 cache, whatever the number of parents.
Bytes per column: NP reads and E writes of the storage type.

Why so, by arithmetic: a grid of one member and one tile a program, members fastest, reads memory
once as well, but every one of a trial's 2 to 7 rows then comes through L2, which has less than
twice the bandwidth of HBM on an H100: for five rows about 1.6 times the floor. A program that keeps
to its tile reads them from L1, and from L2 where L1 has lost them, so it is no worse. Holding the
tile in registers and choosing rows by tl.gather is exact too, but costs 10, 15 and 31 shuffles a
weight at NP = 20, 50, 100 and spills at NP = 1000. Triton has no shared memory indexed by row.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from deevo_ext.backends.checks import check_choices, check_genes
from deevo_ext.backends.triton.launch import (
    WEIGHT_WARPS,
    bounded,
    in_units,
    launch,
    require_device,
    require_rounding,
    stored,
    tile_shape,
    wide,
)
from deevo_ext.backends.triton.mutation import row_stride, tile_columns, trial_tile


@triton.jit(
    do_not_specialize=[
        "columns",
        "num_rows",
        "population_stride",
        "archive_stride",
        "out_stride",
        "num_genes",
        "num_members",
        "seed",
        "nonneg_start",
        "first_weight",
    ]
)
def trials_kernel(
    population,
    archive,
    choices,
    coefficients,
    genes,
    gene_mask,
    members,
    out,
    columns,
    num_rows,
    population_stride,
    archive_stride,
    out_stride,
    num_genes,
    num_members,
    seed: tl.int64,
    nonneg_start: tl.int64,
    first_weight: tl.int64,
    lower: tl.float32,
    upper: tl.float32,
    MEMBERS: tl.constexpr,
    TILE: tl.constexpr,
    WIDE: tl.constexpr,
    ARCHIVE: tl.constexpr,
    BOUNDED: tl.constexpr,
    GENES: tl.constexpr,
):
    start, local, exists = tile_columns(tl.program_id(0), columns, TILE, WIDE)
    for first in range(0, num_members, MEMBERS):
        e = first + tl.arange(0, MEMBERS)[:, None]
        active = e < num_members
        member = tl.load(members + e, mask=active, other=0).to(tl.int32)
        trial = trial_tile(
            population,
            archive,
            choices,
            coefficients,
            genes,
            gene_mask,
            num_rows,
            row_stride(population_stride, WIDE),
            row_stride(archive_stride, WIDE),
            num_genes,
            seed,
            nonneg_start,
            first_weight,
            lower,
            upper,
            member,
            active,
            start,
            local,
            exists,
            TILE,
            ARCHIVE,
            BOUNDED,
            GENES,
        )
        to = out + e.to(tl.int64) * row_stride(out_stride, WIDE) + start + local
        tl.store(to, trial, mask=active & exists)


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
    """Does what `deevo_ext.backends.reference.trials` does.

    On a CUDA device no value is read back, so none is checked: choices must be a plan's.
    """
    require_device("trials", trials_kernel, population.device)
    require_rounding("trials", population.device)
    num_rows, columns = population.shape
    if population.device.type == "cpu":
        check_choices("trials", choices.tolist(), members.tolist(), num_rows, archive.shape[0])
        check_genes("trials", genes)
    if out.numel() == 0:
        return
    in_blocks = wide(population, archive, out)
    num_members = members.numel()
    step, tile = tile_shape(
        min(num_rows + archive.shape[0], 7 * num_members), num_members, population.element_size()
    )
    launch(
        trials_kernel,
        (triton.cdiv(columns, tile),),
        population.device,
        stored(population),
        stored(archive),
        choices,
        coefficients,
        genes,
        gene_mask,
        members,
        stored(out),
        in_units(columns, in_blocks),
        num_rows,
        in_units(population.stride(0), in_blocks),
        in_units(archive.stride(0), in_blocks),
        in_units(out.stride(0), in_blocks),
        genes.numel(),
        num_members,
        seed,
        nonneg_start,
        first_weight,
        lower,
        upper,
        MEMBERS=step,
        TILE=tile,
        WIDE=in_blocks,
        ARCHIVE=archive.shape[0] > 0,
        BOUNDED=bounded(lower, upper),
        GENES=genes.numel() > 0,
        num_warps=WEIGHT_WARPS,
    )
