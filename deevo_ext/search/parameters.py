"""The types of the evolution's parameters as keywords."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from deevo_ext.search.strategies import Strategy


class Parameters(TypedDict, total=False):
    """Keywords that are fields of `Configuration`, which says what each is."""

    strategies: str | Sequence[Strategy | tuple[str, ...] | Mapping[str, Any]]
    generations: int
    adapt_strategies: bool
    strategy_period: int
    adapt_start: int
    odds_floor: float
    adapt_memories: bool
    memory_size: int
    f_init: float
    f_std: float
    f_min: float
    f_max: float
    f_distribution: str
    cr_init: float
    cr_std: float
    cr_min: float
    cr_max: float
    cr_mean: str
    sinusoid: str
    sinusoid_1_frequency: float
    frequency_init: float
    frequency_std: float
    sinusoid_period: int
    switch: float
    pbest_min: float
    pbest_max: float
    best_excludes_target: bool
    trig_offset: bool
    archive_size: int
    crossover_unit: str
    j_rand: bool
    lower: float | None
    upper: float | None
    population_min: int
    evaluations: int
