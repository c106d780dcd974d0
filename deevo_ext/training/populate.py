"""A population from one network: fine-tunings with distinct hyper-parameters, or snapshots."""

from __future__ import annotations

import copy
import csv
import dataclasses
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ..data.labelled import LabelledImages
from ..errors import DeevoError
from ..files import write_whole
from .finetune import State, fine_tune
from .recipes import VARIATIONS, Choices, Recipe, derived_seed
from .store import Store

RECIPES = "recipes.csv"
_FORMAT = 2

Progress = Callable[[str, int, int], None]
"""Called after every step with what is trained, steps done and steps in all, kept ones included."""


@dataclass(frozen=True)
class PopulationPlan:
    """base: recipe of the network that all start from, None where it is given as it is; members:
    name and recipe of each; snapshots: steps at which one run's members are taken, else empty.
    """

    base: Recipe | None
    members: dict[str, Recipe]
    snapshots: tuple[int, ...] = ()

    def table(self) -> list[list[str]]:
        """The members' recipes with a head line; columns that all share are left in."""
        fields = [field.name for field in dataclasses.fields(Recipe)]
        rows = [["member", *fields, *(["taken_at_step"] if self.snapshots else [])]]
        taken = dict(zip(self.members, self.snapshots, strict=False))
        for name, recipe in self.members.items():
            values = [f"{getattr(recipe, field):g}" for field in fields if field != "seed"]
            rows.append([name, str(recipe.seed), *values, *([str(taken[name])] if taken else [])])
        return rows


def plan_population(
    images: int,
    members: int,
    *,
    epochs: float,
    batch_size: int,
    learning_rate: float,
    shift: int = 0,
    mirror: bool = True,
    anneal: float = 0.0,
    base_epochs: float = 0.0,
    base_learning_rate: float = 0.1,
    snapshots: bool = False,
    seed: int = 0,
    choices: Choices | None = None,
) -> PopulationPlan:
    """Recipes of a population, no two of which are alike.

    Learning rates are 1 to 4 times `learning_rate`, a tenth lower in each further dozen; weight
    decays 1e-4 to 1e-3 and label smoothings 0 to 0.02 follow the same table of twelve. Every other
    three members move images by up to `shift` pixels, and all but every fourth mirror them, where
    `mirror` allows; `choices` says what else some do, by default mixup alone. Learning rates stay
    constant unless `anneal` says over which share they fall: members end around the minimum they
    share, not in it, so that averages are better than any of them and evolution has room. Member i
    does not depend on how many there are.

    images: N to learn from. epochs: of each member. base_epochs: of training that comes first, for
    all, with a rate that falls in its second half. snapshots: members are one run of the first
    recipe, taken at equal distances through its second half.

    Raises DeevoError: an argument out of range.
    """
    if members < 2 or seed < 0 or epochs <= 0 or base_epochs < 0:
        raise DeevoError(
            f"members is {members}, epochs {epochs:g}, base_epochs {base_epochs:g}, seed {seed}; "
            "expected at least 2 members, more than 0 epochs, and the others 0 or more"
        )
    choices = choices or Choices()
    each = max(1, images // max(1, min(batch_size, images)))

    def recipe(index: int) -> Recipe:
        dozen, row = divmod(index, len(VARIATIONS))
        rate, decay, smoothing = VARIATIONS[row]
        return Recipe(
            seed=derived_seed(seed, index + 1),
            steps=max(1, round(epochs * each)),
            batch_size=batch_size,
            learning_rate=learning_rate * rate * 0.9**dozen,
            weight_decay=decay,
            label_smoothing=smoothing,
            shift=shift if row // 3 % 2 == 1 else 0,
            mirror=mirror and row % 4 != 3,
            anneal=anneal,
            **choices.of_row(row),
        )

    base = None
    if base_epochs:
        base = Recipe(
            seed=derived_seed(seed, 0),
            steps=max(1, round(base_epochs * each)),
            batch_size=batch_size,
            learning_rate=base_learning_rate,
            weight_decay=5e-4,
            mirror=mirror,
            anneal=0.5,
        )
    names = [f"member_{index:02d}" for index in range(members)]
    if not snapshots:
        return PopulationPlan(base, {name: recipe(i) for i, name in enumerate(names)})
    one = dataclasses.replace(recipe(0), mirror=mirror, shift=shift)
    if one.steps < 2 * members:
        raise DeevoError(
            f"{members} snapshots of {one.steps} steps: give more epochs, at least "
            f"{2 * members} steps"
        )
    taken = tuple(round(one.steps * (members + i + 1) / (2 * members)) for i in range(members))
    return PopulationPlan(base, dict.fromkeys(names, one), taken)


def populate(
    network: nn.Module,
    images: LabelledImages,
    plan: PopulationPlan,
    folder: str | Path,
    *,
    origin: Mapping[str, object],
    device: torch.device | str = "cpu",
    save_every: float = 60.0,
    progress: Progress | None = None,
) -> list[Path]:
    """Writes the members' `.safetensors` files into `folder`; their paths, in order.

    network: what all start from, float32; it is not changed. images: what they learn from. origin:
    plain values that say where network and images come from; a folder is gone on with only where
    they are the same. save_every: seconds between states of the run in progress: killed at any
    moment, at most so much is lost, and members that are done are kept. On the CPU of one machine
    the result is that of an uninterrupted run, bit for bit.

    population.json records recipes and digests, recipes.csv is the table of recipes.

    Raises DeevoError: the folder holds another population, cannot be written; a loss that is not
    finite.
    """
    store = Store(
        Path(folder),
        {
            "format": _FORMAT,
            **origin,
            "images": len(images),
            "images_sha256": images.digest(),
            "base": None if plan.base is None else dataclasses.asdict(plan.base),
            "made_with": {"torch": torch.__version__, "device": torch.device(device).type},
        },
    )
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows(plan.table())
    write_whole(Path(folder) / RECIPES, table.getvalue().encode())
    runner = _Runner(store, images, torch.device(device), save_every, progress)
    runner.total = sum(recipe.steps for recipe in _distinct_runs(plan))
    start = copy.deepcopy(network).to(runner.device)
    if plan.base is not None:
        if not store.has("base", dataclasses.asdict(plan.base)):
            runner.train("base", start, plan.base)
        else:
            runner.skip(plan.base)
        start.load_state_dict(load_file(store.path("base"), str(runner.device)))
    if plan.snapshots:
        runner.snapshots(start, plan)
    else:
        for name, recipe in plan.members.items():
            if store.has(name, dataclasses.asdict(recipe)):
                runner.skip(recipe)
            else:
                runner.train(name, copy.deepcopy(start), recipe)
    return [store.path(name) for name in plan.members]


def _distinct_runs(plan: PopulationPlan) -> Sequence[Recipe]:
    runs = [] if plan.base is None else [plan.base]
    members = list(plan.members.values())
    return runs + (members[:1] if plan.snapshots else members)


class _Runner:
    """Trains one network after the other and reports on all of them together."""

    def __init__(
        self,
        store: Store,
        images: LabelledImages,
        device: torch.device,
        save_every: float,
        progress: Progress | None,
    ) -> None:
        self.store, self.images, self.device = store, images, device
        self.save_every, self.progress = save_every, progress
        self.total = self.done = 0

    def train(self, name: str, network: nn.Module, recipe: Recipe) -> None:
        """One network, in place, and its file."""
        state = State(self.store.path(name).with_suffix(".state"), self.save_every)

        def on_step(step: int) -> None:
            self._report(name, step)

        fine_tune(network, self.images, recipe, state=state, on_step=on_step)
        self.store.save(name, dataclasses.asdict(recipe), _finite(name, network))
        state.remove()
        self.skip(recipe)

    def skip(self, recipe: Recipe) -> None:
        """Counts a run that is done."""
        self.done += recipe.steps

    def snapshots(self, network: nn.Module, plan: PopulationPlan) -> None:
        """All members from one run, each written when its step comes."""
        recipes = {
            name: {**dataclasses.asdict(recipe), "taken_at_step": step}
            for (name, recipe), step in zip(plan.members.items(), plan.snapshots, strict=True)
        }
        if all(self.store.has(name, recipe) for name, recipe in recipes.items()):
            return
        path = self.store.path("snapshots").with_suffix(".state")
        state = State(path, self.save_every)
        due = {recipe["taken_at_step"]: name for name, recipe in recipes.items()}

        def on_step(step: int) -> None:
            self._report("snapshots", step)
            name = due.get(step)
            # A run that goes on from an earlier state passes snapshots that are there: same bits.
            if name is not None and not self.store.has(name, recipes[name]):
                self.store.save(name, recipes[name], _finite(name, network))

        fine_tune(
            network, self.images, next(iter(plan.members.values())), state=state, on_step=on_step
        )
        state.remove()

    def _report(self, what: str, step: int) -> None:
        if self.progress is not None:
            self.progress(what, self.done + step, self.total)


def _finite(name: str, network: nn.Module) -> dict[str, Tensor]:
    state = network.state_dict()
    for key, tensor in state.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise DeevoError(
                f"{name}: {key} is not finite after training; choose a lower --learning-rate"
            )
    return state
