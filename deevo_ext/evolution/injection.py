"""Soups as members: the population's average and its greedy soup join it before it evolves.

Evolution then begins where soups end, and its strategies can draw them as parents and as best.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deevo_ext.data.labelled import LabelledImages
from deevo_ext.evolution import journal
from deevo_ext.evolution.course import candidates_of
from deevo_ext.fitness.evaluator import Evaluator
from deevo_ext.fitness.metrics import Metric
from deevo_ext.networks.engines.choose import ENGINES_FILE
from deevo_ext.population import Population

SOUPS = 2
"""How many members `inject_soups` may append: a population needs as many spare rows."""
UNIFORM, GREEDY = "uniform_soup", "greedy_soup"


@dataclass(frozen=True)
class Initial:
    """The initial candidates, found before a run began.

    found: the "validation" part of generation 0's record; forward_passes, seconds: what they cost.
    """

    found: dict[str, Any]
    forward_passes: int
    seconds: float


def inject_soups(
    population: Population, evaluator: Evaluator, validation: LabelledImages, metric: Metric
) -> Initial:
    """Appends the average of all members, and the greedy soup where it is neither that nor one.

    Scores are `metric` on the validation images, as the run's own initial candidates have them;
    the run takes the result over and does not score them again.
    """
    started, before = time.perf_counter(), evaluator.forward_passes
    everyone = list(range(population.size))
    found = candidates_of(
        population,
        everyone,
        lambda row, statistics: evaluator.score_by(row, validation, metric, statistics),
    )
    _append(population, found["soup"]["members"])
    passes = evaluator.forward_passes - before
    return Initial(found, passes, time.perf_counter() - started)


def inject_recorded(population: Population, run_dir: Path) -> bool:
    """Appends what the journal of `run_dir` says was appended; False where there is no journal."""
    path = run_dir / journal.FILE_NAME
    records = journal.read(path)[0] if path.exists() else []
    if not records:
        return False
    with journal.line_of(path, 1):
        for each in records[0]["population"].get("averages", []):
            population.append_average(each["name"], each["members"])
    return True


def prepare(
    population: Population,
    evaluator: Evaluator,
    validation: LabelledImages,
    metric: Metric,
    run_dir: Path | None,
) -> Initial | None:
    """Soups injected, from the run folder's journal if it holds one (then None)."""
    if run_dir is not None:
        if inject_recorded(population, run_dir):
            return None
        # The candidates' scores are the run's: with its engines, which its folder keeps.
        run_dir.mkdir(parents=True, exist_ok=True)
        evaluator.keep_engines(run_dir / ENGINES_FILE, resumed=False)
    return inject_soups(population, evaluator, validation, metric)


def _append(population: Population, greedy: list[int]) -> None:
    everyone = list(range(population.size))
    population.append_average(UNIFORM, everyone)
    if 1 < len(greedy) < len(everyone):
        population.append_average(GREEDY, greedy)
