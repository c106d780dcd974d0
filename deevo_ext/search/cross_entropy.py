"""The cross-entropy of a linear model's steps, plus a ridge, and what Newton's method makes of it.

The matrix is Gauss and Newton's (DFO-GN: Cartis & Roberts, Math. Prog. Comp. 11, 2019).
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from deevo_ext.distributed.ranks import ranks
from deevo_ext.search.newton import conjugate_gradients

if TYPE_CHECKING:
    from deevo_ext.search.linear_model import LinearModel

MANY = 1024
"""Directions from which on the Gauss-Newton matrix is never made, but multiplied with vectors.

It has d^2 numbers, which ranks that share a model send, and takes 2 d^2 operations an image and
column. A product with a vector sends d, and takes 4 d; a step needs from one to a hundred.
"""


@dataclass(frozen=True)
class CrossEntropy:
    """The loss of scaled coordinates q float64 [d], and Newton's steps.

    model: of the logits. share: of each image in the mean, float32 [n]. ridge: of |q|^2.
    """

    model: LinearModel
    share: Tensor
    ridge: float

    def value(self, q: Tensor) -> float:
        """Returns the loss."""
        slices = self.model.slices
        losses, weight = self.model.losses_and_ranks(q[None])[0], self.share[slices.own]
        seen = torch.where(weight > 0, losses, 0.0)  # 0 times +inf would be NaN
        sums, length = slices.added(seen.double() * weight.double(), (q @ q)[None])
        return float(sums) + self.ridge * float(length)

    def newton_step(self, q: Tensor) -> Tensor:
        """Returns what Newton's method subtracts from q, float64 [d]."""
        return (self._by_matrix if len(q) < MANY else self._by_products)(q)

    def _by_matrix(self, q: Tensor) -> Tensor:
        d, ridge = len(q), self.ridge
        row, column = torch.triu_indices(d, d)

        def packed(derivatives: Tensor) -> Tensor:
            return torch.cat([derivatives[:, 0], derivatives[row, 1 + column]])

        sums = self.model.slices.summed(
            d + len(row), lambda images: self._derivatives(q, images), packed
        )

        def step() -> Tensor:
            assert sums is not None
            gradient, curvature = sums[:d] + 2 * ridge * q, torch.zeros(d, d, dtype=torch.float64)
            curvature[row, column] = curvature[column, row] = sums[d:]
            curvature.diagonal().add_(2 * ridge + 1e-9)
            return torch.linalg.solve(curvature, gradient)

        return ranks().lead(step)

    def _derivatives(self, q: Tensor, images: slice) -> Tensor:
        """Gradient and Gauss-Newton matrix of some images' loss, float64 [d, 1 + d] on the CPU."""
        gradient = torch.zeros(len(q), dtype=torch.float64, device=self.share.device)
        curvature = gradient.new_zeros(len(q), len(q))
        for part in self.model.cached(images):
            slopes, odds = self._odds(q, part)
            gradient += self._gradient(slopes, odds, part).double()
            # The matrix is J' (diag(p) - p p') J, weighted, summed over images.
            weight = self.share[part]
            root = (slopes * (odds * weight[:, None]).sqrt()).flatten(1)
            means = (slopes * odds).sum(dim=2) * weight.sqrt()
            curvature += (root @ root.T - means @ means.T).double()
        return torch.cat([gradient[:, None], curvature], dim=1).cpu()

    def _by_products(self, q: Tensor) -> Tensor:
        kept: dict[int, Tensor] = {}  # the odds at q, by each part's first image

        def gradient(part: slice) -> Tensor:
            slopes, kept[part.start] = self._odds(q, part)
            return self._gradient(slopes, kept[part.start], part)

        def product(v: Tensor) -> Tensor | None:
            def of(part: slice) -> Tensor:
                slopes, odds = self.model.terms(part)[1], kept[part.start]
                moved = _along(v, slopes)
                moved = odds * (moved - (odds * moved).sum(dim=1, keepdim=True))
                return slopes.flatten(1) @ (moved * self.share[part, None]).flatten()

            return self._summed(of, v)

        return conjugate_gradients(self._summed(gradient, q), product, 2 * self.ridge)

    def _summed(self, compute: Callable[[slice], Tensor], ridged: Tensor) -> Tensor | None:
        """The sum of what is computed [d] of all parts, and the ridge's share, on rank 0."""

        def of_slice(images: slice) -> Tensor:
            parts = (compute(part).double() for part in self.model.cached(images))
            return functools.reduce(operator.add, parts).cpu()

        sums = self.model.slices.summed(len(ridged), of_slice, lambda one: one)
        return None if sums is None else sums + 2 * self.ridge * ridged

    def _odds(self, q: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        """Some images' slopes, and the odds of classes at q [n, columns]."""
        z0, slopes = self.model.terms(part)
        return slopes, torch.softmax(z0 + _along(q, slopes), dim=1)

    def _gradient(self, slopes: Tensor, odds: Tensor, part: slice) -> Tensor:
        """The gradient [d] of some images' loss."""
        one = torch.ones_like(odds[:, :1])
        residual = odds.scatter_add(1, self.model.own[part, None], -one)
        return slopes.flatten(1) @ (residual * self.share[part, None]).flatten()


def _along(q: Tensor, slopes: Tensor) -> Tensor:
    """How much logits [n, columns] move along q, by slopes [d, n, columns]."""
    return torch.einsum("d,dnc->nc", q.to(slopes), slopes)
