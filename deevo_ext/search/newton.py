"""The least of a convex function by a damped Newton's method; its step by conjugate gradients."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from deevo_ext.distributed.ranks import ranks

_STEPS, _ENOUGH = 12, 1e-6
# What a step may leave, by its quadratic model: a share of what it gains, or so much.
_LEFT, _LITTLE = 0.3, 0.1 * _ENOUGH


def least(
    value: Callable[[Tensor], float], step: Callable[[Tensor], Tensor], start: Tensor
) -> Tensor:
    """Returns the q float64 [d] of least value(q), from a start.

    value: function(q) -> float. step: function(q) -> what Newton's method subtracts from q, float64
    [d].
    """
    q, before = start, value(start)
    for _ in range(_STEPS):
        newton = step(q)
        length = 1.0
        while not (trial := value(q - length * newton)) <= before:
            length /= 2
            if length < 1e-3:
                return q
        q, decrease, before = q - length * newton, before - trial, trial
        if decrease < _ENOUGH:
            break
    return q


def conjugate_gradients(
    gradient: Tensor | None, product: Callable[[Tensor], Tensor | None], curvature: float
) -> Tensor:
    """Returns the step H^-1 gradient, float64 [d], as far as it matters (Hestenes & Stiefel 1952).

    A residual r leaves at most |r|^2 / (2 curvature) of what the quadratic model has to gain; where
    that is little, the step ends (truncated Newton: Dembo & Steihaug, Math. Prog. 26, 1983).

    gradient: float64 [d]. product: function(v float64 [d]) -> H v. curvature: along no direction
    does H have less. Several ranks call it together: the gradient and products are given on rank 0,
    which decides, and None on the others.
    """
    lead, solution = ranks().lead, _Solution(gradient, curvature)
    towards = lead(lambda: solution.towards)
    for _ in range(len(towards)):  # where numbers are exact, these are enough
        curved = product(towards)
        if (following := lead(functools.partial(solution.next, curved))) is None:
            break
        towards = following
    return lead(lambda: solution.step)


class _Solution:
    """A step that grows along one direction after the other.

    step: so far. towards: the direction that comes next.
    """

    def __init__(self, gradient: Tensor | None, curvature: float) -> None:
        known = torch.empty(0) if gradient is None else gradient
        self.step, self.towards = torch.zeros_like(known), known
        self._residual, self._size = known, float(known @ known)
        self._curvature, self._gained = curvature, 0.0

    def next(self, curved: Tensor | None) -> Tensor | None:
        """Goes along `towards`, of which H v is given; returns the next one, None at the end."""
        assert curved is not None
        bend = float(self.towards @ curved)
        if not 0.0 < bend < torch.inf:  # nothing is left, or something is not finite
            return None
        length = self._size / bend
        self.step = self.step + length * self.towards
        self._residual = self._residual - length * curved
        self._gained += length * self._size / 2
        before, self._size = self._size, float(self._residual @ self._residual)
        if self._size <= 2 * self._curvature * max(_LEFT * self._gained, _LITTLE):
            return None
        self.towards = self._residual + self._size / before * self.towards
        return self.towards
