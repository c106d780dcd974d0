"""Named sources of images: scikit-learn's digits, Fashion-MNIST, any folder of IDX files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from deevo_ext.arguments import check_arguments
from deevo_ext.data.arrays import ArrayPictures, open_idx
from deevo_ext.data.images import ImageSet, split_class_balanced
from deevo_ext.data.sets import ImageSets
from deevo_ext.errors import DeevoError

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts its files."""

DIGITS_SIZES = (600, 400, 100, 697)
"""Train, fitness, validation and test images of the 1,797 digits.

Train is enough for networks that are right on 19 of 20; fitness is as many as somebody labels in an
hour; test is large, because what a demo shows must not be an accident.
"""

IDX_HELD_OUT = 10_000
"""Images of the train file set aside for fitness, and again for validation."""


@dataclass(frozen=True)
class SourceSets(ImageSets):
    """The sets of a source, in memory, with one more: what backpropagation is to see.

    name: of the source. note: a sentence about what was done to the images. mirror: whether a
    mirrored image keeps its class (clothes do, digits do not).
    """

    fitness: ImageSet
    validation: ImageSet
    test: ImageSet
    train: ImageSet
    name: str
    note: str = ""
    mirror: bool = False

    def describe(self) -> str:
        """Returns one line with name, sizes and image shape, then the note."""
        note = self.note and f". {self.note}"
        return f"{self.name}: {len(self.train):,} train, {super().describe()}{note}"


def load(name_or_dir: str | Path, seed: int = 0) -> SourceSets:
    """Returns the four sets of a source.

    name_or_dir: "digits" (1,797 images of 8x8; needs scikit-learn), "fashion-mnist" (Debian's
    package dataset-fashion-mnist), or a folder with the four IDX files of an MNIST-like set. Images
    of 28x28 are averaged over 2x2 pixels to 14x14. seed: of the split, 0 or more.

    Images are float32, normalised by mean and standard deviation of the train set alone (one of
    each: images have one channel). Test is the whole t10k file, or the rest of the digits.

    Raises DeevoError: an unknown name, a missing package, missing or damaged files.
    """
    check_arguments(load, locals())
    if str(name_or_dir) == "digits":
        names = ("train", "fitness", "validation", "test")
        return normalised(split_class_balanced(digits(), DIGITS_SIZES, seed, names), 10, "digits")
    if str(name_or_dir) == "fashion-mnist":
        if not DEBIAN_FASHION_MNIST.is_dir():
            raise DeevoError(
                f"{DEBIAN_FASHION_MNIST} is missing: `apt-get install dataset-fashion-mnist`, "
                "or name a folder with the four IDX files: --data DIR"
            )
        return _idx_folder(DEBIAN_FASHION_MNIST, "fashion-mnist", seed, mirror=True)
    folder = Path(name_or_dir)
    if not folder.is_dir():
        raise DeevoError(f"{name_or_dir}: neither digits, fashion-mnist, nor a folder")
    return _idx_folder(folder, folder.resolve().name, seed, mirror=False)


def digits() -> ImageSet:
    """Returns scikit-learn's 1,797 digits: images [1797, 1, 8, 8] from 0 for paper to 1 for ink.

    Source: Alpaydin and Kaynak, UCI optical recognition of handwritten digits (1998). Raises
    DeevoError where scikit-learn is missing.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DeevoError('the digits need scikit-learn: pip install "deevo_ext[demo]"') from error
    found = load_digits()
    images = torch.from_numpy(found.images.astype(np.float32)).unsqueeze(1) / 16
    return ImageSet(images, torch.from_numpy(found.target.astype(np.int64)), "digits")


def _idx_folder(folder: Path, name: str, seed: int, mirror: bool) -> SourceSets:
    pictures = open_idx(folder)
    classes = len(pictures.class_names)
    train = _image_set(pictures, "train", name)
    held = min(IDX_HELD_OUT, len(train) // 6)
    sizes = (len(train) - 2 * held, held, held)
    if held < classes:
        raise DeevoError(f"{folder}: {len(train)} images are too few for {classes} classes")
    parts = split_class_balanced(train, sizes, seed, ("train", "fitness", "validation"))
    parts.append(_image_set(pictures, "val", "test"))
    pooled = pictures.images.shape[1:] == (28, 28)
    note = "28x28 averaged to 14x14; test is the whole t10k file" if pooled else ""
    return normalised(parts, classes, name, note, mirror)


def _image_set(pictures: ArrayPictures, part: str, name: str) -> ImageSet:
    """A part, uint8 [N, H, W], as float32 [N, 1, H, W] in 0..1, 28x28 averaged to 14x14."""
    start, stop = pictures.parts[part]
    images = pictures.images[start:stop]
    if images.shape[1:] == (28, 28):
        # Half the side is a quarter of the work, which is what keeps the demo short. The sum of
        # four bytes is exact in uint16, so the average does not depend on the order of adding.
        halves = images.reshape(-1, 14, 2, 14, 2).sum((2, 4), dtype=np.uint16)
        scaled = halves.astype(np.float32) / np.float32(4 * 255)
    else:
        scaled = images.astype(np.float32) / np.float32(255)
    labels = torch.from_numpy(pictures.labels[start:stop])
    return ImageSet(torch.from_numpy(scaled).unsqueeze(1), labels, name)


def normalised(
    parts: list[ImageSet], classes: int, name: str, note: str = "", mirror: bool = False
) -> SourceSets:
    """Returns sets shifted and scaled by the mean and deviation of the train images.

    parts: train, fitness, validation and test images, of one channel. classes: their number. name,
    note, mirror: as in `SourceSets`. Raises DeevoError where all train pixels are equal.
    """
    pixels = parts[0].images.double()
    mean, deviation = float(pixels.mean()), float(pixels.std())
    if deviation == 0:
        raise DeevoError(f"{name}: all train pixels are equal")
    train, fitness, validation, test = (
        ImageSet((part.images - mean) / deviation, part.labels, part.name) for part in parts
    )
    class_names = [str(label) for label in range(classes)]
    return SourceSets(fitness, validation, test, class_names, train, name, note, mirror)
