"""What fits of a linear model gain on images that they were not fitted to, fold by fold."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from deevo_ext.distributed.ranks import ranks
from deevo_ext.search.linear_model import LinearModel

RIDGES = (1.0, 0.3, 0.1, 0.03, 0.01, 3e-3, 1e-3, 3e-4, 1e-4)
LENGTHS = (0.3, 0.6, 1.0)

Gains = Callable[[Tensor, Tensor], Sequence[tuple[float, float]]]
"""function(outcomes [n, ...], those of P steps [P, n, ...]) -> gain and standard error of each."""


@dataclass(frozen=True)
class HeldOut:
    """What a fit gains on images that it was not fitted to.

    ridge, length: the fit's ridge, and the share of its step that is taken. loss: the mean decrease
    of the cross-entropy in nats; images: that of each, float64 [n]. gain: that of the metric;
    standard_error: of it. fits: scaled coordinates float64 [folds, d] of the fit without each fold.
    """

    ridge: float
    length: float
    loss: float
    gain: float
    standard_error: float
    images: Tensor = field(repr=False, compare=False)
    fits: Tensor = field(repr=False, compare=False)


def held_out(
    model: LinearModel,
    folds: Sequence[Tensor],
    score: Callable[[Tensor], Tensor],
    gains: Gains,
    weights: Tensor | None = None,
) -> list[HeldOut]:
    """Returns what fits to the other folds gain on each, for all RIDGES and LENGTHS.

    folds: the positions int64 of each fold's images. score: function(q [P, d]) -> the
    metric's outcome of each of own images, [P, n] or [P, n, classes]; gains: what they come to, of
    all. weights: of the images in the cross-entropy, float32 [n], of mean 1.
    """
    slices, own = model.slices, model.slices.own
    share = torch.ones(len(model.z0)) if weights is None else weights
    places = [fold[(fold >= own.start) & (fold < own.stop)] - own.start for fold in folds]

    def losses(q: Tensor) -> Tensor:
        return model.losses_and_ranks(q)[0].double().cpu() * share[own]

    none = torch.zeros(1, model.directions)
    base, before = losses(none)[0], score(none)[0].cpu()
    whole = slices.gathered(before)
    lengths = torch.tensor(LENGTHS)[:, None]
    starts: list[Tensor | None] = [None] * len(folds)
    results: list[HeldOut] = []
    for ridge in RIDGES:
        falls = base.new_empty(len(LENGTHS), len(base))
        after = before.new_empty(len(LENGTHS), *before.shape)
        fits = torch.empty(len(folds), model.directions, dtype=torch.float64)
        for i, (fold, at) in enumerate(zip(folds, places, strict=True)):
            others = share.clone()
            others[fold] = 0.0
            q = fits[i] = starts[i] = model.fit(ridge, starts[i], others)
            falls[:, at] = (base - losses(lengths * q))[:, at]
            after[:, at] = score(lengths * q).cpu()[:, at]
        falls, after = (slices.gathered(one, dim=1) for one in (falls, after))
        found = ranks().lead(functools.partial(_judged, falls, gains, whole, after))
        results += [
            HeldOut(ridge, length, *numbers, fall, fits)
            for length, fall, numbers in zip(LENGTHS, falls, found, strict=True)
        ]
    return results


def _judged(
    falls: Tensor, gains: Gains, before: Tensor, after: Tensor
) -> list[tuple[float, float, float]]:
    """The mean fall of the loss, the gain of the metric and its error, of P steps."""
    return [
        (float(fall.mean()), *gain) for fall, gain in zip(falls, gains(before, after), strict=True)
    ]
