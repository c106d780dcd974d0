"""Labelled images whose uint8 pixels lie in a memory map, in host memory or on a GPU."""

from __future__ import annotations

import hashlib
import math
import struct
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from deevo_ext.arguments import check_arguments
from deevo_ext.data.labelled import Indices, LabelledImages
from deevo_ext.errors import DeevoError


def image_digest(pixels: bytes | memoryview, label: int) -> bytes:
    """Returns the SHA-256 of an image's uint8 pixels followed by its label, little-endian int64."""
    digest = hashlib.sha256(pixels)
    digest.update(struct.pack("<q", label))
    return digest.digest()


@dataclass(eq=False, repr=False)
class CachedImages(LabelledImages):
    """uint8 images of which several sets share the pixels; a subset is a list of indices.

    all_pixels: uint8 [M, H, W, C], on any device; those of a mapped file stay on disk until read.
    labels: int64 [N] on the CPU, of the images of this set; none negative. mean, std: per channel,
    of values in 0..1: what networks get is (pixel / 255 - mean) / std. name: for messages and
    reports. digests: uint8 [M, 32], the `image_digest` of each; without them they are computed when
    asked for. verified: bool [M], the images whose pixels and label were found to have their
    digest; where it is given, an image is compared when it is first read. indices: int64 [N] into
    `all_pixels`; None for all of them, in order. in_memory: whether reading needs no disk.

    Raises DeevoError: a shape, dtype, length or value is not as above.
    """

    all_pixels: Tensor
    labels: Tensor
    mean: tuple[float, ...] = field()  # without the default of LabelledImages
    std: tuple[float, ...] = field()
    name: str
    digests: Tensor | None = None
    verified: Tensor | None = None
    indices: Tensor | None = None
    in_memory: bool = True

    def __post_init__(self) -> None:
        check_arguments(CachedImages, vars(self))
        self.mean, self.std = tuple(self.mean), tuple(self.std)
        shape, dtype = self.all_pixels.shape, self.all_pixels.dtype
        if len(shape) != 4 or dtype != torch.uint8 or not self.all_pixels.numel():
            raise DeevoError(
                f"{self.name}: pixels must be uint8 [M, H, W, C], got {dtype} {list(shape)}"
            )
        if self.indices is not None and self.indices.ndim != 1:
            raise DeevoError(f"{self.name}: indices are {list(self.indices.shape)}; expected [N]")
        self.check_labels(shape[0] if self.indices is None else len(self.indices))
        _, height, width, channels = shape
        one_each = len(self.mean) == len(self.std) == channels
        finite = all(math.isfinite(value) for value in (*self.mean, *self.std))
        if not one_each or not finite or not all(value > 0 for value in self.std):
            raise DeevoError(
                f"{self.name}: images have {channels} channels, mean is {self.mean} and std "
                f"{self.std}; expected one of each a channel, and std above 0"
            )
        self.image_shape, self.dtype = (channels, height, width), torch.uint8

    def pixels(self, start: int, stop: int) -> Tensor:
        """Returns images start..stop-1, uint8 [n, C, H, W], channels-last in memory.

        Raises DeevoError where an image does not have its digest.
        """
        self.require_range(start, stop)
        if self.indices is None:
            pixels = self.all_pixels[start:stop]
            if not self.in_memory:
                pixels = pixels.clone()  # a view of a memory map has read nothing yet
        else:
            pixels = self.all_pixels[self.indices[start:stop].to(self.all_pixels.device)]
        if self.digests is not None and self.verified is not None:
            self._verify(start, pixels, self.digests, self.verified)
        return pixels.permute(0, 3, 1, 2)

    def _verify(self, start: int, pixels: Tensor, digests: Tensor, verified: Tensor) -> None:
        """Compares the images that were not compared before with their digests."""
        slots = torch.arange(start, start + len(pixels))
        if self.indices is not None:
            slots = self.indices[slots]
        for k in torch.nonzero(~verified[slots]).flatten().tolist():
            found = image_digest(pixels[k].numpy().data, int(self.labels[start + k]))
            if found != digests[slots[k]].numpy().tobytes():
                raise DeevoError(
                    f"{self.name}: image {start + k} is not what was cached: the cache file was "
                    "changed or is damaged; delete it and make it anew"
                )
        verified[slots] = True

    def subset(self, indices: Indices, name: str | None = None) -> CachedImages:
        """Returns the images at `indices`, in that order; pixels are not copied."""
        chosen = self.checked(indices)
        places = chosen if self.indices is None else self.indices[chosen]
        return replace(self, labels=self.labels[chosen], indices=places, name=self.named(name))

    def slice(self, start: int, stop: int, name: str | None = None) -> CachedImages:
        """Returns images start..stop-1; of all images it is a view, read without gathering."""
        if self.indices is not None:
            return self.subset(self.range_of(start, stop), name)
        self.require_range(start, stop)
        return replace(
            self,
            all_pixels=self.all_pixels[start:stop],
            labels=self.labels[start:stop],
            digests=None if self.digests is None else self.digests[start:stop],
            verified=None if self.verified is None else self.verified[start:stop],
            name=self.named(name),
        )

    def gathered(self, pixels: Tensor) -> CachedImages:
        """Returns the same images, lying in order in `pixels` of their own, uint8 [N, H, W, C]."""
        digests = None if self.digests is None else self._digests()
        return replace(
            self, all_pixels=pixels, digests=digests, verified=None, indices=None, in_memory=True
        )

    def digest(self) -> str:
        """Returns the set's SHA-256 (hex), from the images' digests, so that nothing is read."""
        digest = hashlib.sha256(f"{self.image_shape} {self.mean} {self.std}".encode())
        digest.update(self._digests().contiguous().numpy().data)
        digest.update(self.labels.contiguous().numpy().data)
        return digest.hexdigest()

    def image_digests(self) -> np.ndarray:
        """Returns one value [N] an image, equal where pixels and label are."""
        digests = self._digests().contiguous().numpy()
        return digests.view(f"V{digests.shape[1]}").reshape(-1)

    def _digests(self) -> Tensor:
        """The digests uint8 [N, 32] of this set's images."""
        if self.digests is not None:
            return self.digests if self.indices is None else self.digests[self.indices]
        digests = bytearray()
        for number, label in enumerate(self.labels.tolist()):
            image = self.pixels(number, number + 1).permute(0, 2, 3, 1).contiguous().cpu()
            digests += image_digest(image.numpy().data, label)
        return torch.frombuffer(digests, dtype=torch.uint8).view(-1, 32)
