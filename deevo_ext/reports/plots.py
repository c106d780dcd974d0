"""Pictures of runs: generations, rounds, a recipe, and images that are predicted otherwise."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from deevo_ext.extras import import_extra
from deevo_ext.files import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WINDOW = 10  # generations that a plotted success rate sums over

# Inches: a line of a heat map, a number in it, a character of a name, and the longest map there is.
_LINE, _NUMBER, _CHARACTER, _LONGEST = 0.16, 0.34, 0.07, 24.0
_ROUNDS = 8  # rounds that are named below their virtual generations, at most
_COLUMNS, _LINES = 6, 5  # of images whose predictions changed
_DARK = 0.6  # share of the largest coefficient from which on its cell is dark


def success_rates(history: Sequence[Mapping[str, float]], strategy: str) -> list[float]:
    """Returns a strategy's successes per trial over the last WINDOW generations, else NaN."""
    rates = []
    for end in range(1, len(history) + 1):
        window = history[max(0, end - WINDOW) : end]
        trials = sum(metrics[f"strategy/{strategy}/trials"] for metrics in window)
        wins = sum(metrics[f"strategy/{strategy}/successes"] for metrics in window)
        rates.append(wins / trials if trials else math.nan)
    return rates


def plot_run(history: Sequence[dict[str, float]], strategies: Sequence[str], path: Path) -> Figure:
    """Draws fitness, success rate per strategy and diversity of a run over its generations.

    Writes the picture as PNG and returns the figure; raises DeevoError if matplotlib is missing.
    """
    generations = [metrics["generation"] for metrics in history]
    figure = _figure((8, 9))
    top, middle, bottom = figure.subplots(3, 1, sharex=True)

    top.plot(generations, [m["mean_fitness"] for m in history], label="fitness, mean of members")
    top.plot(generations, [m["best_fitness"] for m in history], label="fitness, best member")
    for kind in ("member", "mean", "soup"):
        key = f"validation/{kind}"
        points = [(m["generation"], m[key]) for m in history if not math.isnan(m[key])]
        if points:
            top.plot(*zip(*points, strict=True), "o-", markersize=3, label=f"validation, {kind}")
    top.set_ylabel("fitness, validation score")
    top.legend(fontsize="small")

    _draw_generations((middle, bottom), generations, [history], strategies)
    bottom.set_ylim(0, None)
    bottom.set_ylabel("RMS distance between members")
    bottom.set_xlabel("generation")
    return _written(figure, path)


def plot_rounds(
    rounds: Sequence[Mapping[str, Any]],
    baselines: Mapping[str, float],
    strategies: Sequence[str],
    path: Path,
) -> Figure:
    """Draws what rounds of a search for coefficients gained, and their virtual generations.

    rounds: of each its number ("round"), the run's passes at its end ("forward_passes"), the
    validation score of its network ("validation"), and "virtual": for each of its virtual
    evolutions the metrics of the generations, as `plot_run` takes them, or none for the network at
    the start. baselines: validation scores of other networks by their names, the initial and the
    treated ones, drawn as lines across. Success rates per strategy and the diversity run over the
    virtual generations of all rounds, end to end.

    Writes the picture as PNG and returns the figure; raises DeevoError if matplotlib is missing.
    """
    figure = _figure((8, 9))
    top, middle, bottom = figure.subplots(3, 1)
    middle.sharex(bottom)
    middle.tick_params(labelbottom=False)

    passes = [r["forward_passes"] for r in rounds]
    scores = [r["validation"] for r in rounds]
    top.plot(passes, scores, "o-", color="black", label="evolved, by round")
    for r, x, y in zip(rounds, passes, scores, strict=True):
        top.annotate(f"{r['round']}", (x, y), (0, 6), textcoords="offset points", ha="center")
    for number, (name, score) in enumerate(baselines.items()):
        top.axhline(score, color=f"C{number}", linestyle="--", label=f"{name}: {score:.4g}")
    top.set_xlim(0, None)
    top.margins(y=0.15)
    top.set_ylabel("validation score")
    top.set_xlabel("forward passes")
    top.locator_params(axis="x", nbins=6)
    top.xaxis.set_major_formatter("{x:,.0f}")
    figure.legend(
        *top.get_legend_handles_labels(), loc="outside upper center", fontsize="small", ncols=3
    )

    searched = [r for r in rounds if r["virtual"]]
    lengths = [sum(map(len, r["virtual"])) for r in searched]
    evolutions = [history for r in searched for history in r["virtual"]]
    _draw_generations((middle, bottom), range(1, 1 + sum(lengths)), evolutions, strategies)
    ends = [0, *itertools.accumulate(lengths)]
    for axes in (middle, bottom):
        for end in ends:
            axes.axvline(end + 0.5, color="grey", linewidth=0.5)
    every = max(1, math.ceil(len(searched) / _ROUNDS))
    for r, end in list(zip(searched, ends, strict=False))[::every]:
        where, label = (end + 0.5, 0.02), f" round {r['round']}"
        bottom.annotate(label, where, xycoords=("data", "axes fraction"), fontsize="small")
    if any(m["diversity"] > 0.0 for history in evolutions for m in history):
        bottom.set_yscale("log")  # it falls by orders of magnitude
    bottom.set_ylabel("RMS distance between individuals")
    bottom.set_xlabel("virtual generation, of all rounds")
    return _written(figure, path)


def plot_recipe(
    recipe: Tensor, blocks: Sequence[str], members: Sequence[str], path: Path
) -> Figure:
    """Draws a recipe's coefficients [blocks, members] as a heat map, white where they are 0.

    Cells have their coefficients in them. Where there are more blocks or members than a large
    picture has lines or columns, some are named, and cells are empty. Writes the picture as PNG
    and returns the figure; raises DeevoError if matplotlib is missing.
    """
    values = recipe.detach().to("cpu", torch.float64).numpy()
    height, every_block = _extent(len(blocks), _LINE)
    width, every_member = _extent(len(members), _NUMBER)
    below = _CHARACTER * max(map(len, members))
    beside = _CHARACTER * max(map(len, blocks))
    figure = _figure((beside + max(width, 2.0) + 1.3, below + max(height, 1.0) + 0.6))
    axes = figure.subplots()
    largest = float(abs(values).max()) or 1.0
    image = axes.imshow(
        values, cmap="RdBu_r", vmin=-largest, vmax=largest, aspect="auto", interpolation="nearest"
    )
    axes.set_yticks(range(0, len(blocks), every_block), list(blocks[::every_block]))
    axes.set_xticks(range(0, len(members), every_member), list(members[::every_member]))
    axes.tick_params(axis="x", rotation=90)
    axes.tick_params(length=0, labelsize=8)
    if every_block == every_member == 1:
        for b, row in enumerate(values):
            for m, value in enumerate(row):
                colour = "white" if abs(value) > _DARK * largest else "black"
                axes.text(m, b, _short(value), ha="center", va="center", fontsize=7, color=colour)
    figure.colorbar(image, ax=axes, label="coefficient", fraction=0.05, aspect=40)
    return _written(figure, path)


def plot_changes(
    images: Tensor,
    labels: Tensor,
    before: Tensor,
    after: Tensor,
    names: tuple[str, str],
    path: Path,
) -> Figure:
    """Draws images whose predicted class differs from one network to another, in grey.

    They are the first that do, up to 30: so mended and spoilt ones are as frequent as they are. A
    title says label and predictions, in green where the second network is right and in red where
    the first was. images: [N, C, H, W]; labels, before, after: int64 [N], of the classes; names: of
    the networks. Writes the picture as PNG and returns the figure; raises DeevoError if matplotlib
    is missing.
    """
    changed = (before != after).nonzero().flatten()
    mended, spoilt = (int((one[changed] == labels[changed]).sum()) for one in (after, before))
    shown = changed[: _COLUMNS * _LINES].tolist()
    lines = max(1, math.ceil(len(shown) / _COLUMNS))
    height, width = images.shape[2:]
    figure = _figure((8.0, lines * (8.0 / _COLUMNS * height / width + 0.3) + 0.5))
    figure.suptitle(
        f"{names[0]} \N{RIGHTWARDS ARROW} {names[1]}: of {len(labels):,} images {mended:,} mended, "
        f"{spoilt:,} spoilt, {len(changed) - mended - spoilt:,} wrong otherwise",
        fontsize=10,
    )
    panels = figure.subplots(lines, _COLUMNS, squeeze=False).flatten()
    for axes in panels:
        axes.axis("off")
    for axes, number in zip(panels, shown, strict=False):
        label, first, second = (int(classes[number]) for classes in (labels, before, after))
        colour = "tab:green" if second == label else "tab:red" if first == label else "black"
        axes.imshow(images[number].mean(dim=0).numpy(force=True), cmap="gray")
        title = f"{label}: {first} \N{RIGHTWARDS ARROW} {second}"
        axes.set_title(title, fontsize=9, color=colour)
    return _written(figure, path)


def _extent(count: int, inches: float) -> tuple[float, int]:
    """The length of so many lines or columns, and of how many one can be named."""
    length = min(count * inches, _LONGEST)
    return length, math.ceil(count * inches / length)


def _short(value: float) -> str:
    """A coefficient in at most five characters, without a zero before the point."""
    text = f"{value:.2f}" if abs(value) < 9.995 else f"{value:.0f}"
    text = text.replace("0.", ".", 1) if abs(value) < 0.995 else text
    return "0" if text in (".00", "-.00") else text


def _draw_generations(
    panels: tuple[Axes, Axes],
    numbers: Sequence[float],
    parts: Sequence[Sequence[Mapping[str, float]]],
    strategies: Sequence[str],
) -> None:
    """Success rates of strategies, and the diversity: of one evolution after the other."""
    rates, diversity = panels
    for strategy in strategies:
        values = [rate for part in parts for rate in success_rates(part, strategy)]
        rates.plot(numbers, values, label=strategy)
    rates.set_ylabel(f"success rate, {WINDOW} generations")
    rates.set_ylim(0, None)
    rates.legend(fontsize="small", ncols=3)
    diversity.plot(numbers, [m["diversity"] for part in parts for m in part], color="black")
    diversity.locator_params(axis="x", integer=True)


def _figure(size: tuple[float, float]) -> Figure:
    return import_extra("matplotlib.figure", "plots").Figure(figsize=size, layout="constrained")


def _written(figure: Figure, path: Path) -> Figure:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    write_whole(path, buffer.getvalue())
    return figure
