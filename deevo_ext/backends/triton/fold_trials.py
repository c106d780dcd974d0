"""fold_trials: fold of trials that are never stored (formulas: `mutation` and `fold`).

A program takes tiles of the fold table, and for each, trial after trial,
1. makes the trial's weights that the tile folds, and the entries of its bias, BatchNorm and
   statistics that go with them, in its own workspace, [6, SLOT] in the storage type;
2. after a barrier folds them from there, as `fold` does from a row.
Bytes per weight: NP reads of the storage type and E writes of the target type. A tile touches
little more of the workspace than its 4,096 weights, anew each time, so that it stays in L2. The
trials of a tile follow each other, so that the rows they share come from the caches.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from deevo_ext.backends.checks import check_choices, check_genes
from deevo_ext.backends.triton.fold import BETA as BETA_COLUMN
from deevo_ext.backends.triton.fold import (
    BIAS,
    BLOCK,
    GAMMA,
    KINDS,
    MEAN,
    OFFSET,
    TAPS,
    TILE_WEIGHTS,
    VAR,
    WARPS,
    WEIGHT,
    count_tiles,
    find_tile,
    fold_tile,
    num_programs,
)
from deevo_ext.backends.triton.launch import (
    bounded,
    launch,
    power_of_two,
    require_device,
    stored,
)
from deevo_ext.backends.triton.mutation import trial_tile
from deevo_ext.ops.fold import TILE

SOURCES = 6
SLOT = tl.constexpr(TILE + 64)  # a source's part of the workspace; it begins at a multiple of 8
COLUMNS_AT_ONCE = 512


@triton.jit
def slot(entry, column: tl.constexpr, first):
    """Where in the workspace element 0 of a source would lie, whose element `first` is its first.

    Sources start at the multiple of 8 columns before, where a block of random bits does.
    """
    begin = ((tl.load(entry + column) & OFFSET) + first) // 8 * 8
    return column * SLOT + (tl.load(entry + column) & OFFSET) - begin


@triton.jit(do_not_specialize=["num_rows", "num_genes", "num_members", "entries", "seed"])
def fold_trials_kernel(
    population, archive, choices, coefficients, genes, gene_mask, members,
    statistics, constants, table, eps, weights, vectors, workspace, scales,
    num_rows, population_stride, archive_stride, num_genes, num_members,
    entries, statistics_stride, weights_stride, vectors_stride,
    seed: tl.int64, nonneg_start: tl.int64, lower: tl.float32, upper: tl.float32,
    SOURCES: tl.constexpr, TILE: tl.constexpr, ARCHIVE: tl.constexpr, BOUNDED: tl.constexpr,
    GENES: tl.constexpr, ENTRIES: tl.constexpr, BLOCK: tl.constexpr, KIND: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    made = workspace + program * (SOURCES * SLOT)
    own_scales = scales + program * TILE_WEIGHTS
    local = tl.arange(0, TILE)[None, :]
    one = tl.arange(0, 1)[:, None]
    no_offset = tl.program_id(0).to(tl.int64) * 0
    for tile in range(tl.program_id(0), count_tiles(table, entries), tl.num_programs(0)):
        at, entry, out, out_end, first_in, in_end, ins = find_tile(table, entries, tile, ENTRIES)
        taps = tl.load(entry + TAPS)
        first_weight = (out * ins + first_in) * taps
        last_weight = ((out_end - 1) * ins + in_end) * taps
        for e in range(0, num_members):
            member = tl.load(members + e + one).to(tl.int32)
            for column in tl.static_range(SOURCES):
                address = tl.load(entry + column)
                if (address >= 0) & ((address >> 48) == 0):
                    first = first_weight if column == WEIGHT else out
                    last = last_weight if column == WEIGHT else out_end
                    begin = (address + first) // 8 * 8
                    for start in range(begin, address + last, TILE):
                        exists = start + local < address + last
                        trial = trial_tile(
                            population, archive, choices, coefficients, genes, gene_mask,
                            num_rows, population_stride.to(tl.int64),
                            archive_stride.to(tl.int64), num_genes, seed, nonneg_start, no_offset,
                            lower, upper, member, one == 0, start, local, exists,
                            TILE, ARCHIVE, BOUNDED, GENES,
                        )  # fmt: skip
                        to = made + column * SLOT + (start - begin) + local
                        tl.store(to, trial, mask=exists)
            tl.debug_barrier()
            row = tl.cast(e, tl.int64)
            fold_tile(
                made, statistics + row * statistics_stride, constants, entry, tl.load(eps + at),
                weights + row * weights_stride, vectors + row * vectors_stride, own_scales,
                out, out_end, first_in, in_end, ins,
                slot(entry, WEIGHT, first_weight), slot(entry, BIAS, out), slot(entry, GAMMA, out),
                slot(entry, BETA_COLUMN, out), slot(entry, MEAN, out), slot(entry, VAR, out),
                BLOCK, KIND,
            )  # fmt: skip


def fold_trials(
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
    """As `deevo_ext.backends.reference.fold_trials`.

    On a CUDA device values are not read back: choices must be a plan's.
    """
    require_device("fold_trials", fold_trials_kernel, population.device)
    num_rows = population.shape[0]
    if population.device.type == "cpu":
        rows = (num_rows, archive.shape[0])
        check_choices("fold_trials", choices.tolist(), members.tolist(), *rows)
        check_genes("fold_trials", genes)
    entries, num_members = table.shape[0], members.numel()
    if entries == 0 or num_members == 0:
        return
    programs = num_programs(population.device)
    # A stand-in for what has no elements: an empty tensor may have no address.
    filled = statistics if statistics.numel() else eps.new_zeros(1, dtype=torch.float32)
    shared = constants if constants.numel() else filled
    workspace = population.new_empty(programs * SOURCES * (TILE + 64))
    launch(
        fold_trials_kernel,
        (programs,),
        population.device,
        stored(population),
        stored(archive),
        choices,
        coefficients,
        genes,
        gene_mask,
        members,
        filled,
        shared,
        table,
        eps,
        weights.view(torch.int32 if weights.element_size() == 4 else torch.int16),
        vectors.view(torch.int32),
        stored(workspace),
        torch.empty(programs * TILE, dtype=torch.float32, device=population.device),
        num_rows,
        population.stride(0),
        archive.stride(0),
        genes.numel(),
        num_members,
        entries,
        statistics.stride(0) if statistics.numel() else 0,
        weights.stride(0),
        vectors.stride(0),
        seed,
        nonneg_start,
        lower,
        upper,
        SOURCES=SOURCES,
        TILE=COLUMNS_AT_ONCE,
        ARCHIVE=archive.shape[0] > 0,
        BOUNDED=bounded(lower, upper),
        GENES=genes.numel() > 0,
        ENTRIES=power_of_two(entries),
        BLOCK=BLOCK,
        KIND=KINDS[weights.dtype],
        num_warps=WARPS,
    )
