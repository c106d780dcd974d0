"""Metrics of torchmetrics (an optional package) as functions of a whole set's logits and labels."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from deevo_ext.errors import DeevoError

_METRIC, _COLLECTION = "torchmetrics.metric.Metric", "torchmetrics.collections.MetricCollection"


def is_torch_metric(value: Any) -> bool:
    """Whether a value is a metric of torchmetrics, or several, without an import of that."""
    return bool(_kinds(value) & {_METRIC, _COLLECTION})


def _kinds(value: Any) -> set[str]:
    return {f"{kind.__module__}.{kind.__qualname__}" for kind in type(value).__mro__}


class TorchMetric:
    """function(logits [n, classes], labels [n]) -> the metric's value on the whole set.

    It works on a copy that nothing is accumulated in from one call to the next. The metric gets
    probabilities: of all classes, of binary ones that of class 1.
    """

    def __init__(self, metric: Any) -> None:
        kind = type(metric)
        self.name = f"{kind.__module__}.{kind.__qualname__}"
        self.identity = {"function": self.name, "configuration": _configuration(metric)}
        self.higher_is_better = bool(metric.higher_is_better)
        self._metric, self._binary = copy.deepcopy(metric), kind.__name__.startswith("Binary")

    @classmethod
    def of(cls, metric: Any) -> TorchMetric:
        """Takes a metric over; raises DeevoError for one that classification cannot use."""
        what = f"metric is torchmetrics' {type(metric).__name__}"
        if _COLLECTION in _kinds(metric):
            raise DeevoError(f"{what}; expected one metric: give one of its {len(metric)}")
        if not type(metric).__module__.startswith("torchmetrics.classification"):
            raise DeevoError(
                f"{what} of {type(metric).__module__}; expected one of torchmetrics.classification"
            )
        if type(metric).__name__.startswith("Multilabel"):
            raise DeevoError(f"{what}; images have one label each: expected a Multiclass metric")
        if metric.higher_is_better is None:
            raise DeevoError(
                f"{what}, which does not say whether more of it is better; expected a metric with "
                "higher_is_better, or a function that calls it, with higher_is_better in Metric.of"
            )
        return cls(metric)

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Returns the value."""
        odds = torch.softmax(logits, dim=1)
        if self._binary:
            if odds.shape[1] != 2:
                raise DeevoError(
                    f"{self.name} is for 2 classes, but the network has {odds.shape[1]}; expected "
                    "the Multiclass metric"
                )
            odds = odds[:, 1]
        metric = self._metric.to(logits.device)
        metric.reset()
        metric.update(odds, labels)
        value: Tensor = metric.compute()
        metric.reset()
        return value


def _configuration(metric: Any) -> dict[str, Any]:
    """Returns what the metric was made with, as far as JSON has it or as text."""
    states = {"training", "update", "compute", *metric._defaults}
    values = {}
    for name, value in sorted(vars(metric).items()):
        if name.startswith("_") or name in states or callable(value):
            continue
        if isinstance(value, Tensor):
            value = value.tolist()
        values[name] = value if isinstance(value, (bool, int, float, str, list)) else str(value)
    return values
