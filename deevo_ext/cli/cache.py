"""`deevo cache`: decode pictures once, for all later runs."""

import warnings
from pathlib import Path
from typing import Annotated

import typer

from deevo_ext.cli.parameters import model_args_of
from deevo_ext.data.cache import build_cache
from deevo_ext.data.classes import class_order_of
from deevo_ext.data.opening import open_pictures
from deevo_ext.data.sets import select_train
from deevo_ext.data.transform import Transform
from deevo_ext.errors import DeevoError
from deevo_ext.networks.zoo import architecture


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
    model_arg: Annotated[
        list[str] | None,
        typer.Option(help='An argument of the model, as "img_size=96". May be repeated.'),
    ] = None,
    transform: Annotated[
        str | None,
        typer.Option(
            help="The transform: a JSON or TOML file, or a name of torchvision's weights."
        ),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(help="Resize the shorter side to SIZE and crop the centre, square.", min=1),
    ] = None,
    class_order: Annotated[
        str,
        typer.Option(
            help="The order of class folders as labels: text (1, 10, 2), natural (1, 2, 10), a "
            "file with the names of the network's classes, one a line; auto is natural for timm's "
            "architectures, else text."
        ),
    ] = "auto",
    labels: Annotated[
        Path | None,
        typer.Option(
            help="A CSV with the columns file, label and, if the folder has parts, split: of a "
            "folder without class folders."
        ),
    ] = None,
    train_images: Annotated[
        int,
        typer.Option(help="The number of train images, class-balanced; 0 stands for all.", min=0),
    ] = 0,
    seed: Annotated[int, typer.Option(help="The seed of the choice of train images.", min=0)] = 0,
    workers: Annotated[
        int | None,
        typer.Option(help="The number of decoding processes, by default one a processor.", min=0),
    ] = None,
    skip_corrupt: Annotated[
        bool,
        typer.Option("--skip-corrupt", help="Leave out files that cannot be read, and list them."),
    ] = False,
) -> None:
    """Decode, resize and crop every picture into one uint8 memory map.

    After a kill the command goes on where it stopped. Without --arch, --transform and --size
    pictures keep their size, which must then be the same for all (CIFAR, MNIST).
    """
    if size is not None and (arch or transform):
        raise DeevoError("--size goes without --arch and --transform: those name a size already")
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
    with warnings.catch_warnings(record=True) as left_out:
        warnings.simplefilter("always")
        images = build_cache(pictures, out, chosen, workers=workers, skip_corrupt=skip_corrupt)
    for warning in left_out:
        typer.echo(str(warning.message), err=True)
    count, height, width, channels = images.description.shape
    parts = ", ".join(f"{b - a:,} {name}" for name, (a, b) in images.description.parts.items())
    typer.echo(
        f"{out}: {count - images.skipped:,} images ({parts}"
        f"{f'; {images.skipped} left out' if images.skipped else ''}), "
        f"{channels}x{height}x{width}, "
        f"{len(images.class_names)} classes, {out.stat().st_size / 1e6:,.1f} MB"
    )
