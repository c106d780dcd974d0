"""Metrics of a whole set that its predictions decide class by class, for many networks at once."""

from __future__ import annotations

import torch
from torch import Tensor


def worst_class(wrong: Tensor, labels: Tensor) -> Tensor:
    """Returns the least share of right images among the classes, float64 [...].

    wrong: [..., n], 1 where the first class is not the true one, else 0. labels: int64 [n]; classes
    without an image do not count.
    """
    counts = labels.bincount()
    some = counts > 0
    missed = _sums(wrong, labels, len(counts))
    return 1.0 - (missed[..., some] / counts[some]).amax(dim=-1)


def macro_f1(predicted: Tensor, labels: Tensor) -> Tensor:
    """Returns the mean of the classes' F1, float64 [...].

    predicted: classes [..., n]. labels: int64 [n]; classes without an image do not count, but
    images that are taken for one of them are wrong. F1 is 2 TP / (2 TP + FP + FN).
    """
    counts = labels.bincount()
    some = counts > 0
    hits = _sums((predicted == labels).float(), labels, len(counts))
    flat = predicted.reshape(-1, predicted.shape[-1]).long()
    classes = max(len(counts), int(flat.max()) + 1)
    lines = torch.arange(len(flat), device=flat.device)[:, None] * classes
    taken = (flat + lines).flatten().bincount(minlength=len(flat) * classes)
    taken = taken.view(*predicted.shape[:-1], classes)[..., : len(counts)]
    return (2.0 * hits[..., some] / (counts + taken)[..., some]).mean(dim=-1)


def _sums(values: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Returns the sums float64 [..., classes] of values [..., n] by class."""
    flat = values.reshape(-1, values.shape[-1]).T.contiguous()
    sums = torch.zeros(classes, flat.shape[1], device=values.device)
    # Whole numbers below 2^24: exact in float32, in whatever order they are added.
    sums.index_add_(0, labels, flat)
    return sums.T.double().reshape(*values.shape[:-1], classes)
