"""Fitness of trials on labelled images, and the seeded rotation of those images."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from deevo_ext.backends.reference.philox import ROUNDS, key_of, philox4x32
from deevo_ext.data.images import ImageSet
from deevo_ext.errors import DeevoError
from deevo_ext.inference.evaluator import METRICS, Evaluator
from deevo_ext.tables import POPULATION_MEMBER, Purpose


def image_set(images: ImageSet | tuple[torch.Tensor, torch.Tensor], name: str) -> ImageSet:
    """An ImageSet from itself or from (images float32 [N, C, H, W], labels int64 [N])."""
    if isinstance(images, ImageSet):
        return images
    pair = isinstance(images, (tuple, list)) and len(images) == 2
    if not pair or not all(isinstance(part, torch.Tensor) for part in images):
        raise DeevoError(
            f"{name} are a {type(images).__name__}; expected a deevo_ext.ImageSet or a pair of "
            "torch tensors, images float32 [N, C, H, W] and labels int64 [N]"
        )
    return ImageSet(images[0], images[1], name)


def batch_indices(labels: torch.Tensor, size: int, batch: int, seed: int) -> torch.Tensor:
    """Indices int64 [size], ascending, of batch number `batch`: class-balanced, without repeats.

    Each image gets a Philox key (purpose 11); within its class it is ranked by key, and the images
    whose (rank + 1/2) / class size is least are taken, so every class is represented in proportion.
    """
    count = labels.numel()
    blocks = np.arange((count + 3) // 4, dtype=np.uint64)
    counter = (int(Purpose.BATCH), batch, POPULATION_MEMBER, blocks)
    keys = np.stack(philox4x32(counter, key_of(seed), ROUNDS), axis=1).reshape(-1)[:count]
    own = labels.cpu().numpy()
    position = np.empty(count, dtype=np.float64)
    for label in np.unique(own):
        members = np.flatnonzero(own == label)
        ranks = np.empty(members.size, dtype=np.int64)
        ranks[np.argsort(keys[members], kind="stable")] = np.arange(members.size)
        position[members] = (ranks + 0.5) / members.size
    order = np.lexsort((keys, position))
    return torch.from_numpy(np.sort(order[:size]))


class ClassificationFitness:
    """Mean cross-entropy (or 1 - top-1) of a population's rows on a fixed or rotating image batch.

    images: the fitness set. images_per_batch: None for all of them in every generation; otherwise a
    new seeded, class-balanced batch of that size every generations_per_batch generations.
    metric: "loss" or "top1" (then fitness is 1 - top-1).
    """

    def __init__(
        self,
        evaluator: Evaluator,
        images: ImageSet,
        *,
        images_per_batch: int | None = None,
        generations_per_batch: int = 3,
        metric: str = "loss",
        seed: int = 0,
    ) -> None:
        if metric not in METRICS:
            raise DeevoError(f"metric is {metric!r}; expected one of {', '.join(METRICS)}")
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
        self.metric = metric
        self.seed = seed
        self._current: tuple[int, ImageSet] | None = None
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
            "metric": self.metric,
            "seed": self.seed,
            "evaluator": self.evaluator.describe(),
        }

    def batch_of(self, generation: int) -> int:
        """The number of the batch that a generation (1, 2, ...) is scored on."""
        if self.images_per_batch is None:
            return 0
        return max(generation - 1, 0) // self.generations_per_batch

    def batch(self, number: int) -> ImageSet:
        """The images of a batch."""
        if self.images_per_batch is None:
            return self.images
        if self._current is None or self._current[0] != number:
            indices = batch_indices(self.images.labels, self.images_per_batch, number, self.seed)
            self._current = (number, self.images.subset(indices))
        return self._current[1]

    def __call__(self, rows: torch.Tensor, members: torch.Tensor, batch: int) -> list[float]:
        """Fitness, minimised, of rows [E, D] that are members' trials (or the members)."""
        inherited = self.evaluator.population.statistics[members]
        scores = self.evaluator.scores(rows, self.batch(batch), inherited)
        return [score.by(self.metric) for score in scores]
