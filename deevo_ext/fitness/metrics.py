"""What is minimised: one score per image, whose mean is a network's fitness."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deevo_ext.errors import DeevoError
from deevo_ext.identity import full_name
from deevo_ext.networks.arguments import check_smoothing

METRICS = ("loss", "top1")

ImageScores = Callable[[Tensor, Tensor], Tensor]
"""function(logits float32 [n, classes], labels int64 [n]) -> scores [n], less is better.

It gets the images a micro-batch at a time, from several threads, so each score may depend on its
own image alone.
"""


@dataclass(frozen=True)
class Metric:
    """A score per image, minimised; +inf where it is not finite, and for overflowing networks.

    name: "loss" (cross-entropy in nats), "top1" (1 where the first class is wrong, else 0) or a
    function's. label_smoothing: share of each label that is spread over all classes, for "loss".
    """

    name: str
    label_smoothing: float = 0.0
    function: ImageScores | None = None

    @classmethod
    def of(cls, metric: str | ImageScores | Metric, label_smoothing: float = 0.0) -> Metric:
        """Makes a metric of "loss", "top1" or a function of (logits, labels)."""
        if isinstance(metric, Metric):
            return metric
        check_smoothing(label_smoothing)
        if label_smoothing and metric != "loss":
            raise DeevoError('label_smoothing is for metric="loss"; a function smooths by itself')
        if isinstance(metric, str) and metric in METRICS:
            return cls(metric, label_smoothing)
        if not callable(metric):
            raise DeevoError(
                f"metric is {metric!r}; expected one of {', '.join(METRICS)} or a function of "
                "(logits, labels) that gives a score per image"
            )
        return cls(full_name(metric), 0.0, metric)

    def describe(self) -> dict[str, Any]:
        """Returns plain values for a run's record."""
        smoothing = {"label_smoothing": self.label_smoothing} if self.label_smoothing else {}
        return {"metric": self.name, **smoothing}

    def of_results(self, losses: Tensor, ranks: Tensor) -> Tensor:
        """Returns scores from losses (smoothed) and ranks of the true class, both [..., N]."""
        if self.name == "top1":
            return torch.where(torch.isfinite(losses), (ranks > 0).float(), math.inf)
        return losses

    def of_images(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Returns scores float32 [n] of logits float32 [n, classes], whatever the metric."""
        if self.function is not None:
            return self.of_logits(logits, labels)
        losses = torch.empty(1, len(labels), device=logits.device)
        ranks = torch.empty(1, len(labels), dtype=torch.int32, device=logits.device)
        torch.ops.deevo.loss_and_rank(
            logits[None].contiguous(), labels, self.label_smoothing, losses, ranks
        )
        return self.of_results(losses[0], ranks[0])

    def of_logits(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Returns the function's scores float32 [n]; raises DeevoError for anything else."""
        assert self.function is not None
        scores = self.function(logits, labels)
        if not isinstance(scores, Tensor) or scores.shape != labels.shape:
            what = list(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise DeevoError(
                f"metric {self.name} gave {what} for {labels.numel()} images; expected a tensor "
                f"[{labels.numel()}], one score per image"
            )
        scores = scores.float()
        broken = ~torch.isfinite(logits).all(dim=1) | ~torch.isfinite(scores)
        return scores.masked_fill(broken, math.inf)


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
