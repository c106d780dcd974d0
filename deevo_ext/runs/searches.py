"""Both searches, from what they work on to a run that has ended."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from deevo_ext.data.labelled import LabelledImages
from deevo_ext.distributed.ranks import ranks, warn
from deevo_ext.errors import DeevoError
from deevo_ext.fitness.augmentation import Augmentation
from deevo_ext.fitness.classification import ClassificationFitness
from deevo_ext.fitness.evaluator import Evaluator
from deevo_ext.fitness.metrics import Metric
from deevo_ext.fitness.racing import Racing
from deevo_ext.networks.blocks import blocks_of
from deevo_ext.progress import say
from deevo_ext.runs.basin import BasinReport, check_basin, require_basin
from deevo_ext.runs.given import Options
from deevo_ext.runs.journal import Journal
from deevo_ext.runs.old_images import Keep
from deevo_ext.runs.preflight import Preflight, Schedule, examine
from deevo_ext.runs.recipe_run import Budget, RecipeRun
from deevo_ext.runs.recording import line_of
from deevo_ext.runs.round_preflight import RoundPreflight, examine_rounds
from deevo_ext.runs.round_size import rounds_of
from deevo_ext.runs.rounds import FEW
from deevo_ext.runs.run import Evolution
from deevo_ext.runs.shared_journal import open_journal
from deevo_ext.runs.soups import SOUPS, append_recorded, append_soups
from deevo_ext.runs.validation import Validation
from deevo_ext.search.optimizer import Callback, DifferentialEvolution


@dataclass(frozen=True)
class Materials:
    """What a search works on; `evolve` explains each.

    validation_images: None where the fitness images choose, too. show: the preliminaries.
    """

    evaluator: Evaluator
    images: LabelledImages
    validation_images: LabelledImages | None
    old_images: LabelledImages | None
    metric: Metric
    options: Options
    callbacks: Sequence[Callback]
    show: Callable[[Preflight | RoundPreflight], None] | None

    @property
    def folder(self) -> Path | None:
        """The run folder, where there is one."""
        given = self.options.run.run_dir
        return None if given is None else Path(given)

    @contextlib.contextmanager
    def journal(self) -> Iterator[Journal | None]:
        """Opens the run folder's journal, where there is a folder; it is of the same search."""
        if self.folder is None:
            yield None
            return
        with open_journal(self.folder) as journal:
            header, search = journal.recording.header, self.options.search
            if header is not None and header.search != search:
                raise DeevoError(
                    f"run folder {journal.folder} holds a run of another configuration: search is "
                    f"{header.search!r} in the journal, {search!r} now. Choose another folder, or "
                    f"give search={header.search!r} (--search {header.search})"
                )
            yield journal

    def check_basin(self) -> BasinReport | None:
        """Measures the members and the loss between them, unless that is to be ignored."""
        run, chunk = self.options.run, self.options.evaluation.chunk
        if run.basin == "ignore":
            return None
        return check_basin(self.evaluator, self.images, seed=run.seed, chunk=chunk)

    def judge_basin(self, report: BasinReport | None) -> None:
        """Refuses, or warns of, members that guess or share no basin."""
        if report is not None and self.options.run.basin == "refuse":
            require_basin(report)
        elif report is not None:
            for problem in report.problems():
                warn(problem, stacklevel=5)  # the caller of evolve


def search_weights(materials: Materials) -> Evolution:
    """Runs the weights' search to its end."""
    evaluator, images, options = materials.evaluator, materials.images, materials.options
    population, run_options, wanted = evaluator.population, options.run, options.fitness
    generations, chunk = options.generations, options.evaluation.chunk
    if materials.validation_images is None:
        raise DeevoError(
            'validation_images are missing: search="weights" needs images that choose what is '
            "returned, disjoint from the fitness images"
        )
    size = wanted.images_per_batch
    fitness = ClassificationFitness(
        evaluator,
        images,
        images_per_batch=min(4096, max(1, len(images) // 2)) if size == "auto" else size,
        generations_per_batch=wanted.generations_per_batch,
        sampling=wanted.sampling,
        augmentation=None if wanted.augment is None else Augmentation.parse(wanted.augment),
        metric=materials.metric,
        label_smoothing=wanted.label_smoothing,
        racing=None if wanted.racing is None else Racing(wanted.racing, wanted.racing_first),
        seed=run_options.seed,
    )
    validation = Validation(
        evaluator, materials.validation_images, materials.metric, run_options.validate_every
    )
    with materials.journal() as journal:
        recorded = None if journal is None else journal.recording.header
        initial = None
        if recorded is None:
            members = population.size + (SOUPS if options.soups else 0)
            schedule = Schedule(members, generations, run_options.seconds, chunk)
            report = materials.check_basin()
            if run_options.seconds is not None or materials.show is not None:
                preflight = examine(fitness, validation, report, schedule)
                generations = ranks().lead(lambda: preflight.generations)
                if materials.show is not None:
                    materials.show(preflight)
            materials.judge_basin(report)
            if options.soups:
                initial = append_soups(validation)
        else:
            assert journal is not None
            with line_of(journal.path, 1):
                if run_options.generations is None:
                    generations = journal.recording.schedule
                    timed = run_options.seconds is not None
                    if timed and run_options.progress and ranks().leads:
                        say(
                            f"{journal.folder} keeps its {generations} generations: seconds "
                            "decides their number where a run begins; for more of them give "
                            "generations"
                        )
                if options.soups:
                    append_recorded(population, recorded)
        configuration = options.configuration(generations)
        de = DifferentialEvolution(population, configuration, seed=run_options.seed)
        run = Evolution(
            de,
            fitness,
            run_dir=materials.folder,
            validation=validation,
            chunk=chunk,
            progress=run_options.progress,
            callbacks=materials.callbacks,
            initial=initial,
            journal=journal,
            patience=run_options.patience,
        )
        run.run()
    return run


def search_coefficients(materials: Materials) -> RecipeRun:
    """Runs the coefficients' search to its end."""
    evaluator, images, options = materials.evaluator, materials.images, materials.options
    wanted, old = options.run, materials.old_images
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
    evaluator.check_precision(images)
    blocks = blocks_of(evaluator.forward, evaluator.population, images.image_shape, wanted.blocks)
    budget = Budget(wanted.rounds, wanted.passes, wanted.seconds)
    share = options.fitness.keep
    with materials.journal() as journal:
        recorded = None if journal is None else journal.recording.header
        rounds = rounds_of(
            evaluator,
            images,
            materials.metric,
            blocks,
            options,
            recorded,
        )
        run = RecipeRun(
            rounds,
            validation,
            budget,
            unit=blocks.unit,
            keep=Keep(share, old) if share and old is not None else None,
            run_dir=materials.folder,
            progress=wanted.progress,
            callbacks=materials.callbacks,
            journal=journal,
        )
        if recorded is None:
            report = materials.check_basin()
            if materials.show is not None:
                materials.show(examine_rounds(rounds, validation, blocks, report, budget))
            materials.judge_basin(report)
        run.run()
    return run
