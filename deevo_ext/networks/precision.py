"""Whether a precision is fine enough to select in.

Rounding is a bias of each network that more images do not average out, so what counts is its size
beside the differences between networks that selection must see.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

LIMIT = 0.25
"""Largest median of |error| / |difference| that passes."""


@dataclass(frozen=True)
class PrecisionReport:
    """Paired mean-loss differences of networks, in float32 and in another precision.

    differences: float32's, in nats, one a pair; errors: the other precision's minus those.
    ratio: median of |error| / |difference|; signs: the share of pairs that keep their order.
    overflows: losses that are not finite in this precision but are in float32.
    """

    precision: str
    differences: tuple[float, ...]
    errors: tuple[float, ...]
    ratio: float
    signs: float
    overflows: int
    images: int

    @property
    def passed(self) -> bool:
        """Whether selection may use this precision."""
        return self.ratio <= LIMIT and not self.overflows

    def __str__(self) -> str:
        typical = sorted(map(abs, self.differences))[len(self.differences) // 2]
        return (
            f"{self.precision}: errors of paired loss differences are {self.ratio:.2g} of the "
            f"differences themselves (median of {len(self.errors)} pairs on {self.images} images; "
            f"limit {LIMIT}), typical difference {typical:.2g}, order kept in {self.signs:.0%}, "
            f"{self.overflows} overflows: {'passed' if self.passed else 'failed'}"
        )


def compare_losses(precision: str, exact: Tensor, rounded: Tensor) -> PrecisionReport:
    """Returns the report from losses [K, N] of the same networks and images, K >= 2."""
    finite = torch.isfinite(exact).all(dim=0)
    overflows = int((~torch.isfinite(rounded[:, finite])).sum())
    usable = finite & torch.isfinite(rounded).all(dim=0)
    differences, errors = [], []
    for k in range(exact.shape[0] - 1):
        pair = [
            float((losses[k, usable].double() - losses[k + 1, usable].double()).mean())
            for losses in (exact, rounded)
        ]
        differences.append(pair[0])
        errors.append(pair[1] - pair[0])
    ratios = sorted(
        abs(e) / abs(d) if d else (0.0 if e == 0 else math.inf)
        for d, e in zip(differences, errors, strict=True)
    )
    kept = [(d > 0) == (d + e > 0) for d, e in zip(differences, errors, strict=True)]
    middle = ratios[len(ratios) // 2] if int(usable.sum()) else math.inf
    return PrecisionReport(
        precision,
        tuple(differences),
        tuple(errors),
        middle,
        sum(kept) / len(kept),
        overflows,
        int(exact.shape[1]),
    )
