"""`torch.ops.deevo.fold`: flat rows -> the folded inference weights of a whole network."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import torch
from numpy.typing import NDArray

from deevo_ext.ops.checks import Checker
from deevo_ext.ops.library import register

TYPES = (torch.float32, torch.bfloat16, torch.float16)
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
    """How a table names element `offset` of a space."""
    return int(space) * 2**48 + offset


def with_tiles(table: torch.Tensor) -> torch.Tensor:
    """A fold table with its last column: [L, 12] or [L, 13] on the CPU -> a new [L, 13].

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
    _check_sizes(c, entries)
    expected = with_tiles(table)[:, FoldColumn.FIRST_TILE].numpy()
    if not np.array_equal(entries[:, FoldColumn.FIRST_TILE], expected):
        c.fail("table", "a table with a wrong last column", "one from with_tiles")
    outs = entries[:, FoldColumn.OUT_CHANNELS]
    taps = entries[:, FoldColumn.TAPS]
    sizes = (rows, statistics, constants)
    for column in _SOURCES:
        present = entries[:, column] >= 0
        wanted = outs * entries[:, FoldColumn.IN_CHANNELS] * taps if column == 0 else outs
        space, offset = entries[:, column] >> 48, entries[:, column] & (2**48 - 1)
        size = np.array([*sizes, 0])[np.minimum(np.maximum(space, 0), 3)]
        bad = np.flatnonzero(present & (offset + wanted > size))
        if len(bad):
            c.fail("table", f"entry {bad[0]} whose {column.name.lower()} ends beyond its operand",
                   "addresses within rows, statistics and constants")  # fmt: skip
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


def check(
    rows: torch.Tensor,
    statistics: torch.Tensor,
    constants: torch.Tensor,
    table: torch.Tensor,
    eps: torch.Tensor,
    weights: torch.Tensor,
    vectors: torch.Tensor,
) -> None:
    """Folds K members: convolution or linear weights with the BatchNorm behind them.

    rows [K, D] float32, bfloat16 or float16, any row stride; statistics [K, S] float32 (S = 0 where
    they are in the rows); constants [X] float32, the same for all members; table int64 [L, 13]
    (`FoldColumn`, `with_tiles`) and eps float64 [L]. Per output channel, in float64, and one
    product per weight, in float32::

        scale = gamma / sqrt(var + eps)          shift = beta + (bias - mean) scale
        weights[o, r, c] = W[o, c, r] float32(scale[o])

    W in C order [out, in, kernel]; written channels-last [out, kernel, padded in], in the dtype of
    `weights` [K, W], rounded to nearest even (beyond its range: infinity; NaN: the quiet NaN 0x7E00
    and the like). vectors [K, V] float32 take the shifts. What no entry writes stays.
    Traffic: D weights read and W written per member. Raises DeevoError naming the argument.
    """
    c = Checker("fold", rows.device)
    _matrix(c, "rows", rows, TYPES, None)
    columns, members = rows.shape[1], rows.shape[0]
    check_folding(c, columns, members, statistics, constants, table, eps, weights, vectors)
    c.disjoint(
        rows=rows,
        statistics=statistics,
        constants=constants,
        table=table,
        eps=eps,
        weights=weights,
        vectors=vectors,
    )


def check_folding(
    c: Checker,
    columns: int,
    members: int,
    statistics: torch.Tensor,
    constants: torch.Tensor,
    table: torch.Tensor,
    eps: torch.Tensor,
    weights: torch.Tensor,
    vectors: torch.Tensor,
) -> None:
    """What is demanded of all but the rows, which have `columns` columns."""
    _matrix(c, "statistics", statistics, (torch.float32,), members)
    c.tensor("constants", constants, torch.float32, None)
    c.tensor("table", table, torch.int64, None, len(FoldColumn))
    c.tensor("eps", eps, torch.float64, table.shape[0])
    _matrix(c, "weights", weights, TYPES, members)
    _matrix(c, "vectors", vectors, (torch.float32,), members)
    if weights.data_ptr() % 16 or weights.stride(0) * weights.element_size() % 16:
        c.fail("weights", "not aligned", "rows that start at multiples of 16 bytes")
    if c.device.type == "cpu":
        sizes = (statistics.shape[1], constants.numel(), weights.shape[1], vectors.shape[1])
        check_table(table, columns, *sizes)


def _matrix(
    c: Checker,
    argument: str,
    tensor: torch.Tensor,
    types: tuple[torch.dtype, ...],
    members: int | None,
) -> None:
    """Rows of one of these dtypes, one per member, with unit column stride."""
    if tensor.device != c.device:
        c.fail(argument, f"on {tensor.device}", f"device {c.device}, as the others")
    if tensor.dtype not in types:
        c.fail(argument, tensor.dtype, " or ".join(str(dtype) for dtype in types))
    if tensor.dim() != 2 or (members is not None and tensor.shape[0] != members):
        count = "members" if members is None else members
        c.fail(argument, f"of shape {tuple(tensor.shape)}", f"shape ({count}, any)")
    if tensor.shape[1] > 1 and tensor.stride(1) != 1:
        c.fail(argument, f"of strides {tensor.stride()}", "unit stride along a row")
    if tensor.shape[0] > 1 and tensor.stride(0) < tensor.shape[1]:
        c.fail(argument, f"of strides {tensor.stride()}", "rows that do not overlap")
    c.plain(argument, tensor)


register(
    "fold(Tensor rows, Tensor statistics, Tensor constants, Tensor table, Tensor eps, "
    "Tensor(a!) weights, Tensor(b!) vectors) -> ()",
    check,
    mutated=(5, 6),
)

__all__ = ["FoldColumn", "Space", "address", "check_table", "with_tiles"]
