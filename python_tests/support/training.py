"""What the tests of training share: pictures, and a comparison."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from deevo_ext.data import CachedImages

MEAN, STD = (0.4, 0.4, 0.4), (0.3, 0.3, 0.3)


def noise(count: int = 40, side: int = 8) -> CachedImages:
    """Colour images of three classes that have nothing to do with the labels."""
    generator = torch.Generator().manual_seed(5)
    store = torch.randint(0, 256, (count, side, side, 3), generator=generator, dtype=torch.uint8)
    return CachedImages(store, torch.arange(count) % 3, MEAN, STD, "noise")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether two state dicts hold the same bits."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def write_squares(root: Path, train: int, val: int) -> Path:
    """An ImageFolder tree of 20x20 pictures, a bright square in the noise where the class says."""
    generator = np.random.Generator(np.random.PCG64(1))
    for part, count in (("train", train), ("val", val)):
        for number in range(count):
            label = number % 10
            picture = generator.integers(0, 160, (20, 20, 3), np.uint8)
            top, left = divmod(label, 4)
            picture[6 * top : 6 * top + 5, 5 * left : 5 * left + 5] += 95
            folder = root / part / f"square_{label}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(folder / f"{number:05d}.png")
    return root
