"""fold: BatchNorm folded into the weights before it, cast, channels last.

``scale = gamma / sqrt(var + eps)`` and ``shift = beta + (bias - mean) scale`` in float64, each
operation rounded; ``weight = W float32(scale)``, one float32 product, rounded to the target.
What is absent counts as 1 (gamma, scale without var) or 0 (beta, bias, mean).
"""

from __future__ import annotations

import torch

from deevo_ext.backends.checks import check_choices, check_genes, require_subnormals
from deevo_ext.backends.reference.trials import Generation, trial, widen
from deevo_ext.ops.fold import ABSENT, FoldColumn


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
    """Writes the folded weights, shifts and scales of every entry and member."""
    require_subnormals()
    for member in range(rows.shape[0]):
        spaces = (rows[member], statistics[member], constants)
        for entry, epsilon in zip(table.tolist(), eps.tolist(), strict=True):
            fold_entry(spaces, entry, epsilon, weights[member], vectors[member])


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
    """fold of the trials of these members."""
    require_subnormals()
    numbers = members.tolist()
    rows = (population.shape[0], archive.shape[0])
    check_choices("fold_trials", choices.tolist(), numbers, *rows)
    check_genes("fold_trials", genes)
    g = Generation(
        *(population, archive, choices, coefficients, genes, gene_mask),
        *(seed, nonneg_start, 0, lower, upper),
    )
    for e, member in enumerate(numbers):
        made = trial(g, member)[None]
        own = (statistics[e : e + 1], constants, table, eps)
        fold(made, *own, weights[e : e + 1], vectors[e : e + 1])


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
        found = source(column, out)
        full = torch.full((out,), absent, dtype=torch.float64)
        return full if found is None else found.double()

    scale = channel(FoldColumn.GAMMA, 1.0)
    if entry[FoldColumn.VAR] != ABSENT:
        scale = scale / torch.sqrt(channel(FoldColumn.VAR, 0.0) + eps)
    shift = channel(FoldColumn.BIAS, 0.0) - channel(FoldColumn.MEAN, 0.0)
    shift = channel(FoldColumn.BETA, 0.0) + shift * scale
    for column, vector in ((FoldColumn.TO_SHIFT, shift), (FoldColumn.TO_SCALE, scale)):
        if (start := entry[column]) != ABSENT:
            vectors[start : start + out] = narrow(vector.float(), torch.float32)

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
