"""How many labels: what refits, recipes and training gain from few of them and from more."""

from __future__ import annotations

import statistics
from pathlib import Path

from deevo_ext.runs.state import SOUP
from deevo_ext.text import markdown_table

from ..adaptation import TRAINED
from ..kinds import SAME
from .adapted import Pick, back, cells_of, evolved, initial, middle, named
from .figures import Run, counts, save
from .same import REFITTED

PICTURE = "evidence-labels.png"
Drawn = dict[tuple[str, int], list[Run]]
"""Runs by kind and population."""
_WAYS: tuple[tuple[str, Pick], ...] = (
    ("classifier refitted", named(REFITTED)),
    ("evolved", evolved),
    ("returned", back),
    ("trained by Adam", named(TRAINED)),
)


def chapter(records: Path, docs: Path) -> list[str]:
    """The chapter's Markdown; it draws its picture.

    Runs on strong changes are put together over the kinds, those of the images trained on apart;
    of the kinds and populations that all numbers of labels have, and of the first draw of labels.
    """
    panels: dict[tuple[str, str], dict[int, Drawn]] = {}
    for (setting, kind, severity, labels), some in cells_of(records, "adaptation").items():
        if kind == SAME or severity == 2:
            panel = panels.setdefault((setting, SAME if kind == SAME else "other kinds"), {})
            panel.setdefault(labels, {}).update(
                {(kind, population): draws for population, draws in some.items()}
            )
    runs: dict[tuple[str, str, int], Drawn] = {}
    for key, panel in panels.items():
        common = sorted(set.intersection(*map(set, panel.values())))
        if common and len(panel) > 1:
            for labels, draws_of in panel.items():
                runs[*key, labels] = {one: draws_of[one][:1] for one in common}
    if not runs:
        return []
    header = ("population", "images", "labels", "runs", *(name for name, _ in _WAYS),
              "evolved - best initial: better / equal / worse",
              "returned - best initial: better / equal / worse", "the worst",
              "Adam - returned: better / equal / worse")  # fmt: skip
    lines = []
    for (setting, what, labels), drawn in sorted(runs.items()):
        found = [run for (run,) in drawn.values()]
        returned = [back(run)["loss"] - initial(run)["loss"] for run in found]
        lines.append(
            (
                setting,
                what,
                f"{labels:,}",
                str(len(found)),
                *(middle(drawn, pick) for _, pick in _WAYS),
                counts(evolved(run)["loss"] - initial(run)["loss"] for run in found),
                counts(returned),
                f"{max(returned):+.4f}",
                counts(run[TRAINED]["loss"] - back(run)["loss"] for run in found),
            )
        )
    _plot(runs, docs / PICTURE)
    return ["## How many labels", "", markdown_table(header, lines), "",
            f"![Loss by labels]({PICTURE})"]  # fmt: skip


def _plot(runs: dict[tuple[str, str, int], Drawn], path: Path) -> None:
    """Lines of the median loss against the soup's."""
    from matplotlib.figure import Figure

    panels = sorted({key[:2] for key in runs}, key=lambda panel: (panel[1] == SAME, panel[0]))
    figure = Figure(figsize=(3.2 * len(panels), 3.2), layout="constrained")
    for axis, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        some = {key[2]: found for key, found in runs.items() if key[:2] == panel}
        for label, pick in _WAYS:
            medians = [
                statistics.median(
                    pick(run)["loss"] - run[SOUP]["loss"] for (run,) in found.values()
                )
                for found in some.values()
            ]
            axis.plot(list(some), medians, marker="o", markersize=3, label=label)
        axis.set_xscale("log")
        axis.set_xticks(list(some), [str(labels) for labels in some])
        axis.minorticks_off()
        axis.set_title(", ".join(panel), fontsize=10)
        axis.set_xlabel("labels")
    figure.axes[0].set_ylabel("test loss against the soup")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    save(figure, path)
