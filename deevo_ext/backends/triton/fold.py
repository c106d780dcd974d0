"""fold: BatchNorm folded into the weights before it, cast, channels last.

scale = gamma / sqrt(var + eps) and shift = beta + (bias - mean) scale per output channel, in
float64; weight[o, r, c] = W[o, c, r] float32(scale[o]) in float32, rounded to the target type.
A program takes tiles of the table, one after the other, and for each
1. makes the tile's channels' shifts, which it writes, and scales, which it keeps in its own
   workspace, float32 [TILE];
2. after a barrier writes the tile's weights in the order of the target. A kernel's taps are apart
   there and side by side in the source, whose lines stay in L1 in between.
Bytes per weight: the stored type read once, the target type written once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from deevo_ext.backends.triton.launch import (
    launch,
    num_programs,
    power_of_two,
    require_device,
    stored,
    workspace,
)
from deevo_ext.backends.triton.storage import widen
from deevo_ext.ops.fold_table import TILE, FoldColumn

COLUMNS = tl.constexpr(len(FoldColumn))
WEIGHT = tl.constexpr(int(FoldColumn.WEIGHT))
BIAS = tl.constexpr(int(FoldColumn.BIAS))
GAMMA = tl.constexpr(int(FoldColumn.GAMMA))
BETA = tl.constexpr(int(FoldColumn.BETA))
MEAN = tl.constexpr(int(FoldColumn.MEAN))
VAR = tl.constexpr(int(FoldColumn.VAR))
OUT_CHANNELS = tl.constexpr(int(FoldColumn.OUT_CHANNELS))
IN_CHANNELS = tl.constexpr(int(FoldColumn.IN_CHANNELS))
TAPS = tl.constexpr(int(FoldColumn.TAPS))
PADDED = tl.constexpr(int(FoldColumn.PADDED))
TO_WEIGHT = tl.constexpr(int(FoldColumn.TO_WEIGHT))
TO_SHIFT = tl.constexpr(int(FoldColumn.TO_SHIFT))
FIRST_TILE = tl.constexpr(int(FoldColumn.FIRST_TILE))

OFFSET = tl.constexpr(2**48 - 1)
TILE_WEIGHTS = tl.constexpr(TILE)
FLOAT32, BFLOAT16, FLOAT16 = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}

BLOCK = 512
WARPS = 4
PROGRAMS_PER_MULTIPROCESSOR = 8


@triton.jit
def tile_bits(v, KIND: tl.constexpr):
    """A float32 as the bits of the target type: to nearest even, NaN as the quiet NaN."""
    bits = v.to(tl.int32, bitcast=True)
    nan = v != v
    if KIND == FLOAT32:
        return tl.where(nan, 0x7FC00000, bits)
    elif KIND == BFLOAT16:
        unsigned = v.to(tl.uint32, bitcast=True)
        rounded = (unsigned + 0x7FFF + ((unsigned >> 16) & 1)) >> 16
        return tl.where(nan, 0x7FC0, rounded).to(tl.int16)
    else:
        half = v.to(tl.float16).to(tl.int16, bitcast=True)
        return tl.where(nan, 0x7E00, half).to(tl.int16)


@triton.jit
def source(row, statistics, constants, address, i, exists, absent):
    """Element i of a source, in float32; `absent` where the table has none."""
    address += tl.zeros_like(i)  # the interpreter wants masks made of blocks
    space = address >> 48
    at = (address & OFFSET) + i
    in_row = widen(tl.load(row + at, mask=exists & (space == 0), other=0))
    in_statistics = tl.load(statistics + at, mask=exists & (space == 1), other=0.0)
    in_constants = tl.load(constants + at, mask=exists & (space == 2), other=0.0)
    apart = tl.where(space == 1, in_statistics, in_constants)
    value = tl.where(space == 0, in_row, apart)
    return tl.where(address < 0, absent, value)


@triton.jit
def tiles_of(entry):
    """Tiles of an entry, channels and input channels of one, as `ops.fold_table.with_tiles`."""
    ins = tl.load(entry + IN_CHANNELS)
    taps = tl.load(entry + TAPS)
    outs = tl.load(entry + OUT_CHANNELS)
    affine = tl.load(entry + WEIGHT) < 0
    ins = tl.where(affine, 1, ins)
    channel = tl.where(affine, 1, ins * taps)
    whole = channel <= TILE_WEIGHTS
    together = tl.where(whole, TILE_WEIGHTS // channel, 1)
    chunk = tl.maximum(TILE_WEIGHTS // tl.maximum(taps, 1), 1)
    chunk = tl.where(chunk >= 8, chunk // 8 * 8, chunk)
    chunk = tl.where(whole, ins, chunk)
    chunks = (ins + chunk - 1) // chunk
    return (outs + together - 1) // together * chunks, together, chunk, chunks, ins


@triton.jit
def find_tile(table, entries, tile, ENTRIES: tl.constexpr):
    """Entry of a tile, output channels out..out_end, input channels first_in..in_end of ins."""
    index = tl.arange(0, ENTRIES)
    starts = tl.load(table + index * COLUMNS + FIRST_TILE, mask=index < entries, other=0)
    at = tl.sum(((starts <= tile) & (index < entries)).to(tl.int32)) - 1
    entry = table + at.to(tl.int64) * COLUMNS
    _, together, chunk, chunks, ins = tiles_of(entry)
    within = tile - tl.load(entry + FIRST_TILE)
    out = within // chunks * together
    out_end = tl.minimum(tl.load(entry + OUT_CHANNELS), out + together)
    first_in = within % chunks * chunk
    return at, entry, out, out_end, first_in, tl.minimum(ins, first_in + chunk), ins


@triton.jit
def count_tiles(table, entries):
    """All tiles of a table."""
    last = table + (entries - 1) * COLUMNS
    of_last, _, _, _, _ = tiles_of(last)
    return tl.load(last + FIRST_TILE) + of_last


@triton.jit
def fold_tile(
    row, statistics, constants, entry, epsilon, weights, vectors, scales,
    out, out_end, first_in, in_end, ins, BLOCK: tl.constexpr, KIND: tl.constexpr,
):  # fmt: skip
    """Folds one tile; row, statistics, weights and vectors are a member's. Ends with a barrier."""
    lane = tl.arange(0, BLOCK)
    spaces = (row, statistics, constants)
    var_address = tl.load(entry + VAR)
    to_shift = tl.load(entry + TO_SHIFT)
    for start in range(0, out_end - out, BLOCK):
        o = out + start + lane
        exists = o < out_end
        gamma = source(*spaces, tl.load(entry + GAMMA), o, exists, 1.0)
        var = source(*spaces, var_address, o, exists, 1.0)
        bias = source(*spaces, tl.load(entry + BIAS), o, exists, 0.0)
        mean = source(*spaces, tl.load(entry + MEAN), o, exists, 0.0)
        beta = source(*spaces, tl.load(entry + BETA), o, exists, 0.0)
        scale = gamma.to(tl.float64)
        divided = scale / tl.sqrt(var.to(tl.float64) + epsilon)
        scale = tl.where(var_address < 0, scale, divided)
        shift = (bias.to(tl.float64) - mean.to(tl.float64)) * scale
        shift = (beta.to(tl.float64) + shift).to(tl.float32)
        tl.store(scales + start + lane, scale.to(tl.float32), mask=exists)
        zero = tl.zeros_like(o)
        written = exists & (first_in + zero == 0) & (to_shift + zero >= 0)
        tl.store(vectors + to_shift + o, tile_bits(shift, FLOAT32), mask=written)
    tl.debug_barrier()
    address = tl.load(entry + WEIGHT)
    if address >= 0:
        taps, padded = tl.load(entry + TAPS), tl.load(entry + PADDED)
        span = (tl.where(in_end == ins, padded, in_end) - first_in).to(tl.int32)
        total = (out_end - out).to(tl.int32) * taps.to(tl.int32) * span
        target = weights + tl.load(entry + TO_WEIGHT)
        for done in range(0, total, BLOCK):
            e = done + lane
            c = (e % span).to(tl.int64) + first_in
            channel = e // span // taps.to(tl.int32)
            r = e // span % taps.to(tl.int32)
            inside = e < total
            weight_out = out + channel
            real = inside & (c < in_end)
            i = (weight_out * ins + c) * taps + r
            w = source(*spaces, address, i, real, 0.0)
            factor = tl.load(scales + channel, mask=inside, other=0.0)
            folded = tl.where(real, w * factor, 0.0)
            place = (weight_out * taps + r) * padded + c
            tl.store(target + place, tile_bits(folded, KIND), mask=inside)
    tl.debug_barrier()


@triton.jit(do_not_specialize=["entries", "num_rows"])
def fold_kernel(
    rows, statistics, constants, table, eps, weights, vectors, workspace,
    entries, num_rows, rows_stride, statistics_stride, weights_stride, vectors_stride,
    ENTRIES: tl.constexpr, BLOCK: tl.constexpr, KIND: tl.constexpr,
):  # fmt: skip
    tiles = count_tiles(table, entries)
    scales = workspace + tl.program_id(0).to(tl.int64) * TILE_WEIGHTS
    for item in range(tl.program_id(0), tiles * num_rows, tl.num_programs(0)):
        member = (item // tiles).to(tl.int64)
        at, entry, out, out_end, first_in, in_end, ins = find_tile(
            table, entries, item % tiles, ENTRIES
        )
        fold_tile(
            rows + member * rows_stride, statistics + member * statistics_stride, constants,
            entry, tl.load(eps + at), weights + member * weights_stride,
            vectors + member * vectors_stride, scales, out, out_end, first_in, in_end, ins,
            BLOCK, KIND,
        )  # fmt: skip


def fold(
    rows: torch.Tensor,
    statistics: torch.Tensor,
    constants: torch.Tensor,
    table: torch.Tensor,
    eps: torch.Tensor,
    weights: torch.Tensor,
    vectors: torch.Tensor,
) -> None:
    """Does what `deevo_ext.backends.reference.fold` does."""
    require_device("fold", fold_kernel, rows.device)
    entries, members = table.shape[0], rows.shape[0]
    if entries == 0 or members == 0:
        return
    programs = num_programs(rows.device, PROGRAMS_PER_MULTIPROCESSOR)
    # A stand-in for what has no elements: an empty tensor may have no address.
    filled = statistics if statistics.numel() else eps.view(torch.float32)
    shared = constants if constants.numel() else filled
    launch(
        fold_kernel,
        (programs,),
        rows.device,
        stored(rows),
        filled,
        shared,
        table,
        eps,
        weights.view(torch.int32 if weights.element_size() == 4 else torch.int16),
        vectors.view(torch.int32),
        workspace(rows.device, 4 * programs * TILE).view(torch.float32),
        entries,
        members,
        rows.stride(0),
        statistics.stride(0) if statistics.numel() else 0,
        weights.stride(0),
        vectors.stride(0),
        ENTRIES=power_of_two(entries),
        BLOCK=BLOCK,
        KIND=KINDS[weights.dtype],
        num_warps=WARPS,
    )
