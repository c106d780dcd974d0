"""Tables of a run's progress: what strategies, validations and rounds came to."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from deevo_ext.runs.state import KINDS
from deevo_ext.search.configuration import Configuration
from deevo_ext.text import Lines, html_table

Metrics = Mapping[str, float]


class Table(NamedTuple):
    """The arguments of `text.markdown_table`; a notebook shows it as a table."""

    header: Sequence[str]
    lines: Lines
    align: str = "<>"
    bold: Container[int] = ()

    def align_of(self, column: int) -> str:
        """Returns the sign of a column."""
        return self.align[min(column, len(self.align) - 1)]

    def _repr_html_(self) -> str:
        return html_table(*self)


def strategies_table(configuration: Configuration, history: Sequence[Metrics]) -> Table:
    """Returns what each strategy did in generations, those of virtual evolutions too."""
    lines = []
    for strategy in configuration.strategies:
        key = f"strategy/{strategy.name}"
        trials, wins = (
            sum(metrics[f"{key}/{what}"] for metrics in history) for what in ("trials", "successes")
        )
        rate = f"{wins / trials:.0%}" if trials else "-"
        odds = f"{history[-1][f'{key}/odds']:.2f}" if history else "-"
        formula = f"{strategy.formula}, {strategy.crossover}"
        lines.append((strategy.name, formula, f"{trials:,.0f}", f"{wins:,.0f}", rate, odds))
    header = ("strategy", "formula, crossover", "trials", "successes", "rate", "last odds")
    return Table(header, lines, "<<>")


def members_table(
    names: Sequence[str], scores: Sequence[float], measure: str, recipe: Tensor | None
) -> Table:
    """Returns what each member comes to by itself on the validation images.

    measure: what the scores are of. recipe: coefficients [blocks, members], of which each member's
    mean is said, too.
    """
    means = None if recipe is None else recipe.double().mean(dim=0).tolist()
    lines = [
        (name, f"{score:.5f}", *(() if means is None else (f"{means[i]:.3f}",)))
        for i, (name, score) in enumerate(zip(names, scores, strict=True))
    ]
    more = () if means is None else ("mean coefficient",)
    return Table(("member", f"validation {measure}", *more), lines)


def validation_table(history: Sequence[Metrics]) -> Table:
    """Returns the validation scores of a search of weights."""
    scores = [
        (f"{m['generation']:.0f}", *(f"{m[f'validation/{kind}']:.5f}" for kind in KINDS))
        for m in history
        if not math.isnan(m["validation/soup"])
    ]
    return Table(("generation", *KINDS), scores, ">")


def rounds_table(history: Sequence[Metrics], initial_seconds: float) -> Table:
    """Returns the rounds of a search of coefficients; those whose step was taken are bold.

    Steps go along members, block by block, or along differences of members, channel by channel.
    """
    header = (
        *(
            "round",
            "along",
            "predicted gain",
            "gain",
            "standard error",
            "step",
            "by",
            "length",
            "radius",
        ),
        *("left out", "passes", "seconds", "validation score"),
    )
    lines, before = [], initial_seconds
    for m in history:
        lines.append(
            (
                f"{m['round']:.0f}",
                "channels" if m["by_channel"] else "blocks",
                _or_dash(m["predicted_gain"], ".5f"),
                f"{m['gain']:.5f}",
                f"{m['standard_error']:.5f}",
                "taken" if m["accepted"] else "none",
                "-" if math.isnan(m["by_de"]) else PROPOSERS[m["by_de"] > 0.0],
                _or_dash(m["length"], ".2g"),
                f"{m['radius']:.3g}",
                f"{m['left_out']:.0f}",
                f"{m['round_passes']:,.0f}",
                f"{m['seconds'] - before:.1f}",
                _or_dash(m["validation/recipe"], ".5f"),
            )
        )
        before = m["seconds"]
    taken = {i for i, m in enumerate(history) if m["accepted"]}
    return Table(header, lines, ">", taken)


PROPOSERS = ("convex fit", "differential evolution")
"""Who proposes steps, by the metric "by_de"."""


def steps_taken(history: Sequence[Metrics]) -> str:
    """Says how many rounds took a step, and who had proposed it."""
    by = [m["by_de"] > 0.0 for m in history if m["accepted"]]
    who = ", ".join(f"{by.count(de)} by the {PROPOSERS[de]}" for de in (False, True))
    return f"{len(history)}; steps taken: {len(by)}" + (f" ({who})" if by else "")


def _or_dash(value: float, form: str) -> str:
    return "-" if math.isnan(value) else format(value, form)
