"""`deevo cache`: decode pictures once, for all later runs."""

import logging
from pathlib import Path
from typing import Annotated, Any

import typer

from deevo_ext.cli.options import (
    Labels,
    ModelArg,
    Order,
    Progress,
    SkipCorrupt,
    TrainImages,
    TransformFile,
    Workers,
)
from deevo_ext.cli.parameters import model_args_of
from deevo_ext.data.cache import build_cache
from deevo_ext.data.classes import class_order_of
from deevo_ext.data.opening import open_pictures
from deevo_ext.data.sets import select_train
from deevo_ext.data.transform import Transform
from deevo_ext.errors import DeevoError
from deevo_ext.networks.zoo import architecture

log = logging.getLogger("deevo_ext")


def cache(
    source: Annotated[
        Path,
        typer.Argument(
            help="The folder of images: train/ and val/ of class folders, class folders, CIFAR, or "
            "IDX files."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The cache file to write, *.safetensors.")],
    arch: Annotated[
        str | None, typer.Option(help="A torchvision or timm model, whose transform is taken.")
    ] = None,
    model_arg: ModelArg = None,
    transform: TransformFile = None,
    size: Annotated[
        int | None,
        typer.Option(help="Resize the shorter side to SIZE and crop the centre, square.", min=1),
    ] = None,
    class_order: Order = "auto",
    labels: Labels = None,
    train_images: TrainImages = 0,
    seed: Annotated[int, typer.Option(help="The seed of the choice of train images.", min=0)] = 0,
    workers: Workers = None,
    skip_corrupt: SkipCorrupt = False,
    progress: Progress = True,
) -> dict[str, Any]:
    """Decode, resize and crop every picture into one uint8 memory map.

    After a kill the command goes on where it stopped. Without --arch, --transform and --size
    pictures keep their size, which must then be the same for all (CIFAR, MNIST).
    """
    if size is not None and (arch or transform):
        raise DeevoError("--size goes without --arch and --transform: those name a size already")
    if model_arg and arch is None:
        raise DeevoError(
            f"model_arg is {' '.join(model_arg)}, but there is no network that takes it; give "
            "--arch, or leave --model-arg out"
        )
    if seed and not train_images:
        raise DeevoError(
            f"seed is {seed}, but all train images are taken; give --train-images, of which it "
            "decides the choice, or leave --seed out"
        )
    network = (
        None
        if arch is None
        else architecture(arch, model_args=model_args_of(model_arg), transform=transform)
    )
    order = class_order_of(class_order, "" if network is None else network.name)
    pictures = select_train(open_pictures(source, order, labels), train_images or None, seed)
    neutral = (0.5,) * pictures.channels  # pixels are stored as they are
    if network is not None:
        chosen = network.needs_transform()
    elif transform is not None:
        chosen = Transform.from_file(transform)
    else:
        crop = None if size is None else (size, size)
        chosen = Transform(size, crop, "bilinear", neutral, neutral)
    images = build_cache(
        pictures, out, chosen, workers=workers, skip_corrupt=skip_corrupt, progress=progress
    )
    count, height, width, channels = images.description.shape
    parts = ", ".join(f"{b - a:,} {name}" for name, (a, b) in images.description.parts.items())
    skipped = f"; {images.skipped} left out" if images.skipped else ""
    log.info(
        f"{out}: {count - images.skipped:,} images ({parts}{skipped}), "
        f"{channels}x{height}x{width}, {len(images.class_names)} classes, "
        f"{out.stat().st_size / 1e6:,.1f} MB"
    )
    return {
        "cache": out,
        "images": count - images.skipped,
        "left_out": images.skipped,
        "parts": {name: b - a for name, (a, b) in images.description.parts.items()},
        "shape": [channels, height, width],
        "class_names": images.class_names,
    }
