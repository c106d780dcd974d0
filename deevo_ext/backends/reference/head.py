"""head and loss_and_rank: pool, linear layer, cross-entropy, rank of the true class.

Logits, in float32: the mean is the sum over positions in order times float32(1/P); a dot product
has 16 lanes, lane l summing channels l, l + 16, ... in order, and adds halves of the lanes; the
bias is added last. Loss and rank, in float64 and integers, do not depend on the order in which
classes are summed: exponentials are rounded to multiples of 2^-40 and added as integers.
"""

from __future__ import annotations

import math

import torch

from deevo_ext.backends.checks import require_subnormals
from deevo_ext.backends.reference.exact_math import exact_log
from deevo_ext.backends.reference.trials import widen

LANES = 16
EXP_BITS = 40
LARGEST_GAP = 2.0**20


def exact_exp_fixed(x: torch.Tensor) -> torch.Tensor:
    """rint(2^40 exp(x)) of float64 x <= 0, as int64: x = k ln 2 + r, Taylor series of exp(r)."""
    x = x.clamp(min=-32.0)  # from -28.5 down it rounds to 0
    k = torch.round(x * 1.4426950408889634)
    r = (x - k * 6.93147180369123816490e-01) - k * 1.90821492927058770002e-10
    p = torch.full_like(r, 1.0 / math.factorial(11))
    for n in range(10, -1, -1):
        p = p * r + 1.0 / math.factorial(n)
    power = torch.ldexp(torch.ones_like(k), k + EXP_BITS)
    return torch.round(p * power).to(torch.int64)


def gap_bits(classes: int) -> int:
    """Fraction bits of the class sum of label smoothing, which must fit 63 bits."""
    return min(31, 42 - (classes - 1).bit_length())


def loss_of(logits: torch.Tensor, label: int, smoothing: float) -> tuple[float, int]:
    """One sample's loss (to be rounded to float32) and rank; logits float32 [classes]."""
    classes = logits.numel()
    if not bool(torch.isfinite(logits).all()):
        return math.inf, classes
    z = logits.double()
    gaps = z.max() - z
    total = int(exact_exp_fixed(-gaps).sum())
    bits = gap_bits(classes)
    gap_sum = int(torch.round(gaps.clamp(max=LARGEST_GAP) * 2.0**bits).to(torch.int64).sum())
    mean_gap = float(gap_sum) * 2.0**-bits / classes
    label_part = (1.0 - smoothing) * float(gaps[label]) + smoothing * mean_gap
    loss = exact_log(float(total) * 2.0**-EXP_BITS) + label_part
    if not math.isfinite(float(torch.tensor(loss, dtype=torch.float64).float())):
        return math.inf, classes
    better = (logits > logits[label]).sum() + (logits[:label] == logits[label]).sum()
    return loss, int(better)


def loss_and_rank(
    logits: torch.Tensor,
    labels: torch.Tensor,
    smoothing: float,
    losses: torch.Tensor,
    ranks: torch.Tensor,
) -> None:
    """Fills losses and ranks."""
    require_subnormals()
    for k in range(logits.shape[0]):
        for n, label in enumerate(labels.tolist()):
            losses[k, n], ranks[k, n] = loss_of(widen(logits[k, n]).float(), label, smoothing)


def logits_of(features: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """One member's logits: float32 [N, classes]."""
    samples, positions, channels = features.shape
    pooled = torch.zeros(samples, channels)
    for p in range(positions):
        pooled = pooled + widen(features[:, p]).float()
    inverse = torch.tensor(1.0 / positions, dtype=torch.float64).float()
    pooled = pooled * inverse
    sums = torch.zeros(samples, weight.shape[0], LANES)
    for c in range(0, channels, LANES):
        x, w = pooled[:, c : c + LANES], widen(weight[:, c : c + LANES]).float()
        sums[:, :, : x.shape[1]] += x[:, None, :] * w[None, :, :]
    while sums.shape[2] > 1:
        half = sums.shape[2] // 2
        sums = sums[:, :, :half] + sums[:, :, half:]
    return sums[:, :, 0] + bias


def head(
    features: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    labels: torch.Tensor,
    smoothing: float,
    losses: torch.Tensor,
    ranks: torch.Tensor,
) -> None:
    """Fills losses and ranks, member by member."""
    require_subnormals()
    for k in range(features.shape[0]):
        logits = logits_of(features[k], weight[k], bias[k])
        loss_and_rank(logits[None], labels, smoothing, losses[k : k + 1], ranks[k : k + 1])
