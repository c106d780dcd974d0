"""Bounds of the weights, in numbers that the population's rows can hold."""

from __future__ import annotations

import math

import torch

from deevo_ext.errors import DeevoError
from deevo_ext.population.population import Population
from deevo_ext.search.configuration import Configuration


def _rounded_to_0(bound: float, dtype: torch.dtype) -> float:
    """The outermost number of a dtype that does not lie beyond the bound, seen from 0."""
    rounded = torch.tensor([bound], dtype=torch.float64).to(dtype)
    if abs(rounded.item()) > abs(bound):
        bits = rounded.view(torch.int32 if dtype == torch.float32 else torch.int16)
        bits -= 1  # the next number towards 0: sign and magnitude
    return rounded.item()


def held_bounds(configuration: Configuration, population: Population) -> tuple[float, float]:
    """The bounds (lower, upper) as the population's dtype holds them, infinite where not set.

    Raises DeevoError, naming the member, for weights outside.
    """
    dtype = population.rows.dtype
    lower = -math.inf if configuration.lower is None else _rounded_to_0(configuration.lower, dtype)
    upper = math.inf if configuration.upper is None else _rounded_to_0(configuration.upper, dtype)
    bounded = population.rows[:, : population.layout.nonneg_start]
    if lower == -math.inf and upper == math.inf:
        return lower, upper
    for member, row in zip(population.names, bounded, strict=True):
        if bool((row < lower).any()) or bool((row > upper).any()):
            raise DeevoError(
                f"member {member!r} has weights outside [lower, upper] = [{lower}, {upper}]; widen "
                "the bounds"
            )
    return lower, upper
