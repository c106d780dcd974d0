"""fold and loss_and_rank in plain torch.

`fold` turns flat rows into the weights a plan computes with; `loss_and_rank` turns logits into what
selection needs. Both round per weight and per image alone, whatever else is in the call.
"""

from __future__ import annotations

from enum import IntEnum

import torch
from torch import Tensor

SPACE = 1 << 48
"""address = space * SPACE + offset; spaces: 0 rows, 1 statistics, 2 constants."""


class Column(IntEnum):
    """Columns of the fold table, int64; sources are addresses, absent ones -1."""

    WEIGHT = 0
    BIAS = 1
    GAMMA = 2
    BETA = 3
    MEAN = 4
    VARIANCE = 5
    OUT_CHANNELS = 6
    IN_CHANNELS = 7
    TAPS = 8
    PADDED = 9
    TO_WEIGHT = 10
    TO_SHIFT = 11
    TO_SCALE = 12


@torch.no_grad()
def fold(
    rows: Tensor,
    statistics: Tensor,
    constants: Tensor,
    table: Tensor,
    eps: Tensor,
    weights: Tensor,
    vectors: Tensor,
) -> None:
    """Writes the folded weights of K networks.

    rows [K, D] float32 or 16-bit; statistics [K, S] and constants [X] float32; table int64 [L, 13]
    and eps float64 [L] on the CPU; weights [K, W] in the dtype to compute in; vectors [K, V]
    float32. scale = gamma / sqrt(variance + eps) and shift = beta + (bias - mean) * scale in
    float64, rounded to float32; weight[o, tap, c] = W[o, c, tap] * scale[o] in float32, rounded
    once to the dtype of weights. Absent: gamma 1, the rest 0. Weights move once: 4 bytes read, 4
    or 2 written.
    """
    for k in range(rows.shape[0]):
        spaces = (rows[k], statistics[k] if statistics.numel() else statistics, constants)
        for entry, e in zip(table.tolist(), eps.tolist(), strict=True):
            _fold_entry(entry, e, spaces, weights[k], vectors[k])


def _fold_entry(
    entry: list[int], eps: float, spaces: tuple[Tensor, ...], weights: Tensor, vectors: Tensor
) -> None:
    co, ci, taps, padded = entry[6:10]

    def read(column: Column, count: int) -> Tensor | None:
        address = entry[column]
        if address < 0:
            return None
        space, offset = divmod(address, SPACE)
        return spaces[space][offset : offset + count]

    gamma, variance = read(Column.GAMMA, co), read(Column.VARIANCE, co)
    scale = None if gamma is None else gamma.double()
    if variance is not None:
        root = (variance.double() + eps).sqrt()
        scale = root.reciprocal() if scale is None else scale / root
    if entry[Column.TO_SHIFT] >= 0:
        shift = torch.zeros(co, dtype=torch.float64, device=vectors.device)
        for column, sign in ((Column.BIAS, 1), (Column.MEAN, -1)):
            source = read(column, co)
            if source is not None:
                shift = shift + sign * source.double()
        if scale is not None:
            shift = shift * scale
        beta = read(Column.BETA, co)
        if beta is not None:
            shift = beta.double() + shift
        vectors[entry[Column.TO_SHIFT] :][:co].copy_(shift)
    if entry[Column.TO_SCALE] >= 0:
        target = vectors[entry[Column.TO_SCALE] :][:co]
        target.fill_(1.0) if scale is None else target.copy_(scale)
    weight = read(Column.WEIGHT, co * ci * taps)
    if weight is not None and entry[Column.TO_WEIGHT] >= 0:
        source = weight.view(co, ci, taps).float()
        if scale is not None:
            source = source * scale.float().view(co, 1, 1)
        out = weights[entry[Column.TO_WEIGHT] :][: co * taps * padded].view(co, taps, padded)
        out[:, :, :ci].copy_(source.transpose(1, 2))
        out[:, :, ci:].zero_()


@torch.no_grad()
def loss_and_rank(
    logits: Tensor, labels: Tensor, smoothing: float, losses: Tensor, ranks: Tensor
) -> None:
    """Cross-entropy and rank of the true class of each image.

    logits [K, N, classes] floating; labels int64 [N]; losses float32 [K, N] in nats; ranks int32
    [K, N], the number of classes before the true one: larger logits, and equal ones of lower index.
    Sums of exponentials in float64. A NaN or infinite logit, or a loss that is not finite, gives
    loss +inf and rank `classes`. smoothing: that of label-smoothed cross-entropy, 0 for none.
    """
    z = logits.float()
    classes = z.shape[2]
    index = labels.expand(z.shape[0], -1).unsqueeze(2)
    own = z.gather(2, index)
    top = z.amax(dim=2, keepdim=True)
    total = (z.double() - top).exp_().sum(dim=2)
    log_sum = total.log() + top.squeeze(2).double()
    target = own.squeeze(2).double()
    if smoothing:
        target = (1 - smoothing) * target + smoothing * z.double().mean(dim=2)
    loss = (log_sum - target).float()
    before = torch.arange(classes, device=z.device) < index
    rank = ((z > own) | ((z == own) & before)).sum(dim=2, dtype=torch.int32)
    good = torch.isfinite(z).all(dim=2) & torch.isfinite(loss)
    losses.copy_(loss.where(good, torch.inf))
    ranks.copy_(rank.where(good, classes))
