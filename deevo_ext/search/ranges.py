"""What value each parameter of a `Configuration` may have."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from deevo_ext.errors import DeevoError

F_DISTRIBUTIONS = {"normal": 0, "cauchy": 1}
SINUSOIDS = {"ensemble": 0, "decreasing": 1, "increasing": 2, "none": 3}
CR_MEANS = {"lehmer": 0, "arithmetic": 1}
CROSSOVER_UNITS = ("weight", "channel", "tensor")

# Parameters that are whole numbers, and those that are any, each from the least to the greatest.
_COUNTS: dict[str, tuple[int, int]] = {
    "generations": (1, 2**31 - 2),
    "strategy_period": (1, 10**6),
    "adapt_start": (1, 2**31 - 2),
    "memory_size": (1, 10**6),
    "sinusoid_period": (1, 10**6),
    "archive_size": (0, 10**6),
    "population_min": (0, 10**6),
}
_NUMBERS: dict[str, tuple[float, float]] = {
    "odds_floor": (1e-12, 1.0),
    "f_init": (0.0, 2.0),
    "f_std": (0.0, 10.0),
    "f_min": (-10.0, 10.0),
    "f_max": (-10.0, 10.0),
    "cr_init": (0.0, 1.0),
    "cr_std": (0.0, 1.0),
    "cr_min": (0.0, 1.0),
    "cr_max": (0.0, 1.0),
    "sinusoid_1_frequency": (0.0, 10.0),
    "frequency_init": (0.0, 1.0),
    "frequency_std": (0.0, 10.0),
    "switch": (0.0, 1.0),
    "pbest_min": (0.0, 1.0),
    "pbest_max": (0.0, 1.0),
}
_ORDERED = (("f_min", "f_max"), ("cr_min", "cr_max"), ("pbest_min", "pbest_max"))
_SWITCHES = ("adapt_strategies", "adapt_memories", "best_excludes_target", "trig_offset", "j_rand")
_CHOICES: dict[str, Collection[str]] = {
    "f_distribution": F_DISTRIBUTIONS,
    "cr_mean": CR_MEANS,
    "sinusoid": SINUSOIDS,
    "crossover_unit": CROSSOVER_UNITS,
}


def check_ranges(values: Mapping[str, Any]) -> None:
    """Raises DeevoError, naming the parameter, for a value that no configuration may have.

    values: all parameters by name; `strategies` is not looked at.
    """
    for name, (low, high) in (_COUNTS | _NUMBERS).items():
        value = values[name]
        if not (isinstance(value, (int, float)) and low <= value <= high):
            raise DeevoError(f"{name} is {value!r}; expected a number in [{low}, {high}]")
    for name in _COUNTS:
        if not isinstance(values[name], int):
            raise DeevoError(f"{name} is {values[name]!r}; expected a whole number")
    for name in _SWITCHES:
        if not isinstance(values[name], bool):
            raise DeevoError(f"{name} is {values[name]!r}; expected True or False")
    for low_name, high_name in _ORDERED:
        low, high = values[low_name], values[high_name]
        if low > high:
            raise DeevoError(f"{low_name} is {low}, above {high_name}, {high}")
    for name, allowed in _CHOICES.items():
        if values[name] not in allowed:
            raise DeevoError(f"{name} is {values[name]!r}; expected one of {', '.join(allowed)}")
    for name, low, high in (("lower", -math.inf, 0.0), ("upper", 0.0, math.inf)):
        bound = values[name]
        if bound is not None and not (isinstance(bound, (int, float)) and low <= bound <= high):
            raise DeevoError(
                f"{name} is {bound!r}; expected None or a number in [{low}, {high}]: bounds "
                "lie around 0, which the pads of a row hold"
            )
