"""Why: optimizers on one linear model, how far it holds, strategies, who gives what."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from pathlib import Path

from deevo_ext.text import markdown_table

from ..csv_files import Line, read
from ..recipes import TOGETHER
from ..variants import RECIPE
from .figures import save
from .weights import rates

PICTURE, HEAT_MAP = "evidence-virtual.png", "evidence-recipes.png"


def chapter(records: Path, docs: Path) -> list[str]:
    """The chapter's Markdown; it draws its pictures."""
    virtual, linear = read(records, "virtual"), read(records, "linearity")
    curves = [line for line in read(records, "curves") if line["variant"] == RECIPE]
    recipes = [line for line in read(records, "recipes") if line["variant"] == RECIPE]
    if not (virtual or linear or curves or recipes):
        return []
    parts = ["## Why", ""]
    if virtual:
        parts += [
            "### Optimizers on the linear model of a first round",
            "",
            _optimizers(virtual),
            "",
        ]
    if linear:
        parts += ["### What the linear model promises, and what comes", "", _linear(linear), ""]
    if curves:
        _curves(curves, docs / PICTURE)
        parts += [f"![Virtual evolution: diversity and success rates]({PICTURE})", ""]
    if recipes:
        _heat_map(recipes, docs / HEAT_MAP)
        parts += [f"![Coefficients of members in layers]({HEAT_MAP})", ""]
    return parts[:-1]


def _optimizers(virtual: list[Line]) -> str:
    """Medians over populations; shares of the best fitness gain that any optimizer found."""
    header = ("setting, metric", "optimizer", "n", "share of the best fitness", "after 30",
              "after 100 generations", "gain on its images", "on others, by their model",
              "of the real network, on validation images")  # fmt: skip
    lines = []
    for cell in _distinct((line["setting"], line["metric"]) for line in virtual):
        some = [line for line in virtual if (line["setting"], line["metric"]) == cell]
        best = {
            population: max(
                line["fitness_gain"] for line in some if line["population"] == population
            )
            for population in _distinct(line["population"] for line in some)
        }
        for name in _distinct(line["optimizer"] for line in some):
            ours = [line for line in some if line["optimizer"] == name]
            shares = []
            for key in ("fitness_gain", "fitness_gain_30", "fitness_gain_100"):
                values = [
                    line[key] / best[line["population"]] for line in ours if line[key] is not None
                ]
                shares.append(f"{statistics.median(values):.1%}" if values else "")
            gains = [
                f"{statistics.median(line[key] for line in ours):+.4f}"
                for key in ("metric_gain", "other_gain", "real_gain")
            ]
            lines.append((", ".join(cell), name, str(len(ours)), *shares, *gains))
    return markdown_table(header, lines)


def _linear(linear: list[Line]) -> str:
    """What real networks gain of what was promised, on the very images of the model."""
    header = ("setting", "step", "length", "norm", "n", "promised", "real", "real / promised",
              "median error")  # fmt: skip
    lines = []
    for cell in _distinct((line["setting"], line["step"], line["length"]) for line in linear):
        some = [line for line in linear if (line["setting"], line["step"], line["length"]) == cell]
        promised, real, norm = (
            statistics.median(line[key] for line in some) for key in ("predicted", "real", "norm")
        )
        error = statistics.median(abs(line["predicted"] - line["real"]) for line in some)
        share = f"{real / promised:.2f}" if cell[1] != "random" and abs(promised) > 0.002 else ""
        lines.append(
            (*cell[:2], f"{cell[2]:g}", f"{norm:.2f}", str(len(some)), f"{promised:+.4f}",
             f"{real:+.4f}", share, f"{error:.4f}")
        )  # fmt: skip
    return markdown_table(header, lines)


def _curves(curves: list[Line], path: Path) -> None:
    from matplotlib.figure import Figure

    settings = _distinct(line["setting"] for line in curves)
    figure = Figure(figsize=(4.5 * (1 + len(settings)), 3.6), layout="constrained")
    first, *others = figure.subplots(1, 1 + len(settings))
    for axis, setting in zip(others, settings, strict=True):
        ours = [line for line in curves if line["setting"] == setting]
        generations = sorted({line["generation"] for line in ours})
        each = [[line for line in ours if line["generation"] == at] for at in generations]
        first.semilogy(
            generations,
            [statistics.median(line["diversity"] for line in some) for some in each],
            label=setting,
        )
        for strategy, values in rates(each).items():
            axis.plot(generations, values, label=strategy)
        axis.set_title(f"success rates, {TOGETHER} generations: {setting}", fontsize="small")
        axis.set_ylim(0, 1)
        axis.legend(fontsize="x-small")
        axis.set_xlabel("virtual generation")
    first.set_title("distance between individuals, of the first's", fontsize="small")
    first.set_xlabel("virtual generation")
    first.legend(fontsize="x-small")
    save(figure, path)


def _heat_map(recipes: list[Line], path: Path) -> None:
    """Mean coefficients over populations, whose members have the same hyper-parameters."""
    from matplotlib.figure import Figure

    settings = _distinct(line["setting"] for line in recipes)
    figure = Figure(figsize=(5.5 * len(settings), 4), layout="constrained")
    for axis, setting in zip(
        figure.subplots(1, len(settings), squeeze=False)[0], settings, strict=True
    ):
        ours = [line for line in recipes if line["setting"] == setting]
        blocks = _distinct(line["block"] for line in ours)
        members = _distinct(line["member"] for line in ours)
        means = [
            [
                statistics.mean(
                    line["coefficient"]
                    for line in ours
                    if line["block"] == block and line["member"] == member
                )
                for member in members
            ]
            for block in blocks
        ]
        most = max(abs(value) for line in means for value in line)
        shown = axis.imshow(means, cmap="RdBu", vmin=-most, vmax=most, aspect="auto")
        axis.set_yticks(range(len(blocks)), blocks, fontsize="x-small")
        axis.set_xticks(range(len(members)), [m.removeprefix("member_") for m in members])
        axis.set_xlabel("member")
        axis.set_title(f"{setting}: mean coefficients", fontsize="small")
        figure.colorbar(shown, ax=axis)
    save(figure, path)


def _distinct(values: Iterable) -> list:
    return list(dict.fromkeys(values))
