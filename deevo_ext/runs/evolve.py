"""One call for the whole job: checkpoints and images in, a better network out."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from deevo_ext.arguments import check_arguments
from deevo_ext.data.class_maps import class_map_of
from deevo_ext.data.images import image_set
from deevo_ext.data.labelled import LabelledImages
from deevo_ext.data.overlap import check_overlap
from deevo_ext.errors import DeevoError
from deevo_ext.fitness.augmentation import Augmentation
from deevo_ext.fitness.evaluator import Evaluator
from deevo_ext.fitness.metric_checks import settled
from deevo_ext.fitness.metrics import Metric, Scores
from deevo_ext.fitness.racing import Racing
from deevo_ext.fitness.sampling import batch_indices
from deevo_ext.networks.arguments import evaluating_device
from deevo_ext.networks.execution.user_engine import EngineFunction
from deevo_ext.population.finding import PathLike, expand_paths
from deevo_ext.population.inventory import POLICIES, Inventory
from deevo_ext.population.population import Population
from deevo_ext.runs.contenders import compare_run
from deevo_ext.runs.old_images import Keep
from deevo_ext.runs.population_place import default_place
from deevo_ext.runs.preflight import Preflight
from deevo_ext.runs.recipe_run import Budget, RecipeRun
from deevo_ext.runs.records import SEARCHES
from deevo_ext.runs.result import Result
from deevo_ext.runs.round_preflight import RoundPreflight
from deevo_ext.runs.round_size import RoundsOptions
from deevo_ext.runs.run import Evolution
from deevo_ext.runs.searches import (
    ACTIONS,
    Materials,
    WeightsOptions,
    search_coefficients,
    search_weights,
)
from deevo_ext.runs.soups import SOUPS
from deevo_ext.search.configuration import configure
from deevo_ext.search.optimizer import Callback

Images = LabelledImages | tuple[torch.Tensor, torch.Tensor]


def evolve(
    model: nn.Module,
    paths: PathLike | Sequence[PathLike],
    fitness_images: Images,
    validation_images: Images | None = None,
    test_images: Images | None = None,
    *,
    old_images: Images | None = None,
    keep: float = 0.0,
    search: str | None = None,
    rounds: int = 12,
    passes: int | None = None,
    blocks: str | Sequence[str] = "auto",
    images_per_round: int | Literal["auto"] = "auto",
    memory: int | None = None,
    generations: int = 100,
    seconds: float | None = None,
    preset: str = "sa-shade-tri-ensin",
    seed: int = 0,
    run_dir: str | Path | None = None,
    images_per_batch: int | Literal["auto"] | None = "auto",
    generations_per_batch: int = 3,
    sampling: str = "stratified",
    augment: str | None = None,
    metric: str | Scores | Metric = "loss",
    metric_name: str | None = None,
    label_smoothing: float = 0.0,
    racing: float | None = None,
    racing_first: float = 1 / 32,
    validate_every: int = 10,
    micro_batch: int = 64,
    device: torch.device | str = "cpu",
    population_device: torch.device | str | None = None,
    precision: str = "auto",
    engine: str | EngineFunction = "auto",
    force_precision: bool = False,
    chunk: int = 8,
    dtype: torch.dtype = torch.float32,
    frozen: str | Sequence[str] = (),
    batchnorm: str | None = None,
    calibration_images: Images | None = None,
    checkpoint_key: str | None = None,
    prefix: str | None = None,
    key_map: Mapping[str, str] | None = None,
    ignore: str | Sequence[str] = (),
    inject_soups: bool | None = None,
    basin: str = "warn",
    overlap: str = "refuse",
    progress: bool = True,
    callbacks: Sequence[Callback] = (),
    preliminaries: Callable[[Preflight | RoundPreflight], None] | None = None,
    **parameters: Any,
) -> Result:
    """Evolves checkpoints of one architecture and returns the best network by validation.

    `search="coefficients"` looks for a recipe, which weighs the members in each block of the
    network: rounds of forward passes make a linear model of the logits, differential evolution and
    a convex fit work on that, and real networks prove what they propose. `search="weights"` is the
    method of the paper, differential evolution of the weights themselves.

    Considered are evolved networks, and those that need no evolution: the best parent, the average,
    the greedy soup, and this soup with BatchNorm statistics re-estimated or with its classifier
    refitted on up to 10,000 fitness images. The best evolved one is treated like that, too. If an
    initial network is best, it is returned.

    The image sets must be disjoint, from each other and from the training images: fitness images
    drive the evolution, validation images choose what is returned, and test images are read once,
    for the comparison. Up to 2,000 fitness images of a search of coefficients may choose, too, by
    folds, if there are no validation images. The options are:

    model: a module of the architecture, which is not modified.
    old_images: images of the kind that the members were trained on, where the others are of another
        kind. They choose nothing; a table on them says what was lost there.
    keep: the share of the network that a search of coefficients begins with that is kept in what it
        returns: coefficients between those of the first recipe and of the one that validation
        chose, statistics between those of old and of calibration images.
    paths: the checkpoint files, a folder or a glob.
    search: what is evolved, "coefficients" (of a recipe, the default) or "weights"; preset="paper"
        implies weights.
    rounds: the number of rounds of a search of coefficients, at most; it ends by itself where
        nothing is gained.
    passes: a number of forward passes beyond which no round of that search begins, nor one that
        would go beyond if it took as many as the round before.
    blocks: what a recipe weighs together: "layer" (with its norm), "module" (a residual block, the
        stem, the classifier), "tensor", "member" (the whole network), a list of patterns of
        tensors' names, or "auto", layers as long as they are few.
    images_per_round: the number of fitness images of a round's linear model. "auto" is 1,000, or 10
        a class, up to 6,400. Up to 2,000 fitness images are all used, with folds.
    memory: the bytes for the linear model, by default a quarter of what can be had.
    generations: the length of a search of weights, in generations.
    seconds: a time for evaluation. A search of coefficients begins no round after it; of a search
        of weights it decides the number of generations by a calibration, in place of `generations`,
        and a run folder keeps that number.
    preset: the parameters to begin with, "sa-shade-tri-ensin" or "paper".
    seed: the seed of the evolution and of the fitness batches.
    run_dir: the folder that makes the run resumable, and replayable on any device.
    images_per_batch: the number of fitness images per generation of a search of weights. A new
        class-balanced batch is drawn every `generations_per_batch` generations, and all parents are
        scored again. "auto" is 4,096, but at most half of the images. None is all of them in every
        generation, which a population over-fits sooner.
    generations_per_batch: the number of generations until the next batch is drawn.
    sampling: how batches are drawn. "stratified" draws every image of a class alike, "importance"
        those more often that the first members are unsure of.
    augment: what is done to the images of each batch: "mirror", "shift:PIXELS", "crop:SHARE", or
        several with commas between.
    metric: what fitness and validation go by: "loss", "top1", "top5", "worst-class" (the share of
        right images of the class where it is least), "macro-f1", a classification metric of
        torchmetrics, a function of (logits, labels) that gives a score an image or one of the whole
        set, of which less is better, or a `Metric`.
    metric_name: a name for a metric that is a function, in place of its own name and the hash of
        its code: it says which version of the function a run folder was made with.
    label_smoothing: the label smoothing of the loss that is the fitness.
    racing: an error rate. Trials are compared with their parent on a first share of the images and
        then on more and more of them, and are dropped once they lose. A trial that would win is
        lost at this rate. By default all trials are evaluated on all images.
    racing_first: the share of the images that a race's first look waits for.
    validate_every: the number of generations from one validation to the next.
    micro_batch: the number of images per forward pass.
    device: where networks are evaluated.
    population_device: where the population lies and is evolved. By default that is `device` if the
        rows, the copies that are evaluated and the linear model fit there, else the CPU, from which
        rows go to `device` by chunks.
    precision: the precision of forward passes: "auto", "float32", "tf32", "bfloat16" or "float16".
    engine: what computes the forward passes: "auto", "fused", "triton", "compile", "eager" or a
        function of a network's state dict and images, as `deevo.PopulationForward` calls it.
    force_precision: whether to evolve in a precision even if its check failed.
    chunk: the number of rows evaluated together.
    dtype, frozen: as in `Population.from_checkpoints`.
    batchnorm: what becomes of BatchNorm statistics: "recalibrate" (the default of a search of
        coefficients), "evolve" (that of weights) or "inherit" (for weights only).
    calibration_images: what batchnorm="recalibrate" computes statistics on, by default up to 1,000
        of the fitness images.
    checkpoint_key: the key under which each file holds the weights.
    prefix: what stands before the names of tensors in each file, as "student."; by default it is
        found.
    key_map, ignore: names of the files in place of the model's, and patterns of names that are left
        out, as in `Population.from_checkpoints`.
    inject_soups: whether the population's average and its greedy soup, built on the validation
        images, become members of a search of weights, too. They do by default, unless the preset
        is "paper".
    basin: what is done about members that are no better than guessing, or far from the others, and
        about those whose midpoints are much worse than they are: "warn", "refuse" or "ignore". The
        check evaluates each member and up to 8 midpoints on up to 1,000 fitness images. Checkpoints
        whose own class maps differ are treated alike.
    overlap: what is done about fitness, validation and test images that share images: "refuse" sets
        of which one shares half of its images or more, and warn of less, "warn" or "ignore".
    progress: whether to show a progress bar.
    callbacks: functions that are called with the metrics of each generation.
    preliminaries: a function that is called with what is known before the run starts, a
        `runs.round_preflight.RoundPreflight`, or a `runs.preflight.Preflight` of a search of
        weights. It is not called where a run is resumed.
    parameters: fields of `Configuration`, in place of the preset's.
    """
    search = check_options(locals())
    weights = search == "weights"
    if inject_soups is None:
        inject_soups = preset != "paper"
    sets = {
        name: image_set(given, f"{name} images")
        for name, given in (
            ("fitness", fitness_images),
            ("validation", validation_images),
            ("test", test_images),
            ("old", old_images),
        )
        if given is not None
    }
    check_overlap(sets, overlap)
    batchnorm = batchnorm or ("evolve" if weights else "recalibrate")
    spare = SOUPS if weights and inject_soups else 0
    if population_device is None:
        copies = configure(preset, **parameters).archive_size if weights else chunk
        population_device = default_place(
            Inventory.of(model, frozen, batchnorm).layout("row"),
            dtype,
            len(expand_paths(paths)) + spare + chunk + copies,
            evaluating_device(device, precision),
            search,
            memory,
        )
    if basin != "ignore":
        class_map_of(expand_paths(paths), basin)
    population = Population.from_checkpoints(
        model,
        paths,
        dtype=dtype,
        frozen=frozen,
        batchnorm=batchnorm,
        checkpoint_key=checkpoint_key,
        prefix=prefix,
        key_map=key_map,
        ignore=ignore,
        device=population_device,
        spare=spare,
    )
    images = sets["fitness"]
    if calibration_images is None:
        count = min(CALIBRATION_IMAGES, len(images))
        chosen = batch_indices(images.labels, count, 0, seed)
        calibration = images.subset(chosen, "calibration images")
    else:
        calibration = image_set(calibration_images, "calibration images")
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
    for given in (*sets.values(), calibration):
        evaluator.require_fit(given)
    materials = Materials(
        evaluator=evaluator,
        images=images,
        validation_images=sets.get("validation"),
        metric=settled(Metric.of(metric, name=metric_name), evaluator, sets.values()),
        seed=seed,
        folder=None if run_dir is None else Path(run_dir),
        chunk=chunk,
        basin=basin,
        progress=progress,
        callbacks=callbacks,
        show=preliminaries,
        preset=preset,
        parameters=parameters,
    )
    run: RecipeRun | Evolution
    if weights:
        run = search_weights(
            materials,
            WeightsOptions(
                generations=generations,
                seconds=seconds,
                images_per_batch=images_per_batch,
                generations_per_batch=generations_per_batch,
                sampling=sampling,
                augment=augment,
                label_smoothing=label_smoothing,
                racing=racing,
                racing_first=racing_first,
                validate_every=validate_every,
                inject_soups=inject_soups,
            ),
        )
    else:
        budget = Budget(rounds, passes, seconds)
        run = search_coefficients(
            materials,
            RoundsOptions(
                budget,
                blocks,
                images_per_round,
                memory,
                Keep(keep, sets["old"]) if keep else None,
            ),
        )
    assert run.chosen is not None
    comparison, old = (
        compare_run(run, sets[name]) if name in sets else None for name in ("test", "old")
    )
    state = run.chosen.state_dict(population)
    return Result(state, run.chosen, comparison, old, run.history, run, model)


CALIBRATION_IMAGES = 1000
"""Fitness images that statistics are re-estimated on, at most, where no others are given."""
_OF_WEIGHTS = (
    *("generations", "images_per_batch", "generations_per_batch", "sampling", "augment"),
    *("label_smoothing", "racing", "racing_first", "validate_every", "inject_soups"),
)
_OF_COEFFICIENTS = ("rounds", "passes", "blocks", "images_per_round", "memory", "keep")
_LEAST = {
    **dict.fromkeys(("rounds", "passes", "memory", "generations", "chunk", "micro_batch"), 1),
    **{"images_per_round": 10, "seconds": 1e-9, "seed": 0},
}


def check_options(given: dict[str, Any]) -> str:
    """Checks all that can be without images and networks; returns the search.

    given: keywords of `evolve`, of which those that are left out have their defaults. Raises
    DeevoError for an option that is none, or that belongs to the other search.
    """
    defaults = {name: p.default for name, p in inspect.signature(evolve).parameters.items()}
    # What paths and images are is said where they are found; old ones may be a folder's name yet.
    known = {name: given[name] for name in given if name not in ("paths", "old_images")}
    check_arguments(evolve, known)
    parameters = given.get("parameters", {}) | {n: v for n, v in given.items() if n not in defaults}
    options = defaults | given | {"parameters": parameters}
    search: str = options["search"] or (
        "weights" if options["preset"] == "paper" else "coefficients"
    )
    if search not in SEARCHES:
        raise DeevoError(f"search is {search!r}; expected one of {', '.join(SEARCHES)}")
    for name in ("basin", "overlap"):
        if options[name] not in ACTIONS:
            raise DeevoError(f"{name} is {options[name]!r}; expected one of {', '.join(ACTIONS)}")
    others = _OF_COEFFICIENTS if search == "weights" else _OF_WEIGHTS
    set_ones = [name for name in others if options[name] != defaults[name]]
    if search == "coefficients" and "crossover_unit" in options["parameters"]:
        set_ones.append("crossover_unit")
    if set_ones:
        other = SEARCHES[1 - SEARCHES.index(search)]
        raise DeevoError(
            f"{set_ones[0]} belongs to search={other!r}, but search is {search!r}; leave it out, "
            f"or give search={other!r} (--search {other})"
        )
    for name, least in _LEAST.items():
        if (value := options[name]) not in (None, "auto") and not least <= value < math.inf:
            raise DeevoError(f"{name} is {value!r}; expected a finite number, at least {least}")
    if not 0 <= options["keep"] < 1:
        raise DeevoError(
            f"keep is {options['keep']!r}; expected a share from 0 (nothing of the network that "
            "the search begins with) up to less than 1 (all of it)"
        )
    if options["keep"] and options["old_images"] is None:
        raise DeevoError(
            f"keep is {options['keep']!r}, but there are no old_images: give some of the kind "
            "trained on, labelled, which say what is kept (--old)"
        )
    if options["batchnorm"] not in (None, *POLICIES):
        raise DeevoError(
            f"batchnorm is {options['batchnorm']!r}; expected one of {', '.join(POLICIES)}"
        )
    configure(options["preset"], generations=options["generations"], **parameters)
    of = Metric.of(options["metric"], options["label_smoothing"], name=options["metric_name"])
    if options["run_dir"] is not None:
        of.describe()  # which refuses what a later start could not tell from others
    if options["racing"] is not None and of.of_whole_sets:
        raise DeevoError(
            f"racing is {options['racing']!r}, but metric {of.name} is one of a whole set: races "
            "drop trials by the scores of the first images; leave racing out"
        )
    if options["augment"] is not None:
        Augmentation.parse(options["augment"])
    if options["racing"] is not None:
        Racing(options["racing"], options["racing_first"])
    if search == "coefficients" and options["batchnorm"] == "inherit":
        raise DeevoError(
            'batchnorm is "inherit", which is for search="weights": a recipe\'s network has no '
            'parent; expected "recalibrate" or "evolve"'
        )
    return search
