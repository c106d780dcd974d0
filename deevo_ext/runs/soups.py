"""Averages of members: the uniform soup and the greedy one (Wortsman et al., ICML 2022).

Both can join the population before it evolves. Evolution then begins where soups end, and its
strategies can draw them as parents and as best.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch

from deevo_ext.distributed.ranks import ranks
from deevo_ext.fitness.statistics import Inherited
from deevo_ext.population.population import Population
from deevo_ext.runs.records import CandidateRecord, GenerationRecord, Header, ValidationRecord
from deevo_ext.runs.validation import Validation

ScoreRow = Callable[[torch.Tensor, Inherited | None], float]
Average = Callable[[Sequence[int]], tuple[torch.Tensor, Inherited | None]]
"""function(members) -> the row float32 [D] of their average, and its statistics if held apart."""
SOUPS = 2
"""How many members `append_soups` may append: a population needs as many spare rows."""
UNIFORM, GREEDY = "uniform_soup", "greedy_soup"


def average(
    population: Population, members: Sequence[int]
) -> tuple[torch.Tensor, Inherited | None]:
    """Returns the plain average of members: row float32 [D], and statistics [S] if held apart."""
    apart = population.statistics_layout.dim > 0
    statistics = Inherited(population.mean_statistics(members)) if apart else None
    return population.mean(members), statistics


def greedy_soup(
    population: Population,
    members: Sequence[int],
    losses: Sequence[float],
    score: ScoreRow,
    average_of: Average | None = None,
) -> tuple[list[int], float]:
    """Returns those of `members` that make the greedy soup, in order of entry, and its loss.

    losses: one for each member of the population, on the images that `score` uses. From the best
    member on, each next one stays in if the average with it is not worse.
    """
    average_of = average_of or partial(average, population)
    order = sorted(members, key=lambda member: losses[member])
    chosen, best = [order[0]], losses[order[0]]
    for member in order[1:]:
        loss = score(*average_of([*chosen, member]))
        if loss <= best:
            chosen.append(member)
            best = loss
    return chosen, best


def candidates_of(
    population: Population,
    everyone: list[int],
    score: ScoreRow,
    average_of: Average | None = None,
) -> ValidationRecord:
    """Scores the candidates among members `everyone` (ascending), and each of these members.

    average_of: how networks are made where that is not by `average`, those of one member, too.
    """
    scores = [math.inf] * (everyone[-1] + 1)
    for i in everyone:
        # A copy: a user's score that writes to its row must not write to the population.
        own = population.rows[i].clone(), Inherited(population.statistics[i])
        scores[i] = score(*(own if average_of is None else average_of([i])))
    average_of = average_of or partial(average, population)
    member = min(everyone, key=scores.__getitem__)
    soup, soup_score = greedy_soup(population, everyone, scores, score, average_of)
    mean_score = score(*average_of(everyone))
    return ValidationRecord(
        CandidateRecord([member], scores[member]),
        CandidateRecord(everyone, mean_score),
        CandidateRecord(soup, soup_score),
        scores,
    )


def append_soups(validation: Validation) -> GenerationRecord:
    """Appends the average of all members, and the greedy soup where it is neither that nor one.

    The population is that of the validation's evaluator. Returns the record of generation 0, with
    the scores of the initial candidates: the run takes them over and does not score them again.
    """
    evaluator = validation.evaluator
    population = evaluator.population
    started, before, received = time.perf_counter(), evaluator.forward_passes, ranks().traffic
    everyone = list(range(population.size))
    candidates = candidates_of(population, everyone, validation.score)
    population.append_average(UNIFORM, everyone)
    greedy = candidates.soup.members
    if 1 < len(greedy) < len(everyone):
        population.append_average(GREEDY, greedy)
    return GenerationRecord(
        generation=0,
        validation=candidates,
        traffic=ranks().traffic - received if ranks().count > 1 else None,
        forward_passes=evaluator.forward_passes - before,
        seconds=round(time.perf_counter() - started, 6),
    )


def append_recorded(population: Population, header: Header) -> None:
    """Appends what the header of a run's journal says was appended."""
    for average_of in header.population.get("averages", []):
        population.append_average(average_of["name"], average_of["members"])
