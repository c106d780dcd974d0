"""Named sources of images: scikit-learn's digits, Fashion-MNIST, any folder of IDX files."""

from pathlib import Path

import numpy as np
import torch

from deevo_ext.data.idx import load_idx_folder
from deevo_ext.data.images import FourSets, ImageSet, split_class_balanced
from deevo_ext.errors import DeevoError

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts its files."""

DIGITS_SIZES = (400, 600, 250, 547)
"""Train, fitness, validation and test images of the 1,797 digits.

Train is small so that the networks leave something to gain; fitness is large because evolution
fits what it sees, and an accidental gain on few images does not carry over to test.
"""

IDX_HELD_OUT = 10_000
"""Images of the train file set aside for fitness, and again for validation."""


def load(name_or_dir: str | Path, seed: int = 0) -> FourSets:
    """The four sets of a source.

    Args:
        name_or_dir: "digits" (1,797 images of 8x8; needs scikit-learn), "fashion-mnist" (Debian's
            package dataset-fashion-mnist), or a folder with the four IDX files of an MNIST-like
            set. Images of 28x28 are averaged over 2x2 pixels to 14x14.
        seed: of the split, 0 or more.

    Returns:
        float32 images, normalised by mean and standard deviation of the train set alone (one of
        each: images have one channel). Test is the whole t10k file, or the rest of the digits.

    Raises:
        DeevoError: an unknown name, a missing package, missing or damaged files.
    """
    if str(name_or_dir) == "digits":
        return _digits(seed)
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


def _digits(seed: int) -> FourSets:
    """Source: Alpaydin and Kaynak, UCI optical recognition of handwritten digits (1998)."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DeevoError('the digits need scikit-learn: pip install "deevo_ext[demo]"') from error
    digits = load_digits()
    images = torch.from_numpy(digits.images.astype(np.float32)).unsqueeze(1) / 16
    labels = torch.from_numpy(digits.target.astype(np.int64))
    names = ("train", "fitness", "validation", "test")
    parts = split_class_balanced(ImageSet(images, labels, "digits"), DIGITS_SIZES, seed, names)
    return _normalised(parts, 10, "digits", "")


def _idx_folder(folder: Path, name: str, seed: int, mirror: bool) -> FourSets:
    arrays = load_idx_folder(folder)
    classes = int(max(arrays.train_labels.max(), arrays.test_labels.max())) + 1
    learned = _image_set(arrays.train_images, arrays.train_labels, name)
    held = min(IDX_HELD_OUT, len(learned) // 6)
    sizes = (len(learned) - 2 * held, held, held)
    if held < classes:
        raise DeevoError(f"{folder}: {len(learned)} images are too few for {classes} classes")
    parts = split_class_balanced(learned, sizes, seed, ("train", "fitness", "validation"))
    parts.append(_image_set(arrays.test_images, arrays.test_labels, "test"))
    pooled = arrays.train_images.shape[1:] == (28, 28)
    note = "28x28 averaged to 14x14; test is the whole t10k file" if pooled else ""
    return _normalised(parts, classes, name, note, mirror)


def _image_set(images: np.ndarray, labels: np.ndarray, name: str) -> ImageSet:
    """uint8 [N, H, W] and [N] to float32 [N, 1, H, W] in 0..1, 28x28 averaged to 14x14."""
    if images.shape[1:] == (28, 28):
        # Half the side is a quarter of the work, which is what keeps the demo short. The sum of
        # four bytes is exact in uint16, so the average does not depend on the order of adding.
        halves = images.reshape(-1, 14, 2, 14, 2).sum((2, 4), dtype=np.uint16)
        scaled = halves.astype(np.float32) / np.float32(4 * 255)
    else:
        scaled = images.astype(np.float32) / np.float32(255)
    return ImageSet(
        torch.from_numpy(scaled).unsqueeze(1), torch.from_numpy(labels.astype(np.int64)), name
    )


def _normalised(
    parts: list[ImageSet], classes: int, name: str, note: str, mirror: bool = False
) -> FourSets:
    """Every part shifted and scaled by what the train images, the first part, say."""
    pixels = parts[0].images.double()
    mean, deviation = float(pixels.mean()), float(pixels.std())
    if deviation == 0:
        raise DeevoError(f"{name}: all train pixels are equal")
    train, fitness, validation, test = (
        ImageSet((part.images - mean) / deviation, part.labels, part.name) for part in parts
    )
    return FourSets(train, fitness, validation, test, classes, name, note, mirror)
