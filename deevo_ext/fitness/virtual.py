"""Virtual fitness: candidates' mean scores by any metric, from a linear model of the logits."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from deevo_ext.fitness.metrics import Metric
from deevo_ext.search.linear_model import LinearModel

_SLICE = 256  # images whose logits a metric gets at a time


def virtual_scores(model: LinearModel, metric: Metric, q: Tensor) -> Tensor:
    """Returns the scores [P, n] of each image by the metric, of q [P, d]."""
    if metric.function is None:
        return metric.of_results(*model.losses_and_ranks(q))
    n = len(model.z0)
    scores = torch.empty(len(q), n, device=model.z0.device)
    for start in range(0, n, _SLICE):
        images = slice(start, min(start + _SLICE, n))
        for i, logits in enumerate(model.logits(q, images)):
            scores[i, images] = metric.of_logits(logits, model.labels[images])
    return scores


def virtual_fitness(model: LinearModel, metric: Metric, ridge: float) -> Callable[[Tensor], Tensor]:
    """Returns a function of q [P, d]: the mean score plus ridge |q|^2, float64 [P] on the CPU."""

    def fitness(q: Tensor) -> Tensor:
        scores = virtual_scores(model, metric, q).mean(dim=1, dtype=torch.float64)
        return scores.cpu() + ridge * q.double().square().sum(dim=1).cpu()

    return fitness
