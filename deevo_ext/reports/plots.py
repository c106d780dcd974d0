"""Pictures of runs: their generations, or their rounds."""

from __future__ import annotations

import io
import itertools
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deevo_ext.extras import import_extra
from deevo_ext.files import write_whole
from deevo_ext.fitness.metrics import METRICS, Metric, label_of
from deevo_ext.runs.state import INITIAL_NAMES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WINDOW = 10  # generations that a plotted success rate sums over

_WIDTH = 5.6  # inches, in which letters are still read where a telephone shows them
_LETTERS = 78  # of a legend that a line of this width has room for
_ROUNDS = 5  # rounds that are named below their virtual generations, at most


def success_rates(history: Sequence[Mapping[str, float]], strategy: str) -> list[float]:
    """Returns a strategy's successes per trial over the last WINDOW generations, else NaN."""
    rates = []
    for end in range(1, len(history) + 1):
        window = history[max(0, end - WINDOW) : end]
        trials = sum(metrics[f"strategy/{strategy}/trials"] for metrics in window)
        wins = sum(metrics[f"strategy/{strategy}/successes"] for metrics in window)
        rates.append(wins / trials if trials else math.nan)
    return rates


def axis_label(metric: Metric | None) -> str:
    """Returns what an axis says of a metric: name, unit, and which way is better; None: fitness."""
    if metric is None:
        return "fitness\nless is better"
    unit = {"loss": " (nats)"}.get(metric.name, " (share)" if metric.name in METRICS else "")
    way = "more" if metric.higher_is_better else "less"
    return f"{label_of(metric.name)}{unit}\n{way} is better"


def fitness_label(metric: Metric | None) -> str:
    """Returns what an axis says of the fitness, which is minimised: what it is made of."""
    if metric is None:
        return axis_label(None)
    name = label_of(metric.name)
    made = f"1 - {name}" if metric.higher_is_better else name
    return f"fitness: {made}\nless is better"


def plot_run(
    history: Sequence[Mapping[str, float]],
    baselines: Mapping[str, float],
    strategies: Sequence[str],
    measures: tuple[str, str],
    path: Path,
) -> Figure:
    """Draws validation scores, fitness, success rates and diversity of a run over generations.

    history: the metrics of generations 1, 2, ... baselines: validation scores of the initial and
    the treated networks by their names, drawn as lines across; those that evolved ones grow from
    are generation 0. Without any there is no validation to draw. measures: what the axes of
    validation and fitness say. Fitness is that of a batch of images: where the next one begins, at
    a dotted line, the members have been scored anew, and the curve with them.

    Writes the picture as PNG and returns the figure; raises DeevoError if matplotlib is missing.
    """
    generations = [metrics["generation"] for metrics in history]
    figure = new_figure((_WIDTH, 10 if baselines else 8))
    *tops, middle, bottom = figure.subplots(4 if baselines else 3, 1, sharex=True)
    if baselines:
        for kind, name in INITIAL_NAMES.items():
            key = f"validation/{kind}"
            points = [(m["generation"], m[key]) for m in history if not math.isnan(m[key])]
            if points:
                points = [(0.0, baselines[name]), *points]
                tops[0].plot(
                    *zip(*points, strict=True), "o-", markersize=3, label=f"evolved {kind}"
                )
        _draw_baselines(tops[0], baselines, len(INITIAL_NAMES))
        tops[0].set_ylabel(f"validation {measures[0]}")
        _draw_legend(figure, tops[0])

    changes = _draw_fitness(tops[-1], history)
    tops[-1].set_ylabel(measures[1])
    _draw_generations((middle, bottom), generations, [history], strategies)
    for axes in (*tops, middle, bottom):
        for change in changes:
            axes.axvline(change, color="grey", linewidth=0.5, linestyle=":")
    bottom.set_xlim(0, None)
    bottom.set_ylim(0, None)
    bottom.set_ylabel("RMS distance between members\n(in weights)")
    bottom.set_xlabel("generation")
    return written(figure, path)


def plot_rounds(
    rounds: Sequence[Mapping[str, Any]],
    baselines: Mapping[str, float],
    strategies: Sequence[str],
    measure: str,
    path: Path,
) -> Figure:
    """Draws what rounds of a search for coefficients gained, and their virtual generations.

    rounds: of each its number ("round"), the run's passes at its end ("forward_passes"), the
    validation score of its network ("validation"), and "virtual": for each of its virtual
    evolutions the metrics of the generations, as `plot_run` takes them, or none for the network at
    the start. baselines: validation scores of other networks by their names, the initial and the
    treated ones, drawn as lines across; measure: what their axis says. Success rates per strategy
    and the diversity run over the virtual generations of all rounds, end to end.

    Writes the picture as PNG and returns the figure; raises DeevoError if matplotlib is missing.
    """
    figure = new_figure((_WIDTH, 8.5))
    top, middle, bottom = figure.subplots(3, 1)
    middle.sharex(bottom)
    middle.tick_params(labelbottom=False)

    passes = [r["forward_passes"] for r in rounds]
    scores = [r["validation"] for r in rounds]
    top.plot(passes, scores, "o-", color="black", label="evolved, by round")
    for r, x, y in zip(rounds, passes, scores, strict=True):
        top.annotate(f"{r['round']}", (x, y), (0, 6), textcoords="offset points", ha="center")
    _draw_baselines(top, baselines, 0)
    top.set_xlim(0, None)
    top.margins(y=0.15)
    top.set_ylabel(f"validation {measure}")
    top.set_xlabel("forward passes (images put through a network)")
    top.locator_params(axis="x", nbins=6)
    top.xaxis.set_major_formatter("{x:,.0f}")
    _draw_legend(figure, top)

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
    bottom.set_ylabel("RMS distance between individuals\n(in coefficients)")
    bottom.set_xlabel("virtual generation, of all rounds")
    return written(figure, path)


def _draw_baselines(axes: Axes, baselines: Mapping[str, float], colours: int) -> None:
    """Draws validation scores as lines across, one for networks that are alike.

    colours: how many of the cycle's are taken already.
    """
    names: dict[float, list[str]] = {}
    for name, score in baselines.items():
        names.setdefault(score, []).append(name)
    for number, (score, alike) in enumerate(names.items(), colours):
        label = f"{', '.join(alike)}: {score:.4g}"
        axes.axhline(score, color=f"C{number % 10}", linestyle="--", linewidth=1, label=label)


def _draw_legend(figure: Figure, axes: Axes) -> None:
    """Draws the legend of axes above them, in two columns where the names are short enough."""
    handles, labels = axes.get_legend_handles_labels()
    labels = [textwrap.fill(label, _LETTERS) for label in labels]
    columns = 2 if max(map(len, labels)) <= _LETTERS // 2 - 4 else 1
    lines = sum(1 + label.count("\n") for label in labels) / columns
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + 0.17 * lines)
    figure.legend(handles, labels, loc="outside upper left", fontsize="small", ncols=columns)


def _draw_fitness(axes: Axes, history: Sequence[Mapping[str, float]]) -> list[float]:
    """Draws the members' fitness, batch by batch; returns after which generations one ended.

    A batch's curve begins with the parents that were scored on it, those of generation 0 first.
    """
    curves = {"mean": "fitness, mean of members", "best": "fitness, best member"}
    numbers, changes = list[float](), list[float]()
    values: dict[str, list[float]] = {name: [] for name in curves}
    for i, m in enumerate(history):
        if i == 0 or m["batch"] != history[i - 1]["batch"]:
            if i:
                changes.append(m["generation"] - 1)
            numbers += [math.nan, m["generation"] - 1]
            for name in curves:
                values[name] += [math.nan, m[f"{name}_parent_fitness"]]
        numbers.append(m["generation"])
        for name in curves:
            values[name].append(m[f"{name}_fitness"])
    for name, label in curves.items():
        axes.plot(numbers, values[name], label=label)
    handles, labels = axes.get_legend_handles_labels()
    if changes:
        mark = axes.axvline(changes[0], color="grey", linewidth=0.5, linestyle=":")
        handles, labels = [*handles, mark], [*labels, "new batch of images"]
    axes.legend(handles, labels, fontsize="small")
    return changes


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
    rates.set_ylabel(f"share of trials accepted,\n{WINDOW} generations")
    rates.set_ylim(0, None)
    rates.legend(fontsize="small", ncols=3)
    diversity.plot(numbers, [m["diversity"] for part in parts for m in part], color="black")
    diversity.locator_params(axis="x", integer=True)


def new_figure(size: tuple[float, float]) -> Figure:
    """Returns a figure of so many inches; raises DeevoError if matplotlib is missing."""
    return import_extra("matplotlib.figure", "plots").Figure(figsize=size, layout="constrained")


def written(figure: Figure, path: Path) -> Figure:
    """Writes a figure as PNG and returns it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160)
    write_whole(path, buffer.getvalue())
    return figure
