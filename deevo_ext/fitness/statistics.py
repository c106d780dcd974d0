"""BatchNorm's statistics held apart from rows: those a row has, and those it is evaluated with.

Both are tensors; their types keep one from being taken for the other.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from typing import NewType

import torch
from torch import Tensor, nn
from torch.func import functional_call

from deevo_ext.data.labelled import LabelledImages
from deevo_ext.errors import DeevoError
from deevo_ext.networks.execution.preprocessing import Preprocessing
from deevo_ext.networks.execution.workers import Modules, Workers
from deevo_ext.population.population import Population

Inherited = NewType("Inherited", Tensor)
"""Statistics float32 [S] that a row has from its parent, or the mean of several parents'; [K, S]
of K rows."""
Used = NewType("Used", Tensor)
"""Statistics float32 [S] that a row is evaluated with, after the policy; [K, S] of K rows."""


GROUP_IMAGES, _GROUP_PIXELS = 500, 500 * 64 * 64


def group_size(images: LabelledImages, micro_batch: int) -> int:
    """Returns how many images share batch statistics: 500 of up to 64x64 pixels, fewer of larger.

    The statistics of few images are noise; the activations of a group lie in memory at once. A
    group is at least a micro-batch, and at most all images.
    """
    _, height, width = images.image_shape
    size = min(GROUP_IMAGES, max(micro_batch, _GROUP_PIXELS // (height * width)))
    return min(size, len(images))


@contextlib.contextmanager
def norms_in_training(model: nn.Module, norms: Collection[str]) -> Iterator[None]:
    """Puts the norm layers of these names into training mode, with plain averages over batches."""
    layers = [module for name, module in model.named_modules() if name in norms]
    momenta = [layer.momentum for layer in layers]
    try:
        for layer in layers:
            layer.train()
            layer.momentum = None
        yield
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.eval()
            layer.momentum = momentum


class StatisticsPolicy:
    """Makes used statistics of inherited ones, by the population's `batchnorm`.

    "evolve": there are none apart. "inherit": they are the same. "recalibrate": those of the row's
    own activations on the calibration images, whatever it inherited (SWA's update_bn).

    module: float32, in eval mode, on the device. forward_passes: calibration images put through a
    network so far.
    """

    def __init__(
        self,
        population: Population,
        module: nn.Module,
        calibration: LabelledImages | None,
        micro_batch: int,
        device: torch.device,
    ) -> None:
        apart = bool(population.statistics_layout.dim)
        self.recalibrates = apart and population.batchnorm == "recalibrate"
        if self.recalibrates and calibration is None:
            raise DeevoError(
                'calibration is missing: batchnorm="recalibrate" recomputes statistics from each '
                "row; give a few hundred training images (evolve: calibration_images=)"
            )
        self.population, self.calibration, self.device = population, calibration, device
        self.micro_batch = micro_batch
        self.forward_passes = 0
        self._workers = Workers(device)
        # Batch statistics ask for the module itself.
        self._modules = Modules(module, 1)

    def used(self, rows: Tensor, inherited: Inherited | None) -> Used | None:
        """Returns the statistics [K, S] that rows [K, D] are evaluated with, or [S] of a row [D].

        None where rows hold them.
        """
        if not self.population.statistics_layout.dim:
            return None
        if self.recalibrates:
            fresh = [self._recalibrated(row) for row in rows.reshape(-1, rows.shape[-1])]
            return Used(torch.stack(fresh).reshape(*rows.shape[:-1], -1))
        return None if inherited is None else Used(inherited)

    def _recalibrated(self, row: Tensor) -> Tensor:
        images = self.calibration
        assert images is not None
        layout = self.population.statistics_layout
        fresh = torch.zeros(layout.dim, device=self.device)
        tensors = self.population.views(row.to(self.device, torch.float32), statistics=fresh)
        names = {name.rpartition(".")[0] for name in layout.names}
        # Norm layers write counters and statistics; what is frozen is the population's own.
        for name in tensors.keys() - set(layout.names):
            if name.rpartition(".")[0] in names and "num_batches_tracked" in name:
                tensors[name] = torch.zeros_like(tensors[name])
            elif name.rpartition(".")[2] in ("running_mean", "running_var"):
                tensors[name] = tensors[name].clone()
        # Whole groups, so that each weighs the same.
        size = group_size(images, self.micro_batch)
        starts = range(0, len(images) // size * size, size)
        self._workers.run([lambda: self._run_in_training(tensors, names, images, starts)])
        self.forward_passes += len(starts) * size
        return layout.flatten(tensors, torch.zeros(layout.dim))

    def _run_in_training(
        self, tensors: dict[str, Tensor], norms: set[str], images: LabelledImages, starts: range
    ) -> None:
        """Runs the module on micro-batches, its `norms` writing averages of batch statistics."""
        normalise = Preprocessing(images.mean, images.std).normalise
        with self._modules.take() as model, norms_in_training(model, norms):
            for start in starts:
                pixels = images.pixels(start, start + starts.step)
                functional_call(model, tensors, (normalise(pixels, self.device),))
