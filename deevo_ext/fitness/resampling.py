"""How far a difference of two networks' metrics on the same images may be chance.

Of a mean that is the standard error of the paired differences. Of a metric of the whole set it is a
paired bootstrap's: images are drawn anew, the same for both networks, and the metric is formed of
their outcomes again; no network is evaluated for that. Each class is drawn from by itself, one
image less than it has: no class gets lost, and variances are unbiased where classes are small (Rao
& Wu, J. Amer. Statist. Assoc. 83, 1988).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from deevo_ext.fitness.metrics import Metric
from deevo_ext.ops.philox import words
from deevo_ext.ops.tables import Purpose

ERROR_RESAMPLES, INTERVAL_RESAMPLES = 100, 1000
# Logits that the resamples of one comparison look at, at most: some seconds of a core.
_LOGITS = 2e9


class Gain(NamedTuple):
    """By how much fitness falls from one network to another, and that fall's standard error.

    A fall that is not finite is -inf, and its error +inf.
    """

    mean: float
    standard_error: float


def gain_of(metric: Metric, before: Tensor, after: Tensor, labels: Tensor) -> Gain:
    """Returns the gain of `after` on `before`, outcomes [n] or [n, classes] of the same images."""
    if not metric.of_whole_sets:
        return _of_falls(before.double() - after.double())
    return gains_of(metric, before, after[None], labels)[0]


def gains_of(metric: Metric, before: Tensor, after: Tensor, labels: Tensor) -> list[Gain]:
    """Returns the gains of P networks, outcomes [P, n] or [P, n, classes], on `before`."""
    if not metric.of_whole_sets:
        return [_of_falls(before.double() - one.double()) for one in after]
    fitness = metric.fitness(torch.cat([before[None], after]), labels)
    falls = fitness[0] - fitness[1:]
    errors = resampled_falls(metric, before, after, labels, ERROR_RESAMPLES).std(dim=0)
    return [
        Gain(fall, error) if math.isfinite(fall) and math.isfinite(error) else _NOTHING
        for fall, error in zip(falls.tolist(), errors.tolist(), strict=True)
    ]


def resampled_falls(
    metric: Metric, before: Tensor, after: Tensor, labels: Tensor, count: int
) -> Tensor:
    """Returns the falls float64 [resamples, P] of the fitness from `before` to P networks.

    count: how many resamples, fewer (at least 100) where logits are kept and many.
    """
    outcomes = torch.cat([before[None], after])
    if metric.keeps_logits:
        count = min(count, max(ERROR_RESAMPLES, int(_LOGITS / outcomes.numel())))
    falls = []
    for places in resamples(labels, count):
        fitness = metric.fitness(outcomes[:, places.to(outcomes.device)], labels[places])
        falls.append(fitness[0] - fitness[1:])
    return torch.stack(falls)


def resamples(labels: Tensor, count: int) -> Iterator[Tensor]:
    """Yields places of images int64: of each class as many as it has, less one, with replacement.

    Of a class with one image that one is taken. The draws are Philox words (purpose 14, whose
    member word is the resample), the same for the same labels.
    """
    classes = labels.cpu().numpy()
    order = np.argsort(classes, kind="stable")
    sizes = np.bincount(classes).astype(np.uint64)
    draws = np.where(sizes > 1, sizes - (sizes > 0), sizes).astype(np.int64)
    starts = np.repeat(np.cumsum(sizes) - sizes, draws)
    size = np.repeat(sizes, draws)
    for number in range(count):
        drawn = words(Purpose.PART, 0, number, len(size), 0)
        place = starts + (drawn * size >> np.uint64(32))
        yield torch.from_numpy(order[place.astype(np.int64)])


_NOTHING = Gain(-math.inf, math.inf)


def _of_falls(falls: Tensor) -> Gain:
    if not bool(torch.isfinite(falls).all()):
        return _NOTHING
    return Gain(float(falls.mean()), float(falls.std()) / math.sqrt(len(falls)))
