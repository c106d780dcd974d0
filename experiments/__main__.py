"""`python -m experiments`: populations, runs and bounds, all resumable; then tables and plots."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ParamSpec

import torch
import typer
from tqdm.auto import tqdm

from . import (
    adaptation,
    csv_files,
    digits,
    kinds,
    metrics,
    policies,
    populations,
    pretrained,
    quantised,
    racing,
    runs,
    virtual,
)
from .populations import SETTINGS
from .variants import BOUNDS, PEERS, VARIANTS

HERE = Path(__file__).resolve().parent
app = typer.Typer(add_completion=False, help=__doc__, pretty_exceptions_enable=False)

Seeds = Annotated[str, typer.Option(help='Which populations, as "0-11" or "0,3,5".')]
Labels = Annotated[str, typer.Option(help="How many images are labelled.")]
Draws = Annotated[str, typer.Option(help="Which of the disjoint sets of so many.")]
Names = Annotated[list[str] | None, typer.Option(help="May be repeated; all of them by default.")]
Setting = Annotated[str, typer.Option(help="The populations' setting.")]
Root = Annotated[Path, typer.Option(help="The folder where populations and runs lie.")]
Processes = Annotated[int, typer.Option(min=1, help="How many processes run, a thread each.")]
Given = ParamSpec("Given")
DEFAULT_ROOT = Path("experiments-populations")
RECORDS = HERE / "records"
STUDIES = {"virtual": virtual.compare_optimizers, "linearity": virtual.linearity}


@app.command()
def populate(
    setting: Names = None,
    seeds: Seeds = "0-11",
    root: Root = DEFAULT_ROOT,
    processes: Processes = 2,
) -> None:
    """Train the populations that are missing."""
    chosen = _of(setting, SETTINGS)
    _all(
        [_job(populations.make, root, SETTINGS[s], n) for n in _numbers(seeds) for s in chosen],
        processes,
    )


@app.command()
def run(
    setting: Names = None,
    variant: Names = None,
    seeds: Seeds = "0-11",
    root: Root = DEFAULT_ROOT,
    processes: Processes = 2,
) -> None:
    """Evolve populations by variants, or fit learned soups to them; train what is missing."""
    chosen = _of(setting, SETTINGS)
    done = {name: _recorded(name) for name in chosen}
    jobs = [
        _job(runs.run, root, SETTINGS[name], seed, what)
        for what in _of(variant, [*VARIANTS, *PEERS, *BOUNDS])
        for name in chosen
        for seed in _numbers(seeds)
        if (what, seed) not in done[name]
    ]
    _all(jobs, processes)


@app.command("adapt")
def adapt(
    setting: Names = None,
    kind: Names = None,
    severity: Annotated[str, typer.Option(help="1 for mild, 2 for strong.")] = "2",
    labels: Labels = "500",
    draws: Draws = "0",
    seeds: Seeds = "0-11",
    root: Root = DEFAULT_ROOT,
    processes: Processes = 2,
) -> None:
    """Evolve populations on labelled images of a kind, and train on the same labels."""
    done = _recorded("adaptation")
    each = itertools.product(
        _numbers(seeds),
        _of(setting, SETTINGS) if setting else [name for name in SETTINGS if "tight" in name],
        _of(kind, [*kinds.KINDS, kinds.SAME]) if kind else list(kinds.KINDS),
        _numbers(severity),
        _numbers(labels),
        _numbers(draws),
    )
    jobs = [
        _job(adaptation.adapt, root, SETTINGS[name], seed, what, strength, count, draw)
        for seed, name, what, strength, count, draw in each
        if (name, seed, what, strength, count, draw) not in done
    ]
    _all(jobs, processes)


@app.command("pretrained")
def adapt_pretrained(
    kind: Names = None,
    severity: Annotated[int, typer.Option(help="1 for mild, 2 for strong.")] = 2,
    labels: Annotated[int, typer.Option(help="How many images are labelled.")] = 500,
    seeds: Seeds = "0",
    root: Root = DEFAULT_ROOT,
    processes: Processes = 1,
) -> None:
    """Do the same with fine-tunings of a network that was trained on ImageNet."""
    done = _recorded("pretrained")
    jobs = [
        _job(pretrained.adapt, root, seed, what, severity, labels)
        for seed in _numbers(seeds)
        for what in _of(kind, [*kinds.KINDS, kinds.SAME])
        if (pretrained.NAME, seed, what, severity, labels, 0) not in done
    ]
    _all(jobs, processes)


@app.command("digits")
def adapt_digits(
    setting: Names = None,
    labels: Labels = "500",
    draws: Draws = "0",
    seeds: Seeds = "0-11",
    root: Root = DEFAULT_ROOT,
    processes: Processes = 2,
) -> None:
    """Do the same with digits of one source, and networks that were trained on another's."""
    done = _recorded("digits")
    each = itertools.product(
        _numbers(seeds), _of(setting, digits.SETTINGS), _numbers(labels), _numbers(draws)
    )
    jobs = [
        _job(digits.adapt, root, name, seed, count, draw)
        for seed, name, count, draw in each
        if (name, seed, digits.kind_of(name), count, draw) not in done
    ]
    _all(jobs, processes)


@app.command("metrics")
def compare_metrics(
    setting: Setting = "vgg-wide",
    kind: Annotated[str, typer.Option(help="The kind of the images.")] = kinds.SAME,
    metric: Names = None,
    seeds: Seeds = "0-11",
    root: Root = DEFAULT_ROOT,
    processes: Processes = 2,
) -> None:
    """Evolve populations for metrics without gradients, by both searches."""
    done = _recorded("metrics")
    (kind,) = _of([kind], [*kinds.KINDS, kinds.SAME])
    jobs = [
        _job(metrics.measure, root, SETTINGS[name], seed, kind, what)
        for seed in _numbers(seeds)
        for name in _of([setting], SETTINGS)
        for what in _of(metric, metrics.METRICS)
        if (name, seed, kind, what) not in done
    ]
    _all(jobs, processes)


@app.command("quantised")
def compare_quantised(
    setting: Names = None,
    seeds: Seeds = "0-11",
    root: Root = DEFAULT_ROOT,
    processes: Processes = 2,
) -> None:
    """Evolve networks of 4 bits as they are deployed, and in float32 to be quantised after."""
    logging.getLogger().setLevel(logging.ERROR)  # onnxruntime has warnings for each network
    done = _recorded("quantised")
    jobs = [
        _job(quantised.compare, root, SETTINGS[name], seed)
        for seed in _numbers(seeds)
        for name in (_of(setting, SETTINGS) if setting else ["vgg-tight", "resnet-tight"])
        if (name, seed) not in done
    ]
    _all(jobs, processes)


@app.command()
def why(
    setting: Setting = "vgg-wide",
    seeds: Seeds = "0-3",
    root: Root = DEFAULT_ROOT,
    processes: Processes = 2,
) -> None:
    """Compare optimizers on linear models, and what these promise with what networks do."""
    jobs = [
        _job(study, root, SETTINGS[name], seed)
        for seed in _numbers(seeds)
        for name in _of([setting], SETTINGS)
        for file, study in STUDIES.items()
        if (name, seed) not in _recorded(file)
    ]
    _all(jobs, processes)


@app.command("racing")
def race(
    setting: Setting = "resnet-tight",
    seeds: Seeds = "0-2",
    generations: Annotated[int, typer.Option(min=1)] = 20,
    error: Annotated[float, typer.Option(help="How often a winning trial may be dropped.")] = 0.01,
    root: Root = DEFAULT_ROOT,
    processes: Processes = 2,
) -> None:
    """Measure what races save, and whether they decide otherwise than full evaluations."""
    jobs = [
        _job(racing.measure, root, SETTINGS[name], seed, generations, error)
        for name in _of([setting], SETTINGS)
        for seed in _numbers(seeds)
    ]
    _all(jobs, processes)


@app.command("policies")
def compare_policies(
    setting: Setting = "resnet-tight",
    policy: Names = None,
    seeds: Seeds = "0",
    root: Root = DEFAULT_ROOT,
    processes: Processes = 2,
) -> None:
    """Measure what each evaluation policy does to a population."""
    done = _recorded("policies")
    jobs = [
        _job(policies.measure, root, SETTINGS[name], seed, what)
        for name in _of([setting], SETTINGS)
        for seed in _numbers(seeds)
        for what in _of(policy, policies.POLICIES)
        if (name, seed, what) not in done
    ]
    _all(jobs, processes)


@app.command("functions")
def compare_on_functions(
    runs: Annotated[int, typer.Option(min=2)] = 21,
    evaluations: Annotated[int, typer.Option(min=1000)] = 20_000,
    processes: Processes = 2,
) -> None:
    """Compare presets "shade" and "l-shade" with minionpy's L-SHADE; print tables."""
    from . import functions

    done = _recorded("functions")
    jobs = [
        _job(functions.measure, year, number, runs, evaluations)
        for year, number in functions.FUNCTIONS
        if (year, number, evaluations) not in done
    ]
    _all(jobs, processes)
    typer.echo(functions.table(csv_files.read(RECORDS, "functions")))


@app.command()
def report() -> None:
    """Write docs/evidence-tables.md and the plots from the committed records."""
    from .reports import write

    write(RECORDS, HERE.parent / "docs")


def _of(names: Sequence[str] | None, known: Sequence[str] | dict[str, Any]) -> Sequence[str]:
    """The names, which must be among the known ones; all of these where there are none."""
    if unknown := sorted(set(names or []) - set(known)):
        raise typer.BadParameter(f"{unknown[0]}; expected one of {', '.join(known)}")
    return names or list(known)


def _numbers(text: str) -> list[int]:
    numbers: list[int] = []
    for part in text.split(","):
        low, _, high = part.partition("-")
        numbers += range(int(low), int(high or low) + 1)
    return numbers


def _recorded(name: str) -> set[tuple[Any, ...]]:
    """The runs that a file of the records has lines of."""
    return {csv_files.key_of(name, line) for line in csv_files.read(RECORDS, name)}


def _job(
    function: Callable[Given, Any], *arguments: Given.args, **named: Given.kwargs
) -> Callable[[], Any]:
    """A `functools.partial` with all arguments: of one that lacks some mypy says nothing."""
    return partial(function, *arguments, **named)


def _all(jobs: Sequence[Callable[[], Any]], processes: int) -> None:
    """Runs the jobs; the lines that one gives are recorded as soon as it has ended.

    Where one fails, those that have been handed to a process are recorded too, and no more are.
    """
    failure: BaseException | None = None
    # A process has one thread: networks this small gain nothing from a second.
    with ProcessPoolExecutor(processes, initializer=partial(torch.set_num_threads, 1)) as pool:
        tasks = [pool.submit(job) for job in jobs]
        for task in tqdm(as_completed(tasks), total=len(tasks), unit="run"):
            if task.cancelled():
                continue
            if error := task.exception():
                failure = failure or error
                if not isinstance(error, BrokenExecutor):  # then all of them fail
                    for other in tasks:  # not by shutdown(): as_completed would wait for them
                        other.cancel()
            elif isinstance(lines := task.result(), dict):
                csv_files.save(RECORDS, lines)
    if failure is not None:
        raise failure


if __name__ == "__main__":
    app()
