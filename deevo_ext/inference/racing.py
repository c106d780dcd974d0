"""Paired racing: a trial that loses to its parent is dropped before it has seen every image.

Trial and parent are scored on the same N images in the same random order, d_i = trial's score minus
parent's on image i. What a full evaluation decides is the sign of the mean of all N differences.
After n of them, that mean is estimated by mean_n, with the standard error of a sample drawn without
replacement (Cochran, Sampling Techniques, 3rd ed. 1977, eq. 2.20)

    se = sd_n * sqrt((1/n) * (1 - n/N)),

and the trial is dropped when mean_n / se exceeds the quantile 1 - error/L of Student's t with n - 1
degrees of freedom, L the number of looks before the last. Each look spends an equal share of the
error (alpha spending, Lan & DeMets, Biometrika 70, 1983), and by the union bound a trial that a
full evaluation accepts is dropped with probability at most `error`, as far as means of n
differences are normal. In the other direction there is no error: who is not dropped is evaluated in
full.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import torch

from deevo_ext.errors import DeevoError


@dataclass(frozen=True)
class Racing:
    """When trials are looked at, and at which error they are dropped.

    error: probability, at most, that a trial is dropped which a full evaluation would accept; above
    0, below 0.5. first: share of the images before the first look, above 0 and at most 1; each
    further look doubles it.
    """

    error: float = 0.01
    first: float = 1 / 32

    def __post_init__(self) -> None:
        if not 0 < self.error < 0.5:
            raise DeevoError(
                f"racing is {self.error!r}; expected an error rate in (0, 0.5), or None"
            )
        if not 0 < self.first <= 1:
            raise DeevoError(
                f"racing_first is {self.first!r}; expected a share of the images in (0, 1]"
            )

    def describe(self) -> dict[str, Any]:
        """Plain values, for a run's configuration record."""
        return {"error": self.error, "first": self.first}

    def looks(self, images: int, micro_batch: int) -> list[int]:
        """Images seen at each look, ascending, whole micro-batches; the last one is all of them."""
        ends: list[int] = []
        share = self.first
        while share < 1.0:
            end = math.ceil(share * images / micro_batch) * micro_batch
            if end < images and end > (ends[-1] if ends else 1):
                ends.append(end)
            share *= 2.0
        return [*ends, images]

    def loses(self, trial: torch.Tensor, parent: torch.Tensor, images: int, looks: int) -> bool:
        """Whether to drop a trial after these scores [n] of it and of its parent, out of `images`.

        looks: how many there are before all images are seen. A score of the trial that is not
        finite settles the matter; one of the parent keeps the trial in.
        """
        if not bool(torch.isfinite(trial).all()):
            return True
        if not bool(torch.isfinite(parent).all()):
            return False
        # fsum is exact before its one rounding: the decision depends on no order of summation.
        differences = (trial.double() - parent.double()).tolist()
        n = len(differences)
        mean = math.fsum(differences) / n
        if mean <= 0.0 or n < 2:
            return False
        variance = math.fsum((d - mean) ** 2 for d in differences) / (n - 1)
        error = math.sqrt(variance * (1.0 - n / images) / n)
        return mean > t_quantile(1.0 - self.error / looks, n - 1) * error


def t_quantile(probability: float, freedom: int) -> float:
    """A quantile of Student's t, by Cornish and Fisher's expansion about the normal one.

    Abramowitz & Stegun 26.7.5, four terms: for 63 degrees of freedom, one micro-batch of 64, the
    error is below 1e-5 up to the quantile 0.9999.
    """
    z = NormalDist().inv_cdf(probability)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, start=1))
