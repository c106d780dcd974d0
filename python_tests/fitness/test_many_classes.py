"""Rounds of networks with many classes: models of the likeliest, and what they hold in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from deevo_ext.distributed.slices import Slices
from deevo_ext.fitness.metrics import Metric
from deevo_ext.fitness.sampling import batch_order, fold_numbers
from deevo_ext.fitness.virtual import virtual_scores
from deevo_ext.ops.tables import Purpose
from deevo_ext.population.recipes import after, uniform
from support.evolution import top2
from support.rounds import Problem, labelled

CLASSES = 60


class Many(nn.Module):
    """Two layers and a classifier of many classes, for 4x4 images of one channel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3)
        self.head = nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.conv(x)).flatten(1))


class Largest(TorchDispatchMode):
    """The greatest number of logits that an operation gave."""

    elements = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.shape[-1:] == (CLASSES,):
            self.elements = max(self.elements, result.numel())
        return result


def test_slopes_are_those_of_the_model_of_all_classes() -> None:
    problem = Problem(Many, members=4, images=80)
    recipe = uniform(2, 4, range(4))
    whole, _ = problem.probing().model(recipe, problem.images)
    kept: list[Tensor] = []

    def keep(blocks: range, _: Slices, compute: Callable[[], Tensor]) -> Tensor:
        kept.append(compute())
        return kept[-1]

    model, left_out = problem.probing(likeliest=5).model(recipe, problem.images, keep)
    assert not left_out and torch.cat(kept).shape == (2 * 3, 80, 16)
    step = 0.2 * torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    exact = whole.logits(whole.coordinates_of(step))
    found = model.logits(model.coordinates_of(step))
    where = model.kept.expand(6, -1, -1)
    # A slope is a difference of float32 logits over 0.3, twice that where others give it.
    bound = 2.0**-24 * 100 * float(exact.abs().max())
    assert float((found - exact).gather(2, where).abs().max()) <= bound
    assert float((found - exact).abs().max()) > 100 * bound  # the rest is one


def test_no_operation_makes_slopes_of_all_classes() -> None:
    problem = Problem(Many, members=8, images=500)
    recipe = uniform(2, 8, range(8))
    for likeliest, most in ((5, 500 * CLASSES), (None, 16 * 500 * CLASSES)):
        with Largest() as largest:
            problem.probing(chunk=2, likeliest=likeliest).model(recipe, problem.images)
        # Logits of one network, or, of the model of all classes, what 16 directions do to them.
        assert largest.elements == most


@pytest.mark.parametrize("metric", [Metric("loss"), Metric("top1"), Metric.of(top2)])
def test_every_metric_has_at_the_network_the_scores_of_the_network(metric: Metric) -> None:
    problem = Problem(Many, members=4, images=200)
    recipe = uniform(2, 4, range(4))
    model, _ = problem.probing(likeliest=5).model(recipe, problem.images)
    z0 = problem.probing().logits([recipe], problem.images)[0]
    found = virtual_scores(model, metric, torch.zeros(1, 8))[0]
    expected = metric.of_images(z0, problem.images.labels)
    assert float((found - expected).abs().max()) <= 1e-5
    smoothed = virtual_scores(model, Metric("loss", 0.1), torch.zeros(1, 8))[0]
    losses = cross_entropy(z0, problem.images.labels, reduction="none", label_smoothing=0.1)
    torch.testing.assert_close(smoothed, losses, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("few", [False, True])
def test_a_round_gains_as_much_with_the_likeliest_classes(few: bool) -> None:
    problem = Problem(Many, seed=1, members=6, images=900, spread=0.6)
    recipe = uniform(2, 6, range(6))
    new = labelled(problem.model, 4000, 77)
    losses = []
    for likeliest in (None, 8):
        search = replace(
            problem.rounds(size=400, few=few),
            probing=problem.probing(likeliest=likeliest),
            classes=CLASSES,
        )
        outcome = search.run(recipe, 1, 1.0)
        assert outcome.accepted and outcome.step is not None
        made = after(recipe, outcome.step.view_as(recipe), outcome.proposals[outcome.best].length)
        for one in (recipe, made):
            row = problem.blocks.blocks.compose(problem.population, one[None])[0]
            losses.append(problem.evaluator.score(row, new))
    start, full, _, reduced = losses
    assert start - full > 0.05
    assert start - reduced > 0.9 * (start - full)


def drawn_labels() -> Tensor:
    """3,000 labels of 1,000 classes: of many one image, of many none."""
    odds = torch.rand(1000, generator=torch.Generator().manual_seed(0)) ** 3
    return torch.multinomial(odds, 3000, True, generator=torch.Generator().manual_seed(1))


def test_slices_of_an_order_have_their_share_of_classes_with_few_images() -> None:
    labels = drawn_labels()
    sizes = labels.bincount()[labels]
    number, expected = torch.zeros(3, 3), torch.zeros(3, 3)
    for batch in range(40):
        order = batch_order(labels, 3000, batch, 0, Purpose.PART)
        assert torch.equal(order.sort().values, torch.arange(3000))
        for i, part in enumerate(order.split([1500, 500, 1000])):
            counts = labels[part].bincount(minlength=1000) - labels.bincount() * len(part) / 3000
            assert float(counts.abs().max()) <= 2.0  # an image more or less at either end
            for k in (1, 2, 3):
                number[i, k - 1] += int((sizes[part] == k).sum())
                expected[i, k - 1] += int((sizes == k).sum()) * len(part) / 3000
    assert float(expected.min()) > 400
    # Binomial numbers at most: four standard deviations.
    assert bool(((number - expected).abs() <= 4 * expected.sqrt()).all())


def test_every_image_of_a_small_class_is_as_likely_in_a_slice() -> None:
    labels = torch.arange(300) % 100  # three of each
    drawn = torch.zeros(300)
    for batch in range(400):
        drawn[batch_order(labels, 30, batch, 0)] += 1
    # 400 draws of 1/10: 40 with a standard deviation of 6.
    assert float(drawn.min()) > 40 - 5 * 6 and float(drawn.max()) < 40 + 5 * 6
    assert float((drawn.view(3, 100).mean(dim=1) - 40).abs().max()) < 4 * 6 / 10


def test_folds_have_equal_shares_of_the_classes_with_one_image() -> None:
    labels = drawn_labels()
    sizes = labels.bincount()[labels]
    fold = fold_numbers(labels, 5, 0)
    assert fold.bincount().tolist() == [600] * 5
    for k in (1, 2, 3):
        counts = fold[sizes == k].bincount(minlength=5)
        assert int(counts.sum()) > 100 and int(counts.max() - counts.min()) <= 1
