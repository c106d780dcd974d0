"""What the members of a population are trained with: their hyper-parameters, member by member."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from deevo_ext.arguments import check_arguments
from deevo_ext.errors import DeevoError
from deevo_ext.training.hyper_parameters import Choices, HyperParameters, derived_seed, variation


@dataclass(frozen=True)
class PopulationOptions:
    """What distinguishes a population from others.

    members: how many, 2 or more. epochs: of each member; may be a fraction. batch_size: images a
    step. learning_rate: the lowest among the members. shift: every other three members move images
    by up to so many pixels. mirror: whether a mirrored image keeps its class; all but every fourth
    member mirror then. anneal: share of the steps, at the end, over which the learning rate falls
    to zero. base_epochs: of training that comes first, for all members; 0 for none.
    base_learning_rate: of that training; it falls in its second half. snapshots: whether the
    members come from one training, at equal distances through its second half, instead of one each.
    seed: everything random derives from it. augmentations: what else some of the members do to
    their images.

    Raises DeevoError: a value is out of its range.
    """

    members: int = 12
    epochs: float = 1.0
    batch_size: int = 128
    learning_rate: float = 0.002
    shift: int = 0
    mirror: bool = True
    anneal: float = 0.0
    base_epochs: float = 0.0
    base_learning_rate: float = 0.1
    snapshots: bool = False
    seed: int = 0
    augmentations: Choices = dataclasses.field(default_factory=Choices)

    def __post_init__(self) -> None:
        check_arguments(PopulationOptions, vars(self))
        if self.members < 2 or self.seed < 0 or self.epochs <= 0 or self.base_epochs < 0:
            raise DeevoError(
                f"members is {self.members}, epochs {self.epochs:g}, base_epochs "
                f"{self.base_epochs:g}, seed {self.seed}; expected at least 2 members, more than 0 "
                "epochs, and the others 0 or more"
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
