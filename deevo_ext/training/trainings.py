"""What the members of a population are trained with: their hyper-parameters, member by member."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from deevo_ext.errors import DeevoError
from deevo_ext.options import check_options, documented, option
from deevo_ext.training.hyper_parameters import Choices, HyperParameters, derived_seed, variation


@documented()
@dataclass(frozen=True)
class PopulationOptions:
    """What distinguishes a population from others."""

    members: int = option(12, "the number of members", least=2)
    epochs: float = option(1.0, "the epochs of each member, which may be a fraction")
    batch_size: int = option(128, "the number of images of a training step", least=2)
    learning_rate: float = option(
        0.002, "the lowest learning rate of a member; the highest is four times that"
    )
    shift: int = option(
        0, "the most pixels by which every other three members shift their images", least=0
    )
    mirror: bool = option(
        True, "whether a mirrored image keeps its class; all but every fourth member mirror then"
    )
    anneal: float = option(
        0.0, "the share of the steps, at the end, over which the learning rate falls to 0"
    )
    base_epochs: float = option(
        0.0,
        "the epochs of training before that of the members, from scratch or for new classes; 0 for "
        "none",
    )
    base_learning_rate: float = option(
        0.1, "the highest learning rate of the base epochs; it falls in their second half"
    )
    snapshots: bool = option(
        False,
        "whether the members come from one training, at equal distances through its second half, "
        "instead of one each",
        "Huang et al. 2017",
    )
    seed: int = option(0, "the seed of everything random", least=0)
    augmentations: Choices = option(Choices(), "what else some members do to their images")

    def __post_init__(self) -> None:
        check_options(self)
        if self.epochs <= 0 or self.base_epochs < 0:
            raise DeevoError(
                f"epochs is {self.epochs:g}, base_epochs {self.base_epochs:g}; expected more than "
                "0, and 0 or more"
            )
        if not self.base_epochs and self.base_learning_rate != type(self).base_learning_rate:
            raise DeevoError(
                f"base_learning_rate is {self.base_learning_rate:g}, but there are no base epochs; "
                "give base_epochs, or leave it out"
            )


@dataclass(frozen=True)
class Trainings:
    """The trainings that make a population.

    base: hyper-parameters of the network that all members start from, None where that is trained
    already. members: name and hyper-parameters of each. snapshots: the steps at which the members
    are taken where they come from one training, else empty.
    """

    base: HyperParameters | None
    members: dict[str, HyperParameters]
    snapshots: tuple[int, ...] = ()

    @property
    def steps(self) -> int:
        """Steps of gradient descent, in all."""
        members = [hyper.steps for hyper in self.members.values()]
        base = 0 if self.base is None else self.base.steps
        return base + (members[0] if self.snapshots else sum(members))

    def table(self) -> list[list[str]]:
        """Returns the members' hyper-parameters as text, under a line of titles."""
        lines: list[list[str]] = []
        taken = dict(zip(self.members, self.snapshots, strict=False))
        for name, hyper in self.members.items():
            values: dict[str, object] = {"member": name, **dataclasses.asdict(hyper)}
            if taken:
                values["taken_at_step"] = taken[name]
            cells = [f"{v:g}" if isinstance(v, float | bool) else str(v) for v in values.values()]
            lines += [cells] if lines else [list(values), cells]
        return lines


def trainings_of(images: int, options: PopulationOptions) -> Trainings:
    """Returns the trainings of a population on so many images; no two members are alike.

    Learning rates are 1 to 4 times the lowest, a tenth lower in each further dozen; weight decays
    1e-4 to 1e-3 and label smoothings 0 to 0.02 follow the same table of twelve. Learning rates stay
    constant unless `anneal` says over which share they fall: members end around the minimum they
    share, not in it, so that averages are better than any of them and evolution has room. Member i
    does not depend on how many there are.

    Raises DeevoError: too few steps for as many snapshots.
    """
    each = max(1, images // max(1, min(options.batch_size, images)))  # steps of an epoch

    def member(index: int) -> HyperParameters:
        line, rate, decay, smoothing = variation(index)
        return HyperParameters(
            seed=derived_seed(options.seed, index + 1),
            steps=max(1, round(options.epochs * each)),
            batch_size=options.batch_size,
            learning_rate=options.learning_rate * rate,
            weight_decay=decay,
            label_smoothing=smoothing,
            shift=options.shift if line // 3 % 2 == 1 else 0,
            mirror=options.mirror and line % 4 != 3,
            anneal=options.anneal,
            **options.augmentations.of_line(line),
        )

    base = None
    if options.base_epochs:
        base = HyperParameters(
            seed=derived_seed(options.seed, 0),
            steps=max(1, round(options.base_epochs * each)),
            batch_size=options.batch_size,
            learning_rate=options.base_learning_rate,
            weight_decay=5e-4,
            mirror=options.mirror,
            anneal=0.5,
        )
    count = options.members
    names = [f"member_{index:02d}" for index in range(count)]
    if not options.snapshots:
        return Trainings(base, {name: member(i) for i, name in enumerate(names)})
    one = dataclasses.replace(member(0), mirror=options.mirror, shift=options.shift)
    if one.steps < 2 * count:
        raise DeevoError(
            f"{count} snapshots of {one.steps} steps: give more epochs, at least {2 * count} steps"
        )
    taken = tuple(round(one.steps * (count + i + 1) / (2 * count)) for i in range(count))
    return Trainings(base, dict.fromkeys(names, one), taken)
