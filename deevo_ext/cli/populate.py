"""`deevo populate`: a population of checkpoints from one network."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn

from deevo_ext.arguments import usable_device
from deevo_ext.cli.options import (
    Arch,
    CacheFile,
    Labels,
    ModelArg,
    Order,
    Progress,
    SkipCorrupt,
    TrainImages,
    TransformFile,
    Workers,
    of_group,
    with_options,
)
from deevo_ext.cli.parameters import class_order_shown, model_args_of
from deevo_ext.data.class_maps import class_map_of, require_same_as_configs
from deevo_ext.data.sets import TRAIN_IMAGES, open_data
from deevo_ext.errors import DeevoError
from deevo_ext.networks.zoo import architecture, check_fit, classes_in
from deevo_ext.population.checkpoints import load_matched
from deevo_ext.population.finding import one_network, sha256
from deevo_ext.population.matching import NameOptions
from deevo_ext.population.saved_names import with_saved_names
from deevo_ext.progress import progress_bar
from deevo_ext.text import text_table
from deevo_ext.training.batches import require_torchvision
from deevo_ext.training.hyper_parameters import Choices
from deevo_ext.training.populate import populate as train
from deevo_ext.training.trainings import PopulationOptions, trainings_of

log = logging.getLogger("deevo_ext")
TRAINING = "How members are trained"


@with_options(
    of_group(PopulationOptions, TRAINING, without="augmentations"),
    ("arch", "data", "out", "checkpoint", "members", "epochs"),
    {
        TRAINING: ("augment",),
        "Images": (
            *("transform", "cache", "class_order", "labels", "train_images", "skip_corrupt"),
        ),
        "How it runs": ("model_arg", "device", "workers", "save_every", "progress"),
    },
)
def populate(
    arch: Arch,
    data: Annotated[
        Path, typer.Option(help="A cache file, or a folder as `deevo cache` takes it.")
    ],
    out: Annotated[
        Path,
        typer.Option(help="The folder of the members. What it holds already is not trained again."),
    ],
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            help="The pretrained network that all members start from: a file, or a folder of one."
        ),
    ] = None,
    augment: Annotated[
        str,
        typer.Option(
            help="What some members do to their images: none, or crop:SHARE, jitter:STRENGTH, "
            "erase:PROBABILITY, mixup:ALPHA, cutmix:ALPHA, trivial with commas between; auto "
            "chooses by the size of the images. All but none need torchvision."
        ),
    ] = "auto",
    transform: TransformFile = None,
    cache: CacheFile = None,
    class_order: Order = "auto",
    model_arg: ModelArg = None,
    labels: Labels = None,
    train_images: TrainImages = TRAIN_IMAGES,
    skip_corrupt: SkipCorrupt = False,
    device: Annotated[
        str, typer.Option(help="The device that trains: auto, cpu, cuda, cuda:1, ...")
    ] = "auto",
    workers: Workers = None,
    save_every: Annotated[
        float,
        typer.Option(help="The seconds between saved states, which a kill may lose.", min=0),
    ] = 60.0,
    progress: Progress = True,
    **options: Any,
) -> dict[str, Any]:
    """Fine-tune one network into members with distinct hyper-parameters, or take snapshots.

    After a kill the command goes on where it stopped: members that are done, and the last state of
    the one in progress, are kept.
    """
    choices = None if augment == "auto" else Choices.parse(augment)
    if options["snapshots"] and augment not in ("auto", "none"):
        raise DeevoError(
            f"augment is {augment}, but --snapshots takes all members from one training, which "
            "augments by --shift and --mirror alone; leave one of them out"
        )
    automatic = "cuda" if torch.cuda.is_available() else "cpu"
    where = usable_device(automatic if device == "auto" else device)
    if checkpoint is None and not options["base_epochs"]:
        raise DeevoError(
            "no --checkpoint to start from; give one, or --base-epochs to train a network from "
            "scratch"
        )
    made = PopulationOptions(**options, augmentations=choices or Choices.parse("none"))
    model_args = model_args_of(model_arg)
    untrained = architecture(arch, model_args=model_args, transform=transform)
    expected = untrained.needs_transform()
    state, own, classes = None, None, None
    if checkpoint is not None:
        checkpoint = one_network(checkpoint)
        state = _read(checkpoint, untrained.model)
        if not made.base_epochs:  # which make a new classifier
            own = class_map_of([checkpoint], "warn")
            classes = classes_in(state, untrained.model) or untrained.classes()
    order = class_order_shown(class_order, untrained.name, own)
    cached = open_data(
        data,
        expected,
        cache=cache,
        class_order=order,
        labels=labels,
        classes=classes,
        train_images=train_images or None,
        workers=workers,
        skip_corrupt=skip_corrupt,
    )
    if checkpoint is not None and own is None and not made.base_epochs:
        require_same_as_configs([checkpoint], cached.class_names, "warn")
    images = cached.part("train", expected)
    network = architecture(
        arch,
        num_classes=len(cached.class_names) or None,
        model_args=model_args,
        transform=expected,
        seed=made.seed,
    )
    check_fit(network, images, cached.class_names)
    if checkpoint is not None and state is not None:
        _load(network.model, state, checkpoint, made.base_epochs > 0)
    augmentations = choices or Choices.for_images(*images.image_shape)
    require_torchvision(augmentations)
    made = replace(made, augmentations=augmentations)
    trainings = trainings_of(len(images), made)
    origin = {
        "arch": network.name,
        "checkpoint": None if checkpoint is None else sha256(checkpoint),
        "data": cached.description.name,
        "class_names": cached.class_names,
        "transform": expected.pixels(),
        "seed": made.seed,
        "members": {"snapshots": made.snapshots},
        **({"model_args": model_args} if model_args else {}),
    }
    header, *rows = trainings.table()
    log.info("%s", text_table(header, rows, ">"))
    log.info(f"{len(images):,} images of {images.name}, on {where}")
    with progress_bar(unit="step", shown=progress) as bar:

        def show(what: str, done: int, total: int) -> None:
            if bar.total is None:
                bar.total, bar.initial, bar.n = total, done, done  # kept steps took no time now
                bar.last_print_n = done
            bar.set_description(what, refresh=False)
            bar.update(done - bar.n)

        paths = train(
            network.model.to(where),
            images,
            trainings,
            out,
            origin=origin,
            save_every=save_every,
            workers=workers,
            progress=show,
        )
    log.info("%s members in %s: --checkpoints '%s/member_*.safetensors'", len(paths), out, out)
    return {"members": paths, "trainings": [dict(zip(header, row, strict=True)) for row in rows]}


def _read(path: Path, model: nn.Module) -> dict[str, Tensor]:
    """Reads a checkpoint that has all of the model's tensors, its classifier of any size."""
    names = model.state_dict().keys()
    state = load_matched(path, names, with_saved_names(NameOptions(), model))[0]
    missing = [name for name in names if name not in state and "num_batches_tracked" not in name]
    if missing:
        raise DeevoError(f"{path}: lacks {missing[0]}; is it a checkpoint of another --arch?")
    return state


def _load(model: nn.Module, state: dict[str, Tensor], path: Path, new_classes: bool) -> None:
    """Loads a checkpoint's weights, those of its classifier only if it has as many classes."""
    present = model.state_dict()
    other = [name for name in present if name in state and state[name].shape != present[name].shape]
    if other and not new_classes:
        raise DeevoError(
            f"{path}: {other[0]} is {list(state[other[0]].shape)}, but the data needs "
            f"{list(present[other[0]].shape)}; give --base-epochs to train a new classifier first"
        )
    kept = {name: tensor for name, tensor in state.items() if name in present and name not in other}
    model.load_state_dict(kept, strict=False)
