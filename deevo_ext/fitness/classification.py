"""Fitness of trials on labelled images, and the seeded rotation of those images."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from deevo_ext.arguments import check_arguments
from deevo_ext.data.labelled import LabelledImages
from deevo_ext.distributed.ranks import ranks
from deevo_ext.errors import DeevoError
from deevo_ext.fitness.augmentation import Augmentation, AugmentedImages
from deevo_ext.fitness.base import Fitness
from deevo_ext.fitness.evaluator import Evaluator
from deevo_ext.fitness.metric_checks import settled
from deevo_ext.fitness.metrics import Metric, Scores
from deevo_ext.fitness.racing import Racing
from deevo_ext.fitness.sampling import (
    batch_indices,
    batch_order,
    importance_order,
    rarest,
    size_of_whole_batches,
)
from deevo_ext.fitness.statistics import Inherited, Used
from deevo_ext.population.allocation import sent

SAMPLINGS = ("stratified", "importance")
# Importance: the initial members that judge how hard an image is, and the least it counts as.
_JUDGES, _LEAST_DIFFICULTY = 4, 0.02


@dataclass(frozen=True)
class Batch:
    """Images between one look and the next, and their weights (None: all 1)."""

    parts: list[LabelledImages]
    weights: list[torch.Tensor] | None

    @cached_property
    def labels(self) -> torch.Tensor:
        """Of all these images, int64 [N]."""
        return torch.cat([part.labels for part in self.parts])


class ClassificationFitness(Fitness):
    """Mean score of a population's rows on a fixed or rotating batch of labelled images.

    images: the fitness set. images_per_batch: None for all of them in every generation; otherwise a
    new seeded, class-balanced batch of that size every generations_per_batch generations. sampling:
    "stratified" draws every image of a class alike, "importance" those more often that the first
    members of the initial population are unsure of, weighted so that the expected fitness is that
    of all images. augmentation: done to each batch, the same for parents and trials. metric:
    what `Metric.of` takes, or a Metric; fitness is 1 minus those of which more is better;
    label_smoothing: of the loss. racing: drops trials that lose before they have seen all images.
    """

    evaluator: Evaluator

    def __init__(
        self,
        evaluator: Evaluator,
        images: LabelledImages,
        *,
        images_per_batch: int | None = None,
        generations_per_batch: int = 3,
        sampling: str = "stratified",
        augmentation: Augmentation | None = None,
        metric: str | Scores | Metric = "loss",
        label_smoothing: float = 0.0,
        racing: Racing | None = None,
        seed: int = 0,
    ) -> None:
        check_arguments(ClassificationFitness.__init__, locals())
        if images_per_batch is not None and images_per_batch < 1:
            raise DeevoError(f"images_per_batch is {images_per_batch}; expected at least 1 or None")
        if generations_per_batch < 1:
            raise DeevoError(
                f"generations_per_batch is {generations_per_batch}; expected at least 1"
            )
        if sampling not in SAMPLINGS:
            raise DeevoError(f"sampling is {sampling!r}; expected one of {', '.join(SAMPLINGS)}")
        rotates = images_per_batch is not None and images_per_batch < len(images)
        self.evaluator = evaluator
        self.images = images
        self.images_per_batch = images_per_batch if rotates else None
        self.generations_per_batch = generations_per_batch
        if sampling == "importance" and not rotates:
            raise DeevoError(
                'sampling="importance" draws batches; give images_per_batch below the '
                f"{len(images)} fitness images"
            )
        self.sampling = sampling
        self.augmentation = augmentation
        self.metric = Metric.of(metric, label_smoothing)
        if self.metric.whole is None:
            self.metric = settled(self.metric, evaluator, [images])
        for option, given in (("racing", racing), ("sampling", sampling == "importance")):
            if given and self.metric.of_whole_sets:
                raise DeevoError(
                    f"{option} is for metrics that are means of images' scores, but "
                    f"{self.metric.name} is one of a whole set: some images say nothing of it by "
                    f"themselves; leave {option} out"
                )
        self.racing = racing
        self.seed = seed
        self._current: tuple[int, Batch] | None = None
        self._difficulty: np.ndarray | None = None
        self._require_classes()
        evaluator.check_precision(images)

    def _require_classes(self) -> None:
        """Raises DeevoError where a metric judges classes that a batch may have no image of."""
        if not self.metric.of_classes or self.images_per_batch is None:
            return
        labels = self.images.labels
        needed = size_of_whole_batches(labels)
        if self.images_per_batch < needed:
            label, count = rarest(labels)
            raise DeevoError(
                f"images_per_batch is {self.images_per_batch}, but class {label} has {count} of "
                f"the {len(labels)} fitness images, so that a batch may have none of it; metric "
                f"{self.metric.name} judges every class: give at least {needed}"
            )

    def describe(self) -> dict[str, Any]:
        """Returns what decides the fitness values, for the journal's header."""
        return {
            "images": len(self.images),
            "sha256": self.images.digest(),
            "images_per_batch": self.images_per_batch,
            "generations_per_batch": self.generations_per_batch,
            **self.metric.describe(),
            "seed": self.seed,
            "evaluator": self.evaluator.describe(),
            **({} if self.sampling == "stratified" else {"sampling": self.sampling}),
            **({} if self.augmentation is None else {"augment": self.augmentation.describe()}),
            **({} if self.racing is None else {"racing": self.racing.describe()}),
        }

    def prepare(self) -> None:
        """Judges images by the initial population, while the population still is that."""
        if self.sampling == "importance" and self._difficulty is None:
            population, some = self.evaluator.population, slice(0, _JUDGES)
            statistics = self.evaluator.used_statistics(
                population.rows[some], Inherited(population.statistics[some])
            )
            losses, _ = self.evaluator.losses(population.rows[some], self.images, statistics)

            def difficulty() -> np.ndarray:
                unsure = (1.0 - (-losses.double()).exp()).mean(dim=0).cpu().numpy()
                return np.maximum(unsure, _LEAST_DIFFICULTY)

            self._difficulty = ranks().lead(difficulty)  # batches are drawn by its last bits

    def batch_of(self, generation: int) -> int:
        """Returns the number of the batch that a generation (1, 2, ...) is scored on."""
        if self.images_per_batch is None:
            return 0
        return max(generation - 1, 0) // self.generations_per_batch

    def indices(self, number: int) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Returns a batch's images, int64 in the order of evaluation, and weights float64.

        None for the indices: all images, as they lie; None for the weights: all 1. Races want a
        random order: their first looks are at the first images.
        """
        size, labels = self.images_per_batch or len(self.images), self.images.labels
        if self.sampling == "importance":
            self.prepare()
            assert self._difficulty is not None
            return importance_order(labels, self._difficulty, size, number, self.seed)
        if self.racing is not None:
            return batch_order(labels, size, number, self.seed), None
        if self.images_per_batch is None:
            return None, None
        return batch_indices(labels, size, number, self.seed), None

    def looks(self, batch: int) -> list[int]:
        """Returns the images seen at each look; without racing there is one look, at all."""
        size = self.images_per_batch or len(self.images)
        if self.racing is None:
            return [size]
        return self.racing.looks(size, self.evaluator.micro_batch)

    def batch(self, number: int) -> Batch:
        """Returns a batch's images and weights, from one look to the next."""
        if self._current is None or self._current[0] != number:
            self._current = None  # freed before the next is made
            indices, weights = self.indices(number)
            images = self.images if indices is None else self.images.subset(indices)
            if self.augmentation is not None:
                numbers = torch.arange(len(self.images)) if indices is None else indices
                images = AugmentedImages(images, self.augmentation, numbers, number, self.seed)
            ends = self.looks(number)
            looks = list(zip([0, *ends[:-1]], ends, strict=True))
            parts = [images.slice(*look) for look in looks] if len(looks) > 1 else [images]
            if weights is not None:
                weights = weights.float()
            shares = None if weights is None else [weights[slice(*look)] for look in looks]
            self._current = (number, Batch(parts, shares))
        return self._current[1]

    def statistics(self, rows: torch.Tensor, members: torch.Tensor) -> Used | None:
        """Returns the BatchNorm statistics [E, S] that members' rows [E, D] are scored with."""
        population = self.evaluator.population
        if not population.statistics_layout.dim:
            return None
        own = population.statistics[sent(members, population.statistics.device)]
        return self.evaluator.used_statistics(rows, Inherited(own))

    def part(
        self,
        rows: torch.Tensor,
        batch: int,
        look: int,
        statistics: Used | None,
        images: slice | None = None,
    ) -> torch.Tensor:
        """Returns scores float32 [E, n] of rows [E, D] on a look's images, weighted.

        images: some of the look's, whole micro-batches.
        """
        current = self.batch(batch)
        some = slice(0, len(current.parts[look])) if images is None else images
        seen = self.evaluator.seen(current.parts[look], some)
        scores = self.evaluator.image_scores(rows, seen, self.metric, statistics)
        if current.weights is None:
            return scores
        return scores * current.weights[look][some].to(scores.device)

    def reduce(self, scores: torch.Tensor, batch: int) -> float:
        """Returns the fitness of the outcomes [N] or [N, classes] of all images of a batch."""
        labels = self.batch(batch).labels
        return float(self.metric.fitness(scores, labels, self.evaluator.micro_batch))
