"""`deevo demo`: the whole job on real data, from training to the table that judges it."""

import time
from pathlib import Path
from typing import Annotated

import typer

# What keeps the demo within its time: fitness images per generation (digits has fewer, and uses all
# of them always) and images for choosing what is returned.
BATCH = 1000
VALIDATION = 3000


def demo(
    data: Annotated[
        str, typer.Option(help='"digits", "fashion-mnist" or a folder of IDX files.')
    ] = "digits",
    out: Annotated[
        Path | None, typer.Option(help="Run folder; default deevo-demo-DATA. Resumed if it exists.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of data split, training and evolution.")] = 0,
    json: Annotated[Path | None, typer.Option(help="Also write the table to this file.")] = None,
    generations: Annotated[int, typer.Option(help="Generations to evolve.", min=1)] = 30,
) -> None:
    """Train a small ResNet, fine-tune it into 12 members, evolve them, and compare on test images.

    Takes under 2 minutes on two cores.
    """
    import torch
    from tqdm.auto import tqdm

    from deevo_ext.data import load
    from deevo_ext.demo.network import SmallResNet
    from deevo_ext.demo.recipes import demo_plan
    from deevo_ext.demo.training import train_population
    from deevo_ext.evolution.evolve import evolve
    from deevo_ext.evolution.storage import EVOLVED
    from deevo_ext.reports.plots import plot_run

    started = time.perf_counter()
    sets = load(data, seed)
    folder = out or Path(f"deevo-demo-{sets.name}")
    typer.echo(sets.describe())

    with tqdm(unit="step") as bar:

        def show(what: str, done: int, total: int) -> None:
            bar.total, bar.n = total, done
            bar.set_description(f"training {what}", refresh=False)
            bar.update(0)

        paths = train_population(sets, folder / "checkpoints", seed=seed, progress=show)
    trained = time.perf_counter()

    width = demo_plan(sets, len(paths), seed).width
    model = SmallResNet(sets.train.images.shape[1], sets.num_classes, width)
    result = evolve(
        model,
        paths,
        sets.fitness,
        sets.validation.subset(range(min(VALIDATION, len(sets.validation)))),
        sets.test,
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
    strategies = [s.name for s in result.run.de.configuration.strategies]
    plot_run(result.history, strategies, folder / "evolution.png")
    ended = time.perf_counter()

    details = {
        "data": sets.name,
        "seed": seed,
        "generations": generations,
        "training_seconds": round(trained - started, 3),
        "evolution_seconds": round(ended - trained, 3),
        "threads": torch.get_num_threads(),
        "returned": result.candidate.record(),
    }
    comparison.save(folder / "table.json", **details)
    if json is not None:
        comparison.save(json, **details)
    typer.echo(f"\nOn {len(sets.test):,} test images:\n")
    typer.echo(comparison.format())
    typer.echo(
        f"\n{ended - started:.0f} s: {trained - started:.0f} s training, {ended - trained:.0f} s "
        f"evolution and report.\nThe evolved network: {folder / EVOLVED}\n"
        f"How it went: {folder / 'evolution.png'}, {folder / 'metrics.csv'}\n"
        f"Its recipe: {folder / 'journal.jsonl'} (deevo replay {folder})"
    )
