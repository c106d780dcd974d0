"""What is minimised: a metric of images, one score an image or one of the whole set.

What a metric needs of each image is its *outcome*: a score, the class that was predicted, or the
logits. Outcomes of all images give the network's fitness, which is minimised whatever the metric:
of a metric that is better when higher it is 1 minus the metric.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from deevo_ext.arguments import check_arguments
from deevo_ext.errors import DeevoError
from deevo_ext.fitness import class_scores
from deevo_ext.fitness.torch_metrics import TorchMetric, is_torch_metric
from deevo_ext.identity import full_name, function_identity
from deevo_ext.networks.arguments import check_smoothing

METRICS = ("loss", "top1", "top5", "worst-class", "macro-f1")
_TOP = {"top1": 1, "worst-class": 1, "top5": 5}
"""Among how many first classes the true one must be, for metrics that ranks decide."""
_OF_CLASSES = {"worst-class": class_scores.worst_class, "macro-f1": class_scores.macro_f1}
_LABELS = {"top1": "top-1", "top5": "top-5", "worst-class": "worst class", "macro-f1": "macro F1"}

Scores = Callable[[Tensor, Tensor], Any]
"""function(logits float32 [n, classes], labels int64 [n]) -> scores [n], or one of the whole set.

A function that gives a score an image gets the images a micro-batch at a time, from several
threads: each score may depend on its own image alone. One of the whole set gets all images at once.
"""


@dataclass(frozen=True)
class Metric:
    """Outcomes of images, and the fitness that they come to: minimised, +inf where not finite.

    name: one of `METRICS` ("loss": cross-entropy in nats; "top1", "top5": the share of images whose
    class is among the first one or five; "worst-class": "top1" of the images of the class where it
    is least; "macro-f1": the mean of the classes' F1), or a function's. label_smoothing: share of
    each label that is spread over all classes, for "loss". function: gives scores, or one of the
    whole set. higher_is_better: whether more of it is better. whole: whether a function gives one
    score of the whole set; None: not known yet (`fitness.metric_checks` finds it). identity: what
    tells a function from others, for a run's record; None: its name alone does.
    """

    name: str
    label_smoothing: float = 0.0
    function: Scores | None = None
    higher_is_better: bool = False
    whole: bool | None = False
    identity: dict[str, Any] | None = None

    @classmethod
    def of(
        cls,
        metric: str | Scores | Metric,
        label_smoothing: float = 0.0,
        *,
        name: str | None = None,
        whole: bool | None = None,
        higher_is_better: bool | None = None,
    ) -> Metric:
        """Makes a metric of one of `METRICS`, a function or a metric of torchmetrics.

        name: names a function and its version, in place of `deevo_ext.identity`'s name and hash.
        whole: whether a function gives one score of the whole set, by default found by its result.
        higher_is_better: whether more of it is better, by default the function's attribute of this
        name, else not.
        """
        check_smoothing(label_smoothing)
        own_name = metric.name if isinstance(metric, Metric) else metric
        if label_smoothing and not (isinstance(own_name, str) and own_name == "loss"):
            raise DeevoError('label_smoothing is for metric="loss"; a function smooths by itself')
        declared = {"name": name, "whole": whole, "higher_is_better": higher_is_better}
        given = [key for key, value in declared.items() if value is not None]
        named = isinstance(metric, Metric) and (metric.function is None or given != ["name"])
        if given and (named or isinstance(metric, str) or not callable(metric)):
            raise DeevoError(f"{given[0]} is for a metric that is a function, not for {metric!r}")
        if name in METRICS:
            raise DeevoError(
                f"the name of metric {metric!r} is {name!r}, which is another metric's; expected a "
                "name of its own (metric_name=)"
            )
        if isinstance(metric, Metric):
            if name is not None:
                return replace(metric, name=name, identity=None)
            return replace(metric, label_smoothing=label_smoothing or metric.label_smoothing)
        if isinstance(metric, str) and metric in METRICS:
            return cls(metric, label_smoothing, higher_is_better=metric != "loss")
        if not callable(metric):
            raise DeevoError(
                f"metric is {metric!r}; expected one of {', '.join(METRICS)}, a metric of "
                "torchmetrics, or a function of (logits, labels) that gives a score per image or "
                "one of the whole set"
            )
        if is_torch_metric(metric):
            function = TorchMetric.of(metric)
            if higher_is_better is None:
                higher_is_better = function.higher_is_better
            known = None if name else function.identity
            return cls(name or function.name, 0.0, function, higher_is_better, True, known)
        if higher_is_better is None:
            higher_is_better = bool(getattr(metric, "higher_is_better", False))
        own = None if name else function_identity(metric)
        return cls(name or full_name(metric), 0.0, metric, higher_is_better, whole, own)

    def __call__(self, logits: Tensor, labels: Tensor) -> float:
        """Returns the metric of logits float32 [n, classes] and labels int64 [n], n at least 1.

        Raises DeevoError for other shapes and for labels that are none of the classes.
        """
        check_arguments(Metric.__call__, locals())
        _require_images(logits, labels)
        return self.shown(float(self.fitness(self.of_images(logits, labels), labels)))

    @property
    def by_ranks(self) -> bool:
        """Whether losses and ranks of the true class give the outcomes; else logits are needed."""
        return self.function is None and self.name != "macro-f1"

    @property
    def keeps_logits(self) -> bool:
        """Whether an image's outcome is all its logits [classes], not a number."""
        return self.function is not None and bool(self.whole)

    @property
    def of_classes(self) -> bool:
        """Whether every class counts by itself, so that each must have images."""
        return self.name in _OF_CLASSES and self.function is None

    @property
    def of_whole_sets(self) -> bool:
        """Whether the fitness is another function of the outcomes than their mean."""
        return self.keeps_logits or self.of_classes

    def describe(self) -> dict[str, Any]:
        """Returns plain values that tell this metric from others, for a run's record.

        Raises DeevoError for a lambda without a name: no later start could tell it from another.
        """
        if self.name.endswith("<lambda>") and "version" not in (self.identity or {}):
            raise DeevoError(
                "metric is a lambda, which a run folder cannot tell from another one when the run "
                "is resumed: make it a function with a name (def), or give metric_name=, which "
                "names it and its version"
            )
        own = self.name if self.identity is None else self.identity
        described: dict[str, Any] = {"metric": own}
        if self.label_smoothing:
            described["label_smoothing"] = self.label_smoothing
        if self.function is not None and self.higher_is_better:  # built-in ones say it by name
            described["higher_is_better"] = True
        return described

    def shown(self, fitness: float) -> float:
        """Returns the metric in its user's direction, from its fitness."""
        return 1.0 - fitness if self.higher_is_better else fitness

    def of_results(self, losses: Tensor, ranks: Tensor) -> Tensor:
        """Returns outcomes from losses (smoothed) and ranks of the true class, both [..., N]."""
        if self.name == "loss":
            return losses
        top = _TOP[self.name]
        return torch.where(torch.isfinite(losses), (ranks >= top).float(), math.inf)

    def of_predictions(self, losses: Tensor, predicted: Tensor) -> Tensor:
        """Returns outcomes from losses and predicted classes [..., N], for "macro-f1"."""
        return torch.where(torch.isfinite(losses), predicted.float(), math.inf)

    def of_images(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Returns outcomes of logits float32 [n, classes], whatever the metric."""
        if not self.by_ranks:
            return self.of_logits(logits, labels)
        if self.name != "loss":  # no loss is needed, which takes ten times as long
            own, places = logits.gather(1, labels[:, None]), labels[:, None]
            ties = (logits == own) & (torch.arange(logits.shape[1], device=own.device) < places)
            ranks = ((logits > own) | ties).sum(dim=1)
            return self.of_results(logits.sum(dim=1), ranks)
        losses = torch.empty(1, len(labels), device=logits.device)
        ranks = torch.empty(1, len(labels), dtype=torch.int32, device=logits.device)
        torch.ops.deevo.loss_and_rank(
            logits[None].contiguous(), labels, self.label_smoothing, losses, ranks
        )
        return self.of_results(losses[0], ranks[0])

    def of_logits(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Returns outcomes of logits [n, classes], copied, for a metric that ranks do not decide.

        They are float32 [n], or [n, classes] where logits are kept; +inf where the logits are not
        finite. Raises DeevoError where a function gives anything else than a score per image.
        """
        broken = ~torch.isfinite(logits).all(dim=1)
        if self.function is None:
            return logits.argmax(dim=1).float().masked_fill(broken, math.inf)
        if self.keeps_logits:
            return logits.masked_fill(broken[:, None], math.inf)
        scores = self.function(logits, labels)
        if not isinstance(scores, Tensor) or scores.shape != labels.shape:
            what = list(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise DeevoError(
                f"metric {self.name} gave {what} for {labels.numel()} images; expected a tensor "
                f"[{labels.numel()}], one score per image (or one number of the whole set, and "
                "whole=True in Metric.of)"
            )
        scores = scores.float()
        scores = 1.0 - scores if self.higher_is_better else scores
        return scores.masked_fill(broken | ~torch.isfinite(scores), math.inf)

    def fitness(self, outcomes: Tensor, labels: Tensor, micro_batch: int = 0) -> Tensor:
        """Returns the fitness float64 [...] on the CPU of outcomes [..., n], or [..., n, classes].

        micro_batch: of scores, where the mean's last bits are to be those of `mean_score`.
        """
        if not self.of_whole_sets:
            if micro_batch:
                flat = outcomes.reshape(-1, outcomes.shape[-1])
                means = [mean_score(scores, micro_batch) for scores in flat]
                return torch.tensor(means, dtype=torch.float64).view(outcomes.shape[:-1])
            mean = outcomes.mean(dim=-1, dtype=torch.float64).cpu()
            return mean.masked_fill(~torch.isfinite(mean), math.inf)
        labels = labels.to(outcomes.device)
        if not self.keeps_logits:
            finite = torch.isfinite(outcomes).all(dim=-1)
            values = 1.0 - _OF_CLASSES[self.name](outcomes.nan_to_num(posinf=0.0), labels)
            return values.masked_fill(~finite, math.inf).cpu()
        sets = outcomes.reshape(-1, *outcomes.shape[-2:])
        values = torch.tensor([self._of_set(one, labels) for one in sets], dtype=torch.float64)
        return values.view(outcomes.shape[:-2])

    def _of_set(self, logits: Tensor, labels: Tensor) -> float:
        assert self.function is not None
        if not bool(torch.isfinite(logits).all()):
            return math.inf
        value = self.function(logits, labels)
        try:
            found = torch.as_tensor(value)
        except (TypeError, ValueError, RuntimeError, OverflowError):
            found = torch.zeros(0)
        if found.numel() != 1 or found.is_complex():
            what = list(value.shape) if isinstance(value, Tensor) else repr(value)
            raise DeevoError(
                f"metric {self.name} gave {what} for {len(labels)} images; expected one number of "
                "the whole set"
            )
        number = float(found)
        fitness = 1.0 - number if self.higher_is_better else number
        return fitness if math.isfinite(fitness) else math.inf


def _require_images(logits: Tensor, labels: Tensor) -> None:
    """Raises DeevoError unless there is a class's label for each image's logits."""
    if (
        logits.ndim != 2
        or labels.shape != logits.shape[:1]
        or labels.dtype != torch.int64
        or not labels.numel()
    ):
        dtype = str(labels.dtype).removeprefix("torch.")
        raise DeevoError(
            f"logits are {list(logits.shape)} and labels {dtype} {list(labels.shape)}; expected "
            "[n, classes] and int64 [n], the class of each of at least one image"
        )
    low, high, classes = int(labels.min()), int(labels.max()), logits.shape[1]
    if low < 0 or high >= classes:
        raise DeevoError(
            f"labels go from {low} to {high}, but the logits are of {classes} classes; expected 0 "
            f"to {classes - 1}"
        )


def mean_score(scores: Tensor, micro_batch: int) -> float:
    """Returns the mean of scores [N], +inf if it is not finite.

    float64 subtotals, one a micro-batch, are added in order; a device is waited for once.
    """
    parts = [part.sum(dtype=torch.float64) for part in scores.split(micro_batch)]
    total = 0.0
    for subtotal in torch.stack(parts).tolist():
        total += subtotal
    mean = total / scores.numel()
    return mean if math.isfinite(mean) else math.inf


def label_of(metric: str) -> str:
    """Returns what tables call a metric of this name: of a function's, the last part."""
    return _LABELS.get(metric, metric.rpartition(".")[2])
