"""Recipes: coefficients [blocks, members] that make one network of the members.

Each row adds up to 1: a block is an affine combination of the members' weights there.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from deevo_ext.errors import DeevoError


def uniform(blocks: int, size: int, members: Sequence[int]) -> Tensor:
    """Returns the recipe float32 [blocks, size] of the plain average of some members."""
    recipe = torch.zeros(blocks, size, dtype=torch.float64)
    recipe[:, list(members)] = 1.0 / len(members)
    return closed(recipe)


def after(recipe: Tensor, step: Tensor, length: float) -> Tensor:
    """Returns the recipe float32 [blocks, members] after a step along x_m - w, of some length.

    A' = (1 - length * sum over m of step[b, m]) * A + length * step, in float64, members in order,
    rounded once to float32; then column 0 is 1 minus the others. Source: `docs/contract.md`.
    """
    a, c = recipe.double(), step.double()
    total = torch.zeros(len(a), dtype=torch.float64)
    for m in range(a.shape[1]):
        total = total + c[:, m]
    return closed((1.0 - length * total)[:, None] * a + length * c)


def normalised(coefficients: Tensor, names: tuple[str, ...]) -> Tensor:
    """Returns the recipe float32 of coefficients float64, each block's divided by their sum.

    Raises DeevoError naming a block whose sum is not above 0.
    """
    totals = coefficients.sum(dim=1)
    for b in range(len(totals)):
        if not totals[b] > 0.0:
            raise DeevoError(
                f"block {names[b]!r}: its coefficients add up to {totals[b]:.6g}, by which "
                '"normalise: true" cannot divide them; expected a sum above 0'
            )
    return closed(coefficients / totals[:, None])


def closed(recipe: Tensor) -> Tensor:
    """Rounds to float32 and makes every row's first coefficient 1 minus the others."""
    rounded = recipe.float()
    others = torch.zeros(len(rounded), dtype=torch.float64)
    for m in range(1, rounded.shape[1]):
        others = others + rounded[:, m].double()
    rounded[:, 0] = (1.0 - others).float()
    return rounded


def check_recipe(recipe: Tensor, names: tuple[str, ...]) -> None:
    """Raises DeevoError naming a block whose coefficients are not finite or do not add up to 1.

    The tolerance is 1e-5 times the sum of their magnitudes, at least 1e-5.
    """
    totals = recipe.double().sum(dim=1)
    allowed = 1e-5 * recipe.double().abs().sum(dim=1).clamp_min(1.0)
    good = torch.isfinite(recipe).all(dim=1) & ((totals - 1.0).abs() <= allowed)
    if not bool(good.all()):
        b = int((~good).nonzero()[0])
        raise DeevoError(
            f"block {names[b]!r}: its coefficients add up to {totals[b]:.6g}; expected 1 "
            '("normalise: true" divides each block by its sum)'
        )
