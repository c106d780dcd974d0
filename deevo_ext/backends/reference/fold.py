"""fold: BatchNorm folded into the weights before it, cast, channels last.

`scale = gamma / sqrt(var + eps)` and `shift = beta + (bias - mean) scale` in float64, each
operation rounded; `weight = W float32(scale)`, one float32 product, rounded to the target.
What is absent counts as 1 (gamma, scale without var) or 0 (beta, bias, mean).
"""

from __future__ import annotations

import torch

from deevo_ext.backends.checks import require_subnormals
from deevo_ext.backends.reference.trials import widen
from deevo_ext.ops.fold_table import ABSENT, FoldColumn


def narrow(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """float32 to the nearest value of dtype, halves to even, subnormals kept; NaN to quiet NaN."""
    if dtype == torch.bfloat16:  # conversion instructions flush subnormals on some machines
        bits = values.contiguous().view(torch.int32).to(torch.int64) & 0xFFFFFFFF
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        signed = torch.where(rounded >= 0x8000, rounded - 0x10000, rounded)
        result = signed.to(torch.int16).view(torch.bfloat16)
    else:
        result = values.to(dtype)
    quiet = torch.tensor(0x7FC00000, dtype=torch.int32).view(torch.float32).to(dtype)
    return torch.where(torch.isnan(values), quiet, result)


def fold(
    rows: torch.Tensor,
    statistics: torch.Tensor,
    constants: torch.Tensor,
    table: torch.Tensor,
    eps: torch.Tensor,
    weights: torch.Tensor,
    vectors: torch.Tensor,
) -> None:
    """Writes the folded weights and shifts of every entry and member."""
    require_subnormals()
    for member in range(rows.shape[0]):
        spaces = (rows[member], statistics[member], constants)
        for entry, epsilon in zip(table.tolist(), eps.tolist(), strict=True):
            fold_entry(spaces, entry, epsilon, weights[member], vectors[member])


def fold_entry(
    spaces: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    entry: list[int],
    eps: float,
    weights: torch.Tensor,
    vectors: torch.Tensor,
) -> None:
    """One entry of one member."""
    out = entry[FoldColumn.OUT_CHANNELS]

    def source(column: FoldColumn, count: int) -> torch.Tensor | None:
        if entry[column] == ABSENT:
            return None
        space, offset = divmod(entry[column], 2**48)
        return widen(spaces[space][offset : offset + count])

    def channel(column: FoldColumn, absent: float) -> torch.Tensor:
        values = source(column, out)
        full = torch.full((out,), absent, dtype=torch.float64)
        return full if values is None else values.double()

    scale = channel(FoldColumn.GAMMA, 1.0)
    if entry[FoldColumn.VAR] != ABSENT:
        scale = scale / torch.sqrt(channel(FoldColumn.VAR, 0.0) + eps)
    shift = channel(FoldColumn.BIAS, 0.0) - channel(FoldColumn.MEAN, 0.0)
    shift = channel(FoldColumn.BETA, 0.0) + shift * scale
    if (start := entry[FoldColumn.TO_SHIFT]) != ABSENT:
        vectors[start : start + out] = narrow(shift.float(), torch.float32)

    channels, taps = entry[FoldColumn.IN_CHANNELS], entry[FoldColumn.TAPS]
    weight = source(FoldColumn.WEIGHT, out * channels * taps)
    if weight is None:
        return
    folded = weight.view(out, channels, taps) * scale.float()[:, None, None]
    padded = entry[FoldColumn.PADDED]
    start = entry[FoldColumn.TO_WEIGHT]
    target = weights[start : start + out * taps * padded].view(out, taps, padded)
    target[:, :, :channels] = narrow(folded, weights.dtype).transpose(1, 2)
    target[:, :, channels:] = 0.0
