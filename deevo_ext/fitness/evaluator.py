"""Scores of a population's rows: statistics by the policy, losses by PopulationForward, means.

Images are always evaluated in micro-batches of one fixed size, the last one padded, each on one
thread, and their float64 subtotals are added in order. So a score depends on the row and the images
alone: not on what is evaluated with it, nor on the number of threads.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deevo_ext.data.labelled import LabelledImages
from deevo_ext.errors import DeevoError
from deevo_ext.fitness.metrics import Metric, mean_score
from deevo_ext.fitness.statistics import Inherited, StatisticsPolicy, Used
from deevo_ext.networks.engines.choose import EngineTable
from deevo_ext.networks.forward import Losses, PopulationForward
from deevo_ext.population.population import Population

# What the precision check looks at.
_CHECK_MEMBERS, _CHECK_IMAGES = 8, 1024


@dataclass(frozen=True)
class PerImage:
    """losses float32 [N] (cross-entropy in nats) and correct bool [N] (top-1)."""

    losses: Tensor
    correct: Tensor


@dataclass(frozen=True)
class Score:
    """Mean cross-entropy in nats (+inf where it is not finite), top-1 in 0..1, images."""

    loss: float
    top1: float
    images: int


class Evaluator:
    """Scores rows of a population.

    model: gives the forward pass; it is copied, and its own weights are not used. micro_batch:
    images per forward pass, torch.get_num_threads() of them at a time on the CPU. calibration:
    images whose activations give BatchNorm's statistics under the population's policy "recalibrate"
    (needed there, ignored elsewhere). device: where networks run; the population may lie elsewhere.
    precision and engine: as in `PopulationForward`. force_precision: selection in 16 bits is
    refused where the population fails the precision check, unless this is set.

    `score`, `scores` and `score_by` apply the policy to inherited statistics; the other methods
    take those that rows are used with, which `statistics_of` and `used_statistics` give.
    """

    def __init__(
        self,
        model: nn.Module,
        population: Population,
        *,
        micro_batch: int = 64,
        calibration: LabelledImages | None = None,
        device: torch.device | str = "cpu",
        precision: str = "auto",
        engine: str = "auto",
        force_precision: bool = False,
    ) -> None:
        self.population = population
        self.micro_batch = micro_batch
        self.forward = PopulationForward(
            model,
            population,
            precision=precision,
            engine=engine,
            micro_batch=micro_batch,
            device=device,
        )
        self.device = self.forward.device
        self.policy = StatisticsPolicy(
            population, self.forward.module, calibration, micro_batch, self.device
        )
        self._asked = {"precision": precision, "engine": engine}
        self._force_precision = force_precision
        self._image_passes = 0

    @property
    def forward_passes(self) -> int:
        """Images put through a network so far, calibration's included.

        Checks of network graphs and of the precision are not counted.
        """
        return self._image_passes + self.policy.forward_passes

    def describe(self) -> dict[str, Any]:
        """What decides the scores besides row and images, for the journal's header."""
        calibration = self.policy.calibration
        return {
            "micro_batch": self.micro_batch,
            "device": self.device.type,
            "calibration": calibration.digest() if calibration else None,
            **self._asked,
        }

    def keep_engines(self, path: Path, *, resumed: bool) -> None:
        """Takes engines and precision from a run's file, and writes new choices to it.

        Raises DeevoError where the run goes on but its file is gone: other engines round otherwise.
        """
        if resumed and not path.exists():
            raise DeevoError(
                f"{path} is missing: it says which engines the run's fitness was computed with; "
                "restore it from a backup, or start a new run folder"
            )
        self.forward.use_table(EngineTable(self.device, path))

    def check_precision(self, images: LabelledImages) -> None:
        """Refuses selection in a 16-bit precision that the population fails, on these images."""
        if self.forward.precision not in ("bfloat16", "float16") or self._force_precision:
            return
        report = self.forward.precision_check(*self._sample(images))
        if not report.passed:
            raise DeevoError(
                f"selection in this precision would be decided by rounding: {report}; use "
                'precision="float32", or force_precision=True'
            )

    def statistics_of(self, row: Tensor, inherited: Inherited | None) -> Used | None:
        """The statistics [S] that `row` [D] is evaluated with; None where the row holds them."""
        return self.policy.of_row(row, inherited)

    def used_statistics(self, rows: Tensor, inherited: Inherited | None) -> Used | None:
        """`statistics_of` several rows, [K, S]."""
        return self.policy.of_rows(rows, inherited)

    def per_image(
        self, row: Tensor, images: LabelledImages, statistics: Used | None = None
    ) -> PerImage:
        """Losses and hits of one row ([D], any floating dtype) on images."""
        apart = None if statistics is None else Used(statistics[None])
        return self.per_images(row[None], images, apart)[0]

    def per_images(
        self, rows: Tensor, images: LabelledImages, statistics: Used | None = None
    ) -> list[PerImage]:
        """Losses and hits of rows [K, D] with statistics [K, S] on images."""
        losses, ranks = self._losses(rows, images, statistics, 0.0)
        return [PerImage(one, rank == 0) for one, rank in zip(losses, ranks, strict=True)]

    def image_scores(
        self,
        rows: Tensor,
        images: LabelledImages,
        metric: Metric,
        statistics: Used | None = None,
    ) -> Tensor:
        """Scores float32 [K, N] by a metric of rows [K, D] with statistics [K, S]."""
        if metric.function is None:
            losses, ranks = self._losses(rows, images, statistics, metric.label_smoothing)
            return metric.of_results(losses, ranks)
        self._settle(images)
        labels = images.labels.to(self.device)
        scores = torch.empty(len(rows), len(images), device=self.device)

        def take(k: int, start: int, logits: Tensor) -> None:
            places = slice(start, start + len(logits))
            scores[k, places] = metric.of_logits(logits.float(), labels[places])

        self.forward.each(rows, images, statistics, take)
        self._image_passes += len(images) * len(rows)
        return scores

    def logits(self, row: Tensor, images: LabelledImages, statistics: Used | None = None) -> Tensor:
        """Logits float32 [N, classes] of one row, where the images are."""
        self._settle(images)
        self._image_passes += len(images)
        return self.forward.logits(row, images, statistics)

    def score_by(
        self,
        row: Tensor,
        images: LabelledImages,
        metric: Metric,
        inherited: Inherited | None = None,
    ) -> float:
        """The mean of one row's scores by a metric."""
        used = self.statistics_of(row, inherited)
        apart = None if used is None else Used(used[None])
        return mean_score(self.image_scores(row[None], images, metric, apart)[0], self.micro_batch)

    def score(
        self, row: Tensor, images: LabelledImages, inherited: Inherited | None = None
    ) -> Score:
        """Mean loss and top-1 of one row on images."""
        apart = None if inherited is None else Inherited(inherited[None])
        return self.scores(row[None], images, apart)[0]

    def scores(
        self, rows: Tensor, images: LabelledImages, inherited: Inherited | None = None
    ) -> list[Score]:
        """Mean loss and top-1 of rows [K, D] on images."""
        results = self.per_images(rows, images, self.used_statistics(rows, inherited))
        return [
            Score(
                mean_score(result.losses, self.micro_batch),
                float(result.correct.double().mean()),
                len(images),
            )
            for result in results
        ]

    def _losses(
        self,
        rows: Tensor,
        images: LabelledImages,
        statistics: Used | None,
        label_smoothing: float,
    ) -> Losses:
        self._settle(images)
        self._image_passes += len(images) * len(rows)
        return self.forward(rows, images, statistics=statistics, label_smoothing=label_smoothing)

    def _settle(self, images: LabelledImages) -> None:
        if self.forward.precision == "auto":
            self.forward.decide_precision(*self._sample(images))

    def _sample(self, images: LabelledImages) -> tuple[Tensor, LabelledImages, Tensor, Tensor]:
        """Members and images for a precision check, with the members' own statistics."""
        some = slice(0, _CHECK_MEMBERS)
        rows, statistics = self.population.rows[some], self.population.statistics[some]
        shown = images.slice(0, min(len(images), _CHECK_IMAGES))
        return rows, shown, shown.labels, statistics
