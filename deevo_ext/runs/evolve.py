"""One call for the whole job: checkpoints and images in, a better network out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Unpack

import torch
from torch import nn

from deevo_ext.arguments import check_arguments
from deevo_ext.data.class_maps import class_map_of
from deevo_ext.data.images import image_set
from deevo_ext.data.labelled import LabelledImages
from deevo_ext.data.overlap import check_overlap
from deevo_ext.distributed.joining import joined
from deevo_ext.distributed.ranks import ranks, warn
from deevo_ext.errors import DeevoError
from deevo_ext.fitness.evaluator import Evaluator
from deevo_ext.fitness.metric_checks import settled
from deevo_ext.fitness.metrics import Metric
from deevo_ext.fitness.sampling import batch_indices
from deevo_ext.networks.arguments import evaluating_device
from deevo_ext.options import documented
from deevo_ext.population.finding import PathLike, expand_paths
from deevo_ext.population.inventory import Inventory
from deevo_ext.population.one_copy import read_once_a_machine
from deevo_ext.population.population import Population
from deevo_ext.population.tensors import dtype_name, dtype_of
from deevo_ext.runs.contenders import compare_run
from deevo_ext.runs.given import GROUPS, Keywords, OptionGroup, Options
from deevo_ext.runs.population_place import default_place
from deevo_ext.runs.preflight import Preflight
from deevo_ext.runs.recipe_run import RecipeRun
from deevo_ext.runs.result import Result
from deevo_ext.runs.round_preflight import RoundPreflight
from deevo_ext.runs.run import Evolution
from deevo_ext.runs.searches import (
    Materials,
    search_coefficients,
    search_weights,
)
from deevo_ext.runs.soups import SOUPS
from deevo_ext.search.optimizer import Callback

Images = LabelledImages | tuple[torch.Tensor, torch.Tensor]


CALIBRATION_IMAGES = 1000
"""Fitness images that statistics are re-estimated on, at most, where no others are given."""


@documented(*GROUPS)
@joined()
def evolve(
    model: nn.Module,
    paths: PathLike | Sequence[PathLike],
    fitness_images: Images,
    validation_images: Images | None = None,
    test_images: Images | None = None,
    *,
    old_images: Images | None = None,
    calibration_images: Images | None = None,
    options: Sequence[OptionGroup] = (),
    callbacks: Sequence[Callback] = (),
    preliminaries: Callable[[Preflight | RoundPreflight], None] | None = None,
    **parameters: Unpack[Keywords],
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
    paths: the checkpoint files, a folder or a glob.
    old_images: images of the kind that the members were trained on, where the others are of another
        kind. They choose nothing; a table on them says what was lost there.
    calibration_images: what batchnorm="recalibrate" computes statistics on, by default up to 1,000
        of the fitness images.
    options: groups of the options below, each at most once: `MemberOptions`, `FitnessOptions`,
        `EvaluationOptions`, `RunOptions`. What is given as a keyword, too, replaces the group's.
    callbacks: functions that are called with the metrics of each generation.
    preliminaries: a function that is called with what is known before the run starts, a
        `runs.round_preflight.RoundPreflight`, or a `runs.preflight.Preflight` of a search of
        weights. It is not called where a run is resumed.
    parameters: fields of `Configuration`, in place of the preset's.
    """
    # What they are is said where they are found.
    unseen = ("paths", "old_images", "parameters")
    check_arguments(evolve, {n: v for n, v in locals().items() if n not in unseen})
    chosen = Options.of(options, parameters)
    run_dir = "none" if chosen.run.run_dir is None else "given"
    ranks().require_same("at the start", {"run_dir": run_dir})  # ranks with one ask for its journal
    chosen.require_start(
        old_images=old_images is not None, calibration_images=calibration_images is not None
    )
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
    check_overlap(sets, chosen.run.overlap)
    members, files = chosen.members, expand_paths(paths)
    _require_folder_of_its_own(chosen.run.run_dir, files)
    place = _place(model, files, chosen)
    if chosen.run.basin != "ignore":
        class_map_of(files, chosen.run.basin)

    def read() -> Population:
        return Population.from_checkpoints(
            model,
            paths,
            dtype=members.dtype,
            frozen=members.frozen,
            batchnorm=chosen.batchnorm,
            checkpoint_key=members.checkpoint_key,
            prefix=members.prefix,
            key_map=members.key_map,
            ignore=members.ignore,
            device=place,
            spare=SOUPS if chosen.soups else 0,
        )

    if chosen.search == "coefficients":  # never writes into them
        population = read_once_a_machine(read)
    else:
        with ranks().one_a_node_first():
            population = read()
    _warn_of_rounding(population)
    images = sets["fitness"]
    if calibration_images is None:
        count = min(CALIBRATION_IMAGES, len(images))
        some = batch_indices(images.labels, count, 0, chosen.run.seed)
        calibration = images.subset(some, "calibration images")
    else:
        calibration = image_set(calibration_images, "calibration images")
    where = chosen.evaluation
    evaluator = Evaluator(
        model,
        population,
        micro_batch=where.micro_batch,
        calibration=calibration,
        device=where.device,
        precision=where.precision,
        engine=where.engine,
        force_precision=where.force_precision,
    )
    for given in (*sets.values(), calibration):
        evaluator.require_fit(given)
    metric = Metric.of(chosen.fitness.metric, name=chosen.fitness.metric_name)
    materials = Materials(
        evaluator=evaluator,
        images=images,
        validation_images=sets.get("validation"),
        old_images=sets.get("old"),
        metric=settled(metric, evaluator, sets.values()),
        options=chosen,
        callbacks=callbacks,
        show=preliminaries,
    )
    searching = search_weights if chosen.search == "weights" else search_coefficients
    run: RecipeRun | Evolution = searching(materials)
    assert run.chosen is not None
    comparison, old = (
        compare_run(run, sets[name]) if name in sets else None for name in ("test", "old")
    )
    state = run.chosen.state_dict(population)
    return Result(state, run.chosen, comparison, old, run.history, run, model)


def _require_folder_of_its_own(run_dir: str | Path | None, files: Sequence[Path]) -> None:
    """Raises DeevoError for a run folder that holds members: its own networks would join them."""
    if run_dir is not None:
        folder = Path(run_dir).resolve()
        if among := [path for path in files if path.resolve().parent == folder]:
            raise DeevoError(
                f"run_dir is {run_dir}, where {among[0].name} and other checkpoints lie, among "
                "which the run's own networks would be taken for members; give a folder of its own"
            )


def _warn_of_rounding(population: Population) -> None:
    """Warns where checkpoints are narrower than rows: the network that is returned is like them."""
    rows = population.rows.dtype
    kept = {dtype_of(entry.dtype) for entry in population.layout.entries}
    eps = torch.finfo(rows).eps
    if narrow := sorted(dtype_name(dtype) for dtype in kept if torch.finfo(dtype).eps > eps):
        warn(
            f"the checkpoints hold {' and '.join(narrow)}, to which the returned network is "
            f"rounded, while networks are scored as {dtype_name(rows)}: save the members as "
            f"{dtype_name(rows)}, and that comes back which was scored",
            stacklevel=4,
        )


def _place(model: nn.Module, files: Sequence[Path], options: Options) -> torch.device | str:
    """Returns where the population is to lie: where it was asked for, or there is room."""
    members, evaluation = options.members, options.evaluation
    if members.population_device is not None:
        return members.population_device
    rows = len(files) + evaluation.chunk
    if options.search == "weights":
        soups = SOUPS if options.soups else 0
        copies = soups + options.configuration(1).for_members(len(files) + soups).archive_size
    else:
        copies = evaluation.chunk
    return default_place(
        Inventory.of(model, members.frozen, options.batchnorm).layout("row"),
        members.dtype,
        rows + copies,
        evaluating_device(evaluation.device, evaluation.precision),
        options.search,
        evaluation.memory,
    )
