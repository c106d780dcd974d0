"""Fitness of trials on labelled images, and the seeded rotation of those images."""

from __future__ import annotations

from typing import Any

import torch

from deevo_ext.data.images import ImageSet
from deevo_ext.data.labelled import LabelledImages
from deevo_ext.errors import DeevoError
from deevo_ext.inference.evaluator import Evaluator
from deevo_ext.inference.metrics import ImageScores, Metric, mean_score
from deevo_ext.inference.racing import Racing
from deevo_ext.inference.sampling import batch_indices, batch_order


def image_set(
    images: LabelledImages | tuple[torch.Tensor, torch.Tensor], name: str
) -> LabelledImages:
    """A set from itself or from (images float32 [N, C, H, W], labels int64 [N])."""
    if isinstance(images, LabelledImages):
        return images
    pair = isinstance(images, (tuple, list)) and len(images) == 2
    if not pair or not all(isinstance(part, torch.Tensor) for part in images):
        raise DeevoError(
            f"{name} are a {type(images).__name__}; expected a deevo_ext.ImageSet, "
            "deevo_ext.CachedImages, or a pair of torch tensors, images float32 [N, C, H, W] and "
            "labels int64 [N]"
        )
    return ImageSet(images[0], images[1], name)


class ClassificationFitness:
    """Mean score of a population's rows on a fixed or rotating batch of labelled images.

    images: the fitness set. images_per_batch: None for all of them in every generation; otherwise a
    new seeded, class-balanced batch of that size every generations_per_batch generations. metric:
    "loss", "top1" (then fitness is 1 - top-1) or a function, see `inference.metrics`;
    label_smoothing: of the loss. racing: drops trials that lose before they have seen all images.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        images: LabelledImages,
        *,
        images_per_batch: int | None = None,
        generations_per_batch: int = 3,
        metric: str | ImageScores | Metric = "loss",
        label_smoothing: float = 0.0,
        racing: Racing | None = None,
        seed: int = 0,
    ) -> None:
        if images_per_batch is not None and images_per_batch < 1:
            raise DeevoError(f"images_per_batch is {images_per_batch}; expected at least 1 or None")
        if generations_per_batch < 1:
            raise DeevoError(
                f"generations_per_batch is {generations_per_batch}; expected at least 1"
            )
        rotates = images_per_batch is not None and images_per_batch < len(images)
        self.evaluator = evaluator
        self.images = images
        self.images_per_batch = images_per_batch if rotates else None
        self.generations_per_batch = generations_per_batch
        self.metric = Metric.of(metric, label_smoothing)
        self.racing = racing
        self.seed = seed
        self._current: tuple[int, list[LabelledImages]] | None = None
        evaluator.check_precision(images)

    @property
    def device(self) -> torch.device:
        """Where networks are evaluated."""
        return self.evaluator.device

    def describe(self) -> dict[str, Any]:
        """What decides the fitness values, for the journal's header."""
        return {
            "images": len(self.images),
            "sha256": self.images.digest(),
            "images_per_batch": self.images_per_batch,
            "generations_per_batch": self.generations_per_batch,
            **self.metric.describe(),
            "seed": self.seed,
            "evaluator": self.evaluator.describe(),
            **({} if self.racing is None else {"racing": self.racing.describe()}),
        }

    def batch_of(self, generation: int) -> int:
        """The number of the batch that a generation (1, 2, ...) is scored on."""
        if self.images_per_batch is None:
            return 0
        return max(generation - 1, 0) // self.generations_per_batch

    def indices(self, number: int) -> torch.Tensor | None:
        """The images of a batch, int64, in the order they are evaluated in; None: all, as they lie.

        Races want a random order: their first looks are at its first images.
        """
        size, labels = self.images_per_batch or len(self.images), self.images.labels
        if self.racing is not None:
            return batch_order(labels, size, number, self.seed)
        if self.images_per_batch is None:
            return None
        return batch_indices(labels, size, number, self.seed)

    def looks(self, batch: int) -> list[int]:
        """Images seen at each look of a race; without racing there is one, at all of them."""
        size = self.images_per_batch or len(self.images)
        if self.racing is None:
            return [size]
        return self.racing.looks(size, self.evaluator.micro_batch)

    def parts(self, number: int) -> list[LabelledImages]:
        """The images of a batch, from one look to the next."""
        if self._current is None or self._current[0] != number:
            self._current = None  # freed before the next is made
            indices = self.indices(number)
            parts = [self.images]
            if indices is not None:
                ends = self.looks(number)
                starts = [0, *ends[:-1]]
                parts = [
                    self.images.subset(indices[start:end])
                    for start, end in zip(starts, ends, strict=True)
                ]
            self._current = (number, parts)
        return self._current[1]

    def statistics(self, rows: torch.Tensor, members: torch.Tensor) -> torch.Tensor | None:
        """BatchNorm statistics [E, S] that members' rows [E, D] are evaluated with."""
        population = self.evaluator.population
        return self.evaluator.used_statistics(rows, population.statistics[members])

    def part(
        self, rows: torch.Tensor, batch: int, look: int, statistics: torch.Tensor | None
    ) -> torch.Tensor:
        """Scores float32 [E, n] of rows [E, D] on the images between two looks."""
        images = self.parts(batch)[look]
        return self.evaluator.image_scores(rows, images, self.metric, statistics)

    def reduce(self, scores: torch.Tensor) -> float:
        """The fitness of scores [N] on all images of a batch."""
        return mean_score(scores, self.evaluator.micro_batch)

    def __call__(self, rows: torch.Tensor, members: torch.Tensor, batch: int) -> list[float]:
        """Fitness, minimised, of rows [E, D] that are members' trials (or the members)."""
        statistics = self.statistics(rows, members)
        parts = [self.part(rows, batch, k, statistics) for k in range(len(self.parts(batch)))]
        return [self.reduce(scores) for scores in torch.cat(parts, dim=1)]
