"""`deevo compare`: the tables of finished runs."""

from pathlib import Path
from typing import Annotated

import typer

from deevo_ext.reports.card import TABLE
from deevo_ext.runs.comparison import SOUP, Comparison
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
        evolved = next(network for network in comparison.networks if network.returned)
        low, high = comparison.interval
        interval = f"[{low:+.5f}, {high:+.5f}]"
        changed = (str(evolved.gained), str(evolved.lost), f"{evolved.mcnemar:.2g}")
        lines.append((str(run), f"{comparison.difference:+.5f}", interval, *changed))
    header = ("run", "loss difference", "95 % interval", "gained", "lost", "p")
    typer.echo(f"The evolved networks against the {SOUP} of each:\n{text_table(header, lines)}")
