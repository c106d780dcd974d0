"""`deevo compare`: the tables of finished runs."""

from pathlib import Path
from typing import Annotated

import typer


def compare(
    runs: Annotated[
        list[Path], typer.Argument(help="The folders of finished runs, or their files table.json.")
    ],
) -> None:
    """Show the tables of runs, and for several of them what each gained."""
    from deevo_ext.reports.card import TABLE
    from deevo_ext.runs.comparison import SOUP, Comparison
    from deevo_ext.text import text_table

    compared = []
    for run in runs:
        path = run / TABLE if run.is_dir() else run
        compared.append((run, Comparison.load(path)))
    for run, comparison in compared:
        typer.echo(f"{run}\n{comparison.format()}\n")
    if len(compared) < 2:
        return
    rows = []
    for run, comparison in compared:
        evolved = next(row for row in comparison.rows if row.returned)
        low, high = comparison.interval
        interval = f"[{low:+.5f}, {high:+.5f}]"
        changed = (str(evolved.gained), str(evolved.lost), f"{evolved.mcnemar:.2g}")
        rows.append((str(run), f"{comparison.difference:+.5f}", interval, *changed))
    header = ("run", "loss difference", "95 % interval", "gained", "lost", "p")
    typer.echo(f"The evolved networks against the {SOUP} of each:\n{text_table(header, rows)}")
