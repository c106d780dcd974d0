"""`deevo compare`: the tables of finished runs."""

import logging
from pathlib import Path
from typing import Annotated, Any

import typer

from deevo_ext.reports.card import TABLE
from deevo_ext.runs.comparison import Comparison
from deevo_ext.text import text_table

log = logging.getLogger("deevo_ext")


def compare(
    runs: Annotated[
        list[Path], typer.Argument(help="The folders of finished runs, or their files table.json.")
    ],
) -> dict[str, Any]:
    """Show the tables of runs, and for several of them what each gained."""
    compared = []
    for run in runs:
        path = run / TABLE if run.is_dir() else run
        compared.append((run, Comparison.load(path)))
    for run, comparison in compared:
        log.info("%s\n%s\n", run, comparison.format())
    result = {"runs": [{"run": run, **comparison.to_json()} for run, comparison in compared]}
    if len(compared) < 2:
        return result
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
    log.info(
        "The best evolved network of each against the best initial one, both by validation:\n%s",
        text_table(header, lines),
    )
    return result
