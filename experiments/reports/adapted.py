"""Labelled images of some kind: recipes, refits and training on the same labels."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

from deevo_ext.runs.contenders import ENSEMBLE
from deevo_ext.runs.state import SOUP
from deevo_ext.text import markdown_table

from ..adaptation import TRAINED, UNTOUCHED
from ..csv_files import Line, read
from ..kinds import SAME
from .figures import Run, better, counts, p_value, save
from .same import REFITTED

PICTURE = "evidence-other-images.png"
Cell = tuple[str, str, int, int]
"""Setting, kind, severity (0 for a kind that has none), labels."""
_SOME = 0.002  # gain in loss or top-1 of which a share says something
Pick = Callable[[Run], Line]
"""Which network of a run."""


def chapter(records: Path, docs: Path) -> list[str]:
    """The chapter's Markdown; it draws its picture."""
    names = ("adaptation", "digits", "pretrained")
    cells, digits, pretrained = (cells_of(records, name) for name in names)
    if not (cells or digits or pretrained):
        return []
    other = {cell: runs for cell, runs in cells.items() if cell[1] != SAME}
    same = {cell: runs for cell, runs in cells.items() if cell[1] == SAME}
    parts = ["## Few labels, of other images and of the same", ""]
    for title, some in (("Other images", other), ("The same images", same)):
        if some:
            parts += [f"### {title}", "", _gains(some), "", _costs(some), ""]
    if other:
        _plot(other, docs / PICTURE)
        parts += [f"![Gains on other images]({PICTURE})", ""]
    if digits:
        parts += ["### Digits of another source", "", _gains(digits), "", _costs(digits), ""]
    if pretrained:
        parts += ["### A pretrained network", "", _gains(pretrained), "", _costs(pretrained), ""]
        for cell, runs in pretrained.items():
            for population, (run,) in runs.items():
                parts += [f"{', '.join(_about(cell, runs)[:2])}, population {population}:", ""]
                parts += [_networks(run), ""]
    return parts[:-1]


def chosen(run: Run, among: Callable[[str], bool]) -> Line:
    """The network of least score among those that the labelled images have scored."""
    scored = [line for line in run.values() if line["score"] is not None and among(line["network"])]
    return min(scored, key=lambda line: line["score"])


def initial(run: Run) -> Line:
    """The best of what needs no evolution, by the labelled images."""
    return chosen(run, lambda name: not name.startswith("evolved"))


def evolved(run: Run) -> Line:
    """The best evolved network; where no step was taken, the best initial one."""
    if any(name.startswith("evolved") for name in run):
        return chosen(run, lambda name: name.startswith("evolved"))
    return initial(run)


def back(run: Run) -> Line:
    """What the run returned."""
    return next(line for line in run.values() if line["returned"])


def cells_of(records: Path, name: str) -> dict[Cell, dict[int, list[Run]]]:
    """By cell and population, the runs of all draws of labels."""
    cells: dict[Cell, dict[int, dict[int, Run]]] = {}
    for line in read(records, name):
        cell = (line["setting"], line["kind"], line.get("severity", 0), line["labels"])
        runs = cells.setdefault(cell, {}).setdefault(line["population"], {})
        runs.setdefault(line["draw"], {})[line["network"]] = line
    return {
        cell: {population: list(runs.values()) for population, runs in some.items()}
        for cell, some in sorted(cells.items())
    }


def _of(runs: Mapping[Any, list[Run]], figure: Callable[[Run], float]) -> list[float]:
    """A figure of each population, the mean over its draws."""
    return [statistics.mean(figure(run) for run in some) for some in runs.values()]


def _figure(pick: Pick, key: str) -> Callable[[Run], float]:
    return lambda run: pick(run)[key] or 0


def _difference(pick: Pick, other: Pick, key: str) -> Callable[[Run], float]:
    return lambda run: pick(run)[key] - other(run)[key]


def _points(pick: Pick, key: str) -> Callable[[Run], float]:
    """Points of a share, against the soup as it was."""
    return lambda run: 100 * (pick(run)[key] - run[UNTOUCHED][key])


def named(name: str) -> Pick:
    """The network of a name; the soup where a run has none."""
    return lambda run: run.get(name, run[SOUP])


def middle(runs: Mapping[Any, list[Run]], pick: Pick) -> str:
    """Medians of loss and points of top-1 against the soup, its statistics re-estimated."""
    loss = statistics.median(_of(runs, _difference(pick, named(SOUP), "loss")))
    points = statistics.median(100 * d for d in _of(runs, _difference(pick, named(SOUP), "top1")))
    return f"{loss:+.3f} / {points:+.1f}"


def _gains(cells: dict[Cell, dict[int, list[Run]]]) -> str:
    header = (*_HEADER, "soup untouched", "soup", REFITTED, ENSEMBLE, "evolved", "returned",
              TRAINED, "evolved - best initial", "better / equal / worse", "p",
              "returned - best initial", "better / equal / worse", "p")  # fmt: skip
    lines = []
    for cell, runs in cells.items():
        claims: list[str] = []
        for pick in (evolved, back):
            differences = _of(runs, _difference(pick, initial, "loss"))
            claims += [
                f"{statistics.median(differences):+.4f}",
                counts(differences),
                p_value(better(differences)),
            ]
        untouched, soup = (
            f"{statistics.median(_of(runs, _figure(pick, 'top1'))):.1%}"
            for pick in (itemgetter(UNTOUCHED), itemgetter(SOUP))
        )
        picks = (named(REFITTED), named(ENSEMBLE), evolved, back, named(TRAINED))
        lines.append(
            (*_about(cell, runs), untouched, soup, *(middle(runs, pick) for pick in picks),
             *claims)
        )  # fmt: skip
    return markdown_table(header, lines)


def _costs(cells: dict[Cell, dict[int, list[Run]]]) -> str:
    header = (*_HEADER, "evolved: share of Adam's gain in loss", "in top-1",
              "old images lost, points: soup", "returned", TRAINED, "passes: evolved", TRAINED,
              "CPU s: the run", TRAINED)  # fmt: skip
    lines = []
    for cell, runs in cells.items():
        shares = [
            f"{statistics.median(ours / other for ours, other in pairs):.0%}" if pairs else ""
            for key, sign in (("loss", -1), ("top1", 1))
            for pairs in [
                [
                    (ours, other)
                    for ours, other in zip(
                        *(
                            _of(runs, _difference(pick, named(SOUP), key))
                            for pick in (evolved, named(TRAINED))
                        ),
                        strict=True,
                    )
                    if sign * other > _SOME
                ]
            ]
        ]
        lost = [
            f"{statistics.median(_of(runs, _points(pick, 'old_top1'))):+.1f}"
            for pick in (named(SOUP), back, named(TRAINED))
        ]
        costs = [
            f"{statistics.median(_of(runs, _figure(pick, key))):,.0f}"
            for key, ours in (("forward_passes", evolved), ("seconds", back))
            for pick in (ours, named(TRAINED))
        ]
        lines.append((*_about(cell, runs), *shares, *lost, *costs))
    return markdown_table(header, lines)


def _networks(run: Run) -> str:
    """All networks of a run."""
    header = ("network", "loss", "top-1", "on old images", "score", "passes", "CPU s")
    lines = []
    for name, line in run.items():
        called = f"**{name}**" if line["returned"] else name
        old, score = line["old_top1"], line["score"]
        lines.append(
            (
                called,
                f"{line['loss']:.4f}",
                f"{line['top1']:.1%}",
                "" if old is None else f"{old:.1%}",
                "" if score is None else f"{score:.4f}",
                f"{line['forward_passes'] or 0:,}",
                "" if line["seconds"] is None else f"{line['seconds']:.0f}",
            )
        )
    return markdown_table(header, lines)


_HEADER = ("population", "images", "labels", "n")


def _about(cell: Cell, runs: dict[int, Any]) -> tuple[str, ...]:
    setting, kind, severity, labels = cell
    strengths = ("", ", mild", ", strong")
    called = kind if kind == SAME else kind + strengths[severity]
    return setting, called, f"{labels:,}", str(len(runs))


def _plot(cells: dict[Cell, dict[int, list[Run]]], path: Path) -> None:
    """Bars of points gained over the soup untouched, of those labels that most kinds have."""
    from matplotlib.figure import Figure

    groups = sorted(
        {(setting, severity) for setting, _, severity, labels in cells if labels == 500}
    )
    figure = Figure(figsize=(6 * max(1, len(groups)), 3.6), layout="constrained")
    if not groups:
        return
    ways: Sequence[tuple[str, Pick]] = (
        ("statistics, normalisation, soup anew", named(SOUP)),
        ("classifier refitted, too", named(REFITTED)),
        ("evolved", evolved),
        ("trained by Adam", named(TRAINED)),
    )
    for axis, (setting, severity) in zip(
        figure.subplots(1, len(groups), squeeze=False)[0], groups, strict=True
    ):
        some = {
            c[1]: runs
            for c, runs in cells.items()
            if (c[0], c[2], c[3]) == (setting, severity, 500)
        }
        for i, (label, pick) in enumerate(ways):
            heights = [
                statistics.median(_of(runs, _points(pick, "top1"))) for runs in some.values()
            ]
            axis.bar([x + 0.2 * i for x in range(len(some))], heights, 0.2, label=label)
        axis.set_xticks([x + 0.3 for x in range(len(some))], list(some))
        axis.set_ylabel("points gained over the soup untouched")
        axis.set_title(f"{setting}, 500 labels, {('mild', 'strong')[severity - 1]}")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside upper center", ncols=len(ways))
    save(figure, path)
