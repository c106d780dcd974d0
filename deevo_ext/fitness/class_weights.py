"""Weights of classes under which the cross-entropy's fit does best on the worst class.

The accuracy of the worst class is a minimum over classes, which has no gradient and, on few images
a class, no resolution: what is evolved on it alone fits these images. The cross-entropy with the
right weights of the classes is as good a guide as it is for top-1. The weights are found as in a
game against the fit (multiplicative weights: Freund & Schapire, Games and Economic Behavior 29,
1999): classes gain weight where they are missed, the fit follows, and the mean of the later weights
is taken.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deevo_ext.fitness.metrics import Metric
from deevo_ext.search.linear_model import LinearModel

_STEPS, _RATE, _RIDGE = 12, 1.0, 0.01


def image_weights(model: LinearModel, metric: Metric) -> Tensor | None:
    """Returns weights of the model's images, float32 [n] of mean 1; None: all count alike.

    They are for "worst-class" alone, and no other metric asks for any.
    """
    if metric.name != "worst-class":
        return None
    labels = model.labels
    counts = labels.bincount().clamp_min(1)
    weights, total = torch.ones(len(counts), device=labels.device), torch.zeros(len(counts))
    q = None
    for step in range(_STEPS):
        # Each class begins with the same weight, however many images it has.
        images = (weights / counts)[labels]
        q = model.fit(_RIDGE, q, images)
        found = metric.of_results(*model.losses_and_ranks(q[None].float()))[0]
        wrong = model.slices.gathered(found).to(labels.device)
        missed = torch.zeros_like(weights).index_add_(0, labels, wrong.nan_to_num(posinf=1.0))
        weights = weights * torch.exp(_RATE * missed / counts)
        weights /= weights.mean()
        if step >= _STEPS // 2:
            total += weights.cpu()
    images = (total.to(counts.device) / counts)[labels]
    return (images / images.mean()).cpu()
