"""What a precision costs, and that none decides a selection by rounding."""

from __future__ import annotations

import math

import pytest
import torch

import deevo_ext as deevo
from deevo_ext.networks.precision import compare_losses
from support.evolution import images, population
from support.networks import Net


def test_the_precision_report_is_arithmetic() -> None:
    exact = torch.tensor([[1.0, 3.0], [2.0, 3.0], [2.0, 5.0]])
    found = torch.tensor([[1.0, 3.0], [2.0, 3.2], [2.0, 5.0]])
    report = compare_losses("bfloat16", exact, found)
    assert report.differences == pytest.approx((-0.5, -1.0))
    assert report.errors == pytest.approx((-0.1, 0.1), abs=1e-6)
    assert report.ratio == pytest.approx(0.2, abs=1e-6) and report.signs == 1.0 and report.passed
    found[1, 1] = math.inf
    assert not compare_losses("float16", exact, found).passed
    flipped = compare_losses("bfloat16", exact, exact + torch.tensor([[2.0], [0.0], [0.0]]))
    assert not flipped.passed and flipped.signs == 0.5


def test_selection_in_a_precision_that_fails_is_refused_unless_forced() -> None:
    """Convolutions 1e-5 apart are one and the same in bfloat16; members 20 % apart are not."""
    states = [population(4).state_dict(0) for _ in range(4)]
    generator = torch.Generator().manual_seed(0)
    for state in states:
        weight = state["conv.weight"]
        weight.mul_(1 + 1e-5 * torch.randn(weight.shape, generator=generator))
    close = deevo.Population.from_state_dicts(Net(), states)
    data = images(200)
    with pytest.raises(deevo.DeevoError, match="decided by rounding: bfloat16: errors"):
        deevo.ClassificationFitness(deevo.Evaluator(Net(), close, precision="bfloat16"), data)
    forced = deevo.Evaluator(Net(), close, precision="bfloat16", force_precision=True)
    deevo.ClassificationFitness(forced, data)
    far = population(4)
    evaluator = deevo.Evaluator(Net(), far, precision="bfloat16")
    fitness = deevo.ClassificationFitness(evaluator, data)
    exact = deevo.Evaluator(Net(), far)
    for value, row in zip(fitness(far.rows, torch.arange(4), 0), far.rows, strict=True):
        assert value == pytest.approx(exact.score(row, data), rel=0.05)
