"""`deevo evolve`: from a folder of checkpoints and a folder of images to a better network.

Its options are those of `deevo_ext.evolve`, made from its dataclasses, and those of the command
alone, which stand here: what network and images are, and what is shown.
"""

import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from deevo_ext.cli.config import RUN_FILE, Resume, write_options
from deevo_ext.cli.finished import finished
from deevo_ext.cli.options import (
    Arch,
    CacheFile,
    Labels,
    ModelArg,
    Order,
    SkipCorrupt,
    TrainImages,
    TransformFile,
    of_group,
    with_options,
)
from deevo_ext.cli.parameters import class_order_shown, keywords_of, model_args_of
from deevo_ext.data import ImageSets, image_sets
from deevo_ext.data.class_maps import class_map_of, require_same_as_configs
from deevo_ext.data.other_kind import NewKind, new_kind, one_set
from deevo_ext.data.sets import TRAIN_IMAGES
from deevo_ext.distributed.ranks import ranks
from deevo_ext.errors import DeevoError
from deevo_ext.fitness.sampling import batch_indices
from deevo_ext.networks.zoo import architecture, check_fit
from deevo_ext.population.finding import expand_paths
from deevo_ext.population.inventory import Inventory
from deevo_ext.population.matching import NameOptions
from deevo_ext.population.reading import check_files
from deevo_ext.population.saved_names import with_saved_names
from deevo_ext.reports.card import CARD, write_documents
from deevo_ext.reports.model_folder import check_format, write_model_folder
from deevo_ext.reports.trackers import TensorBoard, Tracker
from deevo_ext.runs.basin import require_basin
from deevo_ext.runs.evolve import evolve as run_evolve
from deevo_ext.runs.given import Options
from deevo_ext.runs.options import EvaluationOptions, FitnessOptions, MemberOptions, RunOptions
from deevo_ext.runs.preflight import Preflight
from deevo_ext.runs.round_preflight import RoundPreflight
from deevo_ext.runs.rounds import FEW
from deevo_ext.runs.shared_journal import holds_run
from deevo_ext.search.configuration import Configuration

log = logging.getLogger("deevo_ext")
NETWORKS, IMAGES, RUNNING = "Networks and checkpoints", "Images and fitness", "Evaluation"
SEARCH = "Search and run folder"
FIRST = (
    *("arch", "checkpoints", "data", "adapt", "metric", "rounds", "seconds", "run_dir", "resume"),
    "dry_run",
)
"""The options that people use."""


@with_options(
    {
        **of_group(MemberOptions, NETWORKS),
        **of_group(FitnessOptions, IMAGES),
        **of_group(EvaluationOptions, RUNNING),
        **of_group(RunOptions, SEARCH, run_dir=Path("evolved"), basin="refuse"),
        **of_group(Configuration, "Parameters of the evolution", without="generations"),
    },
    FIRST,
    {
        NETWORKS: ("model_arg", "modules"),
        IMAGES: (
            *("fitness", "validation", "test", "old", "calibration", "labels", "class_order"),
            *("split_seed", "train_images", "skip_corrupt", "transform", "cache"),
        ),
        SEARCH: ("force", "form", "tensorboard"),
    },
)
def evolve(
    arch: Arch,
    checkpoints: Annotated[
        str, typer.Option(help="The checkpoints: a folder, or a glob in quotes.")
    ],
    data: Annotated[
        Path | None,
        typer.Option(help="All images: a tree with train/ and val/, a cache, CIFAR or IDX files."),
    ] = None,
    adapt: Annotated[
        Path | None,
        typer.Option(
            help="Labelled images of another kind than the checkpoints were trained on, one folder "
            "and nothing else, in place of --data; --test may name some that judge."
        ),
    ] = None,
    resume: Resume = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what is known before the run, and stop.")
    ] = False,
    model_arg: ModelArg = None,
    modules: Annotated[
        Path | None,
        typer.Option(
            help="The folder where package.module:name is looked for, if not the current."
        ),
    ] = None,
    fitness: Annotated[
        Path | None, typer.Option(help="The fitness images, in place of those of --data.")
    ] = None,
    validation: Annotated[
        Path | None, typer.Option(help="The validation images, in place of those of --data.")
    ] = None,
    test: Annotated[
        Path | None, typer.Option(help="The test images, in place of those of --data.")
    ] = None,
    old: Annotated[
        Path | None,
        typer.Option(help="Labelled images of the kind trained on: the report says what was lost."),
    ] = None,
    calibration: Annotated[
        int | None,
        typer.Option(
            help="The number of fitness images that --batchnorm recalibrate computes statistics "
            "on: by default 1,000, or all of fewer.",
            min=1,
        ),
    ] = None,
    labels: Labels = None,
    class_order: Order = "auto",
    split_seed: Annotated[
        int,
        typer.Option(
            help="The seed of the division of --data, which must be the same for runs that are "
            "compared."
        ),
    ] = 0,
    train_images: TrainImages = TRAIN_IMAGES,
    skip_corrupt: SkipCorrupt = False,
    transform: TransformFile = None,
    cache: CacheFile = None,
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help='"timm" or "hf" writes a folder of that name, too, which timm.create_model and '
            'from_pretrained load; "checkpoint" only the files of the first checkpoint\'s layout.',
        ),
    ] = "checkpoint",
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Go on even if members guess or share no basin, image sets overlap or memory "
            "seems short.",
        ),
    ] = False,
    tensorboard: Annotated[
        bool,
        typer.Option("--tensorboard", help="Write events for TensorBoard into the run folder."),
    ] = False,
    **options: Any,
) -> dict[str, Any]:
    """Evolve checkpoints of one architecture on labelled images into one better network.

    deevo evolve --arch resnet50 --checkpoints 'runs/*.pth' --data /data/imagenet

    It first shows what can be said of members, memory and time. Then it runs, resumable, and leaves
    weights, model card, report and journal in the run folder.
    """
    effective = {n: v for n, v in (locals() | options).items() if n not in _OF_ONE_START}
    if options["search"] == "weights" and options["generations"] is not None:
        effective["seconds"] = None  # of a run that is lengthened: a new one takes one of them
    effective["modules"] = here = (modules or Path()).absolute()
    # That folder first: another's module of the same name is another network.
    sys.path[:0] = [p for p in dict.fromkeys((str(here), os.getcwd())) if p not in sys.path]
    if force:
        options |= {name: "warn" for name in ("basin", "overlap") if options[name] == "refuse"}
    keywords = keywords_of(options)
    keywords.setdefault("device", "cuda" if torch.cuda.is_available() else "cpu")
    chosen = train_images != TRAIN_IMAGES and f"{train_images} train images"
    if adapt is not None and (other := data or fitness or validation or chosen):
        raise DeevoError(
            f"adapt is {adapt}, and other images, {other}, are given too: --adapt is all that "
            "networks are evolved on; leave the others out, or give them without --adapt"
        )
    if resume is not None and Path(options["run_dir"]).absolute() != resume.absolute():
        raise DeevoError(
            f"resume is {resume}, but run_dir is {options['run_dir']}: a run goes on in its own "
            f"folder; leave --run-dir out, or begin another run with --config {resume / RUN_FILE}"
        )
    settled = Options.of((), keywords)
    settled.require_start(old_images=old is not None, calibration_images=calibration is not None)
    folder, members, files = Path(options["run_dir"]), settled.members, expand_paths(checkpoints)
    if dry_run and holds_run(folder):  # it would go on, with no preliminaries
        raise DeevoError(f"{folder} holds a run already; --dry-run needs a new folder")
    names = NameOptions.of(members.checkpoint_key, members.prefix, members.key_map, members.ignore)
    network = architecture(
        arch,
        checkpoint=files[0],
        options=names,
        model_args=model_args_of(model_arg),
        transform=transform,
    )
    if network.names:
        log.info("Names in %s: %s", files[0], network.names)
    check_format(form, network)
    inventory = Inventory.of(network.model, members.frozen)
    check_files(inventory, files, with_saved_names(names, network.model))
    action = settled.run.basin
    own = class_map_of(files, "ignore" if action == "warn" else action)  # the run itself warns
    pixels = network.needs_transform()
    opening: dict[str, Any] = {
        "seed": split_seed,
        "class_order": class_order_shown(class_order, network.name, own, action),
        "classes": network.classes(),
        "skip_corrupt": skip_corrupt,
        "progress": settled.run.progress,
    }
    sets: ImageSets | NewKind
    with ranks().one_a_node_first():
        if adapt is None:
            sets = image_sets(
                data,
                pixels,
                cache=cache,
                train_images=train_images or None,
                fitness=fitness,
                validation=validation,
                test=test,
                labels=labels,
                **opening,
            )
        else:
            sets = new_kind(
                adapt, pixels, by_folds=FEW, test=test, cache=cache, labels=labels, **opening
            )
        if old is not None:
            keywords["old_images"] = one_set(old, "old", pixels, sets.class_names, **opening)
    if own is None and sets.class_names:
        require_same_as_configs(files, sets.class_names, action)
    check_fit(network, sets.fitness, sets.class_names)
    log.info(
        "%s\n%s checkpoints: engines are timed and every member is scored, which takes minutes "
        "where networks are large.",
        sets.describe(),
        len(files),
    )
    if calibration is not None:
        count = min(calibration, len(sets.fitness))
        some = batch_indices(sets.fitness.labels, count, 0, settled.run.seed)
        keywords["calibration_images"] = sets.fitness.subset(some, "calibration images")
    shown: list[str] = []

    def show(preflight: Preflight | RoundPreflight) -> None:
        shown.append(str(preflight))
        log.info("%s", preflight)
        if isinstance(preflight, Preflight) and not force:
            preflight.require_bytes()
        if preflight.basin is not None and settled.run.basin == "refuse":
            require_basin(preflight.basin)
        if dry_run:
            raise typer.Exit()
        if ranks().leads:
            write_options(folder, effective)

    kept: list[bool] = []

    def keep(_: dict[str, float]) -> None:  # a run that goes on may have other options than before
        if not kept and ranks().leads:
            write_options(folder, effective)
            kept.append(True)

    tracked = tensorboard and not dry_run and ranks().leads
    writer = Tracker(TensorBoard(folder / "tensorboard")) if tracked else None
    try:
        result = run_evolve(
            network.model,
            files,
            sets.fitness,
            sets.validation,
            sets.test,
            callbacks=(keep,) if writer is None else (keep, writer),
            preliminaries=show,
            **keywords,
        )
    except typer.Exit:
        return {"preliminaries": shown}
    if not ranks().leads:
        return {}
    if writer is not None:
        writer.close()
    about = {"architecture": network.name, "images": sets.describe()}
    if network.names:
        about["names in checkpoints"] = network.names
    write_documents(result.run, result.comparison, about, result.old, network)
    if form != "checkpoint":
        classes, card = sets.class_names, folder / CARD
        write_model_folder(folder / form, network, result.state_dict, classes, card)
    return finished(result, folder, None if form == "checkpoint" else folder / form)


_OF_ONE_START = ("resume", "dry_run", "progress", "options")  # which run.yaml does not keep
