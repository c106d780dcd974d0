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
    """Returns the metric's outcomes [P, n] (or [P, n, classes]) of all images, of q [P, d]."""
    found = own_scores(model, metric, q)
    return found if model.slices.whole else model.slices.gathered(found, dim=1)


def own_scores(model: LinearModel, metric: Metric, q: Tensor) -> Tensor:
    """Returns the metric's outcomes [P, n] (or [P, n, classes]) of this rank's images."""
    if metric.by_ranks and not metric.label_smoothing:
        return metric.of_results(*model.losses_and_ranks(q))
    if metric.function is None and not metric.by_ranks:
        return metric.of_predictions(*model.losses_and_predictions(q))
    count, own = len(q), model.slices.own
    shape = (model.classes,) if metric.keeps_logits else ()
    scores = torch.empty(count, own.stop - own.start, *shape, device=model.z0.device)
    size = max(1, _LOGITS // (count * model.classes))
    for part in model.slices.each():
        for start in range(part.start, part.stop, size):
            images = slice(start, min(start + size, part.stop))
            logits, labels = model.logits(q, images), model.labels[images]
            found = metric.of_images(logits.flatten(0, 1), labels.repeat(count))
            at = slice(images.start - own.start, images.stop - own.start)
            scores[:, at] = found.view(count, len(labels), *shape)
    return scores


def guided_fitness(
    model: LinearModel, metric: Metric, ridge: float, weights: Tensor | None
) -> Callable[[Tensor], Tensor]:
    """Returns `virtual_fitness`, with a share of the cross-entropy where that is not the metric.

    A metric that counts images has no resolution: what is evolved on it alone moves single images
    across a border, which others do not follow. The cross-entropy tells how far they are from it;
    its share is such that at no step it counts twice as much as the metric. weights: of the images
    in the cross-entropy, float32 [n].
    """
    if metric.name == "loss":
        return virtual_fitness(model, metric, ridge)
    own, labels = model.slices.own, model.labels
    share = 1.0 if weights is None else weights[own].to(model.z0.device)

    def all_of(q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Fitness, cross-entropy and ridge |q|^2: of one look at the model where it gives both."""
        length = _lengths(q, ridge)
        if metric.function is not None:
            losses, scores = model.losses_and_ranks(q)[0], own_scores(model, metric, q)
        elif metric.by_ranks:
            losses, ranks = model.losses_and_ranks(q)
            scores = metric.of_results(losses, ranks)
        else:
            losses, predicted = model.losses_and_predictions(q)
            scores = metric.of_predictions(losses, predicted)
        losses = losses * share
        if metric.of_whole_sets:
            found = model.slices.judged(scores, lambda some, _: metric.fitness(some, labels))
            return found, *_means(model, losses, length)
        means, length = _means(model, torch.cat([scores, losses]), length)
        found, means = means.split(len(q))
        return found.masked_fill(~torch.isfinite(found), torch.inf), means, length

    found, losses, _ = all_of(torch.zeros(1, model.directions))
    guide = _GUIDE * abs(float(found)) / max(float(losses), 1e-30)

    def fitness(q: Tensor) -> Tensor:
        parts = zip(*map(all_of, q.split(_at_once(model, metric, q))), strict=True)
        found, losses, length = map(torch.cat, parts)
        return found + guide * losses + length

    return fitness


def _at_once(model: LinearModel, metric: Metric, q: Tensor) -> int:
    """How many of q [P, d] are judged at once: a metric that wants logits has them all kept."""
    return max(1, _KEPT // (len(model.labels) * model.classes)) if metric.keeps_logits else len(q)


def virtual_fitness(model: LinearModel, metric: Metric, ridge: float) -> Callable[[Tensor], Tensor]:
    """Returns a function of q [P, d]: the fitness plus ridge |q|^2, float64 [P] on the CPU."""

    def of_sets(q: Tensor) -> Tensor:
        length = _lengths(q, ridge)

        def judge(outcomes: Tensor, which: slice) -> Tensor:
            return metric.fitness(outcomes, model.labels) + length[which]

        return model.slices.judged(own_scores(model, metric, q), judge)

    def fitness(q: Tensor) -> Tensor:
        if metric.of_whole_sets:
            return torch.cat([*map(of_sets, q.split(_at_once(model, metric, q)))])
        means, length = _means(model, own_scores(model, metric, q), _lengths(q, ridge))
        return means + length

    return fitness


def _lengths(q: Tensor, ridge: float) -> Tensor:
    """ridge |q|^2 of each of q [P, d], float64 on the CPU."""
    return ridge * q.double().square().sum(dim=1).cpu()


def _means(model: LinearModel, values: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
    """The means float64 [P] on the CPU of values [P, n] over all images, and rank 0's lengths."""
    sums, length = model.slices.added(values, length)
    return sums / len(model.labels), length
