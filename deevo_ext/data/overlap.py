"""Whether image sets share images: each image serves one purpose."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np

from deevo_ext.data.cached import CachedImages, image_digest
from deevo_ext.data.labelled import LabelledImages
from deevo_ext.distributed.ranks import warn
from deevo_ext.errors import DeevoError


def check_overlap(sets: Mapping[str, LabelledImages], action: str) -> None:
    """Compares the images of sets pixel for pixel, with their labels.

    action: "refuse" raises DeevoError where a set shares half of its images or more with another,
    and warns where it shares fewer, as large collections often do; "warn" only warns; "ignore"
    compares nothing.
    """
    if action == "ignore":
        return
    digests = {name: _image_digests(images) for name, images in sets.items()}
    for (one, a), (other, b) in itertools.combinations(digests.items(), 2):
        count = len(np.intersect1d(a, b))
        if not count:
            continue
        if action == "refuse" and 2 * count >= min(len(np.unique(a)), len(np.unique(b))):
            raise DeevoError(
                f"the {one} images and the {other} images share {count} images, but have to be "
                f"disjoint: nothing measured on one would be independent of the other. Give other "
                f'images; overlap="warn" (--force) goes on all the same'
            )
        warn(
            f"the {one} images and the {other} images share {count} images: what is chosen on one "
            "is not measured independently on the other",
            stacklevel=3,
        )


def _image_digests(images: LabelledImages) -> np.ndarray:
    """One value [N] an image, equal where pixels and label are."""
    if isinstance(images, CachedImages):
        return images.image_digests()
    labels = images.labels.tolist()
    digests = bytearray()
    for number, label in enumerate(labels):
        image = images.pixels(number, number + 1).contiguous().cpu()
        digests += image_digest(image.numpy().data, label)
    return np.frombuffer(digests, "V32")
