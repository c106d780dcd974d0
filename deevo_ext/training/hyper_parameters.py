"""Hyper-parameters of gradient descent, and what distinguishes the members of a population."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from deevo_ext.errors import DeevoError
from deevo_ext.fitness.augmentation import parse_parts


@dataclass(frozen=True)
class HyperParameters:
    """One training by gradient descent.

    seed: of batches and augmentation (and of the initial weights, for a base network). steps: of
    gradient descent. batch_size: images a step. learning_rate: its peak, reached after the first
    5 % of the steps. weight_decay: on every parameter. label_smoothing: share of each label that is
    spread over all classes, in [0, 1). shift: each image moves by up to this many pixels in each
    direction, its border repeated. mirror: each image is mirrored with probability one half.
    momentum: of SGD, Nesterov's, in [0, 1). anneal: share of the steps, at the end, over which the
    learning rate falls linearly to zero; 0 keeps it constant. mixup: alpha of mixup (Zhang et al.,
    arXiv 1710.09412): each batch is mixed with itself in another order, by a share drawn from
    Beta(alpha, alpha); 0 for none. crop: least share of the area that random resized crops (Szegedy
    et al., arXiv 1409.4842) take, in (0, 1]; 0 for none. jitter: how far the factors of brightness,
    contrast and saturation go from 1, in [0, 1]; 0 for none. trivial: whether TrivialAugment
    (Müller and Hutter, arXiv 2103.10158) changes each image. erase: probability that a rectangle of
    an image gets the mean colour (Zhong et al., arXiv 1708.04896). cutmix: alpha of cutmix (Yun et
    al., arXiv 1905.04899), which replaces a box of each image by that of another; 0 for none. With
    both mixup and cutmix, each batch takes one of them by chance. optimizer: "sgd" or "adamw"
    (Loshchilov and Hutter, arXiv 1711.05101).

    Raises DeevoError: a value is out of its range.
    """

    seed: int
    steps: int
    batch_size: int
    learning_rate: float
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    shift: int = 0
    mirror: bool = False
    momentum: float = 0.9
    anneal: float = 0.0
    mixup: float = 0.0
    crop: float = 0.0
    jitter: float = 0.0
    trivial: bool = False
    erase: float = 0.0
    cutmix: float = 0.0
    optimizer: str = "sgd"

    def __post_init__(self) -> None:
        ranges = {
            "seed": self.seed >= 0,
            "steps": self.steps > 0,
            "batch_size": self.batch_size > 1,
            "learning_rate": self.learning_rate > 0,
            "weight_decay": self.weight_decay >= 0,
            "label_smoothing": 0 <= self.label_smoothing < 1,
            "shift": self.shift >= 0,
            "momentum": 0 <= self.momentum < 1,
            "anneal": 0 <= self.anneal <= 1,
            "mixup": self.mixup >= 0,
            "crop": 0 <= self.crop <= 1,
            "jitter": 0 <= self.jitter <= 1,
            "erase": 0 <= self.erase <= 1,
            "cutmix": self.cutmix >= 0,
            "optimizer": self.optimizer in ("sgd", "adamw"),
        }
        for field, valid in ranges.items():
            if not valid:
                raise DeevoError(
                    f"hyper-parameters: {field} = {getattr(self, field)} is out of range"
                )

    def rate(self, step: int) -> float:
        """Returns the learning rate of step 0..steps-1: a short rise, a plateau, a final fall."""
        rise = (step + 1) / max(1.0, 0.05 * self.steps)
        fall = (self.steps - step) / max(1.0, self.anneal * self.steps)
        return self.learning_rate * min(1.0, rise, fall if self.anneal else 1.0)


@dataclass(frozen=True)
class Choices:
    """The augmentations that some members of a population get; 0 or False leaves one out.

    The fields are those of `HyperParameters`. All of them are done by torchvision.
    """

    mixup: float = 0.1
    crop: float = 0.0
    jitter: float = 0.0
    trivial: bool = False
    erase: float = 0.0
    cutmix: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Choices:
        """Reads "none", or parts such as "crop:0.35,jitter:0.2,trivial" with commas between."""
        values = {"mixup": 0.0, **({} if text == "none" else parse_parts(text, "trivial"))}
        highest = {"mixup": 10, "crop": 1, "jitter": 1, "trivial": 1, "erase": 1, "cutmix": 10}
        if not values.keys() <= highest.keys() or not all(
            0 <= value <= highest[name] for name, value in values.items()
        ):
            raise DeevoError(
                f"augment is {text!r}; expected none, or some of crop:SHARE, jitter:STRENGTH, "
                "erase:PROBABILITY (each at most 1), mixup:ALPHA, cutmix:ALPHA (at most 10) and "
                "trivial, with commas between"
            )
        return cls(**{**values, "trivial": bool(values.get("trivial"))})  # type: ignore[arg-type]

    @classmethod
    def for_images(cls, channels: int, height: int, width: int) -> Choices:
        """Returns the default: pictures of 64 pixels and more in colour take what ImageNet's do."""
        if channels == 3 and min(height, width) >= 64:
            return cls(crop=0.35, jitter=0.2, erase=0.1, cutmix=1.0)
        return cls()

    def of_line(self, line: int) -> dict[str, Any]:
        """Returns fields of the hyper-parameters of line 0..11 of the table of `variation`.

        Line 0 has no augmentation. Mixup is for lines 2, 3, 6, 7, 10 and 11; cutmix for those of
        the others from 4 on; crops for odd lines; of three lines, one has jitter, one erases and
        one takes TrivialAugment.
        """
        mixes = line // 2 % 2 == 1
        return {
            "mixup": self.mixup if mixes else 0.0,
            "cutmix": self.cutmix if not mixes and line >= 4 else 0.0,
            "crop": self.crop if line % 2 == 1 else 0.0,
            "jitter": self.jitter if line % 3 == 1 else 0.0,
            "erase": self.erase if line % 3 == 2 else 0.0,
            "trivial": self.trivial and line % 3 == 0 and line > 0,
        }


def derived_seed(seed: int, index: int) -> int:
    """Returns a seed below 2**63 for training `index` of the population `seed`, by SeedSequence."""
    state = np.random.SeedSequence((seed, index)).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))


# (learning rate relative to the lowest, weight decay, label smoothing); no line twice. Neighbours
# differ in everything, so that the first few lines alone are a varied population. Smoothing stays
# small: a network's confidence would otherwise outweigh its quality in the loss.
_VARIATIONS: tuple[tuple[float, float, float], ...] = (
    (1.00, 1e-4, 0.00),
    (1.88, 5e-4, 0.02),
    (3.53, 1e-3, 0.00),
    (1.29, 1e-4, 0.02),
    (2.42, 5e-4, 0.00),
    (1.13, 1e-3, 0.02),
    (2.13, 1e-4, 0.00),
    (4.00, 5e-4, 0.02),
    (1.46, 1e-3, 0.00),
    (2.74, 1e-4, 0.02),
    (1.66, 5e-4, 0.00),
    (3.11, 1e-3, 0.02),
)


def variation(index: int) -> tuple[int, float, float, float]:
    """Returns a member's line of the table, relative learning rate, weight decay and smoothing.

    Each further dozen of members starts the table over and learns more slowly by a tenth.
    """
    dozen, line = divmod(index, len(_VARIATIONS))
    rate, decay, smoothing = _VARIATIONS[line]
    return line, rate * 0.9**dozen, decay, smoothing
