"""What is found out about a metric, and refused, on a few images before a run spends anything."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from deevo_ext.data.labelled import LabelledImages
from deevo_ext.errors import DeevoError
from deevo_ext.fitness.evaluator import Evaluator
from deevo_ext.fitness.metrics import Metric
from deevo_ext.fitness.sampling import batch_indices

_IMAGES, _PER_CLASS = 256, 2
# Scores of an image may differ by so much when it is in another batch: orders of float32 sums.
_ROUNDING = 1e-3


def settled(metric: Metric, evaluator: Evaluator, sets: Iterable[LabelledImages]) -> Metric:
    """Returns the metric, its kind known, after a look at all sets' labels and at one network.

    The first member puts some images of the first set through, which are not counted as forward
    passes; a function is called with its logits. Raises DeevoError for labels that are no class of
    the network, for a set that lacks a class where the metric judges classes, and for a function
    that fails, gives something else than a score an image or one of the whole set, NaN, or another
    value when it is called again.
    """
    images, *others = sets
    count = max(_IMAGES, _PER_CLASS * int(images.labels.max() + 1)) if metric.function else 1
    chosen = batch_indices(images.labels, min(count, len(images)), 0, 0)
    sample = images.subset(chosen, images.name)
    logits = first_logits(evaluator, sample)
    for one in (images, *others):
        check_classes(metric, one, logits.shape[1])
    if metric.function is None or not bool(torch.isfinite(logits).all()):
        return metric  # what is wrong with the member is said elsewhere
    metric = replace(metric, whole=_Check(metric, logits, sample.labels).kind())
    everyone = len(sample.labels.unique()) == len(images.labels.unique())
    fitness = metric.fitness(metric.of_images(logits, sample.labels), sample.labels)
    if everyone and not bool(torch.isfinite(fitness)):
        raise DeevoError(
            f"metric {metric.name} is NaN or infinite on {len(sample)} {images.name}, whose logits "
            "are finite: mend the metric"
        )
    return metric


def first_logits(evaluator: Evaluator, images: LabelledImages) -> Tensor:
    """Returns the first member's logits float32 [n, classes], where the labels are, uncounted."""
    evaluator.settle(images)
    population = evaluator.population
    row = population.rows[0].to(evaluator.device)
    statistics = population.statistics[0] if population.statistics_layout.dim else None
    return evaluator.forward.logits(row, images, statistics)


def check_classes(metric: Metric, images: LabelledImages, classes: int) -> None:
    """Raises DeevoError for labels that are none of the classes, or a class that must have some."""
    counts = images.labels.bincount(minlength=classes)
    if len(counts) > classes:
        raise DeevoError(
            f"labels of the {images.name} go up to {len(counts) - 1}, but the network has "
            f"{classes} classes; expected 0 to {classes - 1}"
        )
    if metric.name == "top5" and classes <= 5:
        raise DeevoError(
            f"metric is top5, but the network has {classes} classes, so that every image is right; "
            "expected more classes, or top1"
        )
    missing = (counts == 0).nonzero().flatten().tolist()
    if missing and metric.of_classes:
        raise DeevoError(
            f"metric {metric.name} judges every class, but {len(missing)} of {classes}, as class "
            f"{missing[0]}, have none of the {len(images)} {images.name}: give at least one image "
            "of each, or a function that leaves these classes out"
        )


class _Check:
    """Calls a metric's function on logits [n, classes] and labels [n]."""

    def __init__(self, metric: Metric, logits: Tensor, labels: Tensor) -> None:
        self.metric, self.logits, self.labels = metric, logits, labels

    def kind(self) -> bool:
        """Returns whether it gives one number of the whole set, and not one an image."""
        name, n = self.metric.name, len(self.labels)
        first, again = self._called(n), self._called(n)
        whole = first.numel() == 1 and n > 1
        if not whole and first.shape != self.labels.shape:
            raise DeevoError(
                f"metric {name} gave a tensor {list(first.shape)} for logits "
                f"{list(self.logits.shape)}; expected [{n}], one score per image, or one number of "
                "the whole set"
            )
        if self.metric.whole is not None and whole != self.metric.whole:
            raise DeevoError(
                f"metric {name} gave {'one number' if whole else 'a score per image'}, but was "
                f"declared with whole={self.metric.whole}"
            )
        if not torch.allclose(first, again, rtol=0.0, atol=0.0, equal_nan=True):
            raise DeevoError(
                f"metric {name} gave another value when it was called with the same logits again: "
                "expected a function of its arguments alone, without random numbers or memory"
            )
        half = n // 2
        if whole or half < 1:
            return whole
        if not torch.allclose(
            self._called(half), first[:half], rtol=_ROUNDING, atol=_ROUNDING, equal_nan=True
        ):
            raise DeevoError(
                f"metric {name} gives an image another score when other images are beside it; "
                "expected scores that depend on their own image alone, or one number of the whole "
                "set"
            )
        return whole

    def _called(self, count: int) -> Tensor:
        assert self.metric.function is not None
        logits, labels = self.logits[:count].clone(), self.labels[:count].clone()
        name = self.metric.name
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                value: Any = self.metric.function(logits, labels)
            found = torch.as_tensor(value)
            if found.is_complex():
                raise TypeError("it gave complex numbers; expected real ones")
        except DeevoError:
            raise
        except Exception as error:  # whatever the user's function raises
            raise DeevoError(
                f"metric {name} failed on logits float32 {list(logits.shape)} and labels int64 "
                f"[{count}]: {error!r}"
            ) from error
        if not torch.equal(logits, self.logits[:count]) or not torch.equal(
            labels, self.labels[:count]
        ):
            raise DeevoError(
                f"metric {name} writes into its arguments; expected it to leave logits and labels "
                "as they are"
            )
        return found.double().cpu()
