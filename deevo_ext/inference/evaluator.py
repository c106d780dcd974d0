"""Per-image losses of a network given as a flat row, through zero-copy views and functional_call.

Images are always evaluated in micro-batches of one fixed size, the last one padded, and their
float64 subtotals are added in order. On the CPU each micro-batch runs on one thread, several beside
each other: threads inside an operator wait for each other at every layer, which small networks and
busy machines pay dearly, and their number would change the last bits. So a score depends on the row
and the images alone.
"""

from __future__ import annotations

import copy
import functools
import math
import queue
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn
from torch.func import functional_call

from deevo_ext.data.images import ImageSet
from deevo_ext.errors import DeevoError
from deevo_ext.population import Population

METRICS = ("loss", "top1")
T = TypeVar("T")


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

    def by(self, metric: str) -> float:
        """The score to minimise: the loss, or 1 - top-1; +inf where the loss is not finite."""
        return self.loss if metric == "loss" or self.loss == math.inf else 1.0 - self.top1


class Evaluator:
    """Scores rows of a population.

    model: gives the forward pass; it is copied, and its own weights are not used. micro_batch:
    images per forward pass, torch.get_num_threads() of them at a time on the CPU. calibration:
    images whose activations give BatchNorm's statistics under the population's policy "recalibrate"
    (needed there, ignored elsewhere). device: where networks run; the population may lie elsewhere.

    Attribute ``forward_passes``: images put through a network so far, calibration included.
    """

    def __init__(
        self,
        model: nn.Module,
        population: Population,
        *,
        micro_batch: int = 64,
        calibration: ImageSet | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if micro_batch < 1:
            raise DeevoError(f"micro_batch is {micro_batch}; expected at least 1 image")
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
        try:
            self.device = torch.empty(0, device=device).device
        except (RuntimeError, AssertionError) as error:
            raise DeevoError(f"device is {device!r}, which torch cannot use: {error}") from None
        self.forward_passes = 0
        self._workers = _Workers(copy.deepcopy(model).eval().to(self.device), self.device)

    def describe(self) -> dict[str, Any]:
        """What decides the scores besides row and images, for the journal's header."""
        return {
            "micro_batch": self.micro_batch,
            "device": self.device.type,
            "calibration": self.calibration.digest() if self.calibration else None,
        }

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
        logits = self.logits(row, images, self.statistics_of(row, inherited))
        if int(images.labels.max()) >= logits.shape[1]:
            raise DeevoError(
                f"{images.name} have label {int(images.labels.max())}, but the model has "
                f"{logits.shape[1]} classes; expected labels 0..{logits.shape[1] - 1}"
            )
        losses = nn.functional.cross_entropy(logits, images.labels, reduction="none")
        return PerImage(losses, logits.argmax(dim=1) == images.labels)

    def logits(
        self, row: torch.Tensor, images: ImageSet, statistics: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Logits float32 [N, classes] of one row with given statistics, where the images are.

        Networks run in float32 whatever the rows' dtype, so that members and their averages are
        compared in one precision.
        """
        tensors = self.population.views(self._float32(row), statistics=statistics)

        def forward(model: nn.Module, start: int) -> torch.Tensor:
            batch = images.images[start : start + self.micro_batch].to(self.device)
            size = batch.shape[0]
            if size < self.micro_batch:
                padding = batch[:1].expand(self.micro_batch - size, *batch.shape[1:])
                batch = torch.cat([batch, padding])
            try:
                out = functional_call(model, tensors, (batch,))
            except (RuntimeError, ValueError, TypeError, IndexError) as error:
                shape = tuple(images.images.shape[1:])
                raise DeevoError(
                    f"the model failed on {images.name} of shape {shape}: {error}"
                ) from error
            if not isinstance(out, torch.Tensor) or out.dim() != 2:
                given = tuple(out.shape) if isinstance(out, torch.Tensor) else type(out).__name__
                raise DeevoError(f"the model returned {given}; expected logits [N, classes]")
            return out[:size].float()

        starts = range(0, len(images), self.micro_batch)
        parts = self._workers.run([functools.partial(forward, start=start) for start in starts])
        self.forward_passes += len(images)
        return torch.cat(parts).to(images.labels.device)

    def score(
        self, row: torch.Tensor, images: ImageSet, inherited: torch.Tensor | None = None
    ) -> Score:
        """Mean loss and top-1 of one row on images."""
        result = self.per_image(row, images, inherited)
        loss = mean_loss(result.losses, self.micro_batch)
        return Score(loss, float(result.correct.double().mean()), len(images))

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
        # Whole micro-batches, so that each weighs the same.
        size = min(self.micro_batch, len(images))
        starts = range(0, len(images) // size * size, size)

        def forward(model: nn.Module) -> None:
            norms = [module for name, module in model.named_modules() if name in own]
            momenta = [norm.momentum for norm in norms]
            try:
                for norm in norms:
                    norm.train()
                    norm.momentum = None  # a plain average over the micro-batches
                for start in starts:
                    batch = images.images[start : start + size]
                    functional_call(model, tensors, (batch.to(self.device),))
            finally:
                for norm, momentum in zip(norms, momenta, strict=True):
                    norm.eval()
                    norm.momentum = momentum

        self._workers.run([forward])
        self.forward_passes += len(starts) * size
        return layout.flatten(tensors, torch.zeros(layout.dim))


class _Workers:
    """Runs tasks on copies of a model: one-threaded beside each other on the CPU, else in turn."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self._models: queue.SimpleQueue[nn.Module] = queue.SimpleQueue()
        self._pool: ThreadPoolExecutor | None = None
        if device.type != "cpu":
            self._models.put(model)
            return
        threads = torch.get_num_threads()
        # functional_call swaps tensors in and out of a module, so each thread has a module; the
        # tensors themselves are shared.
        shared = [*model.parameters(), *model.buffers()]
        for _ in range(threads):
            self._models.put(copy.deepcopy(model, {id(tensor): tensor for tensor in shared}))
        self._pool = ThreadPoolExecutor(threads, "deevo", initializer=_one_thread)

    def run(self, tasks: list[Callable[[nn.Module], T]]) -> list[T]:
        """The tasks' results, in order."""
        if self._pool is None:
            return [self._call(task) for task in tasks]
        futures: list[Future[T]] = [self._pool.submit(self._call, task) for task in tasks]
        try:
            return [future.result() for future in futures]
        finally:
            for future in futures:
                future.cancel()  # after an error the rest is not wanted
            # The workers' torch.set_num_threads(1) became the default of threads yet to start.
            torch.set_num_threads(torch.get_num_threads())

    @torch.no_grad()
    def _call(self, task: Callable[[nn.Module], T]) -> T:
        model = self._models.get()
        try:
            return task(model)
        finally:
            self._models.put(model)


def _one_thread() -> None:
    """Makes torch's operators use one thread when this thread calls them."""
    torch.set_num_threads(1)


def mean_loss(losses: torch.Tensor, micro_batch: int) -> float:
    """Mean of per-image losses: float64 subtotals per micro-batch, added in order."""
    total = 0.0
    for start in range(0, losses.numel(), micro_batch):
        total += float(losses[start : start + micro_batch].sum(dtype=torch.float64))
    mean = total / losses.numel()
    return mean if math.isfinite(mean) else math.inf
