"""What the virtual evolutions of each round did, kept in the run folder as a CSV file a round."""

from __future__ import annotations

import csv
import itertools
import math
from collections.abc import Sequence
from pathlib import Path

from deevo_ext.errors import DeevoError
from deevo_ext.files import write_whole
from deevo_ext.runs.folder import VIRTUAL
from deevo_ext.search.virtual import Virtual
from deevo_ext.text import csv_table

Lines = list[dict[str, float]]
"""A round's virtual generations, one after the other; "evolution" counts the evolutions."""


def lines_of(evolutions: Sequence[Virtual]) -> Lines:
    """Returns the metrics of all generations of a round's virtual evolutions."""
    return [
        {"evolution": float(i), **line}
        for i, evolution in enumerate(evolutions)
        for line in evolution.history
    ]


def write(run_dir: Path, number: int, lines: Lines) -> None:
    """Writes a round's file, if it had any virtual generation."""
    if not lines:
        return
    try:
        (run_dir / VIRTUAL).mkdir(exist_ok=True)
    except OSError as error:
        raise DeevoError(
            f"{run_dir / VIRTUAL} cannot be a folder ({error}); mend that and start the run again "
            "with the same run folder"
        ) from error
    write_whole(_file(run_dir, number), csv_table(lines).encode())


def read(run_dir: Path, number: int, strategies: Sequence[str] = ()) -> Lines:
    """Reads a round's file; there is none where a round had no virtual generation.

    strategies: those of which it must tell. Raises DeevoError for a file that is not a round's.
    """
    path = _file(run_dir, number)
    if not path.exists():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = [{k: float(v) for k, v in line.items()} for line in csv.DictReader(file)]
        kept = itertools.product(strategies, ("trials", "successes", "odds"))
        columns = ["evolution", "diversity", *(f"strategy/{name}/{what}" for name, what in kept)]
        if lines and (missing := [column for column in columns if column not in lines[0]]):
            raise ValueError(f"it has no column {missing[0]!r}")
    except (OSError, ValueError, TypeError, AttributeError, csv.Error) as error:
        raise DeevoError(
            f"{path} is damaged ({error}); delete it, and the round's virtual generations are "
            "missing in reports"
        ) from error
    return lines


def summary(lines: Lines, strategies: Sequence[str]) -> dict[str, float]:
    """Returns what a round's virtual generations, if any, came to, by the names of metrics."""
    last = lines[-1] if lines else {}
    metrics = {"virtual/diversity": last.get("diversity", math.nan)}
    for name in strategies:
        key = f"strategy/{name}"
        trials = sum(line[f"{key}/trials"] for line in lines)
        wins = sum(line[f"{key}/successes"] for line in lines)
        metrics[f"virtual/{key}/success_rate"] = wins / trials if trials else math.nan
        metrics[f"virtual/{key}/odds"] = last.get(f"{key}/odds", math.nan)
    return metrics


def _file(run_dir: Path, number: int) -> Path:
    return run_dir / VIRTUAL / f"round_{number:03d}.csv"
