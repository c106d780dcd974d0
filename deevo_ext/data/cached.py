"""Labelled images whose uint8 pixels lie in a memory map, in host memory or on a GPU."""

from __future__ import annotations

import hashlib
import struct

import numpy as np
import torch
from torch import Tensor

from deevo_ext.data.labelled import Indices, LabelledImages
from deevo_ext.errors import DeevoError


class CachedImages(LabelledImages):
    """uint8 images that share one store of pixels; subsets are lists of indices into it.

    Args:
        store: uint8 [M, H, W, C], on any device; memory-mapped files stay on disk until read.
        labels: int64 [N] on the CPU, of the images of this set; none negative.
        mean, std: per channel, of values in 0..1: what networks get is (pixel / 255 - mean) / std.
        name: for messages and reports.
        digests: uint8 [M, 32], SHA-256 of each stored image's bytes and its label (int64, little
            end first); without them they are computed when asked for.
        indices: int64 [N] into the store; None for all of it, in order.
        in_memory: whether reading needs no disk.

    Raises:
        DeevoError: a shape, dtype, length or value is not as above.
    """

    def __init__(
        self,
        store: Tensor,
        labels: Tensor,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        name: str,
        *,
        digests: Tensor | None = None,
        indices: Tensor | None = None,
        in_memory: bool = True,
    ) -> None:
        if store.ndim != 4 or store.dtype != torch.uint8 or not store.numel():
            raise DeevoError(
                f"{name}: pixels must be uint8 [M, H, W, C], got {store.dtype} {list(store.shape)}"
            )
        if labels.ndim != 1 or labels.dtype != torch.int64 or not labels.numel():
            raise DeevoError(
                f"{name}: labels must be int64 [N], got {labels.dtype} {list(labels.shape)}"
            )
        count = len(store) if indices is None else len(indices)
        if len(labels) != count:
            raise DeevoError(f"{name}: {count} images but {len(labels)} labels")
        if int(labels.min()) < 0:
            raise DeevoError(f"{name}: labels hold a negative value, {int(labels.min())}")
        if not len(mean) == len(std) == store.shape[3] or not all(value > 0 for value in std):
            raise DeevoError(
                f"{name}: images have {store.shape[3]} channels, mean is {mean} and std {std}; "
                "expected one of each a channel, and std above 0"
            )
        self.store, self.labels, self.name = store, labels, name
        self.mean, self.std = tuple(mean), tuple(std)
        self.digests, self.indices, self.in_memory = digests, indices, in_memory

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """See LabelledImages."""
        _, height, width, channels = self.store.shape
        return channels, height, width

    @property
    def dtype(self) -> torch.dtype:
        """See LabelledImages."""
        return torch.uint8

    def pixels(self, start: int, stop: int) -> Tensor:
        """See LabelledImages; channels-last in memory."""
        if self.indices is None:
            found = self.store[start:stop]
            if not self.in_memory:
                found = found.clone()  # a view of a memory map has read nothing yet
        else:
            found = self.store[self.indices[start:stop].to(self.store.device)]
        return found.permute(0, 3, 1, 2)

    def subset(self, indices: Indices, name: str | None = None) -> CachedImages:
        """See LabelledImages; pixels are not copied."""
        chosen = self.checked(indices)
        own = chosen if self.indices is None else self.indices[chosen]
        return self._with(self.store, self.labels[chosen], own, self.digests, name)

    def slice(self, start: int, stop: int, name: str | None = None) -> CachedImages:
        """See LabelledImages; of a whole store it is a view, which reads without gathering."""
        if self.indices is not None:
            return self.subset(self.range_of(start, stop), name)
        self.range_of(start, stop)
        own = slice(start, stop)
        digests = None if self.digests is None else self.digests[own]
        return self._with(self.store[own], self.labels[own], None, digests, name)

    def gathered(self, store: Tensor) -> CachedImages:
        """The same images, lying in order in a `store` of their own, uint8 [N, H, W, C]."""
        digests = self.digests
        if digests is not None and self.indices is not None:
            digests = digests[self.indices]
        found = self._with(store, self.labels, None, digests, None)
        found.in_memory = True
        return found

    def normalised(self, mean: tuple[float, ...], std: tuple[float, ...]) -> CachedImages:
        """The same images under another normalisation."""
        return CachedImages(
            self.store,
            self.labels,
            mean,
            std,
            self.name,
            digests=self.digests,
            indices=self.indices,
            in_memory=self.in_memory,
        )

    def digest(self) -> str:
        """See LabelledImages; from the images' own digests, so that nothing is read."""
        own = self._own_digests()
        digest = hashlib.sha256(f"{self.image_shape} {self.mean} {self.std}".encode())
        digest.update(own.contiguous().numpy().data)
        digest.update(self.labels.contiguous().numpy().data)
        return digest.hexdigest()

    def image_digests(self) -> np.ndarray:
        """One value [N] an image, equal where pixels and label are."""
        own = self._own_digests().contiguous().numpy()
        return own.view(f"V{own.shape[1]}").reshape(-1)

    def _own_digests(self) -> Tensor:
        if self.digests is not None:
            return self.digests if self.indices is None else self.digests[self.indices]
        found = bytearray()
        for number, label in enumerate(self.labels.tolist()):
            image = self.pixels(number, number + 1).permute(0, 2, 3, 1).contiguous().cpu()
            digest = hashlib.sha256(image.numpy().data)
            digest.update(struct.pack("<q", label))
            found += digest.digest()
        return torch.frombuffer(found, dtype=torch.uint8).view(-1, 32)

    def _with(
        self,
        store: Tensor,
        labels: Tensor,
        indices: Tensor | None,
        digests: Tensor | None,
        name: str | None,
    ) -> CachedImages:
        assert self.mean is not None and self.std is not None
        return CachedImages(
            store,
            labels,
            self.mean,
            self.std,
            name or self.name,
            digests=digests,
            indices=indices,
            in_memory=self.in_memory,
        )
