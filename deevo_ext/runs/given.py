"""All options of a run, as keywords and groups give them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import Field, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch

from deevo_ext.errors import DeevoError
from deevo_ext.fitness.metrics import Metric, Scores
from deevo_ext.networks.execution.user_engine import EngineFunction
from deevo_ext.options import nearest
from deevo_ext.runs.options import EvaluationOptions, FitnessOptions, MemberOptions, RunOptions
from deevo_ext.runs.shared_journal import holds_run
from deevo_ext.search.configuration import Configuration
from deevo_ext.search.parameters import Parameters
from deevo_ext.search.presets import configure
from deevo_ext.search.virtual import GENERATIONS, require_fit


class Keywords(Parameters, total=False):
    """Keywords that are fields of the groups in `runs.options`, where it is said what each is."""

    dtype: torch.dtype
    frozen: str | Sequence[str]
    batchnorm: str | None
    checkpoint_key: str | None
    prefix: str | None
    key_map: Mapping[str, str] | None
    ignore: str | Sequence[str]
    population_device: torch.device | str | None
    metric: str | Scores | Metric
    metric_name: str | None
    keep: float
    images_per_round: int | Literal["auto"]
    images_per_batch: int | Literal["auto"] | None
    generations_per_batch: int
    sampling: str
    augment: str | None
    label_smoothing: float
    racing: float | None
    racing_first: float
    device: torch.device | str
    precision: str
    force_precision: bool
    engine: str | EngineFunction
    micro_batch: int
    chunk: int
    memory: int | None
    search: str | None
    rounds: int
    passes: int | None
    seconds: float | None
    blocks: str | Sequence[str]
    inject_soups: bool | None
    validate_every: int
    patience: int | None
    seed: int
    preset: str
    run_dir: str | Path | None
    basin: str
    overlap: str
    progress: bool


OptionGroup = MemberOptions | FitnessOptions | EvaluationOptions | RunOptions
GROUPS = (MemberOptions, FitnessOptions, EvaluationOptions, RunOptions)


@dataclass(frozen=True)
class Options:
    """All options of a run.

    parameters: fields of `Configuration` that replace the preset's.
    """

    members: MemberOptions
    fitness: FitnessOptions
    evaluation: EvaluationOptions
    run: RunOptions
    parameters: Parameters

    @classmethod
    def of(cls, groups: Sequence[OptionGroup], keywords: Mapping[str, Any]) -> Options:
        """Makes them of groups and of single options, which replace those of the groups.

        Raises DeevoError for an option that is none or not allowed, that belongs to the other
        search, or does not fit another one.
        """
        given: dict[type, dict[str, Any]] = {group: {} for group in GROUPS}
        for group in groups:
            if type(group) not in given or given[type(group)]:
                names = ", ".join(kind.__name__ for kind in GROUPS)
                raise DeevoError(f"options has {group!r}; expected at most one each of {names}")
            given[type(group)] = {part.name: getattr(group, part.name) for part in fields(group)}
        home = {part.name: kind for kind in GROUPS for part in fields(kind)}
        further = {part.name for part in fields(Configuration)} - home.keys()
        parameters: dict[str, Any] = {}
        for name, value in keywords.items():
            if name not in home and name not in further:
                known = nearest(name, home.keys() | further)
                raise DeevoError(f"there is no option {name!r}; the nearest is {known!r}")
            (given[home[name]] if name in home else parameters)[name] = value
        made: dict[str, Any] = {
            name: kind(**given[kind])
            for name, kind in zip(("members", "fitness", "evaluation", "run"), GROUPS, strict=True)
        }
        return cls(**made, parameters=cast(Parameters, parameters))

    def __post_init__(self) -> None:
        search, run = self.search, self.run
        for group in (self.members, self.fitness, self.evaluation, run):
            for part in fields(group):
                if part.metadata["search"] and getattr(group, part.name) != part.default:
                    _require_of(search, part)
        for part in fields(Configuration):
            if part.name in self.parameters:
                _require_of(search, part)
        self.configuration(self.generations)
        if search == "coefficients":
            require_fit(self.configuration(GENERATIONS))
        if run.run_dir is not None:
            # Which refuses what a later start could not tell from others.
            fitness = self.fitness
            Metric.of(fitness.metric, fitness.label_smoothing, name=fitness.metric_name).describe()
        if search == "coefficients" and self.members.batchnorm == "inherit":
            raise DeevoError(
                'batchnorm is "inherit", which is for search="weights": a recipe\'s network has no '
                'parent; expected "recalibrate" or "evolve"'
            )

    @property
    def search(self) -> str:
        """What is evolved, where that was left open by the preset."""
        return self.run.search or ("weights" if self.run.preset == "paper" else "coefficients")

    @property
    def generations(self) -> int:
        """How many generations a search of weights has, unless a time decides that."""
        return self.run.generations or Configuration.generations

    @property
    def batchnorm(self) -> str:
        """What becomes of BatchNorm statistics, where that was left open by the search."""
        default = "evolve" if self.search == "weights" else "recalibrate"
        return self.members.batchnorm or default

    @property
    def soups(self) -> bool:
        """Whether soups become members."""
        inject = self.run.inject_soups
        wanted = self.run.preset != "paper" if inject is None else inject
        return wanted and self.search == "weights"

    def configuration(self, generations: int) -> Configuration:
        """Returns the evolution's parameters."""
        return replace(configure(self.run.preset, **self.parameters), generations=generations)

    def require_start(self, *, old_images: bool, calibration_images: bool) -> None:
        """Raises DeevoError where they do not fit the images or the run folder that there are.

        old_images, calibration_images: whether they were given. All ranks ask, before anything is
        read.
        """
        if self.fitness.keep and not old_images:
            raise DeevoError(
                f"keep is {self.fitness.keep!r}, but there are no old_images: give some of the "
                "kind trained on, labelled, which say what is kept (--old)"
            )
        if calibration_images and self.batchnorm != "recalibrate":
            raise DeevoError(
                f'calibration_images are given, but batchnorm is "{self.batchnorm}", which '
                're-estimates nothing on them; leave them out, or give batchnorm="recalibrate" '
                "(--calibration, --batchnorm)"
            )
        run = self.run
        lengths = self.search == "weights" and run.generations is not None
        if lengths and run.seconds is not None and not holds_run(run.run_dir):
            raise DeevoError(
                f"generations is {run.generations} and seconds is {run.seconds!r}, but a search of "
                "weights that begins takes its length from one of them; leave the other out"
            )


def _require_of(search: str, part: Field[Any]) -> None:
    """Raises DeevoError where a field belongs to the other search."""
    other = part.metadata["search"]
    if other not in (None, search):
        raise DeevoError(
            f"{part.name} belongs to search={other!r}, but search is {search!r}; leave it out, or "
            f"give search={other!r} (--search {other})"
        )
