"""What plan and tell read of their tensors, as Python numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from deevo_ext.ops.tables import Setting, StateOffsets, state_offsets


@dataclass(frozen=True)
class Plan:
    """Inputs of one plan as Python numbers, with what follows from them for all members.

    living: the members that are alive, ascending; by_rank: the same from best to worst; num_valid:
    how many of them have a finite fitness.
    """

    settings: list[float]
    strategies: list[list[float]]
    state: list[float]
    fitness: list[float]
    living: list[int]
    by_rank: list[int]
    num_valid: int
    generation: int
    seed: int
    at: StateOffsets


def clean_fitness(values: torch.Tensor) -> list[float]:
    """Fitness as floats, NaN read as +inf."""
    return [math.inf if math.isnan(value) else value for value in values.tolist()]


def offsets_of(settings: list[float], num_strategies: int) -> StateOffsets:
    """The offsets of the state's parts, from the settings that fix them."""
    return state_offsets(
        int(settings[Setting.MEMORY_SIZE]),
        num_strategies,
        int(settings[Setting.STRATEGY_PERIOD]),
        int(settings[Setting.SINUSOID_PERIOD]),
    )
