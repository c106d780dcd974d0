"""Virtual fitness: candidates' mean scores by any metric, from a linear model of the logits."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from deevo_ext.fitness.metrics import Metric
from deevo_ext.search.linear_model import LinearModel

_SLICE = 256  # images whose logits a metric gets at a time


def virtual_fitness(model: LinearModel, metric: Metric, ridge: float) -> Callable[[Tensor], Tensor]:
    """Returns a function of q [P, d]: the mean score plus ridge |q|^2, float64 [P] on the CPU."""

    def fitness(q: Tensor) -> Tensor:
        if metric.function is None:
            scores = metric.of_results(*model.losses_and_ranks(q)).double().mean(dim=1)
        else:
            scores = _by_logits(model, metric, q)
        return scores.cpu() + ridge * q.double().square().sum(dim=1).cpu()

    return fitness


def _by_logits(model: LinearModel, metric: Metric, q: Tensor) -> Tensor:
    total = torch.zeros(len(q), dtype=torch.float64, device=model.z0.device)
    n = len(model.z0)
    for start in range(0, n, _SLICE):
        images = slice(start, min(start + _SLICE, n))
        labels = model.labels[images]
        for i, logits in enumerate(model.logits(q, images)):
            total[i] += metric.of_logits(logits, labels).sum(dtype=torch.float64)
    return total / n
