"""Stretches of images on the evaluating device, each read and sent while the one before is used."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from deevo_ext.data.labelled import LabelledImages
from deevo_ext.errors import DeevoError

Ready = tuple[Tensor, "torch.cuda.Event | None"]


class TensorImages:
    """A plain tensor [N, C, H, W], read like a set of images."""

    in_memory = True
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __init__(self, images: Tensor) -> None:
        self.images = images
        self.image_shape = tuple(images.shape[1:])
        self.dtype = images.dtype

    def __len__(self) -> int:
        return self.images.shape[0]

    def pixels(self, start: int, stop: int) -> Tensor:
        """Images start..stop-1, a view."""
        return self.images[start:stop]


Pixels = LabelledImages | TensorImages


def shown_pixels(images: Tensor | LabelledImages) -> Pixels:
    """A tensor [N, C, H, W] or a set, as what is read by stretches."""
    return TensorImages(images) if isinstance(images, Tensor) else images


def own_labels(images: Tensor | LabelledImages, labels: Tensor | None) -> Tensor:
    """The labels given, or else the set's."""
    if labels is not None:
        return labels
    if isinstance(images, Tensor):
        raise DeevoError("labels are missing; expected int64 [N] beside a tensor of images")
    return images.labels


def stretches(images: Pixels, size: int, device: torch.device) -> Iterator[tuple[int, Tensor]]:
    """(first image, pixels [n, C, H, W]) of each stretch of up to `size` images, in order.

    What has to come from disk or to a GPU is read by a thread, one stretch ahead: through
    page-locked memory, by one transfer on a stream of its own. So two stretches are held at a time.
    """
    starts = range(0, len(images), size)
    moves = device.type == "cuda" and images.pixels(0, 1).device != device
    if images.in_memory and not moves:
        for start in starts:
            yield start, images.pixels(start, min(start + size, len(images)))
        return
    side = torch.cuda.Stream(device) if moves else None

    def read(start: int) -> Ready:
        part = images.pixels(start, min(start + size, len(images)))
        if side is None:
            return part, None
        if not part.is_pinned():
            part = part.pin_memory()
        with torch.cuda.stream(side):
            part = part.to(device, non_blocking=True)
            event = torch.cuda.Event()
            event.record(side)
        return part, event

    with ThreadPoolExecutor(1, "deevo-feed") as reader:
        following = reader.submit(read, 0)
        for start in starts:
            part, event = following.result()
            if start + size < len(images):
                following = reader.submit(read, start + size)
            if event is not None:
                current = torch.cuda.current_stream(device)
                current.wait_event(event)
                part.record_stream(current)
            yield start, part
