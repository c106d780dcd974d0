"""`deevo demo`: trained networks meet images of another kind; a few hundred labels mend them."""

import logging
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer
from torch import nn

from deevo_ext.cli.options import Progress
from deevo_ext.data import ImageSet, SourceSets, load
from deevo_ext.fitness.evaluator import Evaluator
from deevo_ext.networks.small_vgg import SmallVGG
from deevo_ext.progress import progress_bar
from deevo_ext.reports.card import CARD, HEAT_MAP, REPORT, write_documents
from deevo_ext.reports.pictures import plot_changes
from deevo_ext.runs.comparison import Comparison, Measured
from deevo_ext.runs.evolve import evolve
from deevo_ext.runs.folder import EVOLVED
from deevo_ext.runs.recipe_run import RECIPE_FILE, RecipeRun
from deevo_ext.runs.state import PARENT, Candidate
from deevo_ext.threads import one_thread
from deevo_ext.training.few_labels import logits_of, train_on_labels
from deevo_ext.training.hyper_parameters import Choices, derived_seed
from deevo_ext.training.populate import populate
from deevo_ext.training.trainings import PopulationOptions, trainings_of

log = logging.getLogger("deevo_ext")
CHANGES = "changes.png"
TRAINED = "trained by gradients"
_LABELLED, _TEST = 101, 102  # what seeds of noise are derived for


@dataclass(frozen=True)
class Setting:
    """What a demo is made of.

    width: of the network. noise: standard deviation of the noise that the new images have, black
    to white being 1. labels: how many of them are labelled. population: how the members are trained
    on images without noise.
    """

    width: int
    noise: float
    labels: int
    population: PopulationOptions


def setting_of(sets: SourceSets, seed: int) -> Setting:
    """Returns the demo's setting for a source of images."""
    small = sets.name == "digits"
    batch_size = 16 if small else 128
    epoch = max(1, len(sets.train) // batch_size)  # its steps
    population = PopulationOptions(
        members=8,
        epochs=60 / epoch,
        batch_size=batch_size,
        learning_rate=0.02 if small else 0.025,
        mirror=sets.mirror,
        base_epochs=800 / epoch,
        base_learning_rate=0.05,
        seed=seed,
        augmentations=Choices.parse("none"),
    )
    return Setting(width=16, noise=0.4, labels=400, population=population)


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
    seed: Annotated[int, typer.Option(help="The seed of split, training and evolution.")] = 0,
    progress: Progress = True,
) -> dict[str, Any]:
    """Train 8 networks, show them noisy images, evolve them on 400 labels, and compare.

    The digits take under a minute on two cores.
    """
    started = time.perf_counter()
    sets = load(data, seed)
    setting = setting_of(sets, seed)
    folder = out or Path(f"deevo-demo-{sets.name}")
    train = sets.train
    labelled = noisy(sets.fitness.slice(0, setting.labels), train, setting.noise, seed, _LABELLED)
    test = noisy(sets.test, train, setting.noise, seed, _TEST)
    log.info(
        f"{sets.name}: {len(train):,} images to train on; then images of another kind, with noise: "
        f"{len(labelled):,} labelled ones, {len(test):,} to test on."
    )

    model, paths = members(sets, setting, folder / "checkpoints", seed, progress)
    trained = time.perf_counter()
    result = evolve(
        model, paths, labelled, None, test, seed=seed, run_dir=folder, progress=progress
    )
    run, comparison = result.run, result.comparison
    assert isinstance(run, RecipeRun) and run.chosen is not None and comparison is not None
    evolved = time.perf_counter()
    comparison, yardstick = _with_yardstick(comparison, run, model, labelled, test)
    compared = time.perf_counter()

    about = {"data": sets.name, "seconds of training": f"{trained - started:.1f}"}
    about["threads"] = str(torch.get_num_threads())
    write_documents(run, comparison, about)
    evaluator, parent = run.rounds.evaluator, run.state.initial["member"]
    before, after = (_predicted(evaluator, one, test) for one in (parent, run.chosen))
    pairs = torch.cat([sets.test.images, test.images], dim=3)  # without noise, and with it
    names = (PARENT, run.chosen.name)
    plot_changes(pairs, test.labels, before, after, names, folder / CHANGES)
    ended = time.perf_counter()

    clean = float((_predicted(evaluator, parent, sets.test) == sets.test.labels).double().mean())
    log.info(
        f"\nThe best parent gets {clean:.1%} of the test images right without noise, "
        f"{float((before == test.labels).double().mean()):.1%} with it. All on these, with it:\n"
    )
    log.info("%s", comparison.format())
    log.info(
        f"\nA yardstick, {TRAINED}: {yardstick}.\n\n"
        f"{ended - started:.0f} s: {trained - started:.0f} s training, {evolved - trained:.0f} s "
        f"evolution, {compared - evolved:.0f} s yardstick, {ended - compared:.0f} s pictures.\n"
        f"What each member gives to each layer: {folder / HEAT_MAP}, {folder / RECIPE_FILE}\n"
        f"Test images whose prediction changed: {folder / CHANGES}\n"
        f"The network: {folder / EVOLVED}; report: {folder / REPORT}, {folder / CARD}\n"
        f"Its journal: {folder / 'journal.jsonl'} (deevo replay {folder})"
    )
    return {"run_dir": folder, "comparison": comparison.to_json()}


def noisy(images: ImageSet, train: ImageSet, noise: float, seed: int, index: int) -> ImageSet:
    """Returns images with normal noise, in the range from black to white of the train images.

    noise: its standard deviation, black to white being 1; it is drawn by `seed` and `index`.
    """
    black, white = float(train.images.min()), float(train.images.max())
    generator = torch.Generator().manual_seed(derived_seed(seed, index))
    drawn = torch.randn(images.images.shape, generator=generator)
    changed = images.images + drawn * (noise * (white - black))
    return ImageSet(changed.clamp(black, white), images.labels, images.name)


def members(
    sets: SourceSets, setting: Setting, folder: Path, seed: int, progress: bool = True
) -> tuple[nn.Module, list[Path]]:
    """Trains the networks that the folder lacks; returns a model, and all files."""
    train = sets.train
    trainings = trainings_of(len(train), setting.population)
    assert trainings.base is not None
    generator = torch.Generator().manual_seed(trainings.base.seed)
    model = SmallVGG(train.image_shape[0], len(sets.class_names), setting.width, generator)
    origin = {"data": sets.name, "width": setting.width, "seed": seed}
    # For networks this small more threads cost more than they save.
    with progress_bar(unit="step", shown=progress) as bar, one_thread():

        def show(what: str, done: int, total: int) -> None:
            bar.total, bar.n = total, done
            bar.set_description(f"training {what}", refresh=False)
            bar.update(0)

        return model, populate(model, train, trainings, folder, origin=origin, progress=show)


def _with_yardstick(
    comparison: Comparison,
    run: RecipeRun,
    model: nn.Module,
    labelled: ImageSet,
    test: ImageSet,
) -> tuple[Comparison, str]:
    """Trains the initial greedy soup on the same labels; returns the table with it, and how."""
    started = time.perf_counter()
    evaluator, soup = run.rounds.evaluator, run.state.initial["soup"]
    model.load_state_dict(soup.state_dict(run.population))
    with one_thread():
        trained = train_on_labels(model, labelled, run.seed)
    seconds = time.perf_counter() - started
    logits = logits_of(trained.network, test)
    correct = logits.argmax(dim=1) == test.labels
    right_before = _predicted(evaluator, soup, test) == test.labels
    line = Measured(
        name=TRAINED,
        loss=float(F.cross_entropy(logits.double(), test.labels)),
        top1=float(correct.double().mean()),
        images=len(test),
        gained=int((correct & ~right_before).sum()),
        lost=int((~correct & right_before).sum()),
        forward_passes=trained.images,
        seconds=round(seconds, 3),
        inference=1,
        returned=False,
    )
    how = "the soup was best untouched"
    if trained.steps:
        how = f"{trained.steps} steps at learning rate {trained.learning_rate:g}"
    return replace(comparison, networks=[*comparison.networks, line]), (
        f"Adam on the same {len(labelled):,} labels, from the soup, rate and length chosen on a "
        f"fifth of them ({how})"
    )


def _predicted(evaluator: Evaluator, candidate: Candidate, images: ImageSet) -> torch.Tensor:
    return evaluator.logits(candidate.row, images, candidate.statistics).argmax(dim=1)
