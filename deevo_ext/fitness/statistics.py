"""BatchNorm's statistics held apart from rows: those a row has, and those it is evaluated with.

Both are tensors; their types keep one from being taken for the other.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from typing import NewType

import torch
from torch import Tensor, nn

from deevo_ext.data.labelled import LabelledImages
from deevo_ext.distributed.shares import each
from deevo_ext.errors import DeevoError
from deevo_ext.networks.execution.feed import slices
from deevo_ext.networks.execution.modules import Modules, call
from deevo_ext.networks.execution.placement import Placement
from deevo_ext.networks.execution.preprocessing import Preprocessing
from deevo_ext.networks.execution.workers import Workers
from deevo_ext.population.buffers import other_norms
from deevo_ext.population.inventory import ModelTensor
from deevo_ext.population.population import Population

Inherited = NewType("Inherited", Tensor)
"""Statistics float32 [S] that a row has from its parent, or the mean of several parents'; [K, S]
of K rows."""
Used = NewType("Used", Tensor)
"""Statistics float32 [S] that a row is evaluated with, after the policy; [K, S] of K rows."""


GROUP, GROUP_PIXELS = 500, 64 * 64
"""Images whose batch statistics are taken together, where they have up to so many pixels.

Where a layer has one value an image and channel, a variance of 500 images is known within 6 %
(the root of 2 / 500), of 64 images within 18 %. Activations of a whole group are in memory at once,
so larger images go in smaller groups; their layers have more values an image.
"""


def group_size(images: LabelledImages, micro_batch: int) -> int:
    """Returns how many images batch statistics are taken of at a time, at most all of them.

    The images are divided into equal groups of at least `GROUP` images of `GROUP_PIXELS` pixels, in
    proportion fewer of larger ones, and at least one micro-batch. What is left over is less than
    one image a group.
    """
    pixels = images.image_shape[-2] * images.image_shape[-1]
    least = max(micro_batch, GROUP * GROUP_PIXELS // max(pixels, GROUP_PIXELS))
    return len(images) // max(1, len(images) // least)


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

    module: float32, in eval mode, on the device. placement: of the images that networks in training
    mode see. forward_passes: images put through a network for their statistics so far. any: whether
    the networks have statistics that are not frozen, all of them BatchNorm's.
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
        names = [name for tensor in self.statistics() for name in tensor.names]
        self.any = bool(names) and not other_norms(module, names)
        self.micro_batch = micro_batch
        self.forward_passes = 0
        self.placement = Placement(device)
        self._workers = Workers(device)
        # Batch statistics ask for the module itself.
        self._modules = Modules(module, 1)

    def used(self, rows: Tensor, inherited: Inherited | None) -> Used | None:
        """Returns the statistics [K, S] that rows [K, D] are evaluated with, or [S] of a row [D].

        None where rows hold them. Re-estimated ones lie on the evaluating device, which is not
        waited for.
        """
        if not self.population.statistics_layout.dim:
            return None
        if self.recalibrates:
            assert self.calibration is not None
            flat, images = rows.reshape(-1, rows.shape[-1]), self.calibration
            before = self.forward_passes
            fresh = each(len(flat), lambda k: self._reestimated(flat[k], images)[1])
            self.forward_passes = before + len(flat) * self.passes  # those of other ranks, too
            return Used(torch.stack(fresh).to(self.device).reshape(*rows.shape[:-1], -1))
        return None if inherited is None else Used(inherited)

    def reestimated(self, row: Tensor, images: LabelledImages) -> tuple[Tensor, Used | None]:
        """Returns a row [D] with the statistics of its own activations on images, whatever it had.

        They are averages over groups of `group_size` images, in float32; the row comes back where
        it lay, as float32, with its statistics in it or, where they are apart, beside it. The
        population must have some that are not frozen.
        """
        changed, apart = self._reestimated(row, images)
        used = Used(apart.to(row.device)) if apart.numel() else None
        return changed.to(row.device), used

    def _reestimated(self, row: Tensor, images: LabelledImages) -> tuple[Tensor, Tensor]:
        """Returns row and statistics apart, float32 on the evaluating device."""
        layout = self.population.statistics_layout
        row = row[: self.population.dim].to(self.device, torch.float32, copy=True)
        apart = torch.zeros(layout.dim, device=self.device)
        tensors, norms = self.tensors_in_training(row, apart)
        # Whole groups, so that each weighs the same.
        size = group_size(images, self.micro_batch)
        starts = range(0, len(images) // size * size, size)
        self._workers.run([lambda: self._run_in_training(tensors, norms, images, starts)])
        self.forward_passes += len(starts) * size
        return row, apart

    def tensors_in_training(self, row: Tensor, apart: Tensor) -> tuple[dict[str, Tensor], set[str]]:
        """Returns the network's tensors and the norm layers to put into training mode with them.

        row: float32 [D] on the device; the tensors are views of it and of apart, float32 [S], into
        which the norm layers write their statistics, or into the row where these lie there. All
        else that they write is the result's own.
        """
        tensors = self.population.views(row, statistics=apart)
        evolved = {name for tensor in self.statistics() for name in tensor.names}
        norms = {name.rpartition(".")[0] for name in evolved}
        # Norm layers write counters and statistics; what is frozen is the population's own.
        for name in tensors.keys() - evolved:
            if name.rpartition(".")[0] in norms and "num_batches_tracked" in name:
                # On the host, which reads it in every forward pass: it need not wait for a GPU.
                tensors[name] = torch.zeros_like(tensors[name], device="cpu")
            elif name.rpartition(".")[2] in ("running_mean", "running_var"):
                tensors[name] = tensors[name].clone()
        return tensors, norms

    @property
    def passes(self) -> int:
        """Images that `used` puts through a network for a row's statistics."""
        if not self.recalibrates or self.calibration is None:
            return 0
        size = group_size(self.calibration, self.micro_batch)
        return len(self.calibration) // size * size

    def statistics(self) -> list[ModelTensor]:
        """Returns the networks' statistics that are not frozen."""
        tensors = self.population.inventory.tensors
        return [tensor for tensor in tensors if tensor.statistic and tensor.role != "fixed"]

    def _run_in_training(
        self, tensors: dict[str, Tensor], norms: set[str], images: LabelledImages, starts: range
    ) -> None:
        """Runs the module on groups of images, its `norms` writing averages of their statistics."""
        normalise = Preprocessing(images.mean, images.std).normalise
        groups = [(start, start + starts.step) for start in starts]
        placed = self.placement.of(images)
        for _, pixels in slices(placed, groups, self.device):
            with (
                self._modules.take(normalise(pixels, self.device)) as (model, own),
                norms_in_training(model, norms),
            ):
                call(model, tensors, (own,))
