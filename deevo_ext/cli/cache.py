"""`deevo cache`: decode pictures once, for all later runs."""

import warnings
from pathlib import Path
from typing import Annotated

import typer


def cache(
    source: Annotated[
        Path,
        typer.Argument(
            help="Folder: train/ and val/ of class folders, class folders, CIFAR, or IDX files."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The cache file, *.safetensors.")],
    arch: Annotated[
        str | None, typer.Option(help="Take the transform of this torchvision or timm model.")
    ] = None,
    transform: Annotated[
        str | None,
        typer.Option(help="JSON or TOML file of a transform, or torchvision's name of weights."),
    ] = None,
    size: Annotated[
        int | None, typer.Option(help="Or: shorter side to SIZE, centre SIZExSIZE.", min=1)
    ] = None,
    train_images: Annotated[
        int, typer.Option(help="Only so many train images, class-balanced; 0 for all.", min=0)
    ] = 0,
    seed: Annotated[int, typer.Option(help="Of that choice.", min=0)] = 0,
    workers: Annotated[
        int | None, typer.Option(help="Decoding processes; default one a processor.", min=0)
    ] = None,
    skip_corrupt: Annotated[
        bool, typer.Option("--skip-corrupt", help="Leave out what cannot be read, and list it.")
    ] = False,
) -> None:
    """Decode, resize and crop every picture into one uint8 memory map.

    Killed, it goes on where it stopped. Without --arch, --transform and --size pictures keep their
    size, which must then be the same for all (CIFAR, MNIST).
    """
    from deevo_ext.data.cache import build_cache
    from deevo_ext.data.pictures import open_pictures
    from deevo_ext.data.sets import select_train
    from deevo_ext.data.transform import Transform
    from deevo_ext.errors import DeevoError
    from deevo_ext.networks.zoo import architecture

    if size is not None and (arch or transform):
        raise DeevoError("--size goes without --arch and --transform: those name a size already")
    pictures = select_train(open_pictures(source), train_images or None, seed)
    neutral = (0.5,) * pictures.channels  # pixels are stored as they are
    if arch is not None:
        chosen = architecture(arch, transform=transform).needs_transform()
    elif transform is not None:
        chosen = Transform.from_file(transform)
    else:
        crop = None if size is None else (size, size)
        chosen = Transform(size, crop, "bilinear", neutral, neutral)
    with warnings.catch_warnings(record=True) as left_out:
        warnings.simplefilter("always")
        found = build_cache(pictures, out, chosen, workers=workers, skip_corrupt=skip_corrupt)
    for warning in left_out:
        typer.echo(str(warning.message), err=True)
    count, height, width, channels = found.description.shape
    parts = ", ".join(f"{b - a:,} {name}" for name, (a, b) in found.description.parts.items())
    typer.echo(
        f"{out}: {count - found.skipped:,} images ({parts}"
        f"{f'; {found.skipped} left out' if found.skipped else ''}), {channels}x{height}x{width}, "
        f"{len(found.class_names)} classes, {out.stat().st_size / 1e6:,.1f} MB"
    )
