"""Metrics that have no gradient: both searches, training by the loss, and what needs neither."""

from __future__ import annotations

import statistics
from pathlib import Path

from deevo_ext.fitness.metrics import Metric
from deevo_ext.runs.state import SOUP
from deevo_ext.text import markdown_table

from ..csv_files import Line, read
from ..metrics import COOLED, METRICS, SEARCHES, TRAINED
from .figures import better, counts, p_value


def chapter(records: Path, docs: Path) -> list[str]:
    """The chapter's Markdown."""
    cells: dict[tuple[str, str, str], dict[int, list[Line]]] = {}
    for line in read(records, "metrics"):
        cell = (line["setting"], line["kind"], line["metric"])
        cells.setdefault(cell, {}).setdefault(line["population"], []).append(line)
    if not cells:
        return []
    header = ("population", "images", "metric", "n", SOUP, f"{SOUP}, {COOLED}",
              "initial, refitted or biases", "recipe returned", "weights returned", TRAINED,
              f"{TRAINED}, {COOLED}", "recipe better than refitted or biases / equal / worse", "p",
              "than weights / equal / worse", "p", "than trained / equal / worse", "p",
              "CPU s: recipe", "weights")  # fmt: skip
    lines = []
    order = list(METRICS)
    for (setting, kind, metric), runs in sorted(
        cells.items(), key=lambda cell: (*cell[0][:2], order.index(cell[0][2]))
    ):
        names = [(SEARCHES[0], SOUP), (None, f"{SOUP}, {COOLED}"),
                 (SEARCHES[0], "classifier refitted"), (SEARCHES[0], None), (SEARCHES[1], None),
                 (None, TRAINED), (None, f"{TRAINED}, {COOLED}")]  # fmt: skip
        found = [[_of(run, *name) for run in runs.values()] for name in names]
        sign = -1 if Metric.of(METRICS[metric]).higher_is_better else 1
        claims: list[str] = []
        for rival in (found[2], found[4], found[5]):
            differences = [
                sign * (ours["value"] - other["value"])
                for ours, other in zip(found[3], rival, strict=True)
                if ours and other
            ]
            claims += [counts(differences), p_value(better(differences))]
        seconds = [
            f"{statistics.median(one['seconds'] for one in some if one):.0f}" for some in found[3:5]
        ]
        lines.append(
            (setting, kind, metric, str(len(runs)), *(_median(some) for some in found),
             *claims, *seconds)
        )  # fmt: skip
    text = markdown_table(header, lines)
    return ["## Metrics without gradients", "", "Medians; in brackets the top-1.", "", text]


def _of(run: list[Line], search: str | None, network: str | None) -> Line | None:
    """A network's line; without a name what the search returned."""
    return next(
        (
            line
            for line in run
            if line["search"] == search
            and (line["returned"] if network is None else line["network"] == network)
        ),
        None,
    )


def _median(lines: list[Line | None]) -> str:
    known = [line for line in lines if line]
    if not known:
        return ""
    value, top1 = (statistics.median(one[key] for one in known) for key in ("value", "top1"))
    return f"{value:.4f} ({top1:.1%})"
