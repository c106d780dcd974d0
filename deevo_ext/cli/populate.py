"""`deevo populate`: a population of checkpoints from one network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deevo_ext.data.sets import TRAIN_IMAGES

if TYPE_CHECKING:
    from torch import nn


def populate(
    arch: Annotated[str, typer.Option(help="torchvision or timm name, or package.module:factory.")],
    data: Annotated[Path, typer.Option(help="A cache file, or what `deevo cache` takes.")],
    out: Annotated[
        Path, typer.Option(help="Folder of the members; if it exists, the command goes on with it.")
    ],
    checkpoint: Annotated[
        Path | None, typer.Option(help="The pretrained network that all members start from.")
    ] = None,
    members: Annotated[int, typer.Option(help="How many members.", min=2)] = 12,
    epochs: Annotated[float, typer.Option(help="Epochs of each member; may be a fraction.")] = 1.0,
    snapshots: Annotated[
        bool, typer.Option("--snapshots", help="One run, members taken along its second half.")
    ] = False,
    base_epochs: Annotated[
        float,
        typer.Option(
            help="Epochs of training before that of the members, from scratch or for new classes."
        ),
    ] = 0.0,
    base_learning_rate: Annotated[
        float, typer.Option(help="Highest learning rate of the base epochs.")
    ] = 0.1,
    learning_rate: Annotated[
        float, typer.Option(help="The lowest among members; the highest is four times that.")
    ] = 0.002,
    batch_size: Annotated[int, typer.Option(help="Images a step.", min=2)] = 128,
    anneal: Annotated[
        float, typer.Option(help="Share of the steps over which the rate falls to 0.")
    ] = 0.0,
    shift: Annotated[
        int, typer.Option(help="Some members move images by up to so many pixels.", min=0)
    ] = 0,
    mirror: Annotated[bool, typer.Option(help="Whether a mirrored image keeps its class.")] = True,
    augment: Annotated[
        str,
        typer.Option(
            help="What some members do to their images: none, or crop:SHARE, jitter:STRENGTH, "
            "erase:PROBABILITY, mixup:ALPHA, cutmix:ALPHA, trivial with commas between; auto goes "
            "by the images. Needs torchvision."
        ),
    ] = "auto",
    transform: Annotated[
        str | None, typer.Option(help="JSON or TOML file, or torchvision's name of weights.")
    ] = None,
    cache: Annotated[Path | None, typer.Option(help="Where decoded images are kept.")] = None,
    train_images: Annotated[
        int, typer.Option(help="Learn from so many, class-balanced; 0 for all.", min=0)
    ] = TRAIN_IMAGES,
    skip_corrupt: Annotated[
        bool, typer.Option("--skip-corrupt", help="Leave out what cannot be read.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of everything random.", min=0)] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    workers: Annotated[
        int | None,
        typer.Option(help="Processes that decode and augment; default one a processor.", min=0),
    ] = None,
    save_every: Annotated[
        float, typer.Option(help="Seconds between states: what a kill loses.", min=0)
    ] = 60.0,
) -> None:
    """Fine-tune one network into members with distinct hyper-parameters, or take snapshots.

    Killed, it goes on where it stopped: members that are done, and the last state of the one in
    progress, are kept.
    """
    import torch
    from tqdm.auto import tqdm

    from deevo_ext.data.sets import open_data
    from deevo_ext.networks.zoo import architecture, check_fit
    from deevo_ext.population.checkpoints import sha256
    from deevo_ext.text import text_table
    from deevo_ext.training.batches import require_torchvision
    from deevo_ext.training.hyper_parameters import Choices
    from deevo_ext.training.populate import populate as train
    from deevo_ext.training.trainings import PopulationOptions, trainings_of

    asked = None if augment == "auto" else Choices.parse(augment)
    where = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    expected = architecture(arch, transform=transform).needs_transform()
    found = open_data(
        data,
        expected,
        cache=cache,
        train_images=train_images or None,
        workers=workers,
        skip_corrupt=skip_corrupt,
    )
    parts = list(found.description.parts)
    images = found.images("train" if "train" in parts else parts[0], expected)
    network = architecture(
        arch, num_classes=len(found.class_names) or None, transform=expected, seed=seed
    )
    check_fit(network, images, found.class_names)
    if checkpoint is not None:
        _load(network.model, checkpoint, base_epochs > 0)
    elif not base_epochs:
        raise _nothing_to_start_from()
    augmentations = asked or Choices.for_images(*images.image_shape)
    require_torchvision(augmentations)
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
        augmentations=augmentations,
    )
    trainings = trainings_of(len(images), options)
    origin = {
        "arch": network.name,
        "checkpoint": None if checkpoint is None else sha256(checkpoint),
        "data": found.description.name,
        "class_names": found.class_names,
        "transform": expected.pixels(),
        "seed": seed,
        "members": {"snapshots": snapshots},
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


def _nothing_to_start_from() -> Exception:
    from deevo_ext.errors import DeevoError

    return DeevoError(
        "no --checkpoint to start from; give one, or --base-epochs to train a network from scratch"
    )


def _load(model: nn.Module, path: Path, new_classes: bool) -> None:
    """The checkpoint's weights; its classifier's only if it has as many classes."""
    from deevo_ext.errors import DeevoError
    from deevo_ext.population.checkpoints import load_checkpoint

    own = model.state_dict()
    state = load_checkpoint(path, expected=own.keys())
    other = [name for name in own if name in state and state[name].shape != own[name].shape]
    missing = [name for name in own if name not in state and "num_batches_tracked" not in name]
    if missing:
        raise DeevoError(f"{path}: lacks {missing[0]}; is it a checkpoint of another --arch?")
    if other and not new_classes:
        raise DeevoError(
            f"{path}: {other[0]} is {list(state[other[0]].shape)}, but the data needs "
            f"{list(own[other[0]].shape)}; give --base-epochs to train a new classifier first"
        )
    kept = {name: tensor for name, tensor in state.items() if name in own and name not in other}
    model.load_state_dict(kept, strict=False)
