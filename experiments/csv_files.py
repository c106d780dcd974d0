"""What runs gave: CSV files under git, read whole and written whole or not at all.

`records/<setting>.csv` has a line for each network of each run, `curves.csv` one for each
generation of the runs that the plots show, `rounds.csv` one for each round of the searches of
coefficients, `adaptation.csv`, `pretrained.csv` and `digits.csv` one for each network on labelled
images of a kind, `racing.csv` and `policies.csv` one for each measurement of these experiments.
Numbers are written so that reading them gives the same numbers again; a cell without a value is
empty.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from deevo_ext.files import write_whole

Line = dict[str, Any]
Lines = dict[str, list[Line]]
"""Lines of one run, by the name of the file that they belong to."""

_ADAPTED = ("setting", "population", "kind", "severity", "labels", "draw")
_KEYS = {
    "adaptation": _ADAPTED,
    "digits": ("setting", "population", "kind", "labels", "draw"),
    "pretrained": _ADAPTED,
    "curves": ("setting", "variant", "population"),
    "functions": ("year", "function", "evaluations"),
    "linearity": ("setting", "population"),
    "metrics": ("setting", "population", "kind", "metric"),
    "policies": ("setting", "population", "policy"),
    "quantised": ("setting", "population"),
    "recipes": ("setting", "variant", "population"),
    "rounds": ("setting", "variant", "population"),
    "virtual": ("setting", "population"),
    "racing": ("setting", "population", "strategies", "generations", "micro_batch", "error"),
}
_OF_A_SETTING = ("variant", "population")


def read(folder: Path, name: str) -> list[Line]:
    """Reads the lines of a file: numbers as numbers, an empty cell as None.

    A file that does not exist has no lines.
    """
    path = folder / f"{name}.csv"
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [{k: _value(text) for k, text in line.items()} for line in csv.DictReader(file)]


def save(folder: Path, lines: Lines) -> None:
    """Writes the lines of a run into their files, in place of those of an older run like it.

    A file shows the old lines or the new ones, whatever interrupts. Only one process may write.
    """
    for name, added in lines.items():
        new = {key_of(name, line) for line in added}
        kept = [line for line in read(folder, name) if key_of(name, line) not in new]
        every = sorted([*kept, *added], key=lambda line: key_of(name, line))  # stable within a run
        text = io.StringIO()
        columns = list(dict.fromkeys(column for line in [*kept, *added] for column in line))
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(every)
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / f"{name}.csv", text.getvalue().encode())


def key_of(name: str, line: Line) -> tuple[Any, ...]:
    """Names the run that a line of the file `name` belongs to."""
    return tuple(line[column] for column in _KEYS.get(name, _OF_A_SETTING))


def _value(text: str) -> str | int | float | None:
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text or None
