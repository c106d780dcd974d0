"""`deevo demo`: the whole job on real data, from training to the table that judges it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import torch
import typer
from tqdm.auto import tqdm

from deevo_ext.data import ImageSets, load
from deevo_ext.networks.small_resnet import SmallResNet
from deevo_ext.reports.card import CARD, PICTURE, TABLE, write_documents
from deevo_ext.runs.evolve import evolve
from deevo_ext.runs.folder import EVOLVED
from deevo_ext.runs.run import Evolution
from deevo_ext.training.hyper_parameters import Choices
from deevo_ext.training.populate import populate
from deevo_ext.training.trainings import PopulationOptions, trainings_of

# What keeps the demo within its time: fitness images per generation (digits has fewer, and uses all
# of them always) and images for choosing what is returned.
BATCH = 1000
VALIDATION = 3000
WIDTH = 16  # of the network


def demo(
    data: Annotated[
        str, typer.Option(help='The data: "digits", "fashion-mnist" or a folder of IDX files.')
    ] = "digits",
    out: Annotated[
        Path | None,
        typer.Option(
            help="The run folder, by default deevo-demo-DATA. A run that it holds is resumed."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="The seed of data split, training and evolution.")] = 0,
    json: Annotated[Path | None, typer.Option(help="A further file to write the table to.")] = None,
    generations: Annotated[int, typer.Option(help="The number of generations.", min=1)] = 30,
) -> None:
    """Train a small ResNet, fine-tune it into 12 members, evolve them, and compare on test images.

    The digits take under a minute on two cores.
    """
    started = time.perf_counter()
    sets = load(data, seed)
    folder = out or Path(f"deevo-demo-{sets.name}")
    typer.echo(sets.describe())

    train = sets.train
    assert train is not None
    trainings = trainings_of(len(train), options_of(sets, seed))
    assert trainings.base is not None
    generator = torch.Generator().manual_seed(trainings.base.seed)
    model = SmallResNet(train.image_shape[0], len(sets.class_names), WIDTH, generator)
    with tqdm(unit="step") as bar, _one_thread():

        def show(what: str, done: int, total: int) -> None:
            bar.total, bar.n = total, done
            bar.set_description(f"training {what}", refresh=False)
            bar.update(0)

        origin = {"data": sets.name, "width": WIDTH, "seed": seed}
        checkpoints = folder / "checkpoints"
        paths = populate(model, train, trainings, checkpoints, origin=origin, progress=show)
    trained = time.perf_counter()

    result = evolve(
        model,
        paths,
        sets.fitness,
        sets.validation.subset(range(min(VALIDATION, len(sets.validation)))),
        sets.test,
        search="weights",
        generations=generations,
        seed=seed,
        run_dir=folder,
        images_per_batch=BATCH,
        generations_per_batch=2,
        validate_every=max(1, generations // 3),
        micro_batch=250,
    )
    comparison = result.comparison
    assert comparison is not None
    about = {
        "data": sets.name,
        "seconds of training": f"{trained - started:.1f}",
        "threads": str(torch.get_num_threads()),
    }
    assert isinstance(result.run, Evolution)
    write_documents(result.run, comparison, about)
    ended = time.perf_counter()
    if json is not None:
        json.write_bytes((folder / TABLE).read_bytes())
    typer.echo(f"\nOn {len(sets.test):,} test images:\n")
    typer.echo(comparison.format())
    typer.echo(
        f"\n{ended - started:.0f} s: {trained - started:.0f} s training, {ended - trained:.0f} s "
        f"evolution and report.\nThe evolved network: {folder / EVOLVED}\n"
        f"How it went: {folder / CARD}, {folder / PICTURE}, {folder / 'metrics.csv'}\n"
        f"Its journal: {folder / 'journal.jsonl'} (deevo replay {folder})"
    )


def options_of(sets: ImageSets, seed: int) -> PopulationOptions:
    """Returns how the demo's population is trained.

    Wider or longer the members leave their common basin and the plain average collapses; narrower,
    or annealed, they are nearly one point. Pixel shifts do the same harm on images this small.
    """
    small = sets.name == "digits"
    batch_size = 16 if small else 128
    assert sets.train is not None
    epoch = max(1, len(sets.train) // batch_size)  # its steps
    return PopulationOptions(
        epochs=(50 if small else 120) / epoch,
        batch_size=batch_size,
        learning_rate=0.02 if small else 0.025,
        mirror=sets.mirror,
        base_epochs=(75 if small else 700) / epoch,
        base_learning_rate=0.05 if small else 0.1,
        seed=seed,
        augmentations=Choices.parse("none"),
    )


@contextmanager
def _one_thread() -> Iterator[None]:
    """Trains with one thread: for small networks more of them cost more than they save."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
