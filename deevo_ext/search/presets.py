"""Presets: parameters of the evolution that belong together, by name, and changes to them."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, Unpack

from deevo_ext.errors import DeevoError
from deevo_ext.options import nearest
from deevo_ext.search.configuration import Configuration
from deevo_ext.search.parameters import Parameters
from deevo_ext.search.pools import difference_pool, shade_pool

# SHADE 1.1 with the constants that L-SHADE has; only a trial that is better replaces its parent.
_SHADE: dict[str, Any] = {
    "strategies": shade_pool(),
    "sinusoid": "none",
    "memory_size": 6,
    "f_distribution": "cauchy",
    "f_init": 0.5,
    "f_std": 0.1,
    "f_min": 0.0,
    "f_max": 1.0,
    "cr_init": 0.5,
    "cr_std": 0.1,
    "cr_max": 1.0,
    "pbest_min": 0.11,
    "pbest_max": 0.11,
    "j_rand": True,
}

PRESETS: dict[str, dict[str, Any]] = {
    # The authors' versions D/E as analysed: with their constant first sinusoid, but successes
    # counted before replacement, a lone winner at index 0 too, 0/0 ruled out, float64 fitness.
    "paper": {},
    # What docs/evidence.md supports: differences of members in place of interpolations, whose
    # population contracts to a soup; F around the classic 0.5; more of each mutant taken; a first
    # sinusoid that does oscillate; the best member not wasting its trials on moving to itself.
    "sa-shade-tri-ensin": {
        "strategies": difference_pool(),
        "f_init": 0.5,
        "f_std": 0.2,
        "f_max": 1.0,
        "cr_init": 0.9,
        "sinusoid_1_frequency": 0.1,
        "best_excludes_target": True,
    },
    "shade": _SHADE,
    "l-shade": {**_SHADE, "population_min": 4},
}


def configure(preset: str | Configuration, **changes: Unpack[Parameters]) -> Configuration:
    """Returns a preset, or a configuration, with changes.

    Raises DeevoError for an unknown preset or parameter.
    """
    if not isinstance(preset, Configuration) and preset not in PRESETS:
        raise DeevoError(f"preset is {preset!r}; expected one of {', '.join(PRESETS)}")
    known = {part.name for part in fields(Configuration)}
    for name in changes.keys() - known:
        raise DeevoError(f"unknown parameter {name!r}; the nearest is {nearest(name, known)!r}")
    if isinstance(preset, Configuration):
        return replace(preset, **changes)  # type: ignore[arg-type]  # strategies in any form
    if preset == "l-shade" and not {"evaluations", "archive_size"} <= changes.keys():
        raise DeevoError(
            'preset "l-shade" shrinks population and archive as evaluations are spent; give their '
            "number as evaluations, and archive_size, 2.6 times the number of members"
        )
    return Configuration(**{**PRESETS[preset], **changes})
