"""fold and loss_and_rank against plain float64 formulas."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from deevo_ext.inference.operators import SPACE, Column, fold, loss_and_rank


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_losses_and_ranks_are_cross_entropy_and_a_stable_sort(smoothing: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 50, 17, generator=generator) * 5
    logits[0] = logits[0].round()  # ties
    labels = torch.randint(0, 17, (50,), generator=generator)
    losses, ranks = torch.empty(3, 50), torch.empty(3, 50, dtype=torch.int32)
    loss_and_rank(logits, labels, smoothing, losses, ranks)
    for k in range(3):
        exact = nn.functional.cross_entropy(
            logits[k].double(), labels, reduction="none", label_smoothing=smoothing
        )
        assert torch.allclose(losses[k].double(), exact, rtol=2.0**-23, atol=1e-9)
        order = logits[k].sort(dim=1, descending=True, stable=True).indices
        assert torch.equal(ranks[k].long(), (order == labels[:, None]).int().argmax(dim=1))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_logit_that_is_not_finite_is_the_worst_result(bad: float) -> None:
    logits = torch.zeros(1, 3, 5)
    logits[0, 1, 4] = bad
    losses, ranks = torch.empty(1, 3), torch.empty(1, 3, dtype=torch.int32)
    loss_and_rank(logits, torch.tensor([0, 0, 0]), 0.0, losses, ranks)
    assert losses[0, 1] == math.inf and ranks[0, 1] == 5
    assert losses[0, 0] == losses[0, 2] == pytest.approx(math.log(5)) and ranks[0, 0] == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_folded_convolution_is_the_convolution_and_its_norm(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    co, ci, taps, eps = 5, 3, 9, 1e-5
    sizes = [co * ci * taps, co, co, co, co, co]  # weight, bias, gamma, beta, mean, variance
    rows = torch.randn(2, sum(sizes), generator=generator)
    rows[:, -co:] = rows[:, -co:].abs() + 0.1
    starts = [sum(sizes[:i]) for i in range(6)]
    # Variance from the statistics, gamma from the constants: every space is read.
    statistics, constants = rows[:, starts[5] :].clone(), rows[0, starts[2] : starts[3]].clone()
    entry = [*starts, co, ci, taps, 4, 8, 16, 24]
    entry[Column.VARIANCE], entry[Column.GAMMA] = SPACE, 2 * SPACE
    table, e = torch.tensor([entry]), torch.tensor([eps], dtype=torch.float64)
    weights = torch.full((2, 8 + co * taps * 4), 7.0, dtype=dtype)
    vectors = torch.full((2, 32), 7.0)
    fold(rows, statistics, constants, table, e, weights, vectors)
    for k in range(2):
        weight, bias, _, beta, mean, variance = (part.double() for part in rows[k].split(sizes))
        scale = constants.double() / torch.sqrt(variance + eps)
        expected = weight.view(co, ci, taps) * scale.view(co, 1, 1)
        found = weights[k, 8:].view(co, taps, 4)
        roundoff = torch.finfo(dtype).eps / 2 + 2.0**-23  # one rounding to dtype, two to float32
        assert torch.allclose(
            found[:, :, :3].transpose(1, 2).double(), expected, rtol=roundoff, atol=0
        )
        assert not found[:, :, 3].any() and bool((weights[k, :8] == 7).all())
        shift = beta + (bias - mean) * scale
        assert torch.allclose(vectors[k, 16 : 16 + co].double(), shift, rtol=2.0**-23, atol=0)
        assert torch.equal(vectors[k, 24 : 24 + co], scale.float())
        assert bool((vectors[k, :16] == 7).all())
