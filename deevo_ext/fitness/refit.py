"""The refit of a network's classifier: its last layer changed, by labels and stored features.

It needs one forward pass an image and no gradient through the network. What decides is how the
images fare that a fit has not seen, by five folds; where the network was fitted to the images, too,
a fold's fit is of another network, which was made without it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deevo_ext.errors import DeevoError
from deevo_ext.fitness.biases import tuned_biases
from deevo_ext.fitness.metrics import Metric
from deevo_ext.fitness.resampling import gain_of
from deevo_ext.fitness.ridge import Basis, LogisticFit
from deevo_ext.fitness.sampling import fold_numbers

FOLDS = 5
RIDGES = tuple(10.0 ** (2 - step / 2) for step in range(13))
"""The ridges that are tried, from the largest, which changes next to nothing, to 1e-4."""


@dataclass(frozen=True)
class Refit:
    """A change of a classifier's weight and bias, and what the folds say of it.

    weight: float32 [C, k], added to the layer's; bias: float32 [C], likewise, 0 where the layer has
    none. ridge: what held the change small; None: only biases were tuned, by evolution. gain: by
    how much the fitness of the folds' unseen images falls; standard_error: of that fall, of images
    in pairs.
    """

    weight: Tensor
    bias: Tensor
    ridge: float | None
    gain: float
    standard_error: float

    @property
    def accepted(self) -> bool:
        """Whether the gain is more than its standard error."""
        return self.gain > self.standard_error


def why_no_refit(labels: Tensor, classes: int) -> str:
    """Says why no classifier can be refitted on labels int64 [N]; empty where one can.

    A class with fewer images than there are folds is none of the reasons: a fit that has not seen
    it still has what the network knew of it. A class without any image is one: the fit would only
    learn never to predict it, and no image could tell.
    """
    counts = labels.bincount(minlength=classes)
    if len(counts) > classes:
        return f"labels go up to {len(counts) - 1}, but the network has {classes} classes"
    missing = (counts == 0).nonzero()
    if len(missing):
        return (
            f"{len(missing)} of {classes} classes, as class {int(missing[0])}, have no image among "
            f"the {len(labels)}: the network would forget them; give at least one image of each"
        )
    if len(labels) < 2 * FOLDS:
        return f"{len(labels)} images are too few for {FOLDS} folds; give at least {2 * FOLDS}"
    return ""


def refit(
    features: Tensor,
    logits: Tensor,
    labels: Tensor,
    metric: Metric,
    seed: int,
    *,
    bias: bool = True,
    apart: Sequence[tuple[Tensor, Tensor]] = (),
) -> Refit:
    """Returns the change of the last layer that does best on unseen images.

    features: float32 [N, k], what the last layer maps to logits float32 [N, C]; labels int64 [N];
    metric: what is minimised. bias: whether the layer has one. apart: for a network that was fitted
    to the images, features and logits of all of them by one that was made without the labels of a
    fold, for each fold (`fold_numbers`); these fits say what a refit gains, and choose its ridge.

    The change is fitted by logistic regression with a ridge, on cross-entropy (smoothed as the
    metric's). Five stratified folds choose the ridge by the metric on the images left out; from the
    largest on, ridges are tried until the cross-entropy there rises. For metrics other than the
    loss, a change of the biases alone is evolved on the metric itself, too, and the better of both
    by the folds is returned. The result depends on the arguments alone; its last bits may differ
    between machines.

    Raises DeevoError for values that are not finite, and where `why_no_refit` gives a reason.
    """
    if reason := why_no_refit(labels, logits.shape[1]):
        raise DeevoError(f"the classifier cannot be refitted: {reason}")
    broken = max(
        int((~torch.isfinite(z).all(1) | ~torch.isfinite(read).all(1)).sum())
        for read, z in [(features, logits), *apart]
    )
    if broken:
        raise DeevoError(
            f"the classifier cannot be refitted: features or logits of {broken} of {len(labels)} "
            "images are not finite; check images and preprocessing against the model"
        )
    whole = _Read(Basis.of(features, bias), logits.float())
    parts = [_Read(Basis.of(read, bias), z.float()) for read, z in apart] or [whole] * FOLDS
    problem = _Problem(whole, parts, labels, metric, seed)
    best = problem.by_ridge()
    if metric.name != "loss" and bias:
        biases = problem.by_biases(best)
        best = max(best, biases, key=lambda change: change.refit.gain)
    return best.refit


@dataclass(frozen=True)
class _Change:
    """A refit, and the biases float32 [C] of the fit of each fold."""

    refit: Refit
    fold_biases: list[Tensor]


@dataclass(frozen=True)
class _Read:
    """What a network's classifier reads of all images, and the logits float32 [N, C] it gives."""

    basis: Basis
    logits: Tensor

    def no_change(self) -> Tensor:
        """Returns zeros [r, C]."""
        return self.logits.new_zeros(self.basis.coordinates.shape[1], self.logits.shape[1])


class _Problem:
    """One refit: the whole, and its five parts without a fold each."""

    def __init__(
        self, whole: _Read, parts: list[_Read], labels: Tensor, metric: Metric, seed: int
    ) -> None:
        self.whole, self.parts, self.labels, self.metric = whole, parts, labels, metric
        self.seed = seed
        self.fold = fold_numbers(labels, FOLDS, seed).to(labels.device)
        self.unseen = self._gathered(
            [part.logits[self.fold == fold] for fold, part in enumerate(parts)]
        )
        self.before = metric.of_images(self.unseen, labels)

    def by_ridge(self) -> _Change:
        """Fits weight and bias; the ridge is the one of least metric on images left out."""
        parts = [self._fit(part, self.fold != fold) for fold, part in enumerate(self.parts)]
        unseen = [self._fit(part, self.fold == fold) for fold, part in enumerate(self.parts)]
        changes = [part.no_change() for part in self.parts]
        loss = Metric("loss", self.metric.label_smoothing)
        last = _mean(loss.of_images(self.unseen, self.labels))
        best, chosen, kept = math.inf, (RIDGES[0], self.before), changes
        for ridge in RIDGES:
            changes = [
                part.solve(ridge, change) for part, change in zip(parts, changes, strict=True)
            ]
            after = self._gathered(
                [part.changed(change) for part, change in zip(unseen, changes, strict=True)]
            )
            scores = self.metric.of_images(after, self.labels)
            if (fitness := float(self.metric.fitness(scores, self.labels))) < best:
                best, chosen, kept = fitness, (ridge, scores), changes
            if (present := _mean(loss.of_images(after, self.labels))) > last:
                break
            last = present
        ridge, scores = chosen
        everything = self._fit(self.whole, torch.ones_like(self.fold, dtype=torch.bool))
        weight, bias = self.whole.basis.weights(everything.solve(ridge, self.whole.no_change()))
        found = Refit(weight, bias, ridge, *self._gain(scores))
        every = zip(self.parts, kept, strict=True)
        return _Change(found, [part.basis.weights(change)[1] for part, change in every])

    def by_biases(self, ridge: _Change) -> _Change:
        """Evolves biases on the metric, from none and from those of the ridge regression."""
        after, biases = [], []
        for fold, part in enumerate(self.parts):
            rest, out = self.fold != fold, self.fold == fold
            biases.append(self._evolved(part, rest, ridge.fold_biases[fold]))
            after.append(part.logits[out] + biases[-1])
        scores = self.metric.of_images(self._gathered(after), self.labels)
        everyone = torch.ones_like(self.fold, dtype=torch.bool)
        weight = torch.zeros_like(ridge.refit.weight)
        bias = self._evolved(self.whole, everyone, ridge.refit.bias)
        return _Change(Refit(weight, bias, None, *self._gain(scores)), biases)

    def _evolved(self, read: _Read, some: Tensor, start: Tensor) -> Tensor:
        starts = torch.stack([torch.zeros_like(start), start])
        if not bool(start.any()):
            starts = starts[:1]
        return tuned_biases(read.logits[some], self.labels[some], self.metric, starts, self.seed)

    def _fit(self, read: _Read, some: Tensor) -> LogisticFit:
        return LogisticFit(
            read.basis.coordinates[some],
            read.logits[some],
            self.labels[some],
            read.basis.variances,
            self.metric.label_smoothing,
        )

    def _gathered(self, parts: list[Tensor]) -> Tensor:
        """Returns the logits [N, C] of the folds' images in the images' order."""
        whole = torch.empty_like(self.whole.logits)
        for fold, part in enumerate(parts):
            whole[self.fold == fold] = part
        return whole

    def _gain(self, scores: Tensor) -> tuple[float, float]:
        """Returns the fall of the fitness and its standard error; -inf where there is none."""
        return gain_of(self.metric, self.before, scores, self.labels)


def _mean(scores: Tensor) -> float:
    mean = float(scores.double().mean())
    return mean if math.isfinite(mean) else math.inf
