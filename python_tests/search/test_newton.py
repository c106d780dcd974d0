"""Conjugate gradients against the matrix's own solution."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from deevo_ext.search.newton import conjugate_gradients


def _matrix(d: int, least: float) -> tuple[Tensor, Tensor]:
    """A symmetric matrix whose eigenvalues go from `least` to 1e4 times that, and a gradient."""
    generator = torch.Generator().manual_seed(d)
    basis = torch.linalg.qr(torch.randn(d, d, dtype=torch.float64, generator=generator)).Q
    values = least * torch.logspace(0, 4, d, dtype=torch.float64)
    return (basis * values) @ basis.T, torch.randn(d, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize(("d", "least"), [(1, 0.1), (5, 1.0), (200, 1.0), (200, 1e-3)])
@pytest.mark.parametrize("size", [1.0, 1e-5, 1e-12])
def test_a_step_leaves_little_to_gain(d: int, least: float, size: float) -> None:
    matrix, gradient = _matrix(d, least)
    gradient *= size
    products = 0

    def product(v: Tensor) -> Tensor:
        nonlocal products
        products += 1
        return matrix @ v

    step = conjugate_gradients(gradient, product, least)
    gained = float(gradient @ step - step @ matrix @ step / 2)
    most = float(gradient @ torch.linalg.solve(matrix, gradient)) / 2
    assert 0.0 < gained <= most * (1 + 1e-9)
    assert most - gained <= max(0.3 * gained, 1e-7) + 1e-9 * most
    assert 1 <= products <= d
    if size < 1e-10:  # where little is to be gained, little is done
        assert products == 1


@pytest.mark.parametrize("broken", [0.0, float("nan"), float("inf")])
def test_a_gradient_that_says_nothing_gives_no_step(broken: float) -> None:
    gradient = torch.full((3,), broken, dtype=torch.float64)
    assert torch.equal(conjugate_gradients(gradient, lambda v: v, 1.0), torch.zeros(3).double())
