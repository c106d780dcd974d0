"""Validation: which images choose what a run returns, how often, and by which score."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from deevo_ext.data.labelled import LabelledImages
from deevo_ext.errors import DeevoError
from deevo_ext.fitness.evaluator import Evaluator
from deevo_ext.fitness.metrics import Metric
from deevo_ext.fitness.statistics import Inherited


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
        if self.every < 1:
            raise DeevoError(f"validate_every is {self.every}; expected at least 1")

    def score(self, row: torch.Tensor, inherited: Inherited | None) -> float:
        """Scores a row; inherited: its BatchNorm statistics, unless they are recomputed."""
        return self.evaluator.score(row, self.images, inherited, self.metric)

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
