"""One call for the whole job: checkpoints and images in, a better network out."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from deevo_ext.data.images import image_set
from deevo_ext.data.labelled import LabelledImages
from deevo_ext.errors import DeevoError
from deevo_ext.fitness.augmentation import Augmentation
from deevo_ext.fitness.classification import ClassificationFitness
from deevo_ext.fitness.evaluator import Evaluator
from deevo_ext.fitness.metrics import ImageScores, Metric
from deevo_ext.fitness.racing import Racing
from deevo_ext.population.checkpoints import PathLike
from deevo_ext.population.population import Population
from deevo_ext.runs.basin import check_basin, require_basin
from deevo_ext.runs.comparison import Comparison
from deevo_ext.runs.contenders import compare_run
from deevo_ext.runs.journal import Journal, line_of
from deevo_ext.runs.preflight import Preflight, Schedule, examine
from deevo_ext.runs.run import Evolution
from deevo_ext.runs.soups import SOUPS, append_recorded, append_soups
from deevo_ext.runs.state import Candidate
from deevo_ext.runs.validation import Validation
from deevo_ext.search.configuration import Configuration
from deevo_ext.search.optimizer import Callback, DifferentialEvolution

Images = LabelledImages | tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Result:
    """What `evolve` returns.

    state_dict: the evolved network, for model.load_state_dict.
    candidate: which one it is, evolved or initial, and its validation score.
    comparison: the table on the test images; None without them.
    history: the metrics of each generation.
    run: the Evolution with its optimizer and population.
    """

    state_dict: dict[str, torch.Tensor]
    candidate: Candidate
    comparison: Comparison | None
    history: list[dict[str, float]]
    run: Evolution


def evolve(
    model: nn.Module,
    paths: PathLike | Sequence[PathLike],
    fitness_images: Images,
    validation_images: Images,
    test_images: Images | None = None,
    *,
    generations: int = 100,
    seconds: float | None = None,
    preset: str = "sa-shade-tri-ensin",
    seed: int = 0,
    run_dir: str | Path | None = None,
    images_per_batch: int | Literal["auto"] | None = "auto",
    generations_per_batch: int = 3,
    sampling: str = "stratified",
    augment: str | None = None,
    metric: str | ImageScores = "loss",
    label_smoothing: float = 0.0,
    racing: float | None = None,
    racing_first: float = 1 / 32,
    validate_every: int = 10,
    micro_batch: int = 64,
    device: torch.device | str = "cpu",
    population_device: torch.device | str = "cpu",
    precision: str = "auto",
    engine: str = "auto",
    force_precision: bool = False,
    chunk: int = 8,
    dtype: torch.dtype = torch.float32,
    frozen: str | Sequence[str] = (),
    batchnorm: str = "evolve",
    calibration_images: Images | None = None,
    checkpoint_key: str | None = None,
    inject_soups: bool | None = None,
    basin: str = "warn",
    progress: bool = True,
    callbacks: Sequence[Callback] = (),
    preliminaries: Callable[[Preflight], None] | None = None,
    **parameters: Any,
) -> Result:
    """Evolves checkpoints of one architecture and returns the best network by validation.

    Considered are evolved networks, and those that need no evolution: the best parent, the average,
    the greedy soup, and this soup with BatchNorm statistics re-estimated or with its classifier
    refitted on up to 10,000 fitness images. The best evolved one is treated like that, too. If an
    initial network is best, it is returned.

    The image sets must be disjoint, from each other and from the training images: fitness images
    drive the evolution, validation images choose what is returned, and test images are read once,
    for the comparison. The options are:

    model: a module of the architecture, which is not modified.
    paths: the checkpoint files, a folder or a glob.
    generations: the length of the schedule, in generations.
    seconds: a time for evaluation, which decides the number of generations by a calibration, in
        place of `generations`. A run folder keeps that number.
    preset: the parameters to begin with, "sa-shade-tri-ensin" or "paper".
    seed: the seed of the evolution and of the fitness batches.
    run_dir: the folder that makes the run resumable, and replayable on any device.
    images_per_batch: the number of fitness images per generation. A new class-balanced batch is
        drawn every `generations_per_batch` generations, and all parents are scored again. "auto" is
        4,096, but at most half of the images. None is all of them in every generation, which a
        population over-fits sooner.
    generations_per_batch: the number of generations until the next batch is drawn.
    sampling: how batches are drawn. "stratified" draws every image of a class alike, "importance"
        those more often that the first members are unsure of.
    augment: what is done to the images of each batch: "mirror", "shift:PIXELS", "crop:SHARE", or
        several with commas between.
    metric: the score of an image in fitness and validation, of which less is better: "loss", "top1"
        or a function of (logits, labels).
    label_smoothing: the label smoothing of the loss that is the fitness.
    racing: an error rate. Trials are compared with their parent on a first share of the images and
        then on more and more of them, and are dropped once they lose. A trial that would win is
        lost at this rate. By default all trials are evaluated on all images.
    racing_first: the share of the images that a race's first look waits for.
    validate_every: the number of generations from one validation to the next.
    micro_batch: the number of images per forward pass.
    device: where networks are evaluated.
    population_device: where the population lies and is evolved. Trials go to `device` by chunks.
    precision: the precision of forward passes: "auto", "float32", "tf32", "bfloat16" or "float16".
    engine: what computes the forward passes: "auto", "fused", "triton", "compile" or "eager".
    force_precision: whether to evolve in a precision even if its check failed.
    chunk: the number of rows evaluated together.
    dtype, frozen: as in `Population.from_checkpoints`.
    batchnorm: what becomes of BatchNorm statistics: "evolve", "inherit" or "recalibrate".
    calibration_images: what batchnorm="recalibrate" computes statistics on.
    checkpoint_key: the key under which each file holds the weights.
    inject_soups: whether the population's average and its greedy soup, built on the validation
        images, become members too. They do by default, unless the preset is "paper".
    basin: what is done about members whose midpoints are much worse than they are: "warn", "refuse"
        or "ignore". The check costs at most 24 evaluations of 1,000 fitness images.
    progress: whether to show a progress bar.
    callbacks: functions that are called with the metrics of each generation.
    preliminaries: a function that is called with what is known before the run starts, a
        `runs.preflight.Preflight`. It is not called where a run is resumed.
    parameters: fields of `Configuration`, in place of the preset's.
    """
    if basin not in _BASIN:
        raise DeevoError(f"basin is {basin!r}; expected one of {', '.join(_BASIN)}")
    if inject_soups is None:
        inject_soups = preset != "paper"
    population = Population.from_checkpoints(
        model,
        paths,
        dtype=dtype,
        frozen=frozen,
        batchnorm=batchnorm,
        checkpoint_key=checkpoint_key,
        device=population_device,
        spare=SOUPS if inject_soups else 0,
    )
    calibration = (
        None if calibration_images is None else image_set(calibration_images, "calibration images")
    )
    evaluator = Evaluator(
        model,
        population,
        micro_batch=micro_batch,
        calibration=calibration,
        device=device,
        precision=precision,
        engine=engine,
        force_precision=force_precision,
    )
    images = image_set(fitness_images, "fitness images")
    if images_per_batch == "auto":
        images_per_batch = min(4096, max(1, len(images) // 2))
    fitness = ClassificationFitness(
        evaluator,
        images,
        images_per_batch=images_per_batch,
        generations_per_batch=generations_per_batch,
        sampling=sampling,
        augmentation=None if augment is None else Augmentation.parse(augment),
        metric=metric,
        label_smoothing=label_smoothing,
        racing=None if racing is None else Racing(racing, racing_first),
        seed=seed,
    )
    validation = Validation(
        evaluator,
        image_set(validation_images, "validation images"),
        Metric.of(metric),
        validate_every,
    )
    folder = None if run_dir is None else Path(run_dir)
    with contextlib.nullcontext() if folder is None else Journal(folder) as journal:
        recorded = None if journal is None else journal.recording.header
        initial = None
        if recorded is None:
            members = population.size + (SOUPS if inject_soups else 0)
            schedule = Schedule(members, generations, seconds, chunk)
            generations = _before_the_run(fitness, validation, schedule, basin, preliminaries)
            if inject_soups:
                initial = append_soups(validation)
        else:
            assert journal is not None
            with line_of(journal.path, 1):
                if seconds is not None:
                    generations = Configuration(**recorded.configuration).generations
                if inject_soups:
                    append_recorded(population, recorded)
        de = DifferentialEvolution(
            population, preset, seed=seed, generations=generations, **parameters
        )
        run = Evolution(
            de,
            fitness,
            run_dir=folder,
            validation=validation,
            chunk=chunk,
            progress=progress,
            callbacks=callbacks,
            initial=initial,
            journal=journal,
        )
        candidate = run.run()
    comparison = None
    if test_images is not None:
        comparison = compare_run(run, image_set(test_images, "test images"))
    return Result(candidate.state_dict(population), candidate, comparison, run.history, run)


def _before_the_run(
    fitness: ClassificationFitness,
    validation: Validation,
    schedule: Schedule,
    basin: str,
    show: Callable[[Preflight], None] | None,
) -> int:
    """Checks the basin and shows the preliminaries; returns the number of generations."""
    report, generations = None, schedule.generations
    if basin != "ignore":
        report = check_basin(fitness.evaluator, fitness.images, seed=fitness.seed)
    if schedule.seconds is not None or show is not None:
        preflight = examine(fitness, validation, report, schedule)
        generations = preflight.generations
        if show is not None:
            show(preflight)
    if report is not None and basin == "refuse":
        require_basin(report)
    elif report is not None and not report.shared:
        warnings.warn(str(report), stacklevel=3)
    return generations


_BASIN = ("warn", "refuse", "ignore")
