"""`deevo evolve`: from a folder of checkpoints and a folder of images to a better network.

Every option is a keyword of `deevo_ext.evolve` or a field of its `Configuration`. Here stand those
that the command translates, or that say where things lie; `options` adds the others.
"""

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from deevo_ext.cli.options import IMAGES, NETWORKS, RUNNING, with_options
from deevo_ext.cli.parameters import (
    bytes_of,
    class_order_shown,
    function_of,
    images_per_batch_of,
    images_per_round_of,
    key_map_of,
    model_args_of,
    unit_of,
    without_defaults,
)
from deevo_ext.data import ImageSets, image_sets
from deevo_ext.data.class_maps import class_map_of
from deevo_ext.data.other_kind import NewKind, new_kind, one_set
from deevo_ext.data.sets import TRAIN_IMAGES
from deevo_ext.errors import DeevoError
from deevo_ext.fitness.sampling import batch_indices
from deevo_ext.networks.zoo import architecture, check_fit
from deevo_ext.population.finding import expand_paths
from deevo_ext.population.inventory import Inventory
from deevo_ext.population.matching import NameOptions
from deevo_ext.population.reading import check_files
from deevo_ext.reports.card import CARD, REPORT, write_documents
from deevo_ext.reports.model_folder import check_format, write_model_folder
from deevo_ext.reports.trackers import TensorBoard, Tracker
from deevo_ext.runs.basin import require_basin
from deevo_ext.runs.evolve import check_options
from deevo_ext.runs.evolve import evolve as run_evolve
from deevo_ext.runs.folder import EVOLVED
from deevo_ext.runs.old_images import what_was_lost
from deevo_ext.runs.preflight import Preflight, seconds_of
from deevo_ext.runs.recipe_run import RECIPE_FILE
from deevo_ext.runs.round_preflight import RoundPreflight
from deevo_ext.runs.rounds import FEW

_networks = partial(typer.Option, rich_help_panel=NETWORKS)
_images = partial(typer.Option, rich_help_panel=IMAGES)
_running = partial(typer.Option, rich_help_panel=RUNNING)


@with_options
def evolve(
    arch: Annotated[
        str,
        _networks(
            help="A name of torchvision's or timm's, hf:FOLDER for a Hugging Face folder, or "
            "package.module:factory."
        ),
    ],
    checkpoints: Annotated[str, _networks(help="The checkpoints: a folder, or a glob in quotes.")],
    data: Annotated[
        Path | None,
        _images(help="All images: a tree with train/ and val/, a cache, CIFAR or IDX files."),
    ] = None,
    fitness: Annotated[
        Path | None, _images(help="The fitness images, in place of those of --data.")
    ] = None,
    validation: Annotated[
        Path | None, _images(help="The validation images, in place of those of --data.")
    ] = None,
    test: Annotated[
        Path | None, _images(help="The test images, in place of those of --data.")
    ] = None,
    adapt: Annotated[
        Path | None,
        _images(
            help="Labelled images of another kind than the checkpoints were trained on, one folder "
            "and nothing else, in place of --data; --test may name some that judge."
        ),
    ] = None,
    old: Annotated[
        Path | None,
        _images(help="Labelled images of the kind trained on: the report says what was lost."),
    ] = None,
    split_seed: Annotated[
        int,
        _images(
            help="The seed of the division of --data, which must be the same for runs that are "
            "compared."
        ),
    ] = 0,
    class_order: Annotated[
        str,
        _images(
            help="The order of class folders as labels: text (1, 10, 2), natural (1, 2, 10), a "
            "file with the names of the network's classes, one a line; auto is that which the "
            "checkpoints say, else natural for timm's architectures, else text."
        ),
    ] = "auto",
    labels: Annotated[
        Path | None,
        _images(
            help="A CSV with the columns file, label and, if --data has parts, split: of --data or "
            "--adapt, where that is a folder without class folders."
        ),
    ] = None,
    train_images: Annotated[
        int,
        _images(
            help="The number of train images that are cached, class-balanced; 0 stands for all.",
            min=0,
        ),
    ] = TRAIN_IMAGES,
    skip_corrupt: Annotated[
        bool, _images("--skip-corrupt", help="Leave out files that cannot be read.")
    ] = False,
    transform: Annotated[
        str | None,
        _images(
            help="The preprocessing: a JSON or TOML file, or a name of torchvision's weights. The "
            "architecture has a default."
        ),
    ] = None,
    cache: Annotated[
        Path | None, _images(help="The file that keeps the decoded images, *.safetensors.")
    ] = None,
    images_per_batch: Annotated[
        str,
        _images(
            help='The number of fitness images per generation, "all", or "auto": 4,096, but at '
            "most half of the images."
        ),
    ] = "auto",
    metric: Annotated[
        str,
        _images(
            help='What is asked for: "loss", "top1", "top5", "worst-class", "macro-f1", or '
            "package.module:name of a function of logits and labels, or of a metric of "
            "torchmetrics."
        ),
    ] = "loss",
    calibration: Annotated[
        int | None,
        _images(
            help="The number of fitness images that --batchnorm recalibrate computes statistics "
            "on: by default 1,000, or all of fewer.",
            min=1,
        ),
    ] = None,
    blocks: Annotated[
        list[str] | None,
        _networks(
            help='What a recipe weighs together: "layer", "module", "tensor", "member" or "auto", '
            "layers as long as they are few; or, repeated, patterns of tensors' names."
        ),
    ] = None,
    images_per_round: Annotated[
        str,
        _images(
            help='The number of fitness images of a round\'s linear model, or "auto": 1,000, or 10 '
            "a class, up to 6,400; up to 2,000 fitness images are all used."
        ),
    ] = "auto",
    memory: Annotated[
        str | None,
        _running(
            help='The memory of the linear model, as "2GiB"; by default a quarter of what can be '
            "had."
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="The run folder. A run that it holds already is resumed.")
    ] = Path("evolved"),
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help='"timm" or "hf" writes a folder of that name, too, which timm.create_model and '
            'from_pretrained load; "checkpoint" only the files of the first checkpoint\'s layout.',
        ),
    ] = "checkpoint",
    time: Annotated[
        str | None,
        typer.Option(
            help='A time for evaluation, as "8h": no round begins after it; with --search weights '
            "it decides the number of generations in place of --generations."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what is known before the run, and stop.")
    ] = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Go on even if members guess or share no basin, image sets overlap or memory "
            "seems short.",
        ),
    ] = False,
    frozen: Annotated[
        list[str] | None,
        _networks(
            help='A pattern of names of tensors that are not evolved, as "fc.*". May be repeated.'
        ),
    ] = None,
    model_arg: Annotated[
        list[str] | None,
        _networks(
            help='An argument that the network is made with, as "img_size=96" or '
            '"global_pool=avg". May be repeated.'
        ),
    ] = None,
    key_map: Annotated[
        list[str] | None,
        _networks(
            help='A name in the files and the model\'s, as "head.weight=fc.weight", or beginnings '
            'of names, as "encoder.=backbone.". May be repeated.'
        ),
    ] = None,
    ignore: Annotated[
        list[str] | None,
        _networks(
            help='A pattern of names in the files that are left out, as "criterion.*". May be '
            "repeated."
        ),
    ] = None,
    dtype: Annotated[
        str, _networks(help="The dtype of the rows: float32, bfloat16 or float16.")
    ] = "float32",
    device: Annotated[
        str | None,
        _running(help="The device that evaluates networks, by default a GPU if there is one."),
    ] = None,
    tensorboard: Annotated[
        bool, _running("--tensorboard", help="Write events for TensorBoard into the run folder.")
    ] = False,
    **parameters: Any,
) -> None:
    """Evolve checkpoints of one architecture on labelled images; return the best network.

    The command first shows what can be said of members, memory and time. Then it runs, resumable,
    and leaves weights, model card, report and journal in the run folder.
    """
    seconds = None if time is None else seconds_of(time)
    per_batch = images_per_batch_of(images_per_batch)
    image_metric = metric if ":" not in metric else function_of(metric)
    if dtype not in ("float32", "bfloat16", "float16"):
        raise DeevoError(f"dtype is {dtype!r}; expected float32, bfloat16 or float16")
    keywords: dict[str, Any] = {
        "seconds": seconds,
        "run_dir": out,
        "images_per_batch": per_batch,
        "images_per_round": images_per_round_of(images_per_round),
        "blocks": unit_of(blocks),
        "memory": None if memory is None else bytes_of(memory),
        "metric": image_metric,
        "device": device or ("cuda" if torch.cuda.is_available() else "cpu"),
        "dtype": getattr(torch, dtype),
        "frozen": frozen or (),
        "key_map": key_map_of(key_map),
        "ignore": ignore or (),
        "basin": "warn" if force else "refuse",
        "overlap": "warn" if force else "refuse",
        **without_defaults(parameters),
    }
    if ":" in parameters["engine"]:
        keywords["engine"] = function_of(parameters["engine"], "engine")
    if adapt is not None and (other := data or fitness or validation) is not None:
        raise DeevoError(
            f"adapt is {adapt}, and other images, {other}, are given too: --adapt is all that "
            "networks are evolved on; leave the others out, or give them without --adapt"
        )
    check_options(keywords | {"old_images": old})
    files = expand_paths(checkpoints)
    options = NameOptions.of(
        parameters["checkpoint_key"], parameters["prefix"], key_map_of(key_map), ignore or ()
    )
    network = architecture(
        arch,
        checkpoint=files[0],
        options=options,
        model_args=model_args_of(model_arg),
        transform=transform,
    )
    if network.names:
        typer.echo(f"Names in {files[0]}: {network.names}")
    check_format(form, network)
    check_files(Inventory.of(network.model, frozen or ()), files, options)
    own = class_map_of(files, "ignore" if force else "refuse")  # the run itself warns
    order = class_order_shown(class_order, network.name, own, "warn" if force else "refuse")
    pixels = network.needs_transform()
    opening: dict[str, Any] = {
        "seed": split_seed,
        "class_order": order,
        "classes": network.classes(),
        "skip_corrupt": skip_corrupt,
        "progress": parameters["progress"],
    }
    sets: ImageSets | NewKind
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
    check_fit(network, sets.fitness, sets.class_names)
    typer.echo(sets.describe())
    typer.echo(
        f"{len(files)} checkpoints: engines are timed and every member is scored, which takes "
        "minutes where networks are large."
    )
    calibration_images = None
    if calibration is not None:
        count, seed = min(calibration, len(sets.fitness)), parameters["seed"]
        some = batch_indices(sets.fitness.labels, count, 0, seed)
        calibration_images = sets.fitness.subset(some, "calibration images")

    def show(preflight: Preflight | RoundPreflight) -> None:
        typer.echo(str(preflight))
        if not force:
            if isinstance(preflight, Preflight):
                preflight.require_bytes()
            if preflight.basin is not None:
                require_basin(preflight.basin)
        if dry_run:
            raise typer.Exit()

    writer = Tracker(TensorBoard(out / "tensorboard")) if tensorboard else None
    result = run_evolve(
        network.model,
        files,
        sets.fitness,
        sets.validation,
        sets.test,
        calibration_images=calibration_images,
        callbacks=() if writer is None else (writer,),
        preliminaries=show,
        **keywords,
    )
    if dry_run:  # a run folder that has begun shows no preliminaries
        raise DeevoError(f"{out} holds a run already; --dry-run needs a new folder")
    if writer is not None:
        writer.close()
    about = {"architecture": network.name, "images": sets.describe()}
    if network.names:
        about["names in checkpoints"] = network.names
    write_documents(result.run, result.comparison, about, result.old)
    if form != "checkpoint":
        card = (out / CARD).read_text(encoding="utf-8")
        write_model_folder(out / form, network, result.state_dict, sets.class_names, card)
    if result.comparison is not None:
        count = result.comparison.networks[0].images
        typer.echo(f"\nOn {count:,} test images:\n\n{result.comparison.format()}\n")
    if result.old is not None:
        typer.echo(f"{what_was_lost(result.old)}\n")
    recipe = out / RECIPE_FILE
    if recipe.exists():
        typer.echo(f"Its recipe: {recipe} (deevo merge {recipe} --out FILE)")
    typer.echo(
        f"The evolved network: {out / EVOLVED}, {(out / EVOLVED).with_suffix('.pth')}"
        f"{'' if form == 'checkpoint' else f', {out / form}/'}\n"
        f"Report: {out / REPORT}\nIts journal: {out / 'journal.jsonl'} (deevo replay {out})"
    )
