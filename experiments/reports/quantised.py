"""Networks of 4 bits: what quantisation lost, and who takes how much of it back."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path

from deevo_ext.text import markdown_table

from ..csv_files import Line, read
from ..quantised import AWARE, EIGHT_BITS, FLOAT, QUANTISED, TRAINED
from .adapted import back, initial
from .figures import Run, better, counts, p_value

_OURS = "evolved as it runs"
Case = dict[str | None, Run]
"""The networks of one population by the run that made them, and there by name."""

WAYS: dict[str, Callable[[Case], Line]] = {
    "soup, weights of 8 bits": lambda case: case[None][EIGHT_BITS],
    "best without evolution, quantised": lambda case: initial(case[FLOAT]),
    "best without evolution, chosen quantised": lambda case: initial(case[QUANTISED]),
    "evolved in float32, quantised": lambda case: back(case[FLOAT]),
    _OURS: lambda case: back(case[QUANTISED]),
    f"{TRAINED}, quantised": lambda case: case[None][TRAINED],
    AWARE: lambda case: case[None][AWARE],
}


def chapter(records: Path, docs: Path) -> list[str]:
    """The chapter's Markdown."""
    settings: dict[str, dict[int, Case]] = {}
    for line in read(records, "quantised"):
        case = settings.setdefault(line["setting"], {}).setdefault(line["population"], {})
        case.setdefault(line["search"], {})[line["network"]] = line
    if not settings:
        return []
    parts = ["## Quantised networks", "",
             "Weights of 4 bits, one scale a tensor, 1,000 labels; medians on test images. Taken "
             "back: of what the best network without evolution lost. Evolved: what runs returned.",
             ""]  # fmt: skip
    for setting, cases in sorted(settings.items()):
        parts += [f"### {setting}", "", _middles(list(cases.values())), "", _each(cases), ""]
    return parts[:-1]


def _middles(cases: list[Case]) -> str:
    header = ("network", "n", "loss", "top-1", "taken back", f"{_OURS}: less than its loss",
              "better / equal / worse", "p", "CPU s")  # fmt: skip
    exact = [initial(case[FLOAT]) for case in cases]
    lines = [("best without evolution, float32", str(len(cases)), *_loss(exact, "float_"),
              "", "", "", "", "")]  # fmt: skip
    before = WAYS["best without evolution, quantised"]
    for name, pick in WAYS.items():
        found = [pick(case) for case in cases]
        shares = [
            (before(case)["loss"] - line["loss"]) / lost
            for case, line, whole in zip(cases, found, exact, strict=True)
            if (lost := before(case)["loss"] - whole["float_loss"]) > 0
        ]
        differences = [
            WAYS[_OURS](case)["loss"] - line["loss"]
            for case, line in zip(cases, found, strict=True)
        ]
        costs = name.startswith(("evolved", TRAINED))
        seconds = [line["seconds"] for line in found if costs]
        lines.append(
            (
                name,
                str(len(cases)),
                *_loss(found),
                f"{statistics.median(shares):.0%}" if shares else "",
                *(
                    ("", "", "")
                    if name == _OURS
                    else (
                        f"{statistics.median(differences):+.4f}",
                        counts(differences),
                        p_value(better(differences)),
                    )
                ),
                f"{statistics.median(seconds):.0f}" if seconds else "",
            )
        )
    return markdown_table(header, lines)


def _loss(lines: list[Line], prefix: str = "") -> tuple[str, str]:
    loss, top1 = (statistics.median(one[prefix + key] for one in lines) for key in ("loss", "top1"))
    return f"{loss:.4f}", f"{top1:.1%}"


def _each(cases: dict[int, Case]) -> str:
    """Every population's losses; what the quantised run returned is named."""
    header = ("population", "float32", *list(WAYS)[1:], "which is")
    lines = [
        (
            str(population),
            f"{initial(case[FLOAT])['float_loss']:.4f}",
            *(f"{pick(case)['loss']:.4f}" for pick in list(WAYS.values())[1:]),
            back(case[QUANTISED])["network"],
        )
        for population, case in sorted(cases.items())
    ]
    return markdown_table(header, lines)
