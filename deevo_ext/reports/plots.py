"""A picture of a run: fitness, success rate per strategy and diversity over generations."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

from deevo_ext.extras import import_extra
from deevo_ext.files import write_whole

WINDOW = 10  # generations that a plotted success rate sums over


def success_rates(history: Sequence[dict[str, float]], strategy: str) -> list[float]:
    """Returns a strategy's successes per trial over the last WINDOW generations, else NaN."""
    rates = []
    for end in range(1, len(history) + 1):
        window = history[max(0, end - WINDOW) : end]
        trials = sum(metrics[f"strategy/{strategy}/trials"] for metrics in window)
        wins = sum(metrics[f"strategy/{strategy}/successes"] for metrics in window)
        rates.append(wins / trials if trials else math.nan)
    return rates


def plot_run(history: Sequence[dict[str, float]], strategies: Sequence[str], path: Path) -> None:
    """Writes the picture as PNG; raises DeevoError if matplotlib is missing."""
    figure_module = import_extra("matplotlib.figure", "plots")
    generations = [metrics["generation"] for metrics in history]
    figure = figure_module.Figure(figsize=(8, 9), layout="constrained")
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

    for strategy in strategies:
        middle.plot(generations, success_rates(history, strategy), label=strategy)
    middle.set_ylabel(f"success rate, {WINDOW} generations")
    middle.set_ylim(0, None)
    middle.legend(fontsize="small", ncols=3)

    bottom.plot(generations, [m["diversity"] for m in history], color="black")
    bottom.set_ylabel("RMS distance between members")
    bottom.set_ylim(0, None)
    bottom.set_xlabel("generation")
    bottom.xaxis.get_major_locator().set_params(integer=True)

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    write_whole(path, buffer.getvalue())
