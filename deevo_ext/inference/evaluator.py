"""Per-image losses of a network given as a flat row, through zero-copy views and functional_call.

Images are always evaluated in micro-batches of one fixed size, the last one padded, and their
float64 subtotals are added in order; so a score depends on the row and the images alone, never on
which other rows are scored beside it.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.func import functional_call

from deevo_ext.data.images import ImageSet
from deevo_ext.errors import DeevoError
from deevo_ext.population import Population


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
    images per forward pass. calibration: images whose activations give BatchNorm's statistics under
    the population's policy "recalibrate" (needed there, ignored elsewhere).

    Attributes: ``forward_passes`` (images put through a network so far, calibration included) and
    ``seconds`` (spent doing so).
    """

    def __init__(
        self,
        model: nn.Module,
        population: Population,
        *,
        micro_batch: int = 250,
        calibration: ImageSet | None = None,
    ) -> None:
        if micro_batch < 1:
            raise DeevoError(f"micro_batch is {micro_batch}; expected at least 1 image")
        self.recalibrates = population.batchnorm == "recalibrate" and bool(
            population.statistics_layout.dim
        )
        if self.recalibrates and calibration is None:
            raise DeevoError(
                'calibration is missing: batchnorm="recalibrate" recomputes statistics from each '
                "row; give a few hundred training images"
            )
        self.population = population
        self.micro_batch = micro_batch
        self.calibration = calibration
        self.forward_passes = 0
        self.seconds = 0.0
        self._model = copy.deepcopy(model).eval()

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
        self, row: torch.Tensor, images: ImageSet, inherited: torch.Tensor | None = None
    ) -> PerImage:
        """Losses and hits of one row ([D], any floating dtype) on images."""
        statistics = self.statistics_of(row, inherited)
        return self.per_image_of(self.population.views(row, statistics=statistics), images)

    def per_image_of(self, tensors: Mapping[str, torch.Tensor], images: ImageSet) -> PerImage:
        """The same for a network given as named tensors."""
        logits = self.logits(tensors, images)
        losses = nn.functional.cross_entropy(logits, images.labels, reduction="none")
        return PerImage(losses, logits.argmax(dim=1) == images.labels)

    @torch.no_grad()
    def logits(self, tensors: Mapping[str, torch.Tensor], images: ImageSet) -> torch.Tensor:
        """Logits float32 [N, classes] of a network given as named tensors."""
        started = time.perf_counter()
        weights = next(t for t in tensors.values() if t.is_floating_point())
        parts = []
        for start in range(0, len(images), self.micro_batch):
            batch = images.images[start : start + self.micro_batch].to(weights.dtype)
            size = batch.shape[0]
            if size < self.micro_batch:
                padding = batch[:1].expand(self.micro_batch - size, *batch.shape[1:])
                batch = torch.cat([batch, padding])
            out = functional_call(self._model, dict(tensors), (batch,))
            if out.dim() != 2:
                raise DeevoError(
                    f"the model returned shape {tuple(out.shape)}; expected logits [N, classes]"
                )
            parts.append(out[:size].float())
        self.forward_passes += len(images)
        self.seconds += time.perf_counter() - started
        return torch.cat(parts)

    def score(
        self, row: torch.Tensor, images: ImageSet, inherited: torch.Tensor | None = None
    ) -> Score:
        """Mean loss and top-1 of one row on images."""
        result = self.per_image(row, images, inherited)
        loss = mean_loss(result.losses, self.micro_batch)
        return Score(loss, float(result.correct.double().mean()), len(images))

    @torch.no_grad()
    def _recalibrated(self, row: torch.Tensor) -> torch.Tensor:
        """Statistics of the row's own activations on the calibration images (SWA's update_bn)."""
        assert self.calibration is not None
        started = time.perf_counter()
        layout = self.population.statistics_layout
        statistics = torch.zeros(layout.dim)
        tensors = {
            name: tensor.clone() if "num_batches_tracked" in name else tensor
            for name, tensor in self.population.views(row, statistics=statistics).items()
        }
        own = {name: tensor for name, tensor in layout.views(statistics).items()}
        if row.dtype == torch.float32:
            tensors.update(own)
        for name, tensor in tensors.items():
            if "num_batches_tracked" in name:
                tensor.zero_()
        norms = [m for m in self._model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        momenta = [norm.momentum for norm in norms]
        try:
            for norm in norms:
                norm.train()
                norm.momentum = None  # a plain average over the micro-batches
            for start in range(0, len(self.calibration), self.micro_batch):
                batch = self.calibration.images[start : start + self.micro_batch]
                functional_call(self._model, tensors, (batch.to(row.dtype),))
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.eval()
                norm.momentum = momentum
        layout.flatten(tensors, statistics)
        self.forward_passes += len(self.calibration)
        self.seconds += time.perf_counter() - started
        return statistics


def mean_loss(losses: torch.Tensor, micro_batch: int) -> float:
    """Mean of per-image losses: float64 subtotals per micro-batch, added in order."""
    total = 0.0
    for start in range(0, losses.numel(), micro_batch):
        total += float(losses[start : start + micro_batch].sum(dtype=torch.float64))
    mean = total / losses.numel()
    return mean if math.isfinite(mean) else math.inf
