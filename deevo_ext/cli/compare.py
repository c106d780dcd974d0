"""`deevo compare`: the tables of finished runs."""

from pathlib import Path
from typing import Annotated

import typer


def compare(
    runs: Annotated[
        list[Path], typer.Argument(help="Folders of finished runs, or their table.json.")
    ],
) -> None:
    """Show the tables of runs, and for several of them what each gained."""
    from deevo_ext.evolution.card import TABLE
    from deevo_ext.evolution.report import SOUP, Comparison

    found = []
    for run in runs:
        path = run / TABLE if run.is_dir() else run
        found.append((run, Comparison.load(path)))
    for run, comparison in found:
        typer.echo(f"{run}\n{comparison.format()}\n")
    if len(found) < 2:
        return
    width = max(len(str(run)) for run, _ in found)
    typer.echo(f"The evolved network against the {SOUP}:")
    for run, comparison in found:
        evolved = next(row for row in comparison.rows if row.returned)
        low, high = comparison.interval
        typer.echo(
            f"  {str(run).ljust(width)}  loss {comparison.difference:+.5f} [{low:+.5f}, "
            f"{high:+.5f}]  gained {evolved.gained}, lost {evolved.lost}, p {evolved.mcnemar:.2g}"
        )
