"""The image sets of a run on a user's own data: fitness, validation and test.

Backpropagation has seen the train images, and fitness is drawn from them too, in class-balanced
batches; validation and test come from val, which nothing else reads.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from deevo_ext.arguments import check_arguments
from deevo_ext.data.cache import build_cache
from deevo_ext.data.cache_file import VERSION, Cache, open_cache, require_own
from deevo_ext.data.classes import ClassOrder, require_order
from deevo_ext.data.images import balanced_order, split_class_balanced
from deevo_ext.data.labelled import LabelledImages
from deevo_ext.data.opening import open_pictures
from deevo_ext.data.pictures import Pictures, Selected
from deevo_ext.data.transform import Transform
from deevo_ext.errors import DeevoError
from deevo_ext.files import cache_folder

VALIDATION_IMAGES = 10_000
TRAIN_IMAGES = 100_000
"""Train images that are cached unless told otherwise: 15 GB at 224x224."""

ImageSource = str | os.PathLike[str] | LabelledImages
"""A set, a cache file, or a folder of pictures."""


@dataclass(frozen=True)
class ImageSets:
    """Disjoint sets: each image serves one purpose, so that no number is read from what chose it.

    fitness: drives evolution. validation: builds soups and chooses the candidate that is returned.
    test: read once, by the report. class_names: in the labels' order.
    """

    fitness: LabelledImages
    validation: LabelledImages
    test: LabelledImages
    class_names: list[str]

    def describe(self) -> str:
        """Returns one line with sizes and image shape."""
        shape = "x".join(str(side) for side in self.fitness.image_shape)
        return (
            f"{len(self.fitness):,} fitness, {len(self.validation):,} validation, "
            f"{len(self.test):,} test images, {shape}, {len(self.class_names)} classes"
        )


def validation_size(images: int) -> int:
    """Returns how many of `images` val images are for validation; the rest is test.

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
    class_order: ClassOrder = "text",
    labels: str | os.PathLike[str] | None = None,
    classes: int | None = None,
    train_images: int | None = TRAIN_IMAGES,
    workers: int | None = None,
    skip_corrupt: bool = False,
    progress: bool = True,
) -> Cache:
    """Returns the cache of `data`, built if need be; arguments and errors as in `image_sets`."""
    check_arguments(open_data, locals())
    if not isinstance(data, (str, os.PathLike)):
        raise DeevoError(f"data is a {type(data).__name__}; expected a cache file or a folder")
    path = Path(data)
    if os.path.isfile(path):
        if labels is not None:
            raise DeevoError(f"labels are {labels}, but {path} is a file; expected a folder for it")
        if cache is not None:
            raise DeevoError(
                f"cache is {cache}, but {path} is a cache itself; leave it out, or give the folder "
                "of pictures that is to be cached"
            )
        if train_images not in (None, TRAIN_IMAGES):
            raise DeevoError(
                f"train_images is {train_images}, but {path} is a cache, which holds those that it "
                "was made with; leave it out, or make another cache with it"
            )
        opened = open_cache(path)
        require_order(opened.class_names, class_order, str(path))
        return opened
    pictures = select_train(open_pictures(path, class_order, labels), train_images, seed)
    require_order(pictures.class_names, class_order, str(path))
    if classes is not None and len(pictures.class_names) not in (0, classes):
        raise DeevoError(
            f"{path}: {len(pictures.class_names)} classes ({pictures.class_names[0]} .. "
            f"{pictures.class_names[-1]}), but the network has {classes}; where pictures are of "
            "some of its classes, name all of them in their order (--class-order FILE)"
        )
    if cache is None:
        target = _default_path((path, labels), transform, pictures, seed, class_order)
        require_own(target)
    else:
        target = Path(cache)
    return build_cache(
        pictures,
        target,
        transform,
        workers=workers,
        skip_corrupt=skip_corrupt,
        progress=progress,
        renew=cache is None,  # nobody knows that file
    )


def image_sets(
    data: str | os.PathLike[str] | None,
    transform: Transform,
    *,
    seed: int = 0,
    cache: str | os.PathLike[str] | None = None,
    class_order: ClassOrder = "text",
    labels: str | os.PathLike[str] | None = None,
    classes: int | None = None,
    train_images: int | None = TRAIN_IMAGES,
    fitness: ImageSource | None = None,
    validation: ImageSource | None = None,
    test: ImageSource | None = None,
    workers: int | None = None,
    skip_corrupt: bool = False,
    progress: bool = True,
) -> ImageSets:
    """Returns the three sets of `data`, or those that are named instead.

    data: a cache file, or what `open_pictures` takes, which is cached first. seed: of choice and
    division, 0 or more; runs that are to be compared share it. cache: where the cache goes, or is;
    default below DEEVO_CACHE_DIR, where one whose pictures have changed is made anew. class_order:
    of class folders, see `ClassOrder`; a cache whose classes are sorted in another is refused.
    labels: a table of the labels of `data`, as in `open_pictures`. classes: how many the network
    has, of which pictures of another number are refused undecoded. train_images: how many are
    cached, class-balanced; None for all. fitness, validation, test: a set, or a cache file or
    folder (its train part for fitness, else its val part, or all of it). workers, skip_corrupt,
    progress: of `build_cache`.

    Of a train/val tree, fitness is all (cached) train images, validation a class-balanced part of
    val by `validation_size`, test the rest; where there is test/ beside them, validation is all of
    val and test that. One folder without parts is halved, class-balanced: fitness, and what is
    treated like val; so is val, or a lone test, where there is no train. The order of each set is a
    seeded, class-balanced one.

    Raises DeevoError: as `build_cache`; no images for a set; class names that differ.
    """
    check_arguments(image_sets, locals())
    named = {"fitness": fitness, "validation": validation, "test": test}
    if data is None and None in named.values():
        raise DeevoError("data is missing: give --data, or all of --fitness, --validation, --test")
    for said, given in (("labels are", labels), ("cache is", cache)):
        if data is None and given is not None:
            raise DeevoError(
                f"{said} {given}, but there is no data to go with; give --data, or leave "
                f"--{said.split()[0]} out"
            )
    open_one = functools.partial(
        open_data,
        transform=transform,
        seed=seed,
        class_order=class_order,
        classes=classes,
        train_images=train_images,
        workers=workers,
        skip_corrupt=skip_corrupt,
        progress=progress,
    )
    caches: list[Cache] = []
    sets: dict[str, LabelledImages] = {}
    if data is not None:
        caches.append(open_one(data, cache=cache, labels=labels))
        parts = caches[0].description.parts
        sets = _divided({part: caches[0].images(part, transform) for part in parts}, seed)
    for purpose, source in named.items():
        if isinstance(source, LabelledImages):
            sets[purpose] = source
        elif source is not None:
            caches.append(open_one(source))
            images = caches[-1].part("train" if purpose == "fitness" else "val", transform)
            sets[purpose] = images.subset(balanced_order(images.labels, seed), purpose)
    if any(cached.class_names != caches[0].class_names for cached in caches):
        raise DeevoError("the image sets have other classes than each other; check their folders")
    _require_all(sets)
    classes = 1 + max(int(images.labels.max()) for images in sets.values())
    class_names = caches[0].class_names if caches else [str(label) for label in range(classes)]
    return ImageSets(sets["fitness"], sets["validation"], sets["test"], class_names)


def _divided(parts: dict[str, LabelledImages], seed: int) -> dict[str, LabelledImages]:
    if "train" in parts:
        train = parts["train"]
        fitness = train.subset(balanced_order(train.labels, seed), "fitness")
        val = parts.get("val")
    else:
        whole = parts.get("val", next(iter(parts.values())))
        half = len(whole) // 2
        if not half:
            raise DeevoError(f"{whole.name}: one image cannot be divided into sets")
        fitness, val = split_class_balanced(
            whole, (half, len(whole) - half), seed, ("fitness", "val")
        )
    if val is None:
        return {"fitness": fitness}  # validation and test have to be named
    if "test" in parts and "val" in parts:
        return {
            "fitness": fitness,
            **{
                purpose: images.subset(balanced_order(images.labels, seed), purpose)
                for purpose, images in (("validation", val), ("test", parts["test"]))
            },
        }
    size = validation_size(len(val))
    if not size:
        raise DeevoError(f"{val.name}: {len(val)} images cannot be divided into sets")
    validation, test = split_class_balanced(
        val, (size, len(val) - size), seed, ("validation", "test")
    )
    return {"fitness": fitness, "validation": validation, "test": test}


def _require_all(sets: dict[str, LabelledImages]) -> None:
    missing = [name for name in ("fitness", "validation", "test") if name not in sets]
    if missing:
        raise DeevoError(
            f"no images for {' and '.join(missing)}: the data has no val/; give "
            f"{', '.join(f'--{name}' for name in missing)}"
        )


def select_train(pictures: Pictures, count: int | None, seed: int) -> Pictures:
    """Returns the pictures with train cut to `count` images, class-balanced; None keeps all."""
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


def _default_path(
    source: tuple[Path, str | os.PathLike[str] | None],
    transform: Transform,
    pictures: Pictures,
    seed: int,
    class_order: ClassOrder,
) -> Path:
    path, labels = source
    facts: tuple[object, ...] = (
        VERSION,
        str(path.resolve()),
        json.dumps(transform.pixels()),
        pictures.parts,
        seed if isinstance(pictures, Selected) else None,
    )
    if labels is not None:
        facts += (str(Path(labels).resolve()),)
    if class_order != "text":
        facts += (pictures.class_names,)
    key = hashlib.sha256(repr(facts).encode()).hexdigest()[:12]
    return cache_folder() / "images" / f"{pictures.name[:60]}-{key}.safetensors"
