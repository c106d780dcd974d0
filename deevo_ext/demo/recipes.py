"""What the demo trains: one base network and fine-tunings of it with distinct hyper-parameters."""

from dataclasses import dataclass

from ..data.images import FourSets
from ..errors import DeevoError
from ..training.recipes import VARIATIONS, Recipe, derived_seed


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
        dozen, row = divmod(index, len(VARIATIONS))
        rate, decay, smoothing = VARIATIONS[row]
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
