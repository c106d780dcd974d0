"""Normalisation per channel of the pixels on their way into networks."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from deevo_ext.errors import DeevoError


@dataclass(frozen=True)
class Preprocessing:
    """(value - mean) / std per channel, of uint8 values in units of 1/255; None: as they are."""

    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None

    def __post_init__(self) -> None:
        if (self.mean is None) != (self.std is None):
            raise DeevoError("mean and std belong together: give both or neither")
        std = self.std or ()
        finite = all(math.isfinite(value) for value in (*(self.mean or ()), *std))
        if len(self.mean or ()) != len(std) or not finite or any(not value > 0 for value in std):
            raise DeevoError(
                f"mean is {self.mean} and std {self.std}; expected one finite number of each a "
                "channel, and std above 0"
            )

    def check(self, shape: tuple[int, ...], dtype: torch.dtype, name: str) -> None:
        """Refuses images that are not [N, C, H, W] of a dtype and channels that fit."""
        if len(shape) != 4 or not all(shape):
            raise DeevoError(
                f"{name} have shape {list(shape)}; expected [N, C, H, W], none of it 0"
            )
        if dtype != torch.uint8 and not dtype.is_floating_point:
            raise DeevoError(f"{name} are {dtype}; expected uint8 or floating point")
        if dtype == torch.uint8 and self.mean is None:
            raise DeevoError(
                f"{name} are uint8, but there is no normalisation: give mean= and std= (per "
                "channel, of values in 0..1), or normalised float images"
            )
        if self.mean is not None and len(self.mean) != shape[1]:
            raise DeevoError(f"{name} have {shape[1]} channels, but mean= has {len(self.mean)}")

    def normalise(self, images: Tensor, device: torch.device) -> Tensor:
        """Returns images [n, C, H, W] on the device, float32 if they are normalised here."""
        x = images.to(device)
        if self.mean is None or self.std is None:
            return x
        unit = 255.0 if images.dtype == torch.uint8 else 1.0
        factor, shift = _line(tuple(self.mean), tuple(self.std), unit, device)
        return x.float() * factor + shift


def with_channels(images: Tensor, channels: int) -> Tensor:
    """Returns images [n, C, H, W] with so many channels, zeros behind their own."""
    more = channels - images.shape[1]
    if not more:
        return images
    wider = torch.nn.functional.pad(images, (0, 0, 0, 0, 0, more))
    return wider.contiguous(memory_format=torch.channels_last)


@functools.lru_cache(maxsize=64)
def _line(
    mean: tuple[float, ...], std: tuple[float, ...], unit: float, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Factor and shift [1, C, 1, 1]; they are kept, since a GPU is waited for to take them."""
    scale = torch.tensor(std, device=device).view(1, -1, 1, 1)
    shift = -torch.tensor(mean, device=device).view(1, -1, 1, 1) / scale
    return 1.0 / (scale * unit), shift
