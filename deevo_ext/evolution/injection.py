"""Soups as members: the population's average and its greedy soup join it before it evolves.

Evolution then begins where soups end, and its strategies can draw them as parents and as best.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from deevo_ext.evolution.course import Validation, candidates_of
from deevo_ext.evolution.journal import Recording, ValidationRecord, line_of
from deevo_ext.inference.choose import ENGINES_FILE
from deevo_ext.population import Population

SOUPS = 2
"""How many members `append_soups` may append: a population needs as many spare rows."""
UNIFORM, GREEDY = "uniform_soup", "greedy_soup"


@dataclass(frozen=True)
class Initial:
    """The initial candidates, where they were scored before the run began.

    validation: what the journal keeps of them; forward_passes, seconds: what they cost.
    """

    validation: ValidationRecord
    forward_passes: int
    seconds: float


def append_soups(validation: Validation, run_dir: Path | None = None) -> Initial:
    """Appends the average of all members, and the greedy soup where it is neither that nor one.

    The population is that of the validation's evaluator. Scores are those that the run's own
    initial candidates would have; the run takes the result over and does not score them again.
    run_dir: of the run, whose engines score them.
    """
    evaluator = validation.evaluator
    population = evaluator.population
    if run_dir is not None:
        run_dir.mkdir(parents=True, exist_ok=True)
        evaluator.keep_engines(run_dir / ENGINES_FILE, resumed=False)
    started, before = time.perf_counter(), evaluator.forward_passes
    everyone = list(range(population.size))
    candidates = candidates_of(population, everyone, validation.score)
    population.append_average(UNIFORM, everyone)
    greedy = candidates.soup.members
    if 1 < len(greedy) < len(everyone):
        population.append_average(GREEDY, greedy)
    passes = evaluator.forward_passes - before
    return Initial(candidates, passes, time.perf_counter() - started)


def append_recorded(population: Population, recording: Recording) -> None:
    """Appends what a run's journal says was appended."""
    assert recording.header is not None
    with line_of(recording.path, 1):
        for each in recording.header.population.get("averages", []):
            population.append_average(each["name"], each["members"])
