"""`deevo evolve`: from a folder of checkpoints and a folder of images to a better network.

Every option is a keyword of `deevo_ext.evolve` or a field of its `Configuration`.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deevo_ext.cli.parameters import EVOLUTION, function_of, given, with_configuration
from deevo_ext.data.sets import TRAIN_IMAGES
from deevo_ext.errors import DeevoError

if TYPE_CHECKING:
    from deevo_ext.evolution.preliminaries import Preliminaries

_WHAT, _IMAGES = "What is evolved", "Images and fitness"
_RUNNING = "Where and how it runs"


def evolve(
    arch: Annotated[
        str,
        typer.Option(
            help="torchvision's or timm's name, or package.module:factory.", rich_help_panel=_WHAT
        ),
    ],
    checkpoints: Annotated[
        str,
        typer.Option(help="Checkpoints: a folder, a glob in quotes.", rich_help_panel=_WHAT),
    ],
    data: Annotated[
        Path | None,
        typer.Option(
            help="A tree with train/ and val/, a cache, CIFAR or IDX files.",
            rich_help_panel=_IMAGES,
        ),
    ] = None,
    fitness: Annotated[
        Path | None,
        typer.Option(help="Other fitness images than --data's.", rich_help_panel=_IMAGES),
    ] = None,
    validation: Annotated[
        Path | None,
        typer.Option(help="Other validation images than --data's.", rich_help_panel=_IMAGES),
    ] = None,
    test: Annotated[
        Path | None, typer.Option(help="Other test images than --data's.", rich_help_panel=_IMAGES)
    ] = None,
    split_seed: Annotated[
        int,
        typer.Option(
            help="Of the division of --data; the same for runs that are to be compared.",
            rich_help_panel=_IMAGES,
        ),
    ] = 0,
    train_images: Annotated[
        int,
        typer.Option(
            help="Train images that are cached, class-balanced; 0 for all.",
            min=0,
            rich_help_panel=_IMAGES,
        ),
    ] = TRAIN_IMAGES,
    skip_corrupt: Annotated[
        bool,
        typer.Option(
            "--skip-corrupt", help="Leave out what cannot be read.", rich_help_panel=_IMAGES
        ),
    ] = False,
    out: Annotated[Path, typer.Option(help="Run folder (run_dir). Resumed if it exists.")] = Path(
        "evolved"
    ),
    generations: Annotated[int, typer.Option(help="Length of the schedule.", min=1)] = 100,
    time: Annotated[
        str | None,
        typer.Option(help='Instead of --generations: evaluation time (seconds), as "8h".'),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Stop after the preliminaries.")
    ] = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Go on although members share no basin (basin) or memory seems short.",
        ),
    ] = False,
    seed: Annotated[int, typer.Option(help="Of evolution and batches.", min=0)] = 0,
    preset: Annotated[
        str, typer.Option(help='"sa-shade-tri-ensin" or "paper".', rich_help_panel=EVOLUTION)
    ] = "sa-shade-tri-ensin",
    transform: Annotated[
        str | None,
        typer.Option(
            help="Preprocessing: a JSON or TOML file, or torchvision weights; default the model's.",
            rich_help_panel=_IMAGES,
        ),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(help="File for the decoded images, *.safetensors.", rich_help_panel=_IMAGES),
    ] = None,
    images_per_batch: Annotated[
        str,
        typer.Option(
            help='Fitness images per generation: "auto" (4,096), "all" or a number.',
            rich_help_panel=_IMAGES,
        ),
    ] = "auto",
    generations_per_batch: Annotated[
        int,
        typer.Option(help="Generations until the next batch.", min=1, rich_help_panel=_IMAGES),
    ] = 3,
    sampling: Annotated[
        str, typer.Option(help='"stratified" or "importance".', rich_help_panel=_IMAGES)
    ] = "stratified",
    augment: Annotated[
        str | None,
        typer.Option(help="mirror, shift:PIXELS, crop:SHARE.", rich_help_panel=_IMAGES),
    ] = None,
    metric: Annotated[
        str,
        typer.Option(
            help='"loss", "top1" or package.module:function of (logits, labels).',
            rich_help_panel=_IMAGES,
        ),
    ] = "loss",
    label_smoothing: Annotated[
        float, typer.Option(help="Of the fitness' loss.", rich_help_panel=_IMAGES)
    ] = 0.0,
    racing: Annotated[
        float | None,
        typer.Option(help="Drop losing trials early, at this error rate.", rich_help_panel=_IMAGES),
    ] = None,
    racing_first: Annotated[
        float,
        typer.Option(help="Share of the images before the first look.", rich_help_panel=_IMAGES),
    ] = 1 / 32,
    validate_every: Annotated[
        int,
        typer.Option(help="Generations between validations.", min=1, rich_help_panel=_IMAGES),
    ] = 10,
    calibration: Annotated[
        int,
        typer.Option(
            help="Fitness images that --batchnorm recalibrate recomputes statistics on.",
            min=1,
            rich_help_panel=_IMAGES,
        ),
    ] = 512,
    batchnorm: Annotated[
        str,
        typer.Option(
            help='BatchNorm statistics: "evolve", "inherit" or "recalibrate".',
            rich_help_panel=_WHAT,
        ),
    ] = "evolve",
    inject_soups: Annotated[
        bool | None,
        typer.Option(
            help='The uniform and the greedy soup become members; default unless preset "paper".',
            rich_help_panel=_WHAT,
        ),
    ] = None,
    frozen: Annotated[
        list[str] | None,
        typer.Option(
            help='Pattern of tensor names to leave alone, as "fc.*".', rich_help_panel=_WHAT
        ),
    ] = None,
    checkpoint_key: Annotated[
        str | None,
        typer.Option(help="Key of the weights in each file.", rich_help_panel=_WHAT),
    ] = None,
    dtype: Annotated[
        str,
        typer.Option(
            help="Of the population: float32, bfloat16 or float16.", rich_help_panel=_WHAT
        ),
    ] = "float32",
    device: Annotated[
        str | None,
        typer.Option(
            help="Where networks run; default a GPU if there is one.", rich_help_panel=_RUNNING
        ),
    ] = None,
    population_device: Annotated[
        str, typer.Option(help="Where the population lies.", rich_help_panel=_RUNNING)
    ] = "cpu",
    micro_batch: Annotated[
        int, typer.Option(help="Images per forward pass.", min=1, rich_help_panel=_RUNNING)
    ] = 64,
    chunk: Annotated[
        int, typer.Option(help="Networks evaluated together.", min=1, rich_help_panel=_RUNNING)
    ] = 8,
    precision: Annotated[
        str,
        typer.Option(help="auto, float32, tf32, bfloat16 or float16.", rich_help_panel=_RUNNING),
    ] = "auto",
    engine: Annotated[
        str,
        typer.Option(help="auto, fused, triton, compile or eager.", rich_help_panel=_RUNNING),
    ] = "auto",
    force_precision: Annotated[
        bool,
        typer.Option(
            "--force-precision",
            help="Select in a precision that failed its check.",
            rich_help_panel=_RUNNING,
        ),
    ] = False,
    progress: Annotated[
        bool, typer.Option(help="Show a progress bar.", rich_help_panel=_RUNNING)
    ] = True,
    tensorboard: Annotated[
        bool,
        typer.Option(
            "--tensorboard",
            help="Write events for TensorBoard into the run folder.",
            rich_help_panel=_RUNNING,
        ),
    ] = False,
    **parameters: Any,
) -> None:
    """Evolve checkpoints of one architecture on labelled images; return the best network.

    Shows first what can be said of members, memory and time, then runs, resumable, and leaves
    weights, model card, report and journal in the run folder.
    """
    import torch

    from deevo_ext.checkpoints import expand_paths
    from deevo_ext.data import image_sets
    from deevo_ext.evolution.basin import require_basin
    from deevo_ext.evolution.evolve import evolve as run_evolve
    from deevo_ext.evolution.preliminaries import seconds_of
    from deevo_ext.evolution.storage import EVOLVED
    from deevo_ext.fitness.sampling import batch_indices
    from deevo_ext.models import architecture, check_fit
    from deevo_ext.reports.card import REPORT, write_documents
    from deevo_ext.reports.tensorboard import TensorBoard

    seconds = None if time is None else seconds_of(time)
    per_batch = _images_per_batch(images_per_batch)
    chosen_metric = metric if ":" not in metric else function_of(metric)
    if dtype not in ("float32", "bfloat16", "float16"):
        raise DeevoError(f"dtype is {dtype!r}; expected float32, bfloat16 or float16")
    files = expand_paths(checkpoints)
    found = architecture(
        arch, checkpoint=files[0], checkpoint_key=checkpoint_key, transform=transform
    )
    sets = image_sets(
        data,
        found.needs_transform(),
        seed=split_seed,
        cache=cache,
        train_images=train_images or None,
        fitness=fitness,
        validation=validation,
        test=test,
        skip_corrupt=skip_corrupt,
        progress=progress,
    )
    check_fit(found, sets.fitness, sets.class_names)
    typer.echo(sets.describe())
    typer.echo(
        f"{len(files)} checkpoints: engines are timed and every member looked at, for minutes "
        "where networks are large."
    )
    calibration_images = None
    if batchnorm == "recalibrate":
        some = batch_indices(sets.fitness.labels, min(calibration, len(sets.fitness)), 0, seed)
        calibration_images = sets.fitness.subset(some, "calibration images")

    def show(preliminaries: "Preliminaries") -> None:
        typer.echo(str(preliminaries))
        if not force:
            preliminaries.require_memory()
            if preliminaries.basin is not None:
                require_basin(preliminaries.basin)
        if dry_run:
            raise typer.Exit()

    writer = TensorBoard(out / "tensorboard") if tensorboard else None
    result = run_evolve(
        found.model,
        files,
        sets.fitness,
        sets.validation,
        sets.test,
        generations=generations,
        seconds=seconds,
        preset=preset,
        seed=seed,
        run_dir=out,
        images_per_batch=per_batch,  # type: ignore[arg-type]
        generations_per_batch=generations_per_batch,
        sampling=sampling,
        augment=augment,
        metric=chosen_metric,
        label_smoothing=label_smoothing,
        racing=racing,
        racing_first=racing_first,
        validate_every=validate_every,
        micro_batch=micro_batch,
        device=device or ("cuda" if torch.cuda.is_available() else "cpu"),
        population_device=population_device,
        precision=precision,
        engine=engine,
        force_precision=force_precision,
        chunk=chunk,
        dtype=getattr(torch, dtype),
        frozen=frozen or (),
        batchnorm=batchnorm,
        calibration_images=calibration_images,
        checkpoint_key=checkpoint_key,
        inject_soups=inject_soups,
        basin="warn" if force else "refuse",
        progress=progress,
        callbacks=() if writer is None else (writer,),
        preliminaries=show,
        **given(parameters),
    )
    if dry_run:  # a run folder that has begun shows no preliminaries
        raise DeevoError(f"{out} holds a run already; --dry-run wants a new folder")
    if writer is not None:
        writer.close()
    about = {"architecture": found.name, "images": sets.describe()}
    write_documents(result.run, result.comparison, about)
    if result.comparison is not None:
        typer.echo(f"\nOn {len(sets.test):,} test images:\n\n{result.comparison.format()}\n")
    typer.echo(
        f"The evolved network: {out / EVOLVED}, {(out / EVOLVED).with_suffix('.pth')}\n"
        f"Report: {out / REPORT}\nIts recipe: {out / 'journal.jsonl'} (deevo replay {out})"
    )


def _images_per_batch(text: str) -> int | str | None:
    if text in ("auto", "all"):
        return "auto" if text == "auto" else None
    try:
        return int(text)
    except ValueError:
        raise DeevoError(
            f'images_per_batch is {text!r}; expected "auto", "all" or a whole number'
        ) from None


with_configuration(evolve)
