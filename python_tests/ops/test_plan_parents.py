"""The rows that plan draws: random, best, pbest and archive parents."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch

from deevo_ext.ops.tables import ChoiceColumn
from deevo_ext.search.presets import configure
from deevo_ext.search.strategies import Strategy
from support.operators import NATIVE_BACKENDS, Evolution, evolution, serving
from support.plans import FITNESS, assert_frequencies

INF, NAN = math.inf, math.nan
ALL_R = Strategy("all", "r1 + F*(r2 - r3) + F*(r4 - r5)")

SERVING = serving("plan", among=NATIVE_BACKENDS)


# Random parents


@pytest.mark.parametrize("members", [6, 7, 50])
def test_random_parents_are_distinct_and_uniform(members: int) -> None:
    run = evolution(configure("paper", strategies=[ALL_R]), FITNESS["random"](members))
    counts: list[Counter[tuple[int, int]]] = [Counter() for _ in range(5)]
    generations = 24000 // members
    for generation in range(1, generations + 1):
        run.generation.fill_(generation)
        run.plan()
        rows = run.choices[:, ChoiceColumn.BASE_ROW : ChoiceColumn.BASE_ROW + 5].tolist()
        for i, drawn in enumerate(rows):
            assert len({i, *drawn}) == 6
            assert all(0 <= row < members for row in drawn)
            for j, row in enumerate(drawn):
                counts[j][i, row] += 1
    for count in counts:
        pairs = [(i, row) for i in range(members) for row in range(members) if row != i]
        assert_frequencies([count[pair] for pair in pairs], [1 / len(pairs)] * len(pairs))


def test_pairs_of_parents_are_uniform() -> None:
    """r1 and r2 together: every ordered pair equally often."""
    members = 5
    run = evolution(configure("paper", strategies=[("r1 + F*(r2 - r1)", "bin")]),
                    FITNESS["random"](members))  # fmt: skip
    counts: Counter[tuple[int, int, int]] = Counter()
    for generation in range(1, 3001):
        run.generation.fill_(generation)
        run.plan()
        for i, row in enumerate(run.choices.tolist()):
            counts[i, row[ChoiceColumn.BASE_ROW], row[ChoiceColumn.ROWS]] += 1
    assert len(counts) == 5 * 4 * 3
    assert_frequencies(list(counts.values()), [1 / 60] * 60)


# Parents of one name


def rows_of(run: Evolution) -> list[int]:
    """Base rows of a pool whose only formula is a single row."""
    run.plan()
    return run.choices[:, ChoiceColumn.BASE_ROW].tolist()


def single(row: str, fitness: list[float], **changes: Any) -> Evolution:
    c = configure("paper", strategies=[(f"{row} + F*(r1 - {row})", "bin")], **changes)
    return evolution(c, torch.tensor(fitness, dtype=torch.float64))


@pytest.mark.parametrize(
    ("fitness", "excludes", "expected"),
    [
        ([3.0, 1.0, 2.0, 1.0], False, [1, 1, 1, 1]),  # equal: the lower index
        ([3.0, 1.0, 2.0, 1.0], True, [1, 3, 1, 1]),
        ([NAN, 5.0, INF, 7.0], False, [1, 1, 1, 1]),
        ([NAN, 5.0, INF, 7.0], True, [1, 3, 1, 1]),
        ([NAN, 5.0, INF, NAN], True, [1, 1, 1, 1]),  # no other finite member: itself
        ([NAN, INF, NAN], False, [0, 0, 0]),
        ([NAN, INF, NAN], True, [1, 0, 0]),
        ([0.0, -0.0, 0.0], False, [0, 0, 0]),
        ([2.0, -INF, 1.0], False, [1, 1, 1]),
    ],
)
def test_best(backend: str, fitness: list[float], excludes: bool, expected: list[int]) -> None:
    assert rows_of(single("best", fitness, best_excludes_target=excludes)) == expected


def test_pbest_is_one_of_the_best_evenly() -> None:
    """p = 0.2 of 20 members: the 4 best."""
    fitness = [float((7 * i) % 20) for i in range(20)]
    run = single("pbest", fitness, pbest_min=0.2, pbest_max=0.2)
    counts: Counter[float] = Counter()
    for generation in range(1, 301):
        run.generation.fill_(generation)
        counts.update(fitness[row] for row in rows_of(run))
    assert sorted(counts) == [0.0, 1.0, 2.0, 3.0]
    assert_frequencies(list(counts.values()), [0.25] * 4)


def test_pbest_share_is_uniform_between_its_bounds() -> None:
    """p uniform on (0, 1): the number of candidates is round(20 p), at least 1."""
    fitness = [float(i) for i in range(20)]
    run = single("pbest", fitness, pbest_min=0.0, pbest_max=1.0)
    counts = [0] * 20
    for generation in range(1, 501):
        run.generation.fill_(generation)
        for row in rows_of(run):
            counts[row] += 1
    share = [0.075 if m == 1 else 0.025 if m == 20 else 0.05 for m in range(1, 21)]
    odds = [sum(share[m - 1] / m for m in range(row + 1, 21)) for row in range(20)]
    assert sum(odds) == pytest.approx(1.0)
    assert_frequencies(counts, odds)


@pytest.mark.parametrize(
    "fitness", [[NAN, 4.0, INF, 2.0, NAN, INF], [NAN, 4.0, 1.0, INF, 2.0, 3.0]]
)
def test_pbest_is_finite_while_one_is(backend: str, fitness: list[float]) -> None:
    run = single("pbest", fitness, pbest_min=1.0, pbest_max=1.0)
    drawn = set()
    for generation in range(1, 15):
        run.generation.fill_(generation)
        drawn |= set(rows_of(run))
    assert drawn == {i for i, x in enumerate(fitness) if math.isfinite(x)}


def test_pbest_of_lost_populations_is_anyone() -> None:
    run = single("pbest", [INF, NAN, INF, NAN], pbest_min=1.0, pbest_max=1.0)
    drawn = set()
    for generation in range(1, 40):
        run.generation.fill_(generation)
        drawn |= set(rows_of(run))
    assert drawn == {0, 1, 2, 3}


@pytest.mark.parametrize("live", [0, 1, 6])
def test_archive_parents_exclude_target_and_r1(live: int) -> None:
    c = configure("paper", strategies=[("archive + F*(r1 - archive)", "bin")], archive_size=6)
    run = evolution(c, FITNESS["random"](5))
    run.state[c.offsets().archive_count] = live
    counts: Counter[tuple[int, int]] = Counter()
    for generation in range(1, 2001):
        run.generation.fill_(generation)
        run.plan()
        for i, choice in enumerate(run.choices.tolist()):
            row, r1 = choice[ChoiceColumn.BASE_ROW], choice[ChoiceColumn.ROWS]
            assert row not in (i, r1)
            counts[i, row] += 1
    rows = 5 + live
    assert {row for _, row in counts} == set(range(rows))
    # Given i, each archive row has 1/(rows-2); each other member that, unless it is r1 (1 in 4).
    each = 1 / (rows - 2)
    for i in range(5):
        odds = [0.0 if j == i else each * (0.75 if j < 5 else 1.0) for j in range(rows)]
        assert_frequencies([counts[i, j] for j in range(rows)], odds)


def test_small_populations_have_no_further_parents(backend: str) -> None:
    """With three members r3 and later cannot be drawn; the pool is refused by the caller."""
    run = single("r2", [1.0, 2.0, 3.0])
    run.plan()
    for i, choice in enumerate(run.choices.tolist()):
        assert {i, choice[ChoiceColumn.BASE_ROW], choice[ChoiceColumn.ROWS]} == {0, 1, 2}
