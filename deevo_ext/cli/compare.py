"""`deevo compare`: the tables of finished runs."""

from pathlib import Path
from typing import Annotated

import typer

from deevo_ext.reports.card import TABLE
from deevo_ext.runs.comparison import Comparison
from deevo_ext.text import text_table


def compare(
    runs: Annotated[
        list[Path], typer.Argument(help="The folders of finished runs, or their files table.json.")
    ],
) -> None:
    """Show the tables of runs, and for several of them what each gained."""
    compared = []
    for run in runs:
        path = run / TABLE if run.is_dir() else run
        compared.append((run, Comparison.load(path)))
    for run, comparison in compared:
        typer.echo(f"{run}\n{comparison.format()}\n")
    if len(compared) < 2:
        return
    lines = []
    for run, comparison in compared:
        rival, parent = comparison.rival, comparison.parent
        if rival is None:
            figures = ("nothing was evolved", "-", "-", "-")
        else:
            low, high = rival.interval
            interval = f"[{low:+.5f}, {high:+.5f}]"
            figures = (rival.name, f"{rival.mean:+.5f}", interval, f"{parent.mean:+.5f}")
        lines.append((str(run), comparison.metric, *figures))
    header = ("run", "metric", "best initial network", "difference", "95 % interval", "to parent")
    typer.echo(
        "The best evolved network of each against the best initial one, both by validation:\n"
        f"{text_table(header, lines)}"
    )
