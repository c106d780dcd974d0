"""Images on their way into networks: read ahead, normalised once for all members, micro-batches."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from deevo_ext.data.labelled import LabelledImages
from deevo_ext.networks.execution.placement import Placement
from deevo_ext.networks.execution.preprocessing import Preprocessing

# Prepared images held at a time; members' weights are staged anew for each such slice, which takes
# less than a hundredth of its time.
SLICE_BYTES = {"cpu": 64 << 20, "cuda": 256 << 20}


class TensorImages:
    """A plain tensor [N, C, H, W], read like a set of images."""

    name = "images"
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


Images = LabelledImages | TensorImages


@dataclass(frozen=True)
class MicroBatch:
    """The images of one forward pass, as networks take them.

    images: [micro_batch, C, H, W], of which the first `size` count; they are the images from
    `start` on of the set called `name`.
    """

    images: Tensor
    start: int
    size: int
    name: str

    @property
    def places(self) -> slice:
        """Where the images that count lie in their set."""
        return slice(self.start, self.start + self.size)


class ImageFeed:
    """Gives images to networks in micro-batches of one size, on the device that evaluates them.

    Pixels lie where they are best read (see `Placement`). preprocessing: for images that bring no
    normalisation of their own.
    """

    def __init__(
        self, device: torch.device, micro_batch: int, preprocessing: Preprocessing
    ) -> None:
        self.device, self.micro_batch, self.preprocessing = device, micro_batch, preprocessing
        self._placement = Placement(device)

    def check(self, images: Images) -> None:
        """Raises DeevoError for images that are not [N, C, H, W] of a dtype and channels that fit.

        Nothing is read.
        """
        shape = (len(images), *images.image_shape)
        self._preprocessing(images).check(shape, images.dtype, images.name)

    def first(self, images: Images, dtype: torch.dtype) -> MicroBatch:
        """Returns the first micro-batch."""
        pixels = images.pixels(0, min(self.micro_batch, len(images)))
        (batch,) = self._micro_batches(images, 0, pixels, dtype)
        return batch

    def batches(self, images: Images, dtype: torch.dtype) -> Iterable[list[MicroBatch]]:
        """Returns all micro-batches in order, in lists of those that one slice of the images gives.

        Each iteration over them reads the images. Networks run on one list after the other. At most
        SLICE_BYTES of prepared images, or one micro-batch, are in a list, and no list is kept here,
        so a caller who drops one before asking for the next holds one at a time.
        """
        return _Batches(self, images, dtype)

    def read(
        self, images: Images, dtype: torch.dtype, most: int | None = None
    ) -> Iterator[list[MicroBatch]]:
        """Yields what `batches` returns; most: micro-batches of a list, if they are to be fewer."""
        if isinstance(images, LabelledImages):
            images = self._placement.of(images)
        one = math.prod(images.image_shape) * dtype.itemsize * self.micro_batch
        fit = max(1, SLICE_BYTES[self.device.type] // one)
        size = self.micro_batch * (fit if most is None else min(most, fit))
        parts = [(at, min(at + size, len(images))) for at in range(0, len(images), size)]
        for start, pixels in slices(images, parts, self.device):
            yield self._micro_batches(images, start, pixels, dtype)

    def _preprocessing(self, images: Images) -> Preprocessing:
        """The images' own, if they have one."""
        if images.mean is None:
            return self.preprocessing
        return Preprocessing(images.mean, images.std)

    def _micro_batches(
        self, images: Images, start: int, pixels: Tensor, dtype: torch.dtype
    ) -> list[MicroBatch]:
        """Normalised, channels-last; the last one is padded by its first image."""
        normalise = self._preprocessing(images).normalise
        batches = []
        for part in pixels.split(self.micro_batch):
            x, size = normalise(part, self.device), part.shape[0]
            if size < self.micro_batch:
                x = torch.cat([x, x[:1].expand(self.micro_batch - size, *x.shape[1:])])
            x = x.to(dtype).contiguous(memory_format=torch.channels_last)
            batches.append(MicroBatch(x, start, size, images.name))
            start += size
        return batches


@dataclass(frozen=True)
class _Batches:
    """What `ImageFeed.batches` returns."""

    feed: ImageFeed
    images: Images
    dtype: torch.dtype

    def __iter__(self) -> Iterator[list[MicroBatch]]:
        return self.feed.read(self.images, self.dtype)


def slices(
    images: Images, parts: Sequence[tuple[int, int]], device: torch.device
) -> Iterator[tuple[int, Tensor]]:
    """Yields the first image and pixels [n, C, H, W] of each part (start, stop) of the images.

    What has to come from disk or to a GPU is read by a thread, one slice ahead: through page-locked
    memory, by one transfer on a stream of its own. So two slices are held at a time.
    """
    moves = device.type == "cuda" and images.pixels(0, 1).device != device
    if images.in_memory and not moves:
        for part in parts:
            yield part[0], images.pixels(*part)
        return
    side = torch.cuda.Stream(device) if moves else None

    def read(part: tuple[int, int]) -> tuple[Tensor, torch.cuda.Event | None]:
        pixels = images.pixels(*part)
        if side is None:
            return pixels, None
        if not pixels.is_pinned():
            pixels = pixels.pin_memory()
        with torch.cuda.stream(side):
            pixels = pixels.to(device, non_blocking=True)
            event = torch.cuda.Event()
            event.record(side)
        return pixels, event

    with ThreadPoolExecutor(1, "deevo-feed") as reader:
        following = reader.submit(read, parts[0])
        for number, (start, _) in enumerate(parts, start=1):
            pixels, event = following.result()
            if number < len(parts):
                following = reader.submit(read, parts[number])
            if event is not None:
                current = torch.cuda.current_stream(device)
                current.wait_event(event)
                pixels.record_stream(current)
            yield start, pixels
