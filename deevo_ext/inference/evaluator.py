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
from torch import nn
from torch.func import functional_call

from deevo_ext.data.labelled import LabelledImages
from deevo_ext.errors import DeevoError
from deevo_ext.inference.choose import EngineTable
from deevo_ext.inference.forward import Losses, PopulationForward
from deevo_ext.inference.metrics import Metric, mean_score
from deevo_ext.inference.preprocessing import Preprocessing
from deevo_ext.inference.workers import Modules, Workers
from deevo_ext.population.population import Population

# What the precision check looks at.
_CHECK_MEMBERS, _CHECK_IMAGES = 8, 1024


@dataclass(frozen=True)
class PerImage:
    """losses float32 [N] (cross-entropy in nats) and correct bool [N] (top-1)."""

    losses: torch.Tensor
    correct: torch.Tensor


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

    Attribute ``forward_passes``: images put through a network so far, calibration included, checks
    of plan and precision not.
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
        self.recalibrates = population.batchnorm == "recalibrate" and bool(
            population.statistics_layout.dim
        )
        if self.recalibrates and calibration is None:
            raise DeevoError(
                'calibration is missing: batchnorm="recalibrate" recomputes statistics from each '
                "row; give a few hundred training images (evolve: calibration_images=)"
            )
        self.population = population
        self.micro_batch = micro_batch
        self.calibration = calibration
        self.forward = PopulationForward(
            model,
            population,
            precision=precision,
            engine=engine,
            micro_batch=micro_batch,
            device=device,
        )
        self.device = self.forward.device
        self.forward_passes = 0
        self._asked = {"precision": precision, "engine": engine}
        self._force_precision = force_precision
        self._workers = Workers(self.device)
        # Batch statistics ask for the module itself.
        self._modules = Modules(self.forward.module, 1)

    def describe(self) -> dict[str, Any]:
        """What decides the scores besides row and images, for the journal's header."""
        return {
            "micro_batch": self.micro_batch,
            "device": self.device.type,
            "calibration": self.calibration.digest() if self.calibration else None,
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

    def statistics_of(
        self, row: torch.Tensor, inherited: torch.Tensor | None
    ) -> torch.Tensor | None:
        """The BatchNorm statistics that `row` is evaluated with, [S]; None under "evolve".

        inherited: those of the row's parent (or the mean of several parents').
        """
        if not self.population.statistics_layout.dim:
            return None
        return self._recalibrated(row) if self.recalibrates else inherited

    def per_image(
        self, row: torch.Tensor, images: LabelledImages, inherited: torch.Tensor | None = None
    ) -> PerImage:
        """Losses and hits of one row ([D], any floating dtype) on images."""
        return self.per_images(row[None], images, None if inherited is None else inherited[None])[0]

    def per_images(
        self, rows: torch.Tensor, images: LabelledImages, inherited: torch.Tensor | None = None
    ) -> list[PerImage]:
        """Losses and hits of rows [K, D] on images; inherited [K, S] as in `statistics_of`."""
        losses, ranks = self._losses(rows, images, self.used_statistics(rows, inherited), 0.0)
        return [PerImage(one, rank == 0) for one, rank in zip(losses, ranks, strict=True)]

    def used_statistics(
        self, rows: torch.Tensor, inherited: torch.Tensor | None
    ) -> torch.Tensor | None:
        """`statistics_of` several rows, [K, S]."""
        if not self.population.statistics_layout.dim:
            return None
        given = [None] * len(rows) if inherited is None else list(inherited)
        own = [self.statistics_of(row, s) for row, s in zip(rows, given, strict=True)]
        found = [s for s in own if s is not None]
        return torch.stack(found) if len(found) == len(rows) else None

    def image_scores(
        self,
        rows: torch.Tensor,
        images: LabelledImages,
        metric: Metric,
        statistics: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Scores float32 [K, N] by a metric of rows [K, D] used with statistics [K, S]."""
        if metric.function is None:
            found = self._losses(rows, images, statistics, metric.label_smoothing)
            return metric.of_results(*found)
        self._settle(images)
        labels = images.labels.to(self.device)
        scores = torch.empty(len(rows), len(images), device=self.device)

        def head(k: int, start: int, logits: torch.Tensor) -> None:
            own = slice(start, start + len(logits))
            scores[k, own] = metric.of_logits(logits.float(), labels[own])

        self.forward.each(rows, images, statistics, head, name=images.name)
        self.forward_passes += len(images) * len(rows)
        return scores

    def score_by(
        self,
        row: torch.Tensor,
        images: LabelledImages,
        metric: Metric,
        inherited: torch.Tensor | None = None,
    ) -> float:
        """The mean of one row's scores by a metric."""
        own = self.statistics_of(row, inherited)
        scores = self.image_scores(row[None], images, metric, None if own is None else own[None])
        return mean_score(scores[0], self.micro_batch)

    def _losses(
        self,
        rows: torch.Tensor,
        images: LabelledImages,
        statistics: torch.Tensor | None,
        label_smoothing: float,
    ) -> Losses:
        self._settle(images)
        self.forward_passes += len(images) * len(rows)
        return self.forward(
            rows,
            images,
            statistics=statistics,
            label_smoothing=label_smoothing,
            name=images.name,
        )

    def logits(
        self, row: torch.Tensor, images: LabelledImages, statistics: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Logits float32 [N, classes] of one row with given statistics, where the images are."""
        self._settle(images)
        found = self.forward.logits(row, images, statistics, name=images.name)
        self.forward_passes += len(images)
        return found

    def score(
        self, row: torch.Tensor, images: LabelledImages, inherited: torch.Tensor | None = None
    ) -> Score:
        """Mean loss and top-1 of one row on images."""
        return self.scores(row[None], images, None if inherited is None else inherited[None])[0]

    def scores(
        self, rows: torch.Tensor, images: LabelledImages, inherited: torch.Tensor | None = None
    ) -> list[Score]:
        """Mean loss and top-1 of rows [K, D] on images."""
        return [
            Score(
                mean_score(result.losses, self.micro_batch),
                float(result.correct.double().mean()),
                len(images),
            )
            for result in self.per_images(rows, images, inherited)
        ]

    def _settle(self, images: LabelledImages) -> None:
        if self.forward.precision == "auto":
            self.forward.decide_precision(*self._sample(images))

    def _sample(self, images: LabelledImages) -> tuple[Any, ...]:
        """Members and images for a precision check, with the members' own statistics."""
        some = slice(0, _CHECK_MEMBERS)
        rows, statistics = self.population.rows[some], self.population.statistics[some]
        shown = images.stretch(0, min(len(images), _CHECK_IMAGES))
        return rows, shown, shown.labels, statistics

    def _float32(self, row: torch.Tensor) -> torch.Tensor:
        return row.to(self.device, torch.float32)

    def _recalibrated(self, row: torch.Tensor) -> torch.Tensor:
        """Statistics of the row's own activations on the calibration images (SWA's update_bn)."""
        images = self.calibration
        assert images is not None
        layout = self.population.statistics_layout
        fresh = torch.zeros(layout.dim, device=self.device)
        tensors = self.population.views(self._float32(row), statistics=fresh)
        own = {name.rpartition(".")[0] for name in layout.names}
        # Norm layers write counters and statistics; what is frozen is the population's own.
        for name in tensors.keys() - set(layout.names):
            if name.rpartition(".")[0] in own and "num_batches_tracked" in name:
                tensors[name] = torch.zeros_like(tensors[name])
            elif name.rpartition(".")[2] in ("running_mean", "running_var"):
                tensors[name] = tensors[name].clone()
        preprocessing = Preprocessing(images.mean, images.std)
        # Whole micro-batches, so that each weighs the same.
        size = min(self.micro_batch, len(images))
        starts = range(0, len(images) // size * size, size)

        def forward() -> None:
            with self._modules.take() as model:
                norms = [module for name, module in model.named_modules() if name in own]
                momenta = [norm.momentum for norm in norms]
                try:
                    for norm in norms:
                        norm.train()
                        norm.momentum = None  # a plain average over the micro-batches
                    for start in starts:
                        batch = images.pixels(start, start + size)
                        shown = preprocessing.normalise(batch, self.device)
                        functional_call(model, tensors, (shown,))
                finally:
                    for norm, momentum in zip(norms, momenta, strict=True):
                        norm.eval()
                        norm.momentum = momentum

        self._workers.run([forward])
        self.forward_passes += len(starts) * size
        return layout.flatten(tensors, torch.zeros(layout.dim))
