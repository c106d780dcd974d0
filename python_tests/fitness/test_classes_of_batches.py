"""Which batches and slices of an order have an image of every class, whatever is drawn."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import deevo_ext as deevo
from deevo_ext.data.images import ImageSet
from deevo_ext.errors import DeevoError
from deevo_ext.fitness.metrics import Metric
from deevo_ext.fitness.sampling import (
    batch_indices,
    batch_order,
    size_of_whole_batches,
    size_of_whole_slices,
)
from deevo_ext.runs.rounds import RoundSearch
from support.evolution import population
from support.networks import Net
from support.rounds import Problem


def labels_of(*sizes: int) -> Tensor:
    return torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))


def longest_without(order: Tensor, label: int) -> int:
    """The most images in a row of which none is of a class."""
    places = (order == label).nonzero().flatten().tolist()
    ends = [-1, *places, len(order)]
    return max(b - a - 1 for a, b in itertools.pairwise(ends))


SIZES = [
    (1, 40),
    (2, 30, 30),
    (5, 5, 5, 5),
    (3, 7, 19, 20, 45),
    (19, 19, 60),
    (20, 20, 20),
    (20, 60, 100, 7),
    (25, 40, 300),
    (50, 50, 150),
]


@pytest.mark.parametrize("sizes", SIZES)
def test_batches_and_slices_of_these_sizes_have_every_class(sizes: tuple[int, ...]) -> None:
    labels = labels_of(*sizes)
    needed, stretch = size_of_whole_batches(labels), size_of_whole_slices(labels)
    assert len(sizes) <= needed <= len(labels)
    first, longest = 0, 0
    for number in range(300):
        order = labels[batch_order(labels, len(labels), number, 3)]
        for label in range(len(sizes)):
            first = max(first, int((order == label).nonzero()[0]) + 1)
            longest = max(longest, longest_without(order, label) + 1)
    assert first <= needed and longest <= stretch
    if min(sizes) >= 20:  # nothing is random but what stands at the same place
        assert first == needed
    elif len(sizes) < 4:  # of 300 draws one is near the worst
        assert first >= 0.9 * needed


def fitness(labels: Tensor, size: int, metric: str) -> deevo.ClassificationFitness:
    data = ImageSet(torch.randn(len(labels), 1, 10, 10), labels, "images")
    evaluator = deevo.Evaluator(Net(), population(3))
    return deevo.ClassificationFitness(
        evaluator, data, images_per_batch=size, metric=metric, seed=6
    )


@pytest.mark.parametrize("metric", ["worst-class", "macro-f1"])
def test_batches_that_may_lack_a_class_are_refused_at_the_start(metric: str) -> None:
    rare = labels_of(500, 499, 1)
    present = [bool((rare[batch_indices(rare, 400, k, 6)] == 2).any()) for k in range(6)]
    assert present[0] and not all(present)  # the first batch tells nothing of the others
    match = "images_per_batch is 400, but class 2 has 1 of the 1000 fitness images"
    with pytest.raises(DeevoError, match=f"{match}.* every class: give at least 1000"):
        fitness(rare, 400, metric)
    fitness(rare, 400, "top1")
    fitness(rare, 1000, metric)
    some = labels_of(500, 497, 3)
    needed = size_of_whole_batches(some)
    assert 1000 / 3 <= needed <= 1000 / 3 + 3
    with pytest.raises(DeevoError, match=f"give at least {needed}"):
        fitness(some, needed - 1, metric)
    fitness(some, needed, metric)


def test_rounds_whose_parts_may_lack_a_class_are_refused_at_the_start() -> None:
    def rounds(metric: str, *sizes: int) -> RoundSearch:
        labels = labels_of(*sizes)
        data = ImageSet(torch.zeros(len(labels), 1, 4, 4), labels, "fitness images")
        problem = Problem(images=10, metric=Metric.of(metric))
        return replace(problem.rounds(size=400), images=data, fit=400)

    rare = rounds("worst-class", 1000, 1000, 997, 3)
    assert rare.sizes()[:2] == (400, 400)
    lacks = [not bool((rare.parts(k).choice.labels == 3).any()) for k in range(1, 7)]
    assert any(lacks)
    with pytest.raises(DeevoError, match="class 3 has 3 of the 3000 fitness images, so that of t"):
        rare.check()
    rounds("loss", 1000, 1000, 997, 3).check()
    enough = rounds("worst-class", 1000, 1000, 990, 10)
    enough.check()
    for number in range(1, 30):
        parts = enough.parts(number)
        for part in (parts.model, parts.choice, parts.test):
            assert len(part.labels.unique()) == 4
