"""Presets "shade" and "l-shade" against minionpy's L-SHADE, on functions of CEC 2014 and 2022.

Both begin with the same populations, have L-SHADE's constants (NP = 18 D, an archive of 2.6 NP),
and are scored at float32 points, which is what rows hold. What is compared is the best error of a
run. minionpy is without its reduction where "shade" is. It reflects what leaves the bounds, where
ours goes half way to them; it takes ties, and ours does not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from scipy.stats import mannwhitneyu

import deevo_ext as deevo
from deevo_ext.ops.tables import Setting
from deevo_ext.search.configuration import Configuration
from deevo_ext.search.parameters import Parameters
from deevo_ext.search.presets import configure

from .csv_files import Line, Lines

DIMENSIONS = 10
BOUND = 100.0
MEMBERS = 18 * DIMENSIONS
ARCHIVE_RATE = 2.6
LEAST = 4

FUNCTIONS = (
    *((2014, number) for number in (1, 4, 6, 9, 10, 11, 12, 15, 17)),
    *((2022, number) for number in (1, 2, 4, 6, 8)),
)
# Where the reduction's clock and the archive matter most.
SWITCHED = ((2014, 12), (2022, 4), (2022, 6))

PRESETS = ("shade", "l-shade")
CAUSES = (
    "generations, whole archive",
    "evaluations, whole archive",
    "generations, shrinking archive",
)
"""L-SHADE with another clock of its reduction, or an archive that keeps its size."""
PEER, PEER_64 = "minionpy", "minionpy, float64"

Function = Callable[[np.ndarray], Sequence[float]]
"""Rows [n, D] float64 -> n values, the least of which is 0."""


class _Switched(Configuration):
    """L-SHADE's parameters with the archive's shrinking turned the other way."""

    def settings(self, weights: int = 0, genes: int = 0) -> torch.Tensor:
        settings = super().settings(weights, genes)
        settings[Setting.ARCHIVE_SHRINKS] = 1 - settings[Setting.ARCHIVE_SHRINKS]
        return settings


def configuration_of(program: str, evaluations: int) -> Configuration:
    """The configuration that a preset, or one of `CAUSES`, stands for."""
    options: Parameters = {
        "archive_size": round(ARCHIVE_RATE * MEMBERS),
        "lower": -BOUND,
        "upper": BOUND,
        "generations": evaluations,  # more than there will be
    }
    clock, _, archive = program.partition(", ")
    if program == "shade":
        return configure("shade", **options)
    if clock == "generations":  # that many spend the evaluations
        options["generations"] = 2 * (evaluations - MEMBERS) // (MEMBERS + LEAST)
        options["population_min"] = LEAST
        found = configure("shade", **options)
    else:
        options["evaluations"] = evaluations
        found = configure("l-shade", **options)
    if (clock, archive) in (("generations", "shrinking archive"), ("evaluations", "whole archive")):
        return _Switched(**{field.name: getattr(found, field.name) for field in fields(found)})
    return found


def least_of(
    function: Function, first: np.ndarray, configuration: Configuration, evaluations: int, seed: int
) -> float:
    """Evolves a first population float32 [NP, D]; returns the least value of all evaluations."""
    population = deevo.Population.from_rows(torch.from_numpy(first.copy()))
    de = deevo.DifferentialEvolution(population, configuration, seed=seed)
    dimensions = first.shape[1]  # rows end with a pad

    def tell(trials: Any) -> None:
        fitness = torch.full((population.size,), torch.inf, dtype=torch.float64)
        rows = trials.rows(trials.members)[:, :dimensions].double().numpy()
        fitness[trials.members] = torch.tensor(function(rows), dtype=torch.float64)
        de.tell(fitness)

    tell(de.ask())
    spent = population.size
    while de.generation < configuration.generations:
        trials = de.ask()
        spent += trials.members.numel()
        if spent > evaluations:
            break
        tell(trials)
    return float(de.fitness.min())


def least_of_peer(
    function: Function, first: np.ndarray, reduced: bool, evaluations: int, seed: int
) -> float:
    """minionpy's L-SHADE from the same population, with the same constants."""
    import minionpy

    options = {
        "population_size": len(first),
        "minimum_population_size": LEAST if reduced else len(first),
        "archive_size_ratio": ARCHIVE_RATE,
        "memory_size": 6,
        "bound_strategy": "reflect",
        **{"x_tol": -1.0, "f_tol": -1.0},  # no end before the evaluations'
    }
    bounds = [(-BOUND, BOUND)] * first.shape[1]
    found = minionpy.LSHADE(
        function, bounds, first.tolist(), evaluations, seed=seed, options=options
    ).optimize()
    return float(found.fun)


def measure(year: int, number: int, runs: int, evaluations: int) -> Lines:
    """Runs everybody on a function; returns its lines of `functions.csv`."""
    import minionpy

    made = {2014: minionpy.CEC2014Functions, 2022: minionpy.CEC2022Functions}[year](
        number, DIMENSIONS
    )

    def precise(rows: Any) -> list[float]:
        return (np.asarray(made(np.asarray(rows))) - made.f_opt).tolist()

    def rounded(rows: Any) -> list[float]:
        return precise(np.asarray(rows, dtype=np.float32).astype(np.float64))

    def first(seed: int) -> np.ndarray:
        generator = np.random.Generator(np.random.PCG64(seed))
        return generator.uniform(-BOUND, BOUND, (MEMBERS, DIMENSIONS)).astype(np.float32)

    lines: list[Line] = []

    def add(preset: str, program: str, errors: list[float], peer: list[float] | None) -> None:
        lines.append(
            {
                **{"year": year, "function": number, "preset": preset, "program": program},
                **{"evaluations": evaluations, "runs": runs},
                "median": float(f"{np.median(errors):.6g}"),
                "mean": float(f"{np.mean(errors):.6g}"),
                "standard_error": float(f"{np.std(errors, ddof=1) / runs**0.5:.4g}"),
                "p": None if peer is None else float(f"{rank_sum(errors, peer):.4g}"),
            }
        )

    for preset in PRESETS:
        reduced = preset == "l-shade"
        peer = [least_of_peer(rounded, first(s), reduced, evaluations, s) for s in range(runs)]
        add(preset, PEER, peer, None)
        switched = CAUSES if reduced and (year, number) in SWITCHED else ()
        for program in (preset, *switched):
            c = configuration_of(program, evaluations)
            errors = [least_of(rounded, first(s), c, evaluations, s) for s in range(runs)]
            add(preset, program, errors, peer)
    precisely = [least_of_peer(precise, first(s), True, evaluations, s) for s in range(runs)]
    add("l-shade", PEER_64, precisely, None)
    return {"functions": lines}


def rank_sum(errors: Sequence[float], others: Sequence[float]) -> float:
    """The two-sided p of the rank-sum test; 1 where all errors are one number."""
    if len({*errors, *others}) == 1:
        return 1.0
    return float(mannwhitneyu(errors, others).pvalue)


def table(lines: Sequence[Line]) -> str:
    """The records as tables in Markdown: presets beside their peer, then the two causes."""
    by_key = {(x["year"], x["function"], x["preset"], x["program"]): x for x in lines}
    functions = sorted({(x["year"], x["function"]) for x in lines})

    def row(key: tuple[Any, ...], cells: Sequence[str]) -> str:
        return f"| {key[0]} f{key[1]} | {' | '.join(cells)} |"

    head = [f"{preset}: {what}" for preset in PRESETS for what in ("ours", PEER, "p")]
    text = [f"| function | {' | '.join([*head, PEER_64])} |", "|---" * (len(head) + 2) + "|"]
    for key in functions:
        cells = []
        for preset in PRESETS:
            ours = by_key[*key, preset, preset]
            cells += [_errors(ours), _errors(by_key[*key, preset, PEER]), f"{ours['p']:.2g}"]
        text.append(row(key, [*cells, _errors(by_key[*key, "l-shade", PEER_64])]))
    whole = (*CAUSES, "l-shade", PEER)
    text += ["", f"| function | {' | '.join(whole)} |", "|---" * (len(whole) + 1) + "|"]
    for key in functions:
        if key in SWITCHED:
            text.append(row(key, [_errors(by_key[*key, "l-shade", name]) for name in whole]))
    return "\n".join(text)


def _errors(line: Line) -> str:
    return f"{line['median']:.3g} ({line['mean']:.3g} ± {line['standard_error']:.2g})"
