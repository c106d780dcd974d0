"""`deevo populate`: a population of checkpoints from one network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor, nn
from tqdm.auto import tqdm

from deevo_ext.cli.parameters import class_order_shown, model_args_of
from deevo_ext.data.class_maps import class_map_of
from deevo_ext.data.sets import TRAIN_IMAGES, open_data
from deevo_ext.errors import DeevoError
from deevo_ext.networks.zoo import architecture, check_fit, classes_in
from deevo_ext.population.checkpoints import load_matched
from deevo_ext.population.finding import sha256
from deevo_ext.population.matching import NameOptions
from deevo_ext.text import text_table
from deevo_ext.training.batches import require_torchvision
from deevo_ext.training.hyper_parameters import Choices
from deevo_ext.training.populate import populate as train
from deevo_ext.training.trainings import PopulationOptions, trainings_of


def populate(
    arch: Annotated[
        str, typer.Option(help="A torchvision or timm name, or package.module:factory.")
    ],
    data: Annotated[
        Path, typer.Option(help="A cache file, or a folder as `deevo cache` takes it.")
    ],
    out: Annotated[
        Path,
        typer.Option(help="The folder of the members. What it holds already is not trained again."),
    ],
    checkpoint: Annotated[
        Path | None, typer.Option(help="The pretrained network that all members start from.")
    ] = None,
    members: Annotated[int, typer.Option(help="The number of members.", min=2)] = 12,
    epochs: Annotated[
        float, typer.Option(help="The epochs of each member, which may be a fraction.")
    ] = 1.0,
    snapshots: Annotated[
        bool, typer.Option("--snapshots", help="Take members along the second half of one run.")
    ] = False,
    base_epochs: Annotated[
        float,
        typer.Option(
            help="The epochs of training before that of the members, from scratch or for new "
            "classes."
        ),
    ] = 0.0,
    base_learning_rate: Annotated[
        float, typer.Option(help="The highest learning rate of the base epochs.")
    ] = 0.1,
    learning_rate: Annotated[
        float,
        typer.Option(help="The lowest learning rate of a member; the highest is four times that."),
    ] = 0.002,
    batch_size: Annotated[
        int, typer.Option(help="The number of images of a training step.", min=2)
    ] = 128,
    anneal: Annotated[
        float, typer.Option(help="The share of the steps over which the learning rate falls to 0.")
    ] = 0.0,
    shift: Annotated[
        int,
        typer.Option(help="The most pixels that some members shift their images by.", min=0),
    ] = 0,
    mirror: Annotated[bool, typer.Option(help="Whether a mirrored image keeps its class.")] = True,
    augment: Annotated[
        str,
        typer.Option(
            help="What some members do to their images: none, or crop:SHARE, jitter:STRENGTH, "
            "erase:PROBABILITY, mixup:ALPHA, cutmix:ALPHA, trivial with commas between; auto "
            "chooses by the size of the images. All but none need torchvision."
        ),
    ] = "auto",
    transform: Annotated[
        str | None,
        typer.Option(
            help="The transform: a JSON or TOML file, or a name of torchvision's weights."
        ),
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="The file that keeps the decoded images.")
    ] = None,
    class_order: Annotated[
        str,
        typer.Option(
            help="The order of class folders as labels: text (1, 10, 2), natural (1, 2, 10), a "
            "file with the names of the network's classes, one a line; auto is that which the "
            "checkpoints say, else natural for timm's architectures, else text."
        ),
    ] = "auto",
    model_arg: Annotated[
        list[str] | None,
        typer.Option(
            help='An argument that the network is made with, as "img_size=96". May be repeated.'
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            help="A CSV with the columns file, label and, if --data has parts, split: of a folder "
            "without class folders."
        ),
    ] = None,
    train_images: Annotated[
        int,
        typer.Option(help="The number of train images, class-balanced; 0 stands for all.", min=0),
    ] = TRAIN_IMAGES,
    skip_corrupt: Annotated[
        bool, typer.Option("--skip-corrupt", help="Leave out files that cannot be read.")
    ] = False,
    seed: Annotated[int, typer.Option(help="The seed of everything random.", min=0)] = 0,
    device: Annotated[
        str, typer.Option(help="The device that trains: auto, cpu, cuda, cuda:1, ...")
    ] = "auto",
    workers: Annotated[
        int | None,
        typer.Option(
            help="The number of processes that decode and augment, by default one a processor.",
            min=0,
        ),
    ] = None,
    save_every: Annotated[
        float,
        typer.Option(help="The seconds between saved states, which a kill may lose.", min=0),
    ] = 60.0,
) -> None:
    """Fine-tune one network into members with distinct hyper-parameters, or take snapshots.

    After a kill the command goes on where it stopped: members that are done, and the last state of
    the one in progress, are kept.
    """
    choices = None if augment == "auto" else Choices.parse(augment)
    where = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    if checkpoint is None and not base_epochs:
        raise DeevoError(
            "no --checkpoint to start from; give one, or --base-epochs to train a network from "
            "scratch"
        )
    options = PopulationOptions(
        members=members,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        shift=shift,
        mirror=mirror,
        anneal=anneal,
        base_epochs=base_epochs,
        base_learning_rate=base_learning_rate,
        snapshots=snapshots,
        seed=seed,
        augmentations=choices or Choices.parse("none"),
    )
    model_args = model_args_of(model_arg)
    untrained = architecture(arch, model_args=model_args, transform=transform)
    expected = untrained.needs_transform()
    state, own, classes = None, None, None
    if checkpoint is not None:
        state = _read(checkpoint, untrained.model)
        if not base_epochs:  # which make a new classifier
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
    images = cached.part("train", expected)
    network = architecture(
        arch,
        num_classes=len(cached.class_names) or None,
        model_args=model_args,
        transform=expected,
        seed=seed,
    )
    check_fit(network, images, cached.class_names)
    if checkpoint is not None and state is not None:
        _load(network.model, state, checkpoint, base_epochs > 0)
    augmentations = choices or Choices.for_images(*images.image_shape)
    require_torchvision(augmentations)
    options = replace(options, augmentations=augmentations)
    trainings = trainings_of(len(images), options)
    origin = {
        "arch": network.name,
        "checkpoint": None if checkpoint is None else sha256(checkpoint),
        "data": cached.description.name,
        "class_names": cached.class_names,
        "transform": expected.pixels(),
        "seed": seed,
        "members": {"snapshots": snapshots},
        **({"model_args": model_args} if model_args else {}),
    }
    header, *rows = trainings.table()
    typer.echo(text_table(header, rows, ">"))
    typer.echo(f"{len(images):,} images of {images.name}, on {where}")
    with tqdm(unit="step") as bar:

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
    typer.echo(f"{len(paths)} members in {out}: --checkpoints '{out}/member_*.safetensors'")


def _read(path: Path, model: nn.Module) -> dict[str, Tensor]:
    """Reads a checkpoint that has all of the model's tensors, its classifier of any size."""
    names = model.state_dict().keys()
    state = load_matched(path, names, NameOptions())[0]
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
