"""What the demo trains: one base network and fine-tunings of it with distinct hyper-parameters."""

from dataclasses import dataclass

import numpy as np

from ..data.images import FourSets
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
        }
        for field, valid in ranges.items():
            if not valid:
                raise DeevoError(f"recipe: {field} = {getattr(self, field)} is out of range")

    def rate(self, step: int) -> float:
        """Learning rate of step 0..steps-1: a short rise, a plateau, the final fall if any."""
        rise = (step + 1) / max(1.0, 0.05 * self.steps)
        fall = (self.steps - step) / max(1.0, self.anneal * self.steps)
        return self.learning_rate * min(1.0, rise, fall if self.anneal else 1.0)


@dataclass(frozen=True)
class Plan:
    """A whole population.

    Args:
        width: of the network.
        base: recipe of the base network.
        members: recipe of each fine-tuning.
    """

    width: int
    base: Recipe
    members: tuple[Recipe, ...]


def derived_seed(seed: int, index: int) -> int:
    """A seed below 2**63 for run `index` of the population `seed`; source: numpy SeedSequence."""
    state = np.random.SeedSequence((seed, index)).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))


# (learning rate relative to the lowest, weight decay, label smoothing); no row twice. Neighbours
# differ in everything, so that the first few rows alone are a varied population. Smoothing stays
# small: a network's confidence would otherwise outweigh its quality in the loss.
_TABLE: tuple[tuple[float, float, float], ...] = (
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


def demo_plan(sets: FourSets, members: int = 12, seed: int = 0) -> Plan:
    """What `train_population` trains unless it is told otherwise.

    Members keep a constant learning rate, so that each ends somewhere around the minimum that
    they share rather than in it: averages are then better than any member, and evolution has
    room. Their rates, weight decays and label smoothings follow a table of 12 rows; each further
    dozen learns more slowly by a tenth. Every third pair of members mirrors its images, where the
    source allows it. Member i does not depend on how many there are.

    | source | base | members |
    |---|---|---|
    | digits | 60 steps of 32 images, rate 0.05 | 50 steps of 16, rates 0.02 to 0.08 |
    | others | 700 of 128, rate 0.1, falling in the second half | 120 of 128, 0.025 to 0.1 |

    Wider or longer (digits: 120 steps up to 0.15) the members leave their common basin and the
    plain average collapses; narrower, or annealed, they are nearly one point. Pixel shifts do the
    same harm on images this small, so the plan uses none.

    Args:
        sets: the images to train on.
        members: 1 or more.
        seed: 0 or more.

    Raises:
        DeevoError: members or seed out of range.
    """
    if members < 1 or seed < 0:
        raise DeevoError(f"members must be 1 or more, seed 0 or more, got {members} and {seed}")
    small = sets.name == "digits"
    base = Recipe(
        seed=derived_seed(seed, 0),
        steps=60 if small else 700,
        batch_size=32 if small else 128,
        learning_rate=0.05 if small else 0.1,
        weight_decay=5e-4,
        mirror=sets.mirror,
        anneal=0.0 if small else 0.5,
    )
    tuned = []
    for index in range(members):
        dozen, row = divmod(index, len(_TABLE))
        rate, decay, smoothing = _TABLE[row]
        tuned.append(
            Recipe(
                seed=derived_seed(seed, index + 1),
                steps=50 if small else 120,
                batch_size=16 if small else 128,
                learning_rate=(0.02 if small else 0.025) * rate * 0.9**dozen,
                weight_decay=decay,
                label_smoothing=smoothing,
                mirror=sets.mirror and row // 3 % 2 == 1,
            )
        )
    # 16 images of 8x8 are too little work to share: a second thread costs more than it brings.
    return Plan(width=16, base=base, members=tuple(tuned))
