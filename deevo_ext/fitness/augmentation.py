"""Moves, mirroring and crops of images, by counters: the same for parents, trials and trainings.

What happens to an image depends on the seed, the batch and the image's number alone (Philox,
purpose 11, the image as member), so that a batch can be had again, wherever and in whatever parts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from deevo_ext.data.labelled import Indices, LabelledImages
from deevo_ext.errors import DeevoError
from deevo_ext.ops.philox import ROUNDS, key_of, philox4x32
from deevo_ext.ops.tables import Purpose


def parse_parts(text: str, flag: str) -> dict[str, float]:
    """Reads parts such as "crop:0.35" with commas between; nan stands for what is no number.

    flag: the part that needs no value; without one its value is 1.
    """
    values: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = part.strip().partition(":")
        try:
            values[name] = 1.0 if name == flag and not value else float(value)
        except ValueError:
            values[name] = math.nan
    return values


_MOST_PIXELS = 10_000


@dataclass(frozen=True)
class Augmentation:
    """What may be done to an image.

    mirror: left and right change places with probability 1/2. shift: it moves by up to this many
    pixels in each direction, its edge repeated. crop: a part of at least this share of its area, of
    width : height between 3/4 and 4/3 times its own, is stretched to its size (Szegedy et al. 2015,
    "Going deeper with convolutions"; bilinear); 1: none.
    """

    mirror: bool = False
    shift: int = 0
    crop: float = 1.0

    @classmethod
    def parse(cls, text: str) -> Augmentation:
        """Reads "mirror", "shift:2", "crop:0.35", or several with commas between."""
        values = parse_parts(text, "mirror")
        shift, crop = values.get("shift", 0.0), values.get("crop", 1.0)
        known = values.keys() <= {"mirror", "shift", "crop"} and values.get("mirror", 1.0) == 1.0
        whole = 0 <= shift <= _MOST_PIXELS and shift == int(shift)
        if not known or not whole or not 0 < crop <= 1:
            raise DeevoError(
                f"augment is {text!r}; expected mirror, shift:PIXELS (a whole number, at most "
                f"{_MOST_PIXELS:,}) and crop:SHARE (above 0, at most 1), with commas between"
            )
        return cls("mirror" in values, int(shift), crop)

    def describe(self) -> str:
        """Returns the text that `parse` reads."""
        parts = ["mirror"] * self.mirror
        parts += [f"shift:{self.shift}"] * (self.shift > 0)
        parts += [f"crop:{self.crop!r}"] * (self.crop < 1)
        return ",".join(parts)

    def apply(self, pixels: Tensor, words: np.ndarray) -> Tensor:
        """Returns images [n, C, H, W] augmented by their `image_words` [n, 8]."""
        uniform = (words + 0.5) / 2.0**32
        flip = torch.from_numpy(uniform[:, 0] < 0.5) if self.mirror else None
        if self.shift:
            moves = np.floor(uniform[:, 1:3] * (2 * self.shift + 1)).astype(np.int64) - self.shift
            pixels = _shifted(pixels, torch.from_numpy(moves))
        if self.crop < 1:
            pixels = _cropped(pixels, uniform[:, 3:7], self.crop)
        if flip is not None:
            flip = flip.to(pixels.device).view(-1, 1, 1, 1)
            pixels = torch.where(flip, pixels.flip(3), pixels)
        return pixels


def _shifted(pixels: Tensor, moves: Tensor) -> Tensor:
    count, _, height, width = pixels.shape
    moves = moves.to(pixels.device)
    rows = (torch.arange(height, device=pixels.device) + moves[:, :1]).clamp_(0, height - 1)
    columns = (torch.arange(width, device=pixels.device) + moves[:, 1:]).clamp_(0, width - 1)
    image = torch.arange(count, device=pixels.device).view(-1, 1, 1)
    return pixels.permute(0, 2, 3, 1)[image, rows[:, :, None], columns[:, None, :]].permute(
        0, 3, 1, 2
    )


def _cropped(pixels: Tensor, uniform: np.ndarray, least: float) -> Tensor:
    area = least + (1.0 - least) * uniform[:, 0]
    ratio = np.exp((2.0 * uniform[:, 1] - 1.0) * math.log(4 / 3))
    width, height = np.minimum(np.sqrt(area * ratio), 1.0), np.minimum(np.sqrt(area / ratio), 1.0)
    # grid_sample's coordinates go from -1 to 1: the crop's centre and half its size.
    x = (1.0 - width) * (2.0 * uniform[:, 2] - 1.0)
    y = (1.0 - height) * (2.0 * uniform[:, 3] - 1.0)
    theta = np.zeros((len(uniform), 2, 3), dtype=np.float32)
    theta[:, 0, 0], theta[:, 0, 2] = width, x
    theta[:, 1, 1], theta[:, 1, 2] = height, y
    shape = list(pixels.shape)
    grid = torch.nn.functional.affine_grid(
        torch.from_numpy(theta).to(pixels.device), shape, align_corners=False
    )
    crops = torch.nn.functional.grid_sample(
        pixels.float(), grid, mode="bilinear", padding_mode="border", align_corners=False
    )
    return crops.round_().clamp_(0, 255).to(torch.uint8) if pixels.dtype == torch.uint8 else crops


def image_words(numbers: Tensor, batch: int, seed: int) -> np.ndarray:
    """Returns eight random words an image of a batch: uint32 values in uint64 [n, 8].

    `Augmentation.apply` draws from the first seven; the last is left to others.
    """
    images = numbers.cpu().numpy().astype(np.uint64)
    return np.concatenate(
        [
            np.stack(
                philox4x32((int(Purpose.BATCH), batch, images, block), key_of(seed), ROUNDS), axis=1
            )
            for block in range(2)
        ],
        axis=1,
    )


class AugmentedImages(LabelledImages):
    """A set whose pixels are augmented as they are read, the same at each reading.

    numbers: int64 [N], each image's number in the set that batches are drawn from.
    """

    def __init__(
        self,
        images: LabelledImages,
        augmentation: Augmentation,
        numbers: Tensor,
        batch: int,
        seed: int,
    ) -> None:
        self.name, self.labels = images.name, images.labels
        self.image_shape, self.dtype = images.image_shape, images.dtype
        self.mean, self.std = images.mean, images.std
        self._images, self._augmentation = images, augmentation
        self._numbers, self._batch, self._seed = numbers, batch, seed
        self.in_memory = False  # augmentation is worth doing beside the evaluation

    def pixels(self, start: int, stop: int) -> Tensor:
        """Returns images start..stop-1, augmented, [n, C, H, W]."""
        words = image_words(self._numbers[start:stop], self._batch, self._seed)
        return self._augmentation.apply(self._images.pixels(start, stop), words)

    def subset(self, indices: Indices, name: str | None = None) -> AugmentedImages:
        """Returns the images at `indices`, in that order, augmented as they are here."""
        chosen = self.checked(indices)
        return self._like(self._images.subset(chosen, name), self._numbers[chosen.cpu()])

    def slice(self, start: int, stop: int, name: str | None = None) -> AugmentedImages:
        """Returns images start..stop-1, augmented as they are here."""
        return self._like(self._images.slice(start, stop, name), self._numbers[start:stop])

    def digest(self) -> str:
        """Returns the digest of the images, with what is done to them."""
        return f"{self._images.digest()} {self._augmentation.describe()} {self._batch} {self._seed}"

    def _like(self, images: LabelledImages, numbers: Tensor) -> AugmentedImages:
        return AugmentedImages(images, self._augmentation, numbers, self._batch, self._seed)
