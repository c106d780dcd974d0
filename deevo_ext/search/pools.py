"""Pools of strategies: the authors', SaDE's, SHADE's, and the default."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

from deevo_ext.errors import DeevoError
from deevo_ext.search.strategies import Strategy


def trigonometric(fixed: float | None = None) -> Strategy:
    """Returns Fan & Lampinen's mutation, without crossover as the authors have it.

    fixed: a share of the trials that is kept; None: 0.2 at first, adapted up to 0.8 (D/E).
    """
    return Strategy("trig", "trig(r1, r2, r3)", "none", odds=0.2, cap=0.8, fixed=fixed)


def interpolation_pool() -> tuple[Strategy, ...]:
    """Returns the paper's pool: four interpolations towards a random and the best member, and trig.

    No trial leaves the members' convex hull by much, so the population contracts to a soup.
    """
    return (
        Strategy("to-random", "target + F*(r1 - target)", odds=0.2),
        Strategy("to-best", "target + F*(best - target)", odds=0.2),
        Strategy("to-both", "target + F*(r1 - target) + F*(best - target)", odds=0.2),
        Strategy("to-both-u", "target + F*U*(best - target) + F*(r1 - target)", odds=0.2),
        trigonometric(),
    )


_RAND_1 = Strategy("rand/1", "r1 + F*(r2 - r3)")
_TO_PBEST = Strategy("current-to-pbest/1", "target + F*(pbest - target) + F*(r1 - r2)")


def sade_pool() -> tuple[Strategy, ...]:
    """Returns SaDE's four strategies (Qin et al. 2009), its rand/2 left out, and trig at 1 in 20.

    rand/2 draws five members besides the target, which small populations lack.
    """
    return (
        _RAND_1,
        Strategy("rand-to-best/2", "target + F*(best - target) + F*(r1 - r2) + F*(r3 - r4)"),
        Strategy("current-to-rand/1", "target + U*(r1 - target) + F*(r2 - r3)", "none"),
        trigonometric(fixed=0.05),
    )


def shade_pool() -> tuple[Strategy, ...]:
    """Returns SHADE's strategy, whose last row is one of the members or of the archive."""
    return (Strategy("current-to-pbest/1/a", "target + F*(pbest - target) + F*(r1 - archive)"),)


def difference_pool() -> tuple[Strategy, ...]:
    """Returns the default: SHADE's strategy without an archive, rand/1, and trig at 1 in 20 (TDE).

    Differences of two members keep the population apart and lead beyond its hull.
    """
    return (_TO_PBEST, _RAND_1, trigonometric(fixed=0.05))


POOLS: dict[str, Callable[[], tuple[Strategy, ...]]] = {
    "interp": interpolation_pool,
    "sade": sade_pool,
    "pbest": shade_pool,
    "difference": difference_pool,
}
"""Pools by the name that `strategies=` takes."""


def pool_of(strategies: Any) -> tuple[Strategy, ...]:
    """Returns the pool that `strategies` means: a name in `POOLS`, or strategies in any form.

    Each may be a Strategy, the dict of its fields, (formula, crossover) or (name, formula,
    crossover). Raises DeevoError for anything else.
    """
    if isinstance(strategies, str) and strategies in POOLS:
        return POOLS[strategies]()
    if not isinstance(strategies, (list, tuple)):
        raise DeevoError(
            f"strategies is {strategies!r}; expected a list of strategies or one of "
            f"{', '.join(POOLS)}"
        )
    return tuple(_strategy(description) for description in strategies)


def _strategy(description: Any) -> Strategy:
    match description:
        case Strategy():
            return description
        case dict() if set(description) <= {field.name for field in fields(Strategy)}:
            return Strategy(**description)
        case (formula, crossover):
            return Strategy(formula, formula, crossover)
        case (name, formula, crossover):
            return Strategy(name, formula, crossover)
    raise DeevoError(
        f"a strategy is {description!r}; expected a Strategy, (formula, crossover) or "
        "(name, formula, crossover)"
    )
