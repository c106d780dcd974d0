"""Soups as members: the population's average and its greedy soup join it before it evolves.

Evolution then begins where soups end, and its strategies can draw them as parents and as best.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from deevo_ext.data.labelled import LabelledImages
from deevo_ext.evolution.course import candidates_of
from deevo_ext.evolution.journal import Recording, ValidationRecord, line_of
from deevo_ext.inference.choose import ENGINES_FILE
from deevo_ext.inference.evaluator import Evaluator
from deevo_ext.inference.metrics import Metric
from deevo_ext.population import Population

SOUPS = 2
"""How many members `inject_soups` may append: a population needs as many spare rows."""
UNIFORM, GREEDY = "uniform_soup", "greedy_soup"


@dataclass(frozen=True)
class Initial:
    """The initial candidates, found before a run began.

    validation: what the journal keeps of them; forward_passes, seconds: what they cost.
    """

    validation: ValidationRecord
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
    validated = candidates_of(
        population,
        everyone,
        lambda row, statistics: evaluator.score_by(row, validation, metric, statistics),
    )
    _append(population, validated.soup.members)
    passes = evaluator.forward_passes - before
    return Initial(validated, passes, time.perf_counter() - started)


def inject_recorded(population: Population, recording: Recording) -> None:
    """Appends what a run's journal says was appended."""
    assert recording.header is not None
    with line_of(recording.path, 1):
        for each in recording.header.population.get("averages", []):
            population.append_average(each["name"], each["members"])


def prepare(
    population: Population,
    evaluator: Evaluator,
    validation: LabelledImages,
    metric: Metric,
    run_dir: Path | None,
) -> Initial:
    """Soups injected into the population of a run that begins."""
    if run_dir is not None:
        # The candidates' scores are the run's: with its engines, which its folder keeps.
        run_dir.mkdir(parents=True, exist_ok=True)
        evaluator.keep_engines(run_dir / ENGINES_FILE, resumed=False)
    return inject_soups(population, evaluator, validation, metric)


def _append(population: Population, greedy: list[int]) -> None:
    everyone = list(range(population.size))
    population.append_average(UNIFORM, everyone)
    if 1 < len(greedy) < len(everyone):
        population.append_average(GREEDY, greedy)
