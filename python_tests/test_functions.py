"""The comparison on benchmark functions: equal budgets, the causes switched, the test of ranks."""

from __future__ import annotations

import numpy as np
import pytest

from deevo_ext.ops.tables import Setting
from experiments import functions

EVALUATIONS = 3000


def first() -> np.ndarray:
    generator = np.random.Generator(np.random.PCG64(1))
    return generator.uniform(-100, 100, (functions.MEMBERS, 10)).astype(np.float32)


@pytest.mark.parametrize("program", [*functions.PRESETS, *functions.CAUSES])
def test_everybody_spends_the_same_evaluations(program: str) -> None:
    seen: list[np.ndarray] = []

    def sphere(rows: np.ndarray) -> list[float]:
        seen.append(rows)
        return np.square(rows).sum(1).tolist()

    configuration = functions.configuration_of(program, EVALUATIONS)
    least = functions.least_of(sphere, first(), configuration, EVALUATIONS, seed=2)
    rows = np.concatenate(seen)
    assert EVALUATIONS - len(first()) < len(rows) <= EVALUATIONS
    assert np.abs(rows).max() <= functions.BOUND
    assert np.array_equal(rows[: len(first())], first())
    assert least == min(sphere(rows)) < min(sphere(first()))


@pytest.mark.parametrize(
    ("program", "by_evaluations", "shrinks"),
    [
        ("l-shade", True, True),
        ("evaluations, whole archive", True, False),
        ("generations, shrinking archive", False, True),
        ("generations, whole archive", False, False),
    ],
)
def test_causes_are_switched_one_at_a_time(
    program: str, by_evaluations: bool, shrinks: bool
) -> None:
    settings = functions.configuration_of(program, EVALUATIONS).settings()
    assert settings[Setting.POPULATION_MIN] == functions.LEAST
    assert bool(settings[Setting.EVALUATIONS]) is by_evaluations
    assert bool(settings[Setting.ARCHIVE_SHRINKS]) is shrinks
    common = [s for s in Setting if "GENERATION" not in s.name]
    common = [s for s in common if s not in (Setting.EVALUATIONS, Setting.ARCHIVE_SHRINKS)]
    lshade = functions.configuration_of("l-shade", EVALUATIONS).settings()
    assert settings[common].tolist() == lshade[common].tolist()


def test_the_rank_sum_test_is_two_sided() -> None:
    """Three below three others: 2 of the 20 orders are as extreme."""
    assert functions.rank_sum([1.0, 2.0, 3.0], [4.0, 5.0, 6.0]) == pytest.approx(0.1)
    assert functions.rank_sum([6.0, 5.0, 4.0], [2.0, 1.0, 3.0]) == pytest.approx(0.1)
    assert functions.rank_sum([0.0, 0.0], [0.0, 0.0]) == 1.0
