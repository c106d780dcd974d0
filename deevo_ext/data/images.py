"""Labelled images in memory, and the four disjoint sets that an honest comparison needs."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

import numpy as np
import torch

from deevo_ext.data.labelled import Indices, LabelledImages
from deevo_ext.errors import DeevoError

Images = TypeVar("Images", bound=LabelledImages)


@dataclass(frozen=True, eq=False)
class ImageSet(LabelledImages):
    """Normalised images and their labels, in memory.

    Args:
        images: float32 [N, C, H, W], finite, N, C, H, W > 0.
        labels: int64 [N], not negative, on the same device.
        name: for messages and reports.

    Raises:
        DeevoError: a shape, dtype, length or value is not as above.
    """

    images: torch.Tensor
    labels: torch.Tensor
    name: str

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if images.ndim != 4 or images.dtype != torch.float32:
            raise DeevoError(
                f"{self.name}: images must be float32 [N, C, H, W], "
                f"got {images.dtype} {list(images.shape)}"
            )
        if labels.ndim != 1 or labels.dtype != torch.int64:
            raise DeevoError(
                f"{self.name}: labels must be int64 [N], got {labels.dtype} {list(labels.shape)}"
            )
        if len(images) != len(labels):
            raise DeevoError(f"{self.name}: {len(images)} images but {len(labels)} labels")
        if images.numel() == 0:
            raise DeevoError(f"{self.name}: no images (shape {list(images.shape)})")
        if images.device != labels.device:
            raise DeevoError(
                f"{self.name}: images are on {images.device}, labels on {labels.device}"
            )
        if not bool(torch.isfinite(images).all()):
            raise DeevoError(f"{self.name}: images hold a value that is not finite")
        if int(labels.min()) < 0:
            raise DeevoError(f"{self.name}: labels hold a negative value, {int(labels.min())}")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """C, H, W."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    @property
    def dtype(self) -> torch.dtype:
        """torch.float32."""
        return self.images.dtype

    def pixels(self, start: int, stop: int) -> torch.Tensor:
        """Images start..stop-1, a view."""
        return self.images[start:stop]

    def digest(self) -> str:
        """SHA-256 (hex) of images and labels, which tells that two sets are the same."""
        digest = hashlib.sha256(self.images.cpu().contiguous().numpy().data)
        digest.update(self.labels.cpu().contiguous().numpy().data)
        return digest.hexdigest()

    def subset(self, indices: Indices, name: str | None = None) -> "ImageSet":
        """See LabelledImages; the images are copied."""
        chosen = self.checked(indices)
        return ImageSet(self.images[chosen], self.labels[chosen], name or self.name)

    def slice(self, start: int, stop: int, name: str | None = None) -> "ImageSet":
        """See LabelledImages."""
        self.range_of(start, stop)
        return ImageSet(self.images[start:stop], self.labels[start:stop], name or self.name)


@dataclass(frozen=True, eq=False)
class FourSets:
    """Disjoint sets: each image serves one purpose, so no number is read from what chose it.

    Args:
        train: for backpropagation.
        fitness: for evolution.
        validation: builds soups and chooses the candidate that is returned.
        test: read once, by the report.
        num_classes: labels are 0..num_classes-1.
        name: of the source.
        note: what was done to the images; one sentence for `describe`.
        mirror: whether a mirrored image keeps its class (clothes do, digits do not).

    Raises:
        DeevoError: image shapes differ or a label does not fit.
    """

    train: ImageSet
    fitness: ImageSet
    validation: ImageSet
    test: ImageSet
    num_classes: int
    name: str
    note: str = ""
    mirror: bool = False

    def __post_init__(self) -> None:
        shape = self.train.images.shape[1:]
        for part in (self.train, self.fitness, self.validation, self.test):
            if part.images.shape[1:] != shape:
                raise DeevoError(
                    f"{self.name}: {part.name} images are {list(part.images.shape[1:])}, "
                    f"train images {list(shape)}"
                )
            if int(part.labels.max()) >= self.num_classes:
                raise DeevoError(
                    f"{self.name}: {part.name} has label {int(part.labels.max())}, "
                    f"but there are {self.num_classes} classes"
                )

    def describe(self) -> str:
        """One line with sizes and image shape, then the note."""
        shape = "x".join(str(size) for size in self.train.images.shape[1:])
        line = (
            f"{self.name}: {len(self.train):,} train, {len(self.fitness):,} fitness, "
            f"{len(self.validation):,} validation, {len(self.test):,} test images, "
            f"{shape}, {self.num_classes} classes"
        )
        return f"{line}. {self.note}" if self.note else line


def balanced_order(labels: torch.Tensor, seed: int) -> torch.Tensor:
    """A seeded order of all images whose every slice has all classes in proportion.

    Image k of a class with n images, the class shuffled, gets the key (k + uniform[0, 1)) / n.
    Sorted by key, each slice holds every class within 2 images of its share, and so does
    each prefix within 1.

    Args:
        labels: int64 [N].
        seed: 0 or more.

    Returns:
        int64 [N] on the CPU, a permutation of 0..N-1.
    """
    if seed < 0:
        raise DeevoError(f"seed must be 0 or more, got {seed}")
    # Its own generator: the result must not depend on, or move, the global one.
    generator = np.random.Generator(np.random.PCG64(seed))
    label = labels.cpu().numpy()
    key = np.empty(len(label), dtype=np.float64)
    for value in np.unique(label):
        members = generator.permutation(np.flatnonzero(label == value))
        key[members] = (np.arange(len(members)) + generator.random(len(members))) / len(members)
    return torch.from_numpy(np.argsort(key, kind="stable"))


def split_class_balanced(
    images: Images, sizes: Sequence[int], seed: int, names: Sequence[str] | None = None
) -> list[Images]:
    """Disjoint parts with the class proportions of the whole (within 2 images per class).

    Args:
        images: the whole, N images.
        sizes: images in each part, each > 0, together at most N; what is left over is unused.
        seed: 0 or more; the same seed gives the same parts, whatever the global generators hold.
        names: of the parts, if not that of the whole.

    Returns:
        One set per size. Within each, any slice is class-balanced too.

    Raises:
        DeevoError: sizes do not fit.
    """
    if not sizes or min(sizes) <= 0 or sum(sizes) > len(images):
        raise DeevoError(
            f"{images.name}: cannot split {len(images)} images into parts of {list(sizes)}"
        )
    labels = names or [images.name] * len(sizes)
    if len(labels) != len(sizes):
        raise DeevoError(f"{images.name}: {len(sizes)} parts but {len(labels)} names")
    order = balanced_order(images.labels, seed).to(images.labels.device)
    parts = torch.split(order[: sum(sizes)], list(sizes))
    found = [images.subset(part, name) for part, name in zip(parts, labels, strict=True)]
    return cast("list[Images]", found)
