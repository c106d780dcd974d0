"""Two networks on the same images: the difference of a metric, and tests of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch

from deevo_ext.fitness.metrics import Metric
from deevo_ext.fitness.resampling import INTERVAL_RESAMPLES, resampled_falls


@dataclass(frozen=True)
class Difference:
    """The best evolved network's metric minus another network's.

    name: the other network; interval: the 95 % paired bootstrap interval of the difference (called
    its mean). higher_is_better: whether a positive one is better, else a negative one.
    """

    name: str
    mean: float
    interval: tuple[float, float]
    higher_is_better: bool = False

    @classmethod
    def of(
        cls,
        name: str,
        metric: Metric,
        evolved: torch.Tensor,
        other: torch.Tensor,
        labels: torch.Tensor,
    ) -> Difference:
        """Makes it of both networks' outcomes of the same images, [N] or [N, classes]."""
        sign = -1.0 if metric.higher_is_better else 1.0
        if not metric.of_whole_sets:
            differences = sign * (evolved.double() - other.double())
            mean, interval = float(differences.mean()), bootstrap_interval(differences)
        else:
            both = metric.fitness(torch.stack([evolved, other]), labels)
            mean = sign * float(both[0] - both[1])
            falls = resampled_falls(metric, other, evolved[None], labels, INTERVAL_RESAMPLES)
            with np.errstate(invalid="ignore"):  # falls may be infinite: bounds are NaN then
                low, high = np.quantile(-sign * falls[:, 0].numpy(), [0.025, 0.975])
            interval = float(low), float(high)
        return cls(name, mean, interval, metric.higher_is_better)

    @classmethod
    def load(cls, saved: dict[str, Any]) -> Difference:
        """Makes it of its JSON values."""
        low, high = saved["interval"]
        mean, higher = number(saved["mean"]), bool(saved.get("higher_is_better", False))
        return cls(saved["name"], mean, (number(low), number(high)), higher)

    @property
    def finite(self) -> bool:
        """Whether the difference is a number, and so are its interval's bounds."""
        return all(math.isfinite(value) for value in (self.mean, *self.interval))

    @property
    def finding(self) -> str:
        """What the interval says of the evolved network, up to the other's name."""
        low, high = self.interval
        if not (low > 0.0 or high < 0.0):  # a bound may be NaN
            return "shows no measurable difference to"
        return "is better than" if (low > 0.0) == self.higher_is_better else "is worse than"

    @property
    def figures(self) -> str:
        """The difference and its interval as text."""
        low, high = self.interval
        return f"{self.mean:+.5f} [{low:+.5f}, {high:+.5f}]"


def number(value: Any) -> Any:
    """Returns a number of a file, where one that is not finite is null."""
    return math.nan if value is None else value


def mcnemar(gained: int, lost: int) -> float:
    """Returns the two-sided p of McNemar's exact test: were gains and losses equally likely.

    Twice the tail of the binomial distribution with odds 1/2, computed in whole numbers, at most 1.
    Source: McNemar, Psychometrika 12 (1947).
    """
    total = gained + lost
    term, tail = 1, 1
    for k in range(min(gained, lost)):
        term = term * (total - k) // (k + 1)
        tail += term
    return min(1.0, float(Fraction(2 * tail, 1 << total)))


def bootstrap_interval(
    differences: torch.Tensor, *, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Returns the 95 % percentile interval of the mean of paired differences, float64 [N]."""
    values = differences.double().cpu().numpy()
    generator = np.random.Generator(np.random.PCG64(seed))
    means = np.empty(resamples)
    for i in range(resamples):
        means[i] = values[generator.integers(0, values.size, values.size)].mean()
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
