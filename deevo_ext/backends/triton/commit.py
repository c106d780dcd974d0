"""commit: accepted trials replace their parents in place, replaced parents move to the archive.

Every trial is made from rows that other trials replace, so a tile's inputs must all be read before
its first write. A program owns tiles of columns, one after the other, and for each
1. makes the trials of the accepted members (formula: `mutation`; rows from L1, as in `trials`) and
   keeps them in its own workspace, [NP, TILE] in the storage type;
2. after a barrier copies the parents that are kept to their archive rows;
3. after a barrier copies the trials from the workspace to the population.
Bytes per column: NP reads and as many writes as there are accepted members and archived parents, in
the storage type. The workspace adds no memory traffic as long as it stays in L2: it is at most
64 KiB a program until NP needs more than that at 64 columns, two programs on each multiprocessor
(17 MB on an H100, whose L2 holds 50), and is written anew by every tile.

Why a workspace: Triton has no shared memory that is indexed by row, and registers chosen by
tl.gather cost 10 to 31 shuffles a weight (see `trials`). Staging trials rather than rows moves only
what is accepted.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from deevo_ext.backends.checks import check_archive_slots, check_choices, check_genes
from deevo_ext.backends.triton.launch import (
    WEIGHT_WARPS,
    bounded,
    in_units,
    launch,
    num_programs,
    require_device,
    require_rounding,
    stored,
    tile_shape,
    wide,
    workspace,
)
from deevo_ext.backends.triton.mutation import row_stride, tile_columns, trial_tile

PROGRAMS_PER_MULTIPROCESSOR = 2
REGISTERS = 128  # what that many programs leave a thread; ptxas may spill to save more


@triton.jit(
    do_not_specialize=[
        "columns",
        "num_rows",
        "population_stride",
        "archive_stride",
        "num_genes",
        "num_tiles",
        "seed",
        "nonneg_start",
        "first_weight",
    ]
)
def commit_kernel(
    population,
    archive,
    choices,
    coefficients,
    genes,
    gene_mask,
    accepted,
    archive_slot,
    workspace,
    columns,
    num_rows,
    population_stride,
    archive_stride,
    num_genes,
    num_tiles,
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
    population_stride = row_stride(population_stride, WIDE)
    archive_stride = row_stride(archive_stride, WIDE)
    workspace += tl.program_id(0).to(tl.int64) * num_rows * TILE
    for tile in range(tl.program_id(0), num_tiles, tl.num_programs(0)):
        start, local, exists = tile_columns(tile, columns, TILE, WIDE)
        for first in range(0, num_rows, MEMBERS):
            member = first + tl.arange(0, MEMBERS)[:, None]
            taken = tl.load(accepted + member, mask=member < num_rows, other=0) != 0
            if tl.max(taken.to(tl.int32)) > 0:
                trial = trial_tile(
                    population,
                    archive,
                    choices,
                    coefficients,
                    genes,
                    gene_mask,
                    num_rows,
                    population_stride,
                    archive_stride,
                    num_genes,
                    seed,
                    nonneg_start,
                    first_weight,
                    lower,
                    upper,
                    member,
                    taken,
                    start,
                    local,
                    exists,
                    TILE,
                    ARCHIVE,
                    BOUNDED,
                    GENES,
                )
                kept = workspace + member.to(tl.int64) * TILE + local
                tl.store(kept, trial, mask=taken & exists)
        tl.debug_barrier()
        if ARCHIVE:
            for first in range(0, num_rows, MEMBERS):
                member = first + tl.arange(0, MEMBERS)[:, None]
                taken = tl.load(accepted + member, mask=member < num_rows, other=0) != 0
                slot = tl.load(archive_slot + member, mask=taken, other=-1).to(tl.int64)
                moved = (slot >= 0) & exists
                place = population + member.to(tl.int64) * population_stride + start + local
                parent = tl.load(place, mask=moved, other=0)
                tl.store(archive + slot * archive_stride + start + local, parent, mask=moved)
            tl.debug_barrier()
        for first in range(0, num_rows, MEMBERS):
            member = first + tl.arange(0, MEMBERS)[:, None]
            taken = tl.load(accepted + member, mask=member < num_rows, other=0) != 0
            kept = workspace + member.to(tl.int64) * TILE + local
            trial = tl.load(kept, mask=taken & exists, other=0)
            place = population + member.to(tl.int64) * population_stride + start + local
            tl.store(place, trial, mask=taken & exists)
        tl.debug_barrier()


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
    """Does what `deevo_ext.backends.reference.commit` does.

    On a CUDA device no value is read back, so none is checked: choices must be a plan's, accepted
    and archive_slot a tell's.
    """
    device = population.device
    require_device("commit", commit_kernel, device)
    require_rounding("commit", device)
    num_rows, columns = population.shape
    if device.type == "cpu":
        members = accepted.nonzero().flatten().tolist()
        check_choices("commit", choices.tolist(), members, num_rows, archive.shape[0])
        check_genes("commit", genes)
        check_archive_slots(archive_slot[accepted != 0].tolist(), archive.shape[0])
    if population.numel() == 0:
        return
    in_blocks = wide(population, archive)
    size = population.element_size()
    step, tile = tile_shape(num_rows + archive.shape[0], num_rows, size)
    num_tiles = triton.cdiv(columns, tile)
    programs = min(num_tiles, num_programs(device, PROGRAMS_PER_MULTIPROCESSOR))
    kept = workspace(device, programs * num_rows * tile * size)
    launch(
        commit_kernel,
        (programs,),
        device,
        stored(population),
        stored(archive),
        choices,
        coefficients,
        genes,
        gene_mask,
        accepted,
        archive_slot,
        kept.view(stored(population).dtype),
        in_units(columns, in_blocks),
        num_rows,
        in_units(population.stride(0), in_blocks),
        in_units(archive.stride(0), in_blocks),
        genes.numel(),
        num_tiles,
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
        maxnreg=REGISTERS,
    )
