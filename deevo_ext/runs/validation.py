"""Validation: which images choose what a run returns, how often, and by which score."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from deevo_ext.arguments import check_arguments
from deevo_ext.data.labelled import LabelledImages
from deevo_ext.distributed.ranks import ranks
from deevo_ext.errors import DeevoError
from deevo_ext.fitness.dataset import DatasetFitness
from deevo_ext.fitness.evaluator import Evaluator
from deevo_ext.fitness.metrics import Metric
from deevo_ext.fitness.statistics import Inherited
from deevo_ext.identity import full_name


@dataclass(frozen=True)
class FitnessValidation:
    """Data that choose the returned candidate, of any kind, by the fitness of networks on them.

    fitness: on data disjoint from those of the run's fitness. every: the number of generations from
    one validation to the next; the last generation always has one.
    """

    fitness: DatasetFitness
    every: int = 10

    def __post_init__(self) -> None:
        check_arguments(FitnessValidation, vars(self))
        _require_every(self.every)

    @property
    def evaluator(self) -> None:
        """There is none: the fitness puts data through networks."""
        return None

    def score(self, row: torch.Tensor, inherited: Inherited | None) -> float:
        """Scores a row, +inf where that is NaN, than which nothing would ever be better.

        inherited: its BatchNorm statistics, where they are held apart. Of several ranks rank 0
        does, for all. Raises DeevoError for -inf.
        """
        score = ranks().lead(lambda: self.fitness.score(row, inherited))
        if score == -math.inf:
            raise DeevoError(
                f"the loss {full_name(self.fitness.loss)} of a network on the validation data is "
                "-inf; expected a number to be minimised, or +inf or NaN for a network that cannot "
                "be scored"
            )
        return math.inf if math.isnan(score) else score

    def shown(self, score: float) -> float:
        """Returns a score as tables have it."""
        return score

    def describe(self) -> dict[str, Any]:
        """Returns what decides the scores, as JSON values for the journal's header."""
        return {"every": self.every, **self.fitness.describe()}


@dataclass(frozen=True)
class Validation:
    """Images that choose the returned candidate, and how: by the mean score of a metric.

    evaluator: puts the images through networks. every: the number of generations from one
    validation to the next; the last generation always has one. by_folds: the images are the fitness
    images, for want of others: what is fitted to them is scored by folds that the fit has not seen.
    """

    evaluator: Evaluator
    images: LabelledImages
    metric: Metric
    every: int = 10
    by_folds: bool = False

    def __post_init__(self) -> None:
        _require_every(self.every)

    def score(self, row: torch.Tensor, inherited: Inherited | None) -> float:
        """Scores a row; inherited: its BatchNorm statistics, unless they are recomputed."""
        return self.evaluator.score(row, self.images, inherited, self.metric)

    def shown(self, score: float) -> float:
        """Returns a score as tables have it: the metric in its user's direction."""
        return self.metric.shown(score)

    def describe(self) -> dict[str, Any]:
        """Returns what decides the scores, as JSON values for the journal's header."""
        return {
            "images": len(self.images),
            "sha256": self.images.digest(),
            "every": self.every,
            **({"by_folds": True} if self.by_folds else {}),
            **self.metric.describe(),
            "evaluator": self.evaluator.describe(),
        }


def _require_every(every: int) -> None:
    if every < 1:
        raise DeevoError(f"validate_every is {every}; expected at least 1")
