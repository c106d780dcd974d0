"""Both searches, from what they work on to a run that has ended."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from deevo_ext.data.labelled import LabelledImages
from deevo_ext.errors import DeevoError
from deevo_ext.fitness.augmentation import Augmentation
from deevo_ext.fitness.classification import ClassificationFitness
from deevo_ext.fitness.evaluator import Evaluator
from deevo_ext.fitness.metrics import Metric
from deevo_ext.fitness.racing import Racing
from deevo_ext.networks.blocks import blocks_of
from deevo_ext.runs.basin import BasinReport, check_basin, require_basin
from deevo_ext.runs.journal import Journal, line_of
from deevo_ext.runs.preflight import Preflight, Schedule, examine
from deevo_ext.runs.recipe_run import RecipeRun
from deevo_ext.runs.round_preflight import RoundPreflight, examine_rounds
from deevo_ext.runs.round_size import RoundsOptions, rounds_of
from deevo_ext.runs.rounds import FEW
from deevo_ext.runs.run import Evolution
from deevo_ext.runs.soups import SOUPS, append_recorded, append_soups
from deevo_ext.runs.validation import Validation
from deevo_ext.search.configuration import configure
from deevo_ext.search.optimizer import Callback, DifferentialEvolution
from deevo_ext.search.virtual import GENERATIONS

ACTIONS = ("warn", "refuse", "ignore")
"""What may be done about members that guess or share no basin, and images that sets share."""


@dataclass(frozen=True)
class Materials:
    """What a search works on; `evolve` explains each.

    validation_images: None where the fitness images choose, too. show: the preliminaries.
    """

    evaluator: Evaluator
    images: LabelledImages
    validation_images: LabelledImages | None
    metric: Metric
    seed: int
    folder: Path | None
    chunk: int
    basin: str
    progress: bool
    callbacks: Sequence[Callback]
    show: Callable[[Preflight | RoundPreflight], None] | None
    preset: str
    parameters: dict[str, Any]

    def journal(self) -> contextlib.AbstractContextManager[Journal | None]:
        """Opens the run folder's journal, where there is a folder."""
        return contextlib.nullcontext() if self.folder is None else Journal(self.folder)

    def check_basin(self) -> BasinReport | None:
        """Measures the members and the loss between them, unless that is to be ignored."""
        if self.basin == "ignore":
            return None
        return check_basin(self.evaluator, self.images, seed=self.seed, chunk=self.chunk)

    def judge_basin(self, report: BasinReport | None) -> None:
        """Refuses, or warns of, members that guess or share no basin."""
        if report is not None and self.basin == "refuse":
            require_basin(report)
        elif report is not None:
            for problem in report.problems():
                warnings.warn(problem, stacklevel=4)


@dataclass(frozen=True)
class WeightsOptions:
    """What belongs to the search of weights alone; `evolve` explains each."""

    generations: int
    seconds: float | None
    images_per_batch: int | Literal["auto"] | None
    generations_per_batch: int
    sampling: str
    augment: str | None
    label_smoothing: float
    racing: float | None
    racing_first: float
    validate_every: int
    inject_soups: bool


def search_weights(materials: Materials, options: WeightsOptions) -> Evolution:
    """Runs the weights' search to its end."""
    evaluator, images, seed = materials.evaluator, materials.images, materials.seed
    population, generations = evaluator.population, options.generations
    if materials.validation_images is None:
        raise DeevoError(
            'validation_images are missing: search="weights" needs images that choose what is '
            "returned, disjoint from the fitness images"
        )
    size = options.images_per_batch
    fitness = ClassificationFitness(
        evaluator,
        images,
        images_per_batch=min(4096, max(1, len(images) // 2)) if size == "auto" else size,
        generations_per_batch=options.generations_per_batch,
        sampling=options.sampling,
        augmentation=None if options.augment is None else Augmentation.parse(options.augment),
        metric=materials.metric,
        label_smoothing=options.label_smoothing,
        racing=None if options.racing is None else Racing(options.racing, options.racing_first),
        seed=seed,
    )
    validation = Validation(
        evaluator, materials.validation_images, materials.metric, options.validate_every
    )
    with materials.journal() as journal:
        recorded = None if journal is None else journal.recording.header
        initial = None
        if recorded is None:
            members = population.size + (SOUPS if options.inject_soups else 0)
            schedule = Schedule(members, generations, options.seconds, materials.chunk)
            report = materials.check_basin()
            if options.seconds is not None or materials.show is not None:
                preflight = examine(fitness, validation, report, schedule)
                generations = preflight.generations
                if materials.show is not None:
                    materials.show(preflight)
            materials.judge_basin(report)
            if options.inject_soups:
                initial = append_soups(validation)
        else:
            assert journal is not None
            with line_of(journal.path, 1):
                if options.seconds is not None:
                    generations = journal.recording.schedule
                if options.inject_soups:
                    append_recorded(population, recorded)
        de = DifferentialEvolution(
            population,
            materials.preset,
            seed=seed,
            generations=generations,
            **materials.parameters,
        )
        run = Evolution(
            de,
            fitness,
            run_dir=materials.folder,
            validation=validation,
            chunk=materials.chunk,
            progress=materials.progress,
            callbacks=materials.callbacks,
            initial=initial,
            journal=journal,
        )
        run.run()
    return run


def search_coefficients(materials: Materials, options: RoundsOptions) -> RecipeRun:
    """Runs the coefficients' search to its end."""
    evaluator, images = materials.evaluator, materials.images
    if materials.validation_images is None and len(images) > FEW:
        raise DeevoError(
            f"validation_images are missing: there are {len(images):,} fitness images, and only up "
            f"to {FEW:,} choose by folds what is returned; give others that choose"
        )
    validation = Validation(
        evaluator,
        images if materials.validation_images is None else materials.validation_images,
        materials.metric,
        by_folds=materials.validation_images is None,
    )
    evaluator.settle(images)
    blocks = blocks_of(evaluator.forward, evaluator.population, images.image_shape, options.blocks)
    configuration = configure(materials.preset, generations=GENERATIONS, **materials.parameters)
    with materials.journal() as journal:
        recorded = None if journal is None else journal.recording.header
        rounds = rounds_of(
            evaluator,
            images,
            materials.metric,
            options,
            blocks,
            configuration,
            seed=materials.seed,
            chunk=materials.chunk,
            recorded=recorded,
        )
        run = RecipeRun(
            rounds,
            validation,
            options.budget,
            unit=blocks.unit,
            keep=options.keep,
            run_dir=materials.folder,
            progress=materials.progress,
            callbacks=materials.callbacks,
            journal=journal,
        )
        if recorded is None:
            report = materials.check_basin()
            if materials.show is not None:
                materials.show(examine_rounds(rounds, validation, blocks, report, options.budget))
            materials.judge_basin(report)
        run.run()
    return run
