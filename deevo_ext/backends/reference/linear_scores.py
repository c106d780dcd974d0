"""linear_scores: logits z0 + sum of c[p, k] J[k], their cross-entropy, rank, class, probability.

In float64, which other backends approach: they may compute logits in float32, in any order. A logit
counts as not finite where float32 would not hold it.
"""

from __future__ import annotations

import math

import torch

from deevo_ext.backends.reference.trials import widen


def linear_scores(
    z0: torch.Tensor,
    slopes: torch.Tensor,
    coefficients: torch.Tensor,
    labels: torch.Tensor,
    smoothing: float,
    losses: torch.Tensor,
    ranks: torch.Tensor,
    predicted: torch.Tensor,
    probability: torch.Tensor,
) -> None:
    """Fills losses, ranks, predicted and probability, candidate by candidate."""
    classes = torch.arange(z0.shape[1])
    wide = widen(slopes).double()
    for p, c in enumerate(coefficients.double()):
        z = z0.double() + (c[:, None, None] * wide).sum(dim=0)
        labelled = z.gather(1, labels[:, None])
        lse = z.logsumexp(dim=1)
        loss = lse - (1.0 - smoothing) * labelled[:, 0] - smoothing * z.mean(dim=1)
        good = torch.isfinite(z.float()).all(dim=1) & torch.isfinite(loss.float())
        better = (z > labelled) | ((z == labelled) & (classes < labels[:, None]))
        largest = z.amax(dim=1)
        first = torch.where(z == largest[:, None], classes, len(classes)).amin(dim=1)
        losses[p] = torch.where(good, loss, math.inf)
        ranks[p] = torch.where(good, better.sum(dim=1), len(classes))
        predicted[p] = torch.where(good, first, -1)
        probability[p] = torch.where(good, torch.exp(largest - lse), 0.0)
