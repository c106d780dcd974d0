"""Labelled images in memory, and their division into class-balanced parts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from deevo_ext.arguments import check_arguments
from deevo_ext.data.labelled import Indices, LabelledImages
from deevo_ext.errors import DeevoError

Whole = TypeVar("Whole", bound=LabelledImages)


@dataclass(eq=False, repr=False)
class ImageSet(LabelledImages):
    """Normalised images and their labels, in memory.

    images: float32 [N, C, H, W], finite, N, C, H, W > 0. labels: int64 [N], not negative, on the
    same device. name: of the set, for messages and reports.

    Raises DeevoError: a shape, dtype, length or value is not as above.
    """

    images: Tensor
    labels: Tensor
    name: str = "images"

    def __post_init__(self) -> None:
        check_arguments(ImageSet, vars(self))
        images = self.images = self.images.detach()  # some are learned
        if images.ndim != 4 or images.dtype != torch.float32:
            raise DeevoError(
                f"{self.name}: images must be float32 [N, C, H, W], "
                f"got {images.dtype} {list(images.shape)}"
            )
        self.check_labels(len(images))
        if images.numel() == 0:
            raise DeevoError(f"{self.name}: images are empty, of shape {list(images.shape)}")
        if images.device != self.labels.device:
            raise DeevoError(
                f"{self.name}: images are on {images.device}, labels on {self.labels.device}"
            )
        if not bool(torch.isfinite(images).all()):
            raise DeevoError(f"{self.name}: images hold a value that is not finite")
        _, channels, height, width = images.shape
        self.image_shape, self.dtype = (channels, height, width), images.dtype

    def pixels(self, start: int, stop: int) -> Tensor:
        """Returns images start..stop-1, a view."""
        self.require_range(start, stop)
        return self.images[start:stop]

    def digest(self) -> str:
        """Returns the SHA-256 (hex) of images and labels."""
        digest = hashlib.sha256(self.images.cpu().contiguous().numpy().data)
        digest.update(self.labels.cpu().contiguous().numpy().data)
        return digest.hexdigest()

    def subset(self, indices: Indices, name: str | None = None) -> ImageSet:
        """Returns copies of the images at `indices`, in that order."""
        chosen = self.checked(indices)
        return ImageSet(self.images[chosen], self.labels[chosen], self.named(name))

    def slice(self, start: int, stop: int, name: str | None = None) -> ImageSet:
        """Returns images start..stop-1, a view."""
        self.require_range(start, stop)
        return ImageSet(self.images[start:stop], self.labels[start:stop], self.named(name))


def image_set(images: LabelledImages | tuple[Tensor, Tensor], name: str) -> LabelledImages:
    """Returns a set as it is, or one made of (images float32 [N, C, H, W], labels int64 [N])."""
    if isinstance(images, LabelledImages):
        return images
    pair = isinstance(images, (tuple, list)) and len(images) == 2
    if not pair or not all(isinstance(part, Tensor) for part in images):
        raise DeevoError(
            f"{name} are a {type(images).__name__}; expected a deevo_ext.ImageSet, "
            "deevo_ext.CachedImages, or a pair of torch tensors, images float32 [N, C, H, W] and "
            "labels int64 [N]"
        )
    return ImageSet(images[0], images[1], name)


def balanced_order(labels: Tensor, seed: int) -> Tensor:
    """Returns a seeded order of all images whose every slice has all classes in proportion.

    Image k of a class with n images, the class shuffled, gets the key (k + uniform[0, 1)) / n.
    Sorted by key, each slice holds every class within 2 images of its share, and each prefix
    within 1.

    labels: int64 [N]. seed: 0 or more. The result is int64 [N] on the CPU, a permutation of 0..N-1.
    """
    if seed < 0:
        raise DeevoError(f"seed must be 0 or more, got {seed}")
    # Its own generator: the result must not depend on, or move, the global one.
    generator = np.random.Generator(np.random.PCG64(seed))
    classes = labels.cpu().numpy()
    key = np.empty(len(classes), dtype=np.float64)
    for label in np.unique(classes):
        places = generator.permutation(np.flatnonzero(classes == label))
        key[places] = (np.arange(len(places)) + generator.random(len(places))) / len(places)
    return torch.from_numpy(np.argsort(key, kind="stable"))


def split_class_balanced(
    images: Whole, sizes: Sequence[int], seed: int, names: Sequence[str] | None = None
) -> list[Whole]:
    """Returns disjoint parts with the class proportions of the whole (within 2 images per class).

    images: the whole, N images. sizes: images in each part, each > 0, together at most N; what is
    left over is unused. seed: 0 or more; the same seed gives the same parts, whatever the global
    generators hold. names: of the parts, if not that of the whole. Within each part, any slice is
    class-balanced too.

    Raises DeevoError: sizes do not fit.
    """
    check_arguments(split_class_balanced, locals())
    if not sizes or min(sizes) <= 0 or sum(sizes) > len(images):
        raise DeevoError(
            f"{images.name}: cannot split {len(images)} images into parts of {list(sizes)}"
        )
    order = balanced_order(images.labels, seed).to(images.labels.device)
    parts = torch.split(order[: sum(sizes)], list(sizes))
    names = names or [images.name] * len(sizes)
    if len(names) != len(sizes):
        raise DeevoError(f"names are {len(names)}, sizes {len(sizes)}; expected one for each part")
    subsets = [images.subset(part, name) for part, name in zip(parts, names, strict=True)]
    return cast("list[Whole]", subsets)
