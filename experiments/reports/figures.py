"""What all chapters of the report share: reading runs, tests, medians, pictures."""

from __future__ import annotations

import io
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from scipy.stats import wilcoxon

from deevo_ext.files import write_whole

from ..csv_files import Line, read

Run = dict[str, Line]
"""The networks of one run by name."""
Runs = dict[int, Run]
"""The runs of one variant by population."""


def load(records: Path, setting: str) -> dict[str, Runs]:
    """The runs of a setting by variant, peer or bound."""
    variants: dict[str, Runs] = {}
    for line in read(records, setting):
        run = variants.setdefault(line["variant"], {}).setdefault(line["population"], {})
        run[line["network"]] = line
    return variants


def evolved(run: Run) -> Line:
    """The network that counts: of evolution, the evolved candidate that validation chose."""
    return next(line for line in run.values() if line["returned"])


def better(differences: Sequence[float], alternative: str = "less") -> float | None:
    """p of the paired Wilcoxon test, one-sided: that differences lie below 0; None if untestable.

    alternative: scipy's; "two-sided" asks whether they lie on either side.
    """
    if len(differences) < 5 or not any(differences):
        return None
    return float(wilcoxon(differences, alternative=alternative).pvalue)


def counts(differences: Iterable[float]) -> str:
    """How many are below 0, equal and above."""
    signs = [(d > 0) - (d < 0) for d in differences]
    return " / ".join(str(signs.count(sign)) for sign in (-1, 0, 1))


def beyond(network: Line | None, soup: Line) -> str:
    """Test loss and top-1, in points, less the soup's; nothing for a network that there is not."""
    if network is None:
        return ""
    points = 100 * (network["top1"] - soup["top1"])
    return f"{network['loss'] - soup['loss']:+.4f} / {points:+.2f}"


def middle_beyond(pairs: Sequence[tuple[Line, Line]]) -> str:
    """Medians of what `beyond` says of pairs of a network and its soup."""
    if not pairs:
        return ""
    loss = statistics.median(one["loss"] - soup["loss"] for one, soup in pairs)
    points = statistics.median(100 * (one["top1"] - soup["top1"]) for one, soup in pairs)
    return f"{loss:+.4f} / {points:+.2f}"


def median(lines: Iterable[Line], key: str) -> float:
    """The median of a column."""
    return float(statistics.median(line[key] for line in lines))


def p_value(value: float | None) -> str:
    """A p as text; nothing where there is none."""
    return "" if value is None else f"{value:.4f}" if value >= 0.0001 else "< 0.0001"


def save(figure: Any, path: Path) -> None:
    """Writes a picture, without the date or the version of what drew it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90, metadata={"Software": None})
    write_whole(path, buffer.getvalue())
