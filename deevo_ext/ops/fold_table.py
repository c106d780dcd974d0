"""The table that tells `fold` what to read and where to write: its columns, making and checking."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import torch
from numpy.typing import NDArray

from deevo_ext.ops.checks import Checker

TILE = 4096  # source weights of a work tile, as kFoldTile in csrc/include/deevo/fold.h
ABSENT = -1


class Space(IntEnum):
    """Where a source lies: in the member's row or statistics, or in what all members share."""

    ROWS = 0
    STATISTICS = 1
    CONSTANTS = 2


class FoldColumn(IntEnum):
    """Columns of a fold table, int64; sources are addresses (see `address`) or ABSENT."""

    WEIGHT = 0
    BIAS = 1
    GAMMA = 2
    BETA = 3
    MEAN = 4
    VAR = 5
    OUT_CHANNELS = 6
    IN_CHANNELS = 7  # per group
    TAPS = 8  # kernel height x width
    PADDED = 9  # input channels that are written, zeros beyond IN_CHANNELS
    TO_WEIGHT = 10  # element of `weights`, a multiple of 8, or ABSENT
    TO_SHIFT = 11  # element of `vectors`, or ABSENT
    FIRST_TILE = 12  # work tiles before this entry; `with_tiles` fills it


_SOURCES = tuple(FoldColumn)[FoldColumn.WEIGHT : FoldColumn.VAR + 1]


def address(space: int, offset: int) -> int:
    """Returns how a table names element `offset` of a space."""
    return int(space) * 2**48 + offset


def with_tiles(table: torch.Tensor) -> torch.Tensor:
    """Returns a fold table with its last column: [L, 12] or [L, 13] on the CPU -> a new [L, 13].

    A tile is the work of one thread block: whole output channels of together at most TILE source
    weights, or, of larger channels, as many input channels with all their taps.
    """
    c = Checker("fold", torch.device("cpu"))
    c.tensor("table", table, torch.int64, None, None)
    if table.shape[1] not in (FoldColumn.FIRST_TILE, len(FoldColumn)):
        c.fail("table", f"of {table.shape[1]} columns", f"{int(FoldColumn.FIRST_TILE)}")
    entries = table[:, : FoldColumn.FIRST_TILE].numpy()
    _check_sizes(c, entries)
    counts = _tiles(entries)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]]) if len(counts) else counts
    return torch.from_numpy(np.column_stack([entries, starts]).astype(np.int64))


def _tiles(entries: NDArray[np.int64]) -> NDArray[np.int64]:
    outs, ins, taps = (
        entries[:, c] for c in (FoldColumn.OUT_CHANNELS, FoldColumn.IN_CHANNELS, FoldColumn.TAPS)
    )
    channel = np.where(entries[:, FoldColumn.WEIGHT] < 0, 1, ins * taps)
    whole = -(-outs // np.maximum(1, TILE // channel))
    chunk = np.maximum(1, TILE // taps)
    chunk = np.where(chunk >= 8, chunk // 8 * 8, chunk)
    return np.where(channel <= TILE, whole, outs * -(-ins // chunk)).astype(np.int64)


def _check_sizes(c: Checker, entries: NDArray[np.int64]) -> None:
    for n, entry in enumerate(entries.tolist()):
        outs, ins = entry[FoldColumn.OUT_CHANNELS], entry[FoldColumn.IN_CHANNELS]
        taps, padded = entry[FoldColumn.TAPS], entry[FoldColumn.PADDED]
        if outs < 1:
            c.fail("table", f"entry {n} with {outs} output channels", "at least 1")
        if (entry[FoldColumn.WEIGHT] < 0) != (entry[FoldColumn.TO_WEIGHT] < 0):
            c.fail("table", f"entry {n} with a weight or a place for one", "both or neither")
        if entry[FoldColumn.WEIGHT] < 0:
            continue
        if not (ins >= 1 and 1 <= taps <= TILE and padded >= ins):
            c.fail(
                "table",
                f"entry {n} with {ins} input channels padded to {padded} and {taps} taps",
                f"padded >= channels >= 1 and 1..{TILE} taps",
            )


def check_table(
    table: torch.Tensor, rows: int, statistics: int, constants: int, weights: int, vectors: int
) -> None:
    """Refuses a table that reaches beyond its operands or writes an element twice.

    table: [L, 13] on the CPU; the rest: columns of the operands. `fold` does this for CPU tensors;
    on a GPU, where looking at the table would stop the stream, do it once before the table moves.
    """
    c = Checker("fold", torch.device("cpu"))
    c.tensor("table", table, torch.int64, None, len(FoldColumn))
    entries = table.numpy()
    expected = with_tiles(table)[:, FoldColumn.FIRST_TILE].numpy()
    if not np.array_equal(entries[:, FoldColumn.FIRST_TILE], expected):
        c.fail("table", "a table with a wrong last column", "one from with_tiles")
    outs = entries[:, FoldColumn.OUT_CHANNELS]
    taps = entries[:, FoldColumn.TAPS]
    sizes = (rows, statistics, constants)
    for column in _SOURCES:
        present = entries[:, column] >= 0
        needed = outs * entries[:, FoldColumn.IN_CHANNELS] * taps if column == 0 else outs
        space, offset = entries[:, column] >> 48, entries[:, column] & (2**48 - 1)
        size = np.array([*sizes, 0])[np.minimum(np.maximum(space, 0), 3)]
        bad = np.flatnonzero(present & (offset + needed > size))
        if len(bad):
            c.fail(
                "table",
                f"entry {bad[0]} whose {column.name.lower()} ends beyond its operand",
                "addresses within rows, statistics and constants",
            )
    written = outs * taps * entries[:, FoldColumn.PADDED]
    _check_outputs(c, "weights", weights, entries[:, FoldColumn.TO_WEIGHT], written)
    _check_outputs(c, "vectors", vectors, entries[:, FoldColumn.TO_SHIFT], outs)
    if (entries[:, FoldColumn.TO_WEIGHT] % 8)[entries[:, FoldColumn.TO_WEIGHT] >= 0].any():
        c.fail("table", "a table with weights at odd places", "multiples of 8 in to_weight")


def _check_outputs(
    c: Checker, name: str, size: int, starts: NDArray[np.int64], lengths: NDArray[np.int64]
) -> None:
    kept = starts >= 0
    order = np.argsort(starts[kept], kind="stable")
    first, end = starts[kept][order], (starts + lengths)[kept][order]
    if len(end) and end.max() > size:
        c.fail("table", f"a table that writes {int(end.max())} {name}", f"at most the {size} there")
    if (first[1:] < end[:-1]).any():
        c.fail("table", f"a table that writes some {name} twice", "places that do not overlap")
