"""Ridge logistic regression of a change of logits, fitted to a bound on what is left to gain.

The objective, with features X [n, r], logits Z [n, C] and a change T [r, C], is the mean
cross-entropy of Z + X T plus ridge * |T|^2. It is convex, and its curvature is at least 2 * ridge:
where its gradient is g, it lies at most |g|^2 / (4 ridge) above its least value.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

# What may be left to gain, in nats: a thousandth of what 1,000 images can tell apart.
_GAP = 1e-5
# Calls of L-BFGS and the iterations of each, after which the gap is looked at.
_CALLS, _ITERATIONS = 30, 5
# Directions whose share of the features' greatest variance is less than this are rounding.
_RANK = 1e-12


@dataclass(frozen=True)
class Basis:
    """Features as coordinates along their principal directions, and the way back to weights.

    Ridge regression is the same in any orthonormal basis, and in this one the curvature is known
    well enough for some ten steps of L-BFGS. With fewer images than features there are fewer
    coordinates, too. Features are divided by their root mean square, so that a ridge means the same
    in all networks; a bias is a feature that is always 1.

    coordinates: float32 [N, r]. directions: float64 [k + bias, r]. variances: float32 [r], the mean
    squares of the coordinates. rms: of the features.
    """

    coordinates: Tensor
    directions: Tensor
    variances: Tensor
    rms: float
    bias: bool

    @classmethod
    def of(cls, features: Tensor, bias: bool) -> Basis:
        """Makes the basis of features float32 [N, k]."""
        rms = max(float(features.double().square().mean().sqrt()), 1e-30)
        scaled = features.double() / rms
        if bias:
            scaled = torch.cat([scaled, torch.ones_like(scaled[:, :1])], dim=1)
        if len(scaled) < scaled.shape[1]:
            squares, images = torch.linalg.eigh(scaled @ scaled.T)
            kept = squares > _RANK * squares[-1]
            squares, images = squares[kept], images[:, kept]
            directions = scaled.T @ (images / squares.sqrt())
            coordinates = images * squares.sqrt()
        else:
            squares, directions = torch.linalg.eigh(scaled.T @ scaled)
            kept = squares > _RANK * squares[-1]
            squares, directions = squares[kept], directions[:, kept]
            coordinates = scaled @ directions
        variances = squares / len(scaled)
        return cls(coordinates.float(), directions, variances.float(), rms, bias)

    def weights(self, change: Tensor) -> tuple[Tensor, Tensor]:
        """Returns a change [r, C] as weight float32 [C, k] and bias float32 [C]; 0 without one."""
        whole = (self.directions @ change.double()).T
        if not self.bias:
            return (whole / self.rms).float(), torch.zeros(len(whole), device=whole.device)
        return (whole[:, :-1] / self.rms).float().contiguous(), whole[:, -1].float().contiguous()


@dataclass(frozen=True)
class LogisticFit:
    """The images of one fit: coordinates [n, r], logits float32 [n, C] and labels int64 [n].

    variances: the basis' [r], which set the steps' scale. label_smoothing: of the cross-entropy.
    """

    coordinates: Tensor
    logits: Tensor
    labels: Tensor
    variances: Tensor
    label_smoothing: float = 0.0

    def changed(self, change: Tensor) -> Tensor:
        """Returns the logits after a change [r, C]."""
        return self.logits + self.coordinates @ change

    def solve(self, ridge: float, start: Tensor) -> Tensor:
        """Returns the change float32 [r, C] of least objective, within 1e-5 nats of it if possible.

        start: a change to begin with. After 150 iterations the present change is returned.
        """
        if not start.numel():  # features that are all 0, without a bias
            return start
        odds = self.changed(start).softmax(dim=1)
        spread = (odds * (1.0 - odds)).mean(dim=0) + 1e-6
        # The square root of the diagonal of the curvature: in these units it is about 1 everywhere.
        scale = (self.variances[:, None] * spread + 2.0 * ridge).sqrt()
        point, gap = start * scale, math.inf

        def objective() -> float:
            nonlocal gap
            value, gradient = self._objective(ridge, point / scale)
            gap = float(gradient.square().sum()) / (4.0 * ridge)
            point.grad = gradient / scale
            return value

        step = _minimiser(point, objective)
        for _ in range(_CALLS):
            step()
            if gap <= _GAP:
                break
        return point / scale

    def _objective(self, ridge: float, change: Tensor) -> tuple[float, Tensor]:
        """Returns the objective and its gradient [r, C]."""
        n, classes = self.logits.shape
        logits = self.changed(change)
        loss = cross_entropy(logits, self.labels, label_smoothing=self.label_smoothing)
        excess = logits.softmax(dim=1).sub_(self.label_smoothing / classes)
        own = torch.full_like(excess[:, :1], self.label_smoothing - 1.0)
        excess.scatter_add_(1, self.labels[:, None], own)
        gradient = self.coordinates.T @ excess / n + 2.0 * ridge * change
        return float(loss) + ridge * float(change.square().sum()), gradient


def _minimiser(point: Tensor, objective: Callable[[], float]) -> Callable[[], object]:
    """Returns a function that moves `point` by some iterations of L-BFGS each time it is called."""
    optimizer = torch.optim.LBFGS(
        [point],
        max_iter=_ITERATIONS,
        max_eval=3 * _ITERATIONS,
        tolerance_grad=0.0,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )
    return lambda: optimizer.step(objective)
