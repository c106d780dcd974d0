"""What a search of coefficients leaves in its run folder: who gives what, and how steps evolved."""

from __future__ import annotations

from pathlib import Path

import yaml

from deevo_ext.runs import virtual_files
from deevo_ext.runs.recipe_run import RECIPE_FILE

from .csv_files import Line

TOGETHER = 10
"""Virtual generations that one line of `curves.csv` sums up."""


def coefficients(folder: Path) -> list[Line]:
    """The lines of `recipes.csv`: what each member gives to each block of what was returned."""
    recipe = yaml.safe_load((folder / RECIPE_FILE).read_text())
    return [
        {"block": block["name"], "member": member, "coefficient": float(f"{value:.6g}")}
        for block in recipe["blocks"]
        for member, value in block["coefficients"].items()
    ]


def generations(folder: Path, rounds: int) -> list[Line]:
    """The lines of `curves.csv`: trials and successes of all virtual evolutions of a run.

    diversity: the mean over evolutions of what it was relative to the first generation.
    """
    lines: dict[int, Line] = {}
    evolutions = 0
    for number in range(1, rounds + 1):
        first = 0.0
        for each in virtual_files.read(folder, number):
            generation = int(each["generation"])
            if generation == 1:
                first = each["diversity"]
                evolutions += 1
            at = -(-generation // TOGETHER) * TOGETHER
            line = lines.setdefault(at, {"generation": at, "diversity": 0.0})
            line["diversity"] += each["diversity"] / first / TOGETHER
            for key, value in each.items():
                kind, _, rest = key.partition("/")
                strategy, _, what = rest.rpartition("/")
                if kind == "strategy" and what in ("trials", "successes"):
                    called = f"{what} of {strategy}"
                    line[called] = line.get(called, 0) + int(value)
    for line in lines.values():
        line["diversity"] = float(f"{line['diversity'] / evolutions:.5g}")
    return [lines[at] for at in sorted(lines)]
