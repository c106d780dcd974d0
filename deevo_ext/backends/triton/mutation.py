"""One tile of trials, for the kernels of trials and commit.

v = row[base]; for m in table order: v = v + c[m] (row[idx[m]] - row[base])
u = v where crossover takes the weight, else the parent's value

Differential evolution of Storn & Price (1997) in the base-plus-differences form, which covers
trigonometric mutation (Fan & Lampinen 2003). float32, each operation rounded: a launch passes
enable_fp_fusion=False. A weight takes the mutant where its 16 random bits are below the threshold,
or it is the forced one (j_rand); with genes, where its gene's bit is set.
"""

from __future__ import annotations

import triton
import triton.language as tl

from deevo_ext.backends.triton.storage import to_storage, widen
from deevo_ext.ops import philox, tables
from deevo_ext.ops.tables import NUM_CHOICE_COLUMNS, ChoiceColumn, Purpose

# The compile-time constants that a kernel may name.
MAX_TERMS = tl.constexpr(tables.MAX_TERMS)
CHOICE_COLUMNS = tl.constexpr(NUM_CHOICE_COLUMNS)
PURPOSE_MASK = tl.constexpr(int(Purpose.MASK))
MASK_ROUNDS = tl.constexpr(philox.MASK_ROUNDS)
GENERATION = tl.constexpr(int(ChoiceColumn.GENERATION))
THRESHOLD = tl.constexpr(int(ChoiceColumn.THRESHOLD))
TERMS = tl.constexpr(int(ChoiceColumn.TERMS))
BASE_ROW = tl.constexpr(int(ChoiceColumn.BASE_ROW))
ROWS = tl.constexpr(int(ChoiceColumn.ROWS))
FORCED = tl.constexpr(int(ChoiceColumn.FORCED))


@triton.jit
def tile_columns(tile, columns, TILE: tl.constexpr, WIDE: tl.constexpr):
    """First column of a tile, offsets within it [1, TILE], and which of them exist.

    WIDE: columns counts blocks of 8, so that the mask is visibly the same for all of a block, which
    is what lets the compiler load 16 bytes at a time.
    """
    local = tl.arange(0, TILE)[None, :]
    tile = tl.cast(tile, tl.int64)
    start = tile * TILE
    if WIDE:
        return start, local, (tile * (TILE // 8) + local // 8) < columns
    else:
        return start, local, start + local < columns


@triton.jit
def row_stride(stride, WIDE: tl.constexpr):
    """A stride in elements, of one that counts blocks of 8 if WIDE."""
    if WIDE:
        return stride.to(tl.int64) * 8
    else:
        return stride.to(tl.int64)


@triton.jit
def within(position, TILE: tl.constexpr):
    """An int64 position relative to a tile as int32, clamped to -1..TILE."""
    return tl.minimum(tl.maximum(position, -1), TILE).to(tl.int32)


@triton.jit
def mask_draws(seed, purpose: tl.constexpr, generation, member, block, index):
    """16 random bits of weight 8 block + index % 8: half h of word w, index % 8 = 2w + h.

    Counter = (purpose, generation, member, block) of Philox4x32 (Salmon et al., SC 2011), by
    Triton's own generator. Written for each weight; those of one block in one thread share their
    Philox call, because the compiler sees that their counters are equal.
    """
    w0, w1, w2, w3 = tl.philox(seed, purpose, generation, member, block, n_rounds=MASK_ROUNDS)
    low = tl.where((index & 2) == 0, w0, w1)
    high = tl.where((index & 2) == 0, w2, w3)
    word = tl.where((index & 4) == 0, low, high)
    return tl.where((index & 1) == 0, word & 0xFFFF, word >> 16).to(tl.int32)


@triton.jit
def gene_of(genes, flat, low, high):
    """The last gene among low..high (one start <= flat is there) that starts at or before flat."""
    gene = low + (flat * 0).to(tl.int32)
    step = 1
    while step <= high - low:
        step *= 2
    while step > 0:
        probe = gene + step
        inside = probe <= high
        start = tl.load(genes + probe, mask=inside, other=0)
        gene = tl.where(inside & (start <= flat), probe, gene)
        step = step // 2
    return gene


@triton.jit
def gene_takes(genes, gene_mask, num_genes, member, active, flat_start, local, TILE: tl.constexpr):
    """Whether the gene of each weight of the tile takes the mutant, [members, TILE].

    The tile's first and last weight bound the search, so most weights need few steps.
    """
    last_gene = num_genes - 1
    first = gene_of(genes, flat_start, 0, last_gene)
    last = gene_of(genes, flat_start + (TILE - 1), first, last_gene)
    gene = gene_of(genes, flat_start + local, first, last)
    words = (num_genes + 31) // 32
    at = gene_mask + member.to(tl.int64) * words + gene // 32
    word = tl.load(at, mask=active & (gene >= 0), other=0)
    return ((word >> (gene % 32)) & 1) != 0


@triton.jit
def load_row(
    population,
    archive,
    num_rows,
    population_stride,
    archive_stride,
    choice,
    which: tl.constexpr,
    column,
    exists,
    ARCHIVE: tl.constexpr,
):
    """Stored weights of the row that column `which` of choices names, [M, TILE]; 0 unless exists.

    A row >= num_rows is row - num_rows of the archive. Two masked loads, since a pointer selected
    from two bases hides its alignment from the compiler.
    """
    row = tl.load(choice + which).to(tl.int64)
    stored = row < num_rows
    x = tl.load(population + row * population_stride + column, mask=exists & stored, other=0)
    if ARCHIVE:
        at = archive + (row - num_rows) * archive_stride + column
        x = tl.load(at, mask=exists & (stored == 0), other=x)
    return x


@triton.jit
def add_term(v, base, x, coefficient, m: tl.constexpr, terms, most_terms):
    """v + c[m] (x - base) for the members that have a term m."""
    if m < most_terms:
        c = tl.load(coefficient + m)
        v = tl.where(m < terms, v + c * (widen(x) - base), v)
    return v


@triton.jit
def trial_tile(
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
    active,
    start,
    local,
    exists,
    TILE: tl.constexpr,
    ARCHIVE: tl.constexpr,
    BOUNDED: tl.constexpr,
    GENES: tl.constexpr,
):
    """Trials of members [M, 1] for the columns start + local [1, TILE], in storage, [M, TILE]."""
    # Members that are not active read the plan of member 0, which costs no masks.
    member = tl.where(active, member, 0)
    choice = choices + member.to(tl.int64) * CHOICE_COLUMNS
    generation = tl.load(choice + GENERATION)
    threshold = tl.load(choice + THRESHOLD)
    terms = tl.where(active, tl.load(choice + TERMS), 0)

    # Every row is asked for before the first is used: a tile's first rows come from memory.
    rows = (population, archive, num_rows, population_stride, archive_stride, choice)
    column = start + local
    parent = tl.load(
        population + member.to(tl.int64) * population_stride + column,
        mask=active & exists,
        other=0,
    )
    base = load_row(*rows, BASE_ROW, column, active & exists, ARCHIVE)
    x0 = load_row(*rows, ROWS, column, (terms > 0) & exists, ARCHIVE)
    x1 = load_row(*rows, ROWS + 1, column, (terms > 1) & exists, ARCHIVE)
    x2 = load_row(*rows, ROWS + 2, column, (terms > 2) & exists, ARCHIVE)
    x3 = load_row(*rows, ROWS + 3, column, (terms > 3) & exists, ARCHIVE)
    x4 = load_row(*rows, ROWS + 4, column, (terms > 4) & exists, ARCHIVE)

    coefficient = coefficients + member.to(tl.int64) * MAX_TERMS
    most_terms = tl.max(terms)
    base = widen(base)
    v = add_term(base, base, x0, coefficient, 0, terms, most_terms)
    v = add_term(v, base, x1, coefficient, 1, terms, most_terms)
    v = add_term(v, base, x2, coefficient, 2, terms, most_terms)
    v = add_term(v, base, x3, coefficient, 3, terms, most_terms)
    v = add_term(v, base, x4, coefficient, 4, terms, most_terms)

    wide_parent = widen(parent)
    tail = local >= within(nonneg_start - start, TILE)
    repaired = tl.where(tail & ((v > 0.0) == 0), 0.5 * wide_parent, v)
    if BOUNDED:
        repaired = tl.where((tail == 0) & (v < lower), 0.5 * (lower + wide_parent), repaired)
        repaired = tl.where((tail == 0) & (v > upper), 0.5 * (upper + wide_parent), repaired)
    stored, finite = to_storage(repaired, parent.dtype)

    flat_start = first_weight + start
    if GENES:
        take = gene_takes(genes, gene_mask, num_genes, member, active, flat_start, local, TILE)
    else:
        forced = tl.load(choice + FORCED).to(tl.int64)
        block = (flat_start // 8).to(tl.uint32) + (local // 8).to(tl.uint32)
        draws = mask_draws(seed, PURPOSE_MASK, generation, member, block, local)
        take = draws < threshold
        take = take | (local == within(forced - flat_start, TILE))
    return tl.where(take & finite, stored, parent)
