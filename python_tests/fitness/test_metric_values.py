"""What metrics' functions give and are given: kinds of one number, and sets that are none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import deevo_ext as deevo
from deevo_ext.errors import DeevoError
from deevo_ext.fitness.metric_checks import settled
from deevo_ext.fitness.metrics import METRICS, Metric
from support.evolution import images, population
from support.metrics import brier_of_set
from support.networks import Net

LOGITS = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(40) % 6

SAME: list[Callable[[Tensor], Any]] = [
    lambda value: [float(value)],
    lambda value: np.array([float(value)]),
    lambda value: np.float64(value),
    lambda value: value[None, None],
]


@pytest.mark.parametrize("given", SAME)
def test_one_number_is_the_same_in_whatever_it_is_given(given: Callable[[Tensor], Any]) -> None:
    def wrapped(logits: Tensor, labels: Tensor) -> Any:
        return given(brier_of_set(logits, labels))

    evaluator = deevo.Evaluator(Net(), population(3))
    metric = settled(Metric.of(wrapped), evaluator, [images(80)])
    assert metric.whole
    expected = pytest.approx(float(brier_of_set(LOGITS, LABELS)), rel=1e-12)
    assert metric(LOGITS, LABELS) == expected


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (1 + 1j, r"\(1\+1j\)"),
        (torch.tensor(1j), r"\[\]"),
        (torch.ones(2), r"\[2\]"),
        ([0.5, 0.5], r"\[0.5, 0.5\]"),
        ([], r"\[\]"),
        (None, "None"),
        ("high", "'high'"),
        pytest.param(10**400, "1000", id="too large"),
    ],
)
def test_what_is_no_number_of_a_whole_set_is_refused(value: Any, match: str) -> None:
    def score(logits: Tensor, labels: Tensor) -> Any:
        return value

    with pytest.raises(DeevoError, match=f"score gave {match}.* for 40 images; expected one num"):
        Metric.of(score, whole=True)(LOGITS, LABELS)
    evaluator = deevo.Evaluator(Net(), population(3))
    with pytest.raises(DeevoError, match=r"metric .*score (failed on|gave a tensor)"):
        settled(Metric.of(score), evaluator, [images(80)])
    assert evaluator.forward_passes == 0


@pytest.mark.parametrize("metric", [*METRICS, brier_of_set])
def test_images_that_no_metric_has_a_value_of_are_refused(metric: Any) -> None:
    one = Metric.of(metric, **({} if isinstance(metric, str) else {"whole": True}))
    one(LOGITS, LABELS)
    for shift, match in ((-1, "from -1 to 4"), (1, "from 1 to 6")):
        with pytest.raises(DeevoError, match=f"labels go {match}, but the .* 6 classes; exp"):
            one(LOGITS, LABELS + shift)
    for logits, labels, match in (
        (LOGITS, LABELS[:-1], r"\[40, 6\] and labels int64 \[39\]; expected"),
        (LOGITS, LABELS[:, None], r"\[40, 6\] and labels int64 \[40, 1\]; expected"),
        (LOGITS[:0], LABELS[:0], r"\[0, 6\] and labels int64 \[0\]; expected"),
        (LOGITS, LABELS.float(), r"\[40, 6\] and labels float32 \[40\]; expected"),
        (LOGITS[0], LABELS[:6], r"\[6\] and labels int64 \[6\]; expected"),
    ):
        with pytest.raises(DeevoError, match=f"logits are {match}"):
            one(logits, labels)
    with pytest.raises(DeevoError, match="labels is of type ndarray; expected"):
        one(LOGITS, LABELS.numpy())
