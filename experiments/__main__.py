"""`python -m experiments`: populations, runs and bounds, all resumable; then tables and plots."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Annotated

import typer

from .populations import SETTINGS
from .variants import BOUNDS, PEERS, VARIANTS

HERE = Path(__file__).resolve().parent
app = typer.Typer(add_completion=False, help=__doc__, pretty_exceptions_enable=False)

Seeds = Annotated[str, typer.Option(help='Populations, as "0-11" or "0,3,5".')]
Names = Annotated[list[str] | None, typer.Option(help="Repeatable; default all.")]
Root = Annotated[Path, typer.Option(help="Where populations and runs lie.")]
Processes = Annotated[int, typer.Option(min=1, help="Runs at a time, one thread each.")]
DEFAULT_ROOT = Path("experiments-populations")
RESULTS = HERE / "results"


@app.command()
def populate(
    setting: Names = None,
    seeds: Seeds = "0-11",
    root: Root = DEFAULT_ROOT,
    processes: Processes = 2,
) -> None:
    """Train the populations that are missing."""
    _all([(name, "populate", s) for s in _numbers(seeds) for name in _of(setting)], root, processes)


@app.command()
def run(
    setting: Names = None,
    variant: Names = None,
    seeds: Seeds = "0-11",
    root: Root = DEFAULT_ROOT,
    processes: Processes = 2,
) -> None:
    """Evolve populations by variants, or fit learned soups to them; train what is missing."""
    known = [*VARIANTS, *PEERS, *BOUNDS]
    if unknown := sorted(set(variant or []) - set(known)):
        raise typer.BadParameter(f"{unknown[0]}; expected one of {', '.join(known)}")
    jobs = [
        (name, what, seed)
        for what in variant or known
        for name in _of(setting)
        for seed in _numbers(seeds)
    ]
    _all(jobs, root, processes)


@app.command()
def report() -> None:
    """Write docs/evidence-tables.md and the plots from the committed results."""
    from .report import write

    write(RESULTS, HERE.parent / "docs")


def _of(setting: list[str] | None) -> list[str]:
    if unknown := sorted(set(setting or []) - set(SETTINGS)):
        raise typer.BadParameter(f"{unknown[0]}; expected one of {', '.join(SETTINGS)}")
    return setting or list(SETTINGS)


def _numbers(text: str) -> list[int]:
    found: list[int] = []
    for part in text.split(","):
        low, _, high = part.partition("-")
        found += range(int(low), int(high or low) + 1)
    return found


def _all(jobs: list[tuple[str, str, int]], root: Path, processes: int) -> None:
    from tqdm.auto import tqdm

    with ProcessPoolExecutor(processes, initializer=_alone) as pool:
        tasks = [pool.submit(_job, *job, root) for job in jobs]
        for task in tqdm(as_completed(tasks), total=len(tasks), unit="run"):
            task.result()


def _alone() -> None:
    """One thread a process: networks this small gain nothing from a second."""
    import torch

    torch.set_num_threads(1)


def _job(name: str, what: str, seed: int, root: Path) -> None:
    from . import populations, runs

    setting = SETTINGS[name]
    if what == "populate":
        populations.make(root, setting, seed)
    else:
        runs.record_of(root, RESULTS, setting, seed, what)


if __name__ == "__main__":
    app()
