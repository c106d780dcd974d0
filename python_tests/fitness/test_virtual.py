"""Virtual scores: every metric on a linear model's logits, as on those of a network."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from deevo_ext.errors import DeevoError
from deevo_ext.fitness import virtual
from deevo_ext.fitness.metrics import Metric
from deevo_ext.fitness.virtual import virtual_fitness, virtual_scores
from deevo_ext.search.linear_model import LinearModel
from support.evolution import top2


@pytest.fixture
def model() -> LinearModel:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 5, (90,), generator=generator)
    model = LinearModel(torch.randn(90, 5, generator=generator), labels, 4)
    for k in range(4):
        model.put({k: torch.randn(90, 5, generator=generator)})
    return model


@pytest.fixture
def q() -> Tensor:
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_losses_are_smoothed_like_those_of_networks(
    model: LinearModel, q: Tensor, smoothing: float
) -> None:
    scores = virtual_scores(model, Metric("loss", smoothing), q)
    for found, logits in zip(scores, model.logits(q), strict=True):
        expected = cross_entropy(logits, model.labels, reduction="none", label_smoothing=smoothing)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("logits", [1, 7 * 6 * 5, 1 << 18])
def test_functions_get_a_score_for_each_image_whatever_the_slices(
    model: LinearModel, q: Tensor, logits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(virtual, "_LOGITS", logits)
    scores = virtual_scores(model, Metric.of(top2), q)
    assert torch.equal(scores, torch.stack([top2(z, model.labels) for z in model.logits(q)]))
    wrong = virtual_scores(model, Metric("top1"), q)
    assert torch.equal(wrong, (model.logits(q).argmax(dim=2) != model.labels).float())


def test_fitness_is_the_mean_score_and_the_ridge(model: LinearModel, q: Tensor) -> None:
    fitness = virtual_fitness(model, Metric.of(top2), 0.25)(q)
    means = torch.stack([top2(z, model.labels) for z in model.logits(q)]).double().mean(dim=1)
    assert fitness.dtype == torch.float64
    torch.testing.assert_close(fitness, means + 0.25 * q.double().square().sum(dim=1))


def test_what_is_not_finite_scores_infinity_and_another_shape_is_refused(
    model: LinearModel, q: Tensor
) -> None:
    model.slopes[0, 3, 1] = torch.inf
    for metric in (Metric("loss"), Metric("top1"), Metric.of(top2)):
        scores = virtual_scores(model, metric, q)
        assert bool((scores[:, 3] == torch.inf).all()) and bool(scores[:, 4:].isfinite().all())

    def nan(logits: Tensor, labels: Tensor) -> Tensor:
        return torch.full((len(labels),), torch.nan)

    assert bool((virtual_fitness(model, Metric.of(nan), 0.0)(q) == torch.inf).all())

    def signs(logits: Tensor, labels: Tensor) -> Tensor:
        return torch.where(labels > 2, torch.inf, -torch.inf)

    assert bool((virtual_scores(model, Metric.of(signs), q) == torch.inf).all())

    def one(logits: Tensor, labels: Tensor) -> Tensor:
        return logits.mean()

    with pytest.raises(DeevoError, match=r"one gave \[\] for 540 images"):
        virtual_scores(model, Metric.of(one), q)
