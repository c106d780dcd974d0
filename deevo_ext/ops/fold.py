"""`torch.ops.deevo.fold`: flat rows -> the folded inference weights of a whole network."""

from __future__ import annotations

import torch

from deevo_ext.ops.checks import STORAGE, Checker
from deevo_ext.ops.fold_table import FoldColumn, check_table
from deevo_ext.ops.library import register


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
    product per weight, in float32:

        scale = gamma / sqrt(var + eps)          shift = beta + (bias - mean) scale
        weights[o, r, c] = W[o, c, r] float32(scale[o])

    W in C order [out, in, kernel]; written channels-last [out, kernel, padded in], in the dtype of
    `weights` [K, W], rounded to nearest even (beyond its range: infinity; NaN: the quiet NaN 0x7E00
    and the like). vectors [K, V] float32 take the shifts. What no entry writes stays.
    Traffic: D weights read and W written per member. Raises DeevoError naming the argument.
    """
    c = Checker("fold", rows.device)
    c.rows("rows", rows, STORAGE, None, None)
    members = rows.shape[0]
    c.rows("statistics", statistics, (torch.float32,), members, None)
    c.tensor("constants", constants, torch.float32, None)
    c.tensor("table", table, torch.int64, None, len(FoldColumn))
    c.tensor("eps", eps, torch.float64, table.shape[0])
    c.rows("weights", weights, STORAGE, members, None)
    c.rows("vectors", vectors, (torch.float32,), members, None)
    if weights.data_ptr() % 16 or weights.stride(0) * weights.element_size() % 16:
        c.fail("weights", "not aligned", "rows that start at multiples of 16 bytes")
    if c.device.type == "cpu":
        sizes = (statistics.shape[1], constants.numel(), weights.shape[1], vectors.shape[1])
        check_table(table, rows.shape[1], *sizes)


register("fold", check, mutated=("weights", "vectors"))
