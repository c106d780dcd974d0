"""The image sets of a run on a user's own data: fitness, validation and test.

Backpropagation has seen the train images, and fitness is drawn from them too, in class-balanced
batches; validation and test come from val, which nothing else reads.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from deevo_ext.data.cache import build_cache
from deevo_ext.data.cache_file import Cache, open_cache
from deevo_ext.data.cached import CachedImages
from deevo_ext.data.images import balanced_order, split_class_balanced
from deevo_ext.data.labelled import LabelledImages
from deevo_ext.data.pictures import Pictures, Selected, open_pictures
from deevo_ext.data.transform import Transform
from deevo_ext.errors import DeevoError
from deevo_ext.files import cache_folder

VALIDATION_IMAGES = 10_000
TRAIN_IMAGES = 100_000
"""Train images that are cached unless told otherwise: 15 GB at 224x224."""

Given = str | os.PathLike[str] | LabelledImages


@dataclass(frozen=True)
class ImageSets:
    """Disjoint sets: fitness drives evolution, validation chooses, test is read once."""

    fitness: LabelledImages
    validation: LabelledImages
    test: LabelledImages
    class_names: list[str]

    def describe(self) -> str:
        """One line with sizes and image shape."""
        shape = "x".join(str(side) for side in self.fitness.image_shape)
        return (
            f"{len(self.fitness):,} fitness, {len(self.validation):,} validation, "
            f"{len(self.test):,} test images, {shape}, {len(self.class_names)} classes"
        )


def validation_size(images: int) -> int:
    """Of `images` val images, those for validation; the rest is test.

    A fifth, 10,000 at most (of ImageNet's 50,000: 10,000); where that is less than 1,000, up to
    1,000 or half of them.
    """
    return min(VALIDATION_IMAGES, max(images // 5, min(1000, images // 2)))


def open_data(
    data: str | os.PathLike[str],
    transform: Transform,
    *,
    seed: int = 0,
    cache: str | os.PathLike[str] | None = None,
    train_images: int | None = TRAIN_IMAGES,
    workers: int | None = None,
    skip_corrupt: bool = False,
    progress: bool = True,
) -> Cache:
    """The cache of `data`, built if need be: arguments and errors are those of `image_sets`."""
    path = Path(data)
    if path.is_file():
        return open_cache(path)
    pictures = select_train(open_pictures(path), train_images, seed)
    target = _default_path(path, transform, pictures, seed) if cache is None else Path(cache)
    return build_cache(
        pictures,
        target,
        transform,
        workers=workers,
        skip_corrupt=skip_corrupt,
        progress=progress,
    )


def image_sets(
    data: str | os.PathLike[str] | None,
    transform: Transform,
    *,
    seed: int = 0,
    cache: str | os.PathLike[str] | None = None,
    train_images: int | None = TRAIN_IMAGES,
    fitness: Given | None = None,
    validation: Given | None = None,
    test: Given | None = None,
    workers: int | None = None,
    skip_corrupt: bool = False,
    progress: bool = True,
) -> ImageSets:
    """The three sets of `data`, or those given instead.

    data: a cache file, or what `open_pictures` takes, which is cached first. seed: of choice and
    division, 0 or more; runs that are to be compared share it. cache: where the cache goes, or is;
    default below DEEVO_CACHE_DIR. train_images: class-balanced ones that are cached; None for all.
    fitness, validation, test: a set, or a cache file or folder (its train part for fitness, else
    its val part, or all of it). workers, skip_corrupt, progress: of `build_cache`.

    Of a train/val tree fitness is all (cached) train images, validation a class-balanced part of
    val by `validation_size`, test the rest. One folder without parts is halved, class-balanced:
    fitness, and what is treated like val. The order of each set is a seeded, class-balanced one.

    Sets that were given and share images with another are a warning.

    Raises DeevoError: see `build_cache`; no images for a set; class names that differ; the same
    images in two sets that were given.
    """

    def opened(source: str | os.PathLike[str], where: str | os.PathLike[str] | None) -> Cache:
        return open_data(
            source,
            transform,
            seed=seed,
            cache=where,
            train_images=train_images,
            workers=workers,
            skip_corrupt=skip_corrupt,
            progress=progress,
        )

    names: list[list[str]] = []

    def one(given: Given, purpose: str) -> LabelledImages:
        if isinstance(given, LabelledImages):
            return given
        found = opened(given, None)
        names.append(found.class_names)
        parts = list(found.description.parts)
        wanted = "train" if purpose == "fitness" else "val"
        images = found.images(wanted if wanted in parts else parts[0], transform)
        return images.subset(balanced_order(images.labels, seed), purpose)

    if data is None and (fitness is None or validation is None or test is None):
        raise DeevoError("data is missing: give --data, or all of --fitness, --validation, --test")
    sets: dict[str, LabelledImages] = {}
    if data is not None:
        found = opened(data, cache)
        names.append(found.class_names)
        own: dict[str, LabelledImages] = {
            part: found.images(part, transform) for part in found.description.parts
        }
        sets = _divided(own, seed)
    for purpose, given in (("fitness", fitness), ("validation", validation), ("test", test)):
        if given is not None:
            sets[purpose] = one(given, purpose)
    if any(own != names[0] for own in names):
        raise DeevoError("the image sets have other classes than each other; check their folders")
    _require_distinct(sets)
    if fitness is not None or validation is not None or test is not None:
        _warn_of_shared(sets)
    classes = 1 + max(int(images.labels.max()) for images in sets.values())
    return ImageSets(**sets, class_names=names[0] if names else [str(i) for i in range(classes)])


def _divided(parts: dict[str, LabelledImages], seed: int) -> dict[str, LabelledImages]:
    if "train" in parts:
        train = parts["train"]
        fitness = train.subset(balanced_order(train.labels, seed), "fitness")
        val = parts.get("val")
    else:
        whole = next(iter(parts.values()))
        half = len(whole) // 2
        if not half:
            raise DeevoError(f"{whole.name}: one image cannot be divided into sets")
        fitness, val = split_class_balanced(
            whole, (half, len(whole) - half), seed, ("fitness", "val")
        )
    if val is None:
        return {"fitness": fitness}  # validation and test have to be given
    size = validation_size(len(val))
    if not size:
        raise DeevoError(f"{val.name}: {len(val)} images cannot be divided into sets")
    validation, test = split_class_balanced(
        val, (size, len(val) - size), seed, ("validation", "test")
    )
    return {"fitness": fitness, "validation": validation, "test": test}


def _require_distinct(sets: dict[str, LabelledImages]) -> None:
    missing = [name for name in ("fitness", "validation", "test") if name not in sets]
    if missing:
        raise DeevoError(
            f"no images for {' and '.join(missing)}: the data has no val/; give "
            f"{', '.join(f'--{name}' for name in missing)}"
        )
    digests: dict[str, str] = {}
    for name, images in sets.items():
        if (other := digests.setdefault(images.digest(), name)) != name:
            raise DeevoError(f"{other} and {name} are the same images; they have to be disjoint")


def _warn_of_shared(sets: dict[str, LabelledImages]) -> None:
    """Names sets that were given and share images, as far as their digests tell."""
    cached = {name: s for name, s in sets.items() if isinstance(s, CachedImages)}
    for (one, a), (other, b) in itertools.combinations(cached.items(), 2):
        count = len(np.intersect1d(a.image_digests(), b.image_digests()))
        if count:
            warnings.warn(
                f"{one} and {other} share {count} images: what is chosen on one is no longer "
                "measured independently on the other",
                stacklevel=3,
            )


def select_train(pictures: Pictures, count: int | None, seed: int) -> Pictures:
    """Train cut to `count` images, class-balanced; everything else as it is."""
    start, stop = pictures.parts.get("train", (0, 0))
    if count is None or stop - start <= count:
        return pictures
    if count < 1:
        raise DeevoError(f"train_images is {count}; expected at least 1")
    assert pictures.labels is not None
    order = balanced_order(torch.from_numpy(pictures.labels[start:stop]), seed)[:count]
    chosen = np.sort(order.numpy()) + start
    rest = np.r_[0:start, stop : len(pictures)]
    return Selected(pictures, np.sort(np.concatenate((chosen, rest))).astype(np.int64))


def _default_path(source: Path, transform: Transform, pictures: Pictures, seed: int) -> Path:
    asked = (
        str(source.resolve()),
        json.dumps(transform.pixels()),
        pictures.parts,
        seed if isinstance(pictures, Selected) else None,
    )
    key = hashlib.sha256(repr(asked).encode()).hexdigest()[:12]
    return cache_folder() / "images" / f"{pictures.name}-{key}.safetensors"
