"""How often plan draws each strategy, sinusoid, memory slot and U."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from deevo_ext.ops.tables import ChoiceColumn, ParameterColumn, Source
from deevo_ext.search.presets import configure
from support.operators import NATIVE_BACKENDS, evolution, serving
from support.plans import FITNESS, assert_frequencies, planned

SERVING = serving("plan", among=NATIVE_BACKENDS)


@pytest.mark.parametrize(
    "odds", [[0.2] * 5, [0.5, 0.05, 0.05, 0.0, 0.4], [0.0, 0.0, 1.0, 0.0, 0.0], [0.9, 0.1, 0, 0, 0]]
)
def test_strategies_follow_their_odds(odds: list[float]) -> None:
    run = evolution(configure("paper"), FITNESS["random"](5000))
    at = run.configuration.offsets()
    run.state[at.odds : at.sinusoid1_odds] = torch.tensor(odds, dtype=torch.float64)
    counts = [0] * 5
    for generation in range(1, 5):
        run.generation.fill_(generation)
        run.plan()
        for k, count in Counter(run.choices[:, ChoiceColumn.STRATEGY].tolist()).items():
            counts[k] += count
    assert_frequencies(counts, odds)


def test_the_last_possible_strategy_takes_the_remainder(backend: str) -> None:
    run = evolution(configure("paper"), FITNESS["random"](60))
    at = run.configuration.offsets()
    odds = torch.tensor([0.0, 1e-12, 0.0, 1e-12, 0.0], dtype=torch.float64)
    run.state[at.odds : at.sinusoid1_odds] = odds
    run.plan()
    assert (run.choices[:, ChoiceColumn.STRATEGY] == 3).all()


@pytest.mark.parametrize(("generation", "expected"), [(5, 0.5), (6, 0.8)])
def test_sinusoids_follow_their_odds_after_the_period(generation: int, expected: float) -> None:
    run = evolution(configure("paper"), FITNESS["random"](5000), generation=generation)
    run.state[run.configuration.offsets().sinusoid1_odds] = 0.8
    run.plan()
    sources = run.choices[:, ChoiceColumn.SOURCE]
    first = int((sources == int(Source.SINUSOID_1)).sum())
    second = int((sources == int(Source.SINUSOID_2)).sum())
    assert_frequencies([first, second], [expected, 1 - expected])


def test_memory_slots_are_drawn_evenly_and_independently() -> None:
    """Each (slot of F, slot of CR) pair of one strategy has a value of its own."""
    c = configure("paper", strategies=[("target + F*(r1 - target)", "bin")], sinusoid="none",
                  f_std=0.0, cr_std=0.0, memory_size=3)  # fmt: skip
    run = evolution(c, FITNESS["random"](6000))
    at = c.offsets()
    run.state[:3] = torch.tensor([0.1, 0.2, 0.3])
    run.state[at.memory_cr : at.memory_cr + 3] = torch.tensor([0.4, 0.5, 0.6])
    run.plan()
    pairs = Counter(map(tuple, run.parameters[:, :2].tolist()))
    assert len(pairs) == 9
    assert_frequencies(list(pairs.values()), [1 / 9] * 9)


def test_u_is_uniform() -> None:
    u = planned(configure("paper"), 20000).parameters[:, ParameterColumn.U]
    assert ((u > 0) & (u < 1)).all()
    assert_frequencies(
        torch.histc(u.float(), bins=20, min=0.0, max=1.0).int().tolist(), [0.05] * 20
    )
