"""Where the pixels of cached images lie while they are evaluated: on the GPU if they fit there.

uint8 images that many members see many times are sent to the GPU once. What does not fit there is
copied to page-locked memory, if the host has room for that, from where it streams at the full speed
of the bus; what fits nowhere stays in its memory map and goes through small page-locked buffers.
No GPU has run this yet.
"""

from __future__ import annotations

import math
import weakref
from typing import Literal

import torch

from deevo_ext.data.cached import CachedImages
from deevo_ext.data.labelled import LabelledImages
from deevo_ext.population.allocation import available_bytes

_COPIED = 1 << 28  # bytes gathered at a time


def choose_place(
    size: int, device_free: int, device_total: int, host_available: int
) -> Literal["device", "pinned", "mapped"]:
    """The place for `size` bytes of pixels.

    A quarter of the GPU's memory stays free for activations and weights, half of the host's for
    everything else.
    """
    if size <= device_free - device_total // 4:
        return "device"
    return "pinned" if size <= host_available // 2 else "mapped"


class Placement:
    """Keeps evaluated sets where they are best read; a copy goes when its set does.

    On the CPU, and for float images, that is where they are.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._copies: weakref.WeakKeyDictionary[LabelledImages, LabelledImages] = (
            weakref.WeakKeyDictionary()
        )

    def of(self, images: LabelledImages) -> LabelledImages:
        """The same images in their place."""
        if self.device.type != "cuda" or not isinstance(images, CachedImages):
            return images
        if images.all_pixels.device == self.device:
            return images
        if images not in self._copies:
            size = len(images) * math.prod(images.image_shape)
            total = torch.cuda.get_device_properties(self.device).total_memory
            place = choose_place(size, available_bytes(self.device), total, available_bytes())
            # A mapped set stands for itself: a strong reference to a key would keep it alive.
            self._copies[images] = (
                images.slice(0, len(images))
                if place == "mapped"
                else copied(images, self.device if place == "device" else None)
            )
        return self._copies[images]


def copied(images: CachedImages, device: torch.device | None) -> CachedImages:
    """Returns copies of the images on a device or, for None, in the host's memory.

    The host's is page-locked where there is CUDA.
    """
    channels, height, width = images.image_shape
    shape = (len(images), height, width, channels)
    pinned = device is None and torch.cuda.is_available()
    pixels = torch.empty(shape, dtype=torch.uint8, device=device, pin_memory=pinned)
    part = max(1, _COPIED // math.prod(shape[1:]))
    for start in range(0, len(images), part):
        stop = min(start + part, len(images))
        pixels[start:stop] = images.pixels(start, stop).permute(0, 2, 3, 1)
    return images.gathered(pixels)
