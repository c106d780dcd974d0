"""Trees of real pictures: scikit-image's and scikit-learn's samples, Fashion-MNIST as PNG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

PHOTOGRAPHS = {"animal": ("chelsea",), "person": ("astronaut",), "thing": ("coffee", "rocket")}


def crops(count: int, side: int = 96, seed: int = 0) -> list[tuple[str, Image.Image]]:
    """(class, colour picture) cut from photographs at random places, of varied sizes."""
    from skimage import data
    from sklearn.datasets import load_sample_images

    sources = [
        (name, getattr(data, picture)()) for name, own in PHOTOGRAPHS.items() for picture in own
    ]
    china, flower = load_sample_images().images
    sources += [("thing", china), ("flower", flower)]
    generator = np.random.Generator(np.random.PCG64(seed))
    found = []
    for number in range(count):
        name, array = sources[number % len(sources)]
        height, width = generator.integers(side // 2, side * 2, 2)
        top = generator.integers(0, array.shape[0] - height)
        left = generator.integers(0, array.shape[1] - width)
        found.append((name, Image.fromarray(array[top : top + height, left : left + width])))
    return found


def write_tree(root: Path, train: int, val: int, side: int = 96) -> Path:
    """An ImageFolder tree of JPEG and PNG files, some of them grey, with a palette or alpha."""
    for part, count, seed in (("train", train, 1), ("val", val, 2)):
        for number, (name, image) in enumerate(crops(count, side, seed)):
            folder = root / part / name
            folder.mkdir(parents=True, exist_ok=True)
            kind = number % 7
            if kind == 3:
                image.convert("L").save(folder / f"{number:05d}.png")
            elif kind == 4:
                image.convert("P").save(folder / f"{number:05d}.png")
            elif kind == 5:
                image.convert("RGBA").save(folder / f"{number:05d}.PNG")
            else:
                image.save(folder / f"{number:05d}.jpg", quality=92)
    return root


def write_fashion(root: Path, train: int, val: int) -> Path:
    """An ImageFolder tree of Fashion-MNIST's first images as PNG, the classes by name."""
    from deevo_ext.data.arrays import open_idx
    from deevo_ext.data.sources import DEBIAN_FASHION_MNIST

    names = ["tshirt", "trouser", "pullover", "dress", "coat"]
    names += ["sandal", "shirt", "sneaker", "bag", "boot"]
    pictures = open_idx(DEBIAN_FASHION_MNIST)
    for part, count in (("train", train), ("val", val)):
        first = pictures.parts[part][0]
        for number in range(count):
            image, label = pictures.read(first + number)
            folder = root / part / names[label]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{number:05d}.png")
    return root


class Faces(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """A torch Dataset of pictures and arrays, which worker processes import."""

    classes = ("cat", "coffee")

    def __init__(self, damaged: int = -1) -> None:
        self.damaged = damaged

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> tuple[Any, int]:
        if index == self.damaged:
            raise RuntimeError("a bad sector")
        picture = crops(12)[index][1]
        return (picture if index % 2 else np.asarray(picture)), index % 2
