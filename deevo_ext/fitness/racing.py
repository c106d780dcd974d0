"""Paired racing: a trial that loses to its parent is dropped before it has seen every image.

Trial and parent are scored on the same N images in the same random order, d_i = trial's score minus
parent's on image i. What a full evaluation decides is the sign of D, the mean of all N differences.
After n of them, D is predicted by the regression estimator (Cochran, Sampling Techniques, 3rd ed.
1977, ch. 7; Särndal, Swensson & Wretman, Model Assisted Survey Sampling, 1992, ch. 6). A trial is
made from parents, whose scores x_i on all N images are known, and a mixture of networks scores much
as a mixture of their scores: the parents' explain most of d, and only the rest e has to be averaged
out. With b the least squares of d on x over the n images,

    D^ = mean_n(d) + b (mean_N(x) - mean_n(x)),
    se^2 = s_e^2 [1/n - 1/N + (mean_N(x) - mean_n(x))' S^-1 (mean_N(x) - mean_n(x))],

s_e^2 the residual variance on n - 1 - rank degrees of freedom, S the scatter matrix of x. The trial
is dropped when D^/se exceeds the quantile 1 - error/L of Student's t, L the number of looks before
the last. Each look spends an equal share of the error (alpha spending, Lan & DeMets, Biometrika 70,
1983), and by the union bound a trial that a full evaluation accepts is dropped with probability at
most `error`, as far as means of n residuals are normal. In the other direction there is no error:
who is not dropped is evaluated in full.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import torch

from deevo_ext.errors import DeevoError

# Looks for each doubling of the images seen: more spend the error thinner, fewer drop later. On
# stored scores of real populations two saved 1 to 2 % of the images over one.
LOOKS_PER_DOUBLING = 2
# Images of the first look at least: means of fewer are not normal, and `t_quantile` is too small.
_FEWEST = 32
# Images seen per parent before the parents' scores are used: fewer could be fitted by chance.
_IMAGES_PER_PARENT = 8


@dataclass(frozen=True)
class Racing:
    """When trials are looked at, and at which error they are dropped.

    error: probability, at most, that a trial is dropped which a full evaluation would accept; above
    0, below 0.5. first: share of the images before the first look, above 0 and at most 1; each
    second look from there on doubles it.
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
        """Returns plain values for a run's record."""
        return {"error": self.error, "first": self.first}

    def looks(self, images: int, micro_batch: int) -> list[int]:
        """Returns the images seen at each look, ascending.

        They are whole micro-batches, of 32 images at least; the last look is at all images.
        """
        ends: list[int] = []
        for k in itertools.count():
            share = self.first * 2.0 ** (k / LOOKS_PER_DOUBLING)
            if share >= 1.0:
                break
            end = math.ceil(share * images / micro_batch) * micro_batch
            if end < images and end > (ends[-1] if ends else _FEWEST - 1):
                ends.append(end)
        return [*ends, images]


class Look:
    """One look of a race: tells trials that lose from those that may go on.

    parents: scores [P, N] of all members on all images; members with a score that is not finite are
    left aside. end: images seen. looks: how many looks there are before all images are seen.
    """

    def __init__(self, racing: Racing, parents: torch.Tensor, end: int, looks: int) -> None:
        self._level = 1.0 - racing.error / looks
        known = parents[torch.isfinite(parents).all(dim=1)].double().numpy()
        self._n, self._images = end, parents.shape[1]
        self._basis = np.empty((0, end))
        self._shift = np.empty(0)
        self._inverse = np.empty((0, 0))
        self.rank = 0
        if 0 < _IMAGES_PER_PARENT * len(known) <= end:
            self._know(known)

    def _know(self, known: np.ndarray) -> None:
        """Mean and differences of the parents' scores, each in units of its deviation."""
        mean = known.mean(axis=0)
        basis = np.concatenate([mean[None], known[:-1] - mean])
        seen = basis[:, : self._n]
        centre, deviation = seen.mean(axis=1), seen.std(axis=1)
        some = deviation > 1e-9 * (np.abs(centre) + deviation.max() + 1e-30)
        scale = deviation[some]
        self._basis = (seen[some] - centre[some, None]) / scale[:, None]
        self._shift = (basis[some].mean(axis=1) - centre[some]) / scale
        # einsum sums by itself: a matrix product would depend on the number of threads.
        scatter = np.einsum("in,jn->ij", self._basis, self._basis)
        values, vectors = np.linalg.eigh(scatter)
        kept = values > 1e-10 * values.max(initial=0.0)
        self._inverse = (vectors[:, kept] / values[kept]) @ vectors[:, kept].T
        self.rank = int(kept.sum())

    def predict(self, differences: np.ndarray) -> tuple[float, float]:
        """Returns (D^, se) from d float64 [n]."""
        n = self._n
        mean = float(differences.mean())
        rest = differences - mean
        slope = self._inverse @ np.einsum("in,n->i", self._basis, rest)
        rest = rest - np.einsum("i,in->n", slope, self._basis)
        variance = float((rest * rest).sum()) / (n - 1 - self.rank)
        spread = 1.0 / n - 1.0 / self._images + float(self._shift @ self._inverse @ self._shift)
        return mean + float(slope @ self._shift), math.sqrt(variance * spread)

    def loses(self, trial: torch.Tensor, parent: torch.Tensor) -> bool:
        """Returns whether to drop a trial after these scores [n] of it and of its parent.

        A score of the trial that is not finite settles the matter; one of the parent keeps the
        trial in.
        """
        if not bool(torch.isfinite(trial).all()):
            return True
        if not bool(torch.isfinite(parent).all()):
            return False
        predicted, error = self.predict((trial.double() - parent.double()).numpy())
        return predicted > t_quantile(self._level, self._n - 1 - self.rank) * error


def t_quantile(probability: float, freedom: int) -> float:
    """Returns a quantile of Student's t, by Cornish and Fisher's expansion about the normal one.

    Abramowitz & Stegun 26.7.5, four terms: for 63 degrees of freedom, one micro-batch of 64, the
    error is below 1e-5 up to the quantile 0.9999, for 27, of 32 images and 4 parents, below 1e-4.
    """
    z = NormalDist().inv_cdf(probability)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, start=1))
