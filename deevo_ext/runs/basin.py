"""Whether a population's members share a basin: the loss half way between random pairs.

Averages, and every recombination, lie between the members. Where the loss rises on the way from one
member to another, as between networks of other initialisations, all of them are destroyed.
Source: Frankle et al., Linear Mode Connectivity and the Lottery Ticket Hypothesis (ICML 2020).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from deevo_ext.data.labelled import LabelledImages
from deevo_ext.errors import DeevoError
from deevo_ext.fitness.evaluator import Evaluator
from deevo_ext.fitness.statistics import Inherited
from deevo_ext.runs.soups import average

PAIRS = 8
IMAGES = 1000
# Part of the way from the worse parent's loss to that of guessing, log(classes), which a midpoint
# may go: fine-tunings of one network stay below their parents, strangers go nearly all of it.
RISE = 0.1


@dataclass(frozen=True)
class Pair:
    """Two members, by their numbers, and the mean losses (nats) of both and of their midpoint."""

    first: int
    second: int
    first_loss: float
    second_loss: float
    midpoint_loss: float

    def collapses(self, guessing: float) -> bool:
        """Whether the midpoint goes a tenth of the way from the worse parent to guessing."""
        worse = max(self.first_loss, self.second_loss)
        return not self.midpoint_loss <= worse + RISE * max(guessing - worse, 0.0)


@dataclass(frozen=True)
class BasinReport:
    """What the midpoints say; `guessing` is the loss of equal odds, log(classes)."""

    pairs: tuple[Pair, ...]
    guessing: float
    names: tuple[str, ...]

    @property
    def collapsed(self) -> int:
        """The number of pairs whose midpoint collapses."""
        return sum(pair.collapses(self.guessing) for pair in self.pairs)

    @property
    def shared(self) -> bool:
        """Whether at most half of the pairs collapse."""
        return 2 * self.collapsed <= len(self.pairs)

    def __str__(self) -> str:
        worst = max(self.pairs, key=_rise)
        text = (
            f"{self.collapsed} of {len(self.pairs)} random pairs have a midpoint much worse than "
            f"both members; the worst is {self.names[worst.first]} (loss "
            f"{worst.first_loss:.4g}) with {self.names[worst.second]} ({worst.second_loss:.4g}): "
            f"{worst.midpoint_loss:.4g} half way"
        )
        if self.shared:
            return text
        return (
            f"the members share no basin, so that no average or recombination of them can be good: "
            f"{text}. Give fine-tunings of one network, made with smaller learning rates or fewer "
            "steps"
        )


def check_basin(evaluator: Evaluator, images: LabelledImages, *, seed: int = 0) -> BasinReport:
    """Measures the losses of up to 8 random pairs of members, and at their midpoints.

    The members are those that the evaluator's population read. images: labelled ones, of which the
    first 1,000 are used, at most 24 times. Statistics held apart are averaged like the weights, or
    recomputed, by the population's policy.
    """
    population = evaluator.population
    count = population.initial_size
    some = images.subset(range(min(IMAGES, len(images))))
    classes = int(images.labels.max()) + 1
    generator = np.random.Generator(np.random.PCG64(seed))
    every = [(i, j) for i in range(count) for j in range(i + 1, count)]
    chosen = generator.permutation(len(every))[:PAIRS]
    losses: dict[int, float] = {}

    def loss(row: torch.Tensor, inherited: Inherited | None) -> float:
        return evaluator.score(row, some, inherited)

    def member_loss(i: int) -> float:
        if i not in losses:
            losses[i] = loss(population.rows[i], Inherited(population.statistics[i]))
        return losses[i]

    pairs = []
    for number in chosen:
        i, j = every[number]
        middle = loss(*average(population, [i, j]))
        pairs.append(Pair(i, j, member_loss(i), member_loss(j), middle))
    return BasinReport(tuple(pairs), math.log(max(classes, 2)), tuple(population.names))


def require_basin(report: BasinReport) -> None:
    """Raises DeevoError for a population whose members share no basin."""
    if not report.shared:
        raise DeevoError(str(report))


def _rise(pair: Pair) -> float:
    rise = pair.midpoint_loss - max(pair.first_loss, pair.second_loss)
    return rise if math.isfinite(rise) else math.inf
