"""One call for the whole job: checkpoints and images in, a better network out."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from deevo_ext.checkpoints import PathLike
from deevo_ext.data.augmentation import Augmentation
from deevo_ext.data.labelled import LabelledImages
from deevo_ext.errors import DeevoError
from deevo_ext.evolution.basin import BasinReport, check_basin, require_basin
from deevo_ext.evolution.course import Candidate
from deevo_ext.evolution.injection import SOUPS, prepare
from deevo_ext.evolution.journal import FILE_NAME, line_of, read
from deevo_ext.evolution.optimizer import Callback, DifferentialEvolution
from deevo_ext.evolution.preliminaries import Preliminaries, examine
from deevo_ext.evolution.report import Comparison, compare
from deevo_ext.evolution.run import Evolution
from deevo_ext.fitness.classification import ClassificationFitness, image_set
from deevo_ext.fitness.evaluator import Evaluator
from deevo_ext.fitness.metrics import ImageScores, Metric
from deevo_ext.fitness.racing import Racing
from deevo_ext.population import Population

Images = LabelledImages | tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Result:
    """What `evolve` gives back.

    state_dict: the evolved network, for model.load_state_dict; candidate: which one it is and its
    validation loss; comparison: the table on the test images (None without them); history: metrics
    of each generation; run: the Evolution with its optimizer and population.
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
    preliminaries: Callable[[Preliminaries], None] | None = None,
    **parameters: Any,
) -> Result:
    """Evolves checkpoints of one architecture and returns the best network by validation.

    The image sets must be disjoint, from each other and from the training images: fitness drives
    the evolution, validation chooses what is returned, test is read once, for the comparison.

    model: an nn.Module of the architecture; not modified. paths: checkpoint files, a folder or a
    glob. seconds: evaluation time that decides the number of generations, by a calibration, instead
    of `generations`; a run folder keeps that number. images_per_batch: fitness images per
    generation, a new class-balanced batch every generations_per_batch generations with all parents
    re-scored; "auto" is 4,096, at most half of them; None, or as many as there are, is all of them
    always, which a population over-fits sooner. sampling: "stratified" or "importance", see
    `ClassificationFitness`. augment: what is done to each batch, "mirror", "shift:PIXELS",
    "crop:SHARE" or several, see `data.augmentation`. metric: "loss", "top1" or a function of
    (logits, labels) that gives a score per image, less is better; of fitness and validation.
    label_smoothing: of the fitness' loss. racing: trials that lose to their parent on the first
    `racing_first` of the images, on twice as many, and so on, are dropped there; a trial that would
    win is lost at this error rate (None: all are evaluated on all images). micro_batch: images per
    forward pass. device: where networks are evaluated. population_device: where the population lies
    and is evolved; trials go to `device` chunk by chunk. precision, engine, force_precision: as in
    `Evaluator`. run_dir: makes the run resumable, and replayable on any device. dtype, frozen,
    batchnorm, checkpoint_key: as in `Population.from_checkpoints`. calibration_images: for
    batchnorm="recalibrate". inject_soups: the population's average and its greedy soup, built on
    the validation images, become members too; None: unless the preset is "paper". basin: what is
    done about members whose midpoints are much worse than they are: "warn", "refuse" or "ignore"
    (which spares the check, at most 24 evaluations of 1,000 fitness images). preliminaries: called
    with what can be said before the run starts, see `evolution.preliminaries`; not on resume.
    parameters: fields of `Configuration`.
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
    validation = image_set(validation_images, "validation images")
    folder = None if run_dir is None else Path(run_dir)
    recorded = None if folder is None else recorded_generations(folder)
    if recorded is None:
        middle = None
        if basin != "ignore":
            middle = check_basin(evaluator, population, images, seed=seed)
        if seconds is not None or preliminaries is not None:
            found = examine(
                fitness,
                validation,
                middle,
                members=population.size + (SOUPS if inject_soups else 0),
                generations=generations,
                seconds=seconds,
                validate_every=validate_every,
                chunk=chunk,
            )
            generations = found.generations
            if preliminaries is not None:
                preliminaries(found)
        if middle is not None:
            _look_at_basin(middle, basin)
    elif seconds is not None:
        generations = recorded
    initial = None
    if inject_soups:
        initial = prepare(population, evaluator, validation, Metric.of(metric), folder)
    de = DifferentialEvolution(population, preset, seed=seed, generations=generations, **parameters)
    run = Evolution(
        de,
        fitness,
        run_dir=run_dir,
        evaluator=evaluator,
        validation=validation,
        validate_every=validate_every,
        metric=metric,
        chunk=chunk,
        progress=progress,
        callbacks=callbacks,
        initial=initial,
    )
    candidate = run.run()
    comparison = None
    if test_images is not None:
        comparison = compare(run, image_set(test_images, "test images"))
    return Result(candidate.state_dict(de), candidate, comparison, run.history, run)


def recorded_generations(run_dir: Path) -> int | None:
    """The schedule's length that a run folder's journal says; None where no run has begun."""
    path = run_dir / FILE_NAME
    records = read(path)[0] if path.exists() else []
    if not records:
        return None
    with line_of(path, 1):
        return int(records[0]["configuration"]["generations"])


_BASIN = ("warn", "refuse", "ignore")


def _look_at_basin(report: BasinReport, action: str) -> None:
    if action == "refuse":
        require_basin(report)
    elif not report.shared:
        warnings.warn(str(report), stacklevel=3)
