"""Metrics that tests give to searches, and plain loops that say what metrics are."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def worst_recall(logits: Tensor, labels: Tensor) -> float:
    """The least share of right images among the classes that have some, by a loop."""
    right = (logits.argmax(dim=1) == labels).numpy()
    return min(float(right[labels.numpy() == c].mean()) for c in labels.unique().tolist())


def mean_f1(logits: Tensor, labels: Tensor) -> float:
    """scikit-learn's F1, averaged over the classes that have images."""
    from sklearn.metrics import f1_score

    present = labels.unique().numpy()
    values = f1_score(labels.numpy(), logits.argmax(dim=1).numpy(), labels=present, average=None)
    return float(np.mean(values))


def brier_of_set(logits: Tensor, labels: Tensor) -> Tensor:
    """One number of the whole set, of which less is better."""
    odds = torch.softmax(logits, dim=1)
    return (odds - torch.nn.functional.one_hot(labels, logits.shape[1])).square().sum(1).mean()


def gap_of_classes(logits: Tensor, labels: Tensor) -> float:
    """How far the best and the worst class lie apart, in shares of right images."""
    right = (logits.argmax(dim=1) == labels).double()
    shares = [float(right[labels == c].mean()) for c in labels.unique().tolist()]
    return max(shares) - min(shares)
