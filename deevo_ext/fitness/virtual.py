"""Virtual fitness: candidates' fitness by any metric, from a linear model of the logits."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from deevo_ext.fitness.metrics import Metric
from deevo_ext.search.linear_model import LinearModel

_LOGITS = 1 << 18  # that a metric gets at a time: they stay in a core's cache
_KEPT = 1 << 24  # that are kept at a time, of whole sets
_GUIDE = 2.0


def virtual_scores(model: LinearModel, metric: Metric, q: Tensor) -> Tensor:
    """Returns the metric's outcomes [P, n] (or [P, n, classes]) of each image, of q [P, d]."""
    if metric.by_ranks and not metric.label_smoothing:
        return metric.of_results(*model.losses_and_ranks(q))
    if metric.function is None and not metric.by_ranks:
        return metric.of_predictions(*model.losses_and_predictions(q))
    count, n = len(q), len(model.labels)
    parts = []
    size = max(1, _LOGITS // (count * model.classes))
    for start in range(0, n, size):
        images = slice(start, min(start + size, n))
        logits, labels = model.logits(q, images), model.labels[images]
        found = metric.of_images(logits.flatten(0, 1), labels.repeat(count))
        parts.append(found.view(count, len(labels), *found.shape[1:]))
    return torch.cat(parts, dim=1)


def guided_fitness(
    model: LinearModel, metric: Metric, ridge: float, weights: Tensor | None
) -> Callable[[Tensor], Tensor]:
    """Returns `virtual_fitness`, with a share of the cross-entropy where that is not the metric.

    A metric that counts images has no resolution: what is evolved on it alone moves single images
    across a border, which others do not follow. The cross-entropy tells how far they are from it;
    its share is such that at no step it counts twice as much as the metric. weights: of the images
    in the cross-entropy, float32 [n].
    """
    unguided = virtual_fitness(model, metric, 0.0)
    if metric.name == "loss":
        return virtual_fitness(model, metric, ridge)
    share = 1.0 if weights is None else weights.to(model.z0.device)

    def both(q: Tensor) -> tuple[Tensor, Tensor]:
        """The fitness and the cross-entropy, of one look at the model where that gives both."""
        if metric.function is None and metric.by_ranks:
            losses, ranks = model.losses_and_ranks(q)
            fitness = metric.fitness(metric.of_results(losses, ranks), model.labels)
        elif metric.function is None:
            losses, predicted = model.losses_and_predictions(q)
            fitness = metric.fitness(metric.of_predictions(losses, predicted), model.labels)
        else:
            losses, fitness = model.losses_and_ranks(q)[0], unguided(q)
        return fitness, (losses * share).mean(dim=1, dtype=torch.float64).cpu()

    present, loss = (float(one) for one in both(torch.zeros(1, model.directions)))
    guide = _GUIDE * abs(present) / max(loss, 1e-30)

    def fitness(q: Tensor) -> Tensor:
        found, losses = both(q)
        return found + guide * losses + ridge * q.double().square().sum(dim=1).cpu()

    return fitness


def virtual_fitness(model: LinearModel, metric: Metric, ridge: float) -> Callable[[Tensor], Tensor]:
    """Returns a function of q [P, d]: the fitness plus ridge |q|^2, float64 [P] on the CPU."""
    some = max(1, _KEPT // (len(model.labels) * model.classes))

    def fitness(q: Tensor) -> Tensor:
        length = q.double().square().sum(dim=1).cpu()
        if metric.of_whole_sets:
            parts = q.split(some if metric.keeps_logits else len(q))
            found = [
                metric.fitness(virtual_scores(model, metric, part), model.labels) for part in parts
            ]
            return torch.cat(found) + ridge * length
        scores = virtual_scores(model, metric, q)
        if scores.device.type != "cpu":
            return scores.mean(dim=1, dtype=torch.float64).cpu() + ridge * length
        # NumPy starts no threads, which for so few numbers cost more than they save.
        return torch.from_numpy(scores.double().numpy().mean(axis=1)) + ridge * length

    return fitness
