"""Virtual fitness: candidates' mean scores by any metric, from a linear model of the logits."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from deevo_ext.fitness.metrics import Metric
from deevo_ext.search.linear_model import LinearModel

_LOGITS = 1 << 18  # that a metric gets at a time: they stay in a core's cache


def virtual_scores(model: LinearModel, metric: Metric, q: Tensor) -> Tensor:
    """Returns the scores [P, n] of each image by the metric, of q [P, d]."""
    if metric.function is None and not metric.label_smoothing:
        return metric.of_results(*model.losses_and_ranks(q))
    count, n = len(q), len(model.labels)
    scores = torch.empty(count, n, device=model.z0.device)
    size = max(1, _LOGITS // (count * model.classes))
    for start in range(0, n, size):
        images = slice(start, min(start + size, n))
        logits, labels = model.logits(q, images), model.labels[images]
        found = metric.of_images(logits.flatten(0, 1), labels.repeat(count))
        scores[:, images] = found.view(count, -1)
    return scores


def virtual_fitness(model: LinearModel, metric: Metric, ridge: float) -> Callable[[Tensor], Tensor]:
    """Returns a function of q [P, d]: the mean score plus ridge |q|^2, float64 [P] on the CPU."""

    def fitness(q: Tensor) -> Tensor:
        scores, length = virtual_scores(model, metric, q), q.double().square().sum(dim=1).cpu()
        if scores.device.type != "cpu":
            return scores.mean(dim=1, dtype=torch.float64).cpu() + ridge * length
        # NumPy starts no threads, which for so few numbers cost more than they save.
        return torch.from_numpy(scores.double().numpy().mean(axis=1)) + ridge * length

    return fitness
