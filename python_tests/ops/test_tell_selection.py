"""Which trials tell accepts, and the archive's rows that their parents get."""

from __future__ import annotations

import math

import pytest

from deevo_ext.search.presets import configure
from support.operators import NATIVE_BACKENDS, serving
from support.oracles import words
from support.told import PAPER, PLAIN, told

INF, NAN = math.inf, math.nan

SERVING = serving("plan", "tell", among=NATIVE_BACKENDS)


@pytest.mark.parametrize(
    ("parent", "trial", "accepted", "survivor"),
    [
        (1.0, 0.5, 1, 0.5),
        (1.0, 1.0, 0, 1.0),  # a tie keeps the parent
        (0.0, -0.0, 0, 0.0),
        (1.0, 2.0, 0, 1.0),
        (1.0, NAN, 0, 1.0),
        (1.0, INF, 0, 1.0),
        (NAN, 3.0, 1, 3.0),
        (INF, 3.0, 1, 3.0),
        (NAN, NAN, 0, INF),  # NaN is +inf
        (NAN, INF, 0, INF),
        (INF, NAN, 0, INF),
        (1.0, -INF, 1, -INF),
        (-INF, -INF, 0, -INF),
        (5e-324, 0.0, 1, 0.0),
    ],
)
def test_selection(
    backend: str, parent: float, trial: float, accepted: int, survivor: float
) -> None:
    run = told(PAPER, [PLAIN] * 2, [parent, 1.0], [trial, 1.0])
    assert run.accepted.tolist() == [accepted, 0]
    assert run.fitness.tolist() == [survivor, 1.0]
    assert run.archive_slot.tolist() == [-1, -1]


# Archive


def test_archive_fills_in_member_order_then_overwrites(backend: str) -> None:
    c = configure("paper", archive_size=3)
    first = told(c, [PLAIN] * 5, [1.0] * 5, [2.0, 0.0, 2.0, 0.0, 2.0])
    assert first.archive_slot.tolist() == [-1, 0, -1, 1, -1]
    assert first.state[c.offsets().archive_count] == 2.0
    second = told(c, [PLAIN] * 5, [1.0] * 5, [0.0] * 5, 2, first.state)
    assert second.state[c.offsets().archive_count] == 3.0
    drawn = [(words(9, 2, i, 0, 1)[0] * 3) >> 32 for i in range(5)]
    owner = {2: 0}  # member 0 takes the last free slot
    owner.update({drawn[i]: i for i in range(1, 5)})  # the highest member wins
    expected = [-1] * 5
    for slot, member in owner.items():
        expected[member] = slot
    assert second.archive_slot.tolist() == expected


def test_archive_slots_are_distinct_and_uniform() -> None:
    c = configure("paper", archive_size=10)
    state = c.initial_state()
    state[c.offsets().archive_count] = 10
    counts = [0] * 10
    for generation in range(1, 2001):
        run = told(c, [PLAIN] * 4, [1.0] * 4, [0.0] * 4, generation, state)
        slots = [slot for slot in run.archive_slot.tolist() if slot >= 0]
        assert len(set(slots)) == len(slots) >= 1
        assert run.archive_slot[3] >= 0  # the highest member always keeps its slot
        counts[slots[-1]] += 1
    assert sum((count - 200) ** 2 / 200 for count in counts) < 9 + 5 * math.sqrt(18)
