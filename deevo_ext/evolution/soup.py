"""Averages of members: the uniform soup and the greedy one (Wortsman et al., ICML 2022)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from deevo_ext.fitness.statistics import Inherited
from deevo_ext.population import Population

ScoreRow = Callable[[torch.Tensor, Inherited | None], float]
"""function(row [D], the statistics it inherits): its score, less is better."""


def average(
    population: Population, members: Sequence[int]
) -> tuple[torch.Tensor, Inherited | None]:
    """The plain average of members: row float32 [D], and statistics [S] if held apart."""
    apart = population.statistics_layout.dim > 0
    statistics = Inherited(population.mean_statistics(members)) if apart else None
    return population.mean(members), statistics


def greedy_soup(
    population: Population, members: Sequence[int], losses: Sequence[float], score: ScoreRow
) -> tuple[list[int], float]:
    """Those of `members` that make the greedy soup, in the order they entered, and its loss.

    losses: by member of the population, on the images that `score` uses. From the best member on,
    each next one stays in if the average with it is not worse.
    """
    order = sorted(members, key=lambda member: losses[member])
    chosen, best = [order[0]], losses[order[0]]
    for member in order[1:]:
        loss = score(*average(population, [*chosen, member]))
        if loss <= best:
            chosen.append(member)
            best = loss
    return chosen, best
