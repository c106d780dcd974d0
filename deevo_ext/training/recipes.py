"""Recipes of stochastic gradient descent, and what distinguishes the members of a population."""

from dataclasses import dataclass

import numpy as np

from ..errors import DeevoError


@dataclass(frozen=True)
class Recipe:
    """One run of SGD with Nesterov momentum.

    Args:
        seed: of batches and augmentation (and of the initial weights, for a base network).
        steps: of gradient descent.
        batch_size: images a step.
        learning_rate: its peak, reached after the first 5 % of the steps.
        weight_decay: on every parameter.
        label_smoothing: share of each label spread over all classes, in [0, 1).
        shift: each image moves by up to this many pixels in each direction.
        mirror: each image is mirrored with probability one half.
        momentum: of SGD, in [0, 1).
        mixup: alpha of mixup (Zhang et al., arXiv 1710.09412): each batch is mixed with itself in
            another order, by a share drawn from Beta(alpha, alpha); 0 for none.
        anneal: share of the steps, at the end, over which the learning rate falls linearly to
            zero; 0 keeps it constant.

    Raises:
        DeevoError: a value is out of its range.
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
        }
        for field, valid in ranges.items():
            if not valid:
                raise DeevoError(f"recipe: {field} = {getattr(self, field)} is out of range")

    def rate(self, step: int) -> float:
        """Learning rate of step 0..steps-1: a short rise, a plateau, the final fall if any."""
        rise = (step + 1) / max(1.0, 0.05 * self.steps)
        fall = (self.steps - step) / max(1.0, self.anneal * self.steps)
        return self.learning_rate * min(1.0, rise, fall if self.anneal else 1.0)


def derived_seed(seed: int, index: int) -> int:
    """A seed below 2**63 for run `index` of the population `seed`; source: numpy SeedSequence."""
    state = np.random.SeedSequence((seed, index)).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))


# (learning rate relative to the lowest, weight decay, label smoothing); no row twice. Neighbours
# differ in everything, so that the first few rows alone are a varied population. Smoothing stays
# small: a network's confidence would otherwise outweigh its quality in the loss.
VARIATIONS: tuple[tuple[float, float, float], ...] = (
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
"""Hyper-parameters of the members of a population, by row; each further dozen starts over."""
