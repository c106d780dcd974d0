"""Whether members are what a search needs: each far from guessing, all of them in one basin.

A member that does no better than guessing was trained with other classes, or with classes in
another order, or on pictures that were prepared in another way. Averages, and every recombination,
lie between the members: where the loss rises on the way from one member to another, as between
networks of other initialisations, all of them are destroyed.
Source: Frankle et al., Linear Mode Connectivity and the Lottery Ticket Hypothesis (ICML 2020).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from deevo_ext.data.labelled import LabelledImages
from deevo_ext.errors import DeevoError
from deevo_ext.fitness.evaluator import Evaluator, Score
from deevo_ext.fitness.sampling import batch_indices
from deevo_ext.fitness.statistics import Inherited
from deevo_ext.runs.soups import average

PAIRS = 8
IMAGES = 1000
# Part of the way from the worse parent's loss to that of guessing, log(classes), which a midpoint
# may go: fine-tunings of one network stay below their parents, strangers go nearly all of it.
RISE = 0.1
# Part of the way from the members' median loss to that of guessing which a single member may be.
FAR = 0.5
# Part of the loss of guessing that has to be learnt: untrained networks are not always above it.
LEARNT = 0.05
_NAMED = 8


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
    """What members and midpoints say.

    members: the score of each member on `images` fitness images. guessing: the loss of equal odds,
    log(classes).
    """

    members: tuple[Score, ...]
    images: int
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

    @property
    def odd(self) -> tuple[int, ...]:
        """The members no better than guessing, or half of the way there from the median loss.

        Those are left out whose top-1 is above twice that of guessing and half of the median: on
        images of another kind than those trained on, networks are too sure of what they get wrong.
        """
        apart = max(self.guessing - self._median, 0.0)
        limit = min((1 - LEARNT) * self.guessing, self.guessing - (1 - FAR) * apart)
        enough = max(2 * math.exp(-self.guessing), self._median_top1 / 2)
        return tuple(
            i
            for i, score in enumerate(self.members)
            if not score.loss < limit and not (math.isfinite(score.loss) and score.top1 > enough)
        )

    def problems(self) -> list[str]:
        """Returns a sentence for each thing that stands against a search of these members."""
        found = []
        if self.odd:
            shown = [
                f"{self.names[i]} (loss {self.members[i].loss:.4g}, top-1 "
                f"{self.members[i].top1:.3f})"
                for i in self.odd[:_NAMED]
            ]
            more = f" and {len(self.odd) - _NAMED} more" if len(self.odd) > _NAMED else ""
            found.append(
                f"{len(self.odd)} of {len(self.members)} members are no better than guessing (loss "
                f"{self.guessing:.4g}) on the fitness images, or far from the others (median "
                f"{self._median:.4g}): {', '.join(shown)}{more}. Compare the order of the classes "
                "in their training with that of the images (--class-order: text sorts folders 1, "
                "10, 2), and the transforms; or leave these members out"
            )
        if not self.shared:
            found.append(
                "the members share no basin, so that no average or recombination of them can be "
                f"good: {self}. Give fine-tunings of one network, made with smaller learning "
                "rates or fewer steps"
            )
        return found

    def __str__(self) -> str:
        worst = max(self.pairs, key=_rise)
        return (
            f"{self.collapsed} of {len(self.pairs)} random pairs have a midpoint much worse than "
            f"both members; the worst is {self.names[worst.first]} (loss "
            f"{worst.first_loss:.4g}) with {self.names[worst.second]} ({worst.second_loss:.4g}): "
            f"{worst.midpoint_loss:.4g} half way"
        )

    @property
    def _median(self) -> float:
        return statistics.median_low(score.loss for score in self.members)

    @property
    def _median_top1(self) -> float:
        return statistics.median_low(score.top1 for score in self.members)


def check_basin(
    evaluator: Evaluator, images: LabelledImages, *, seed: int = 0, chunk: int = 8
) -> BasinReport:
    """Scores every member, and the midpoints of up to 8 random pairs of them.

    The members are those that the evaluator's population read, `chunk` of them at a time. images:
    labelled ones, of which up to 1,000 are used, class-balanced. Statistics held apart are averaged
    like the weights, or recomputed, by the population's policy.
    """
    population = evaluator.population
    count = population.initial_size
    some = some_images(images, seed)
    classes = int(images.labels.max()) + 1
    scores = scores_of(evaluator, some, chunk)
    generator = np.random.Generator(np.random.PCG64(seed))
    every = [(i, j) for i in range(count) for j in range(i + 1, count)]
    pairs = []
    for number in generator.permutation(len(every))[:PAIRS]:
        i, j = every[number]
        row, inherited = average(population, [i, j])
        middle = evaluator.score(row, some, inherited)
        pairs.append(Pair(i, j, scores[i].loss, scores[j].loss, middle))
    return BasinReport(
        tuple(scores),
        len(some),
        tuple(pairs),
        math.log(max(classes, 2)),
        tuple(population.names),
    )


def some_images(images: LabelledImages, seed: int) -> LabelledImages:
    """Returns 1,000 class-balanced images, or all where there are no more."""
    if len(images) <= IMAGES:
        return images
    return images.subset(batch_indices(images.labels, IMAGES, 0, seed))


def scores_of(evaluator: Evaluator, images: LabelledImages, chunk: int) -> list[Score]:
    """Returns the members' scores on images, `chunk` of them at a time."""
    return [
        score
        for rows, inherited in members_of(evaluator, chunk)
        for score in evaluator.scores(rows, images, inherited)
    ]


def members_of(evaluator: Evaluator, chunk: int) -> Iterator[tuple[torch.Tensor, Inherited]]:
    """Yields `chunk` members at a time: their rows, on the evaluating device, and statistics."""
    population = evaluator.population
    for start in range(0, population.size, chunk):
        members = slice(start, start + chunk)
        yield (
            population.rows[members].to(evaluator.device),
            Inherited(population.statistics[members]),
        )


def require_basin(report: BasinReport) -> None:
    """Raises DeevoError for members that no search should be given."""
    if problems := report.problems():
        raise DeevoError(f'{". ".join(problems)}. basin="warn" (--force) goes on all the same')


def _rise(pair: Pair) -> float:
    rise = pair.midpoint_loss - max(pair.first_loss, pair.second_loss)
    return rise if math.isfinite(rise) else math.inf
