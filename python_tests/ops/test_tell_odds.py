"""The odds of strategies and sinusoids that tell makes of successes in their windows."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from deevo_ext.ops.tables import Source
from deevo_ext.search.configuration import Configuration
from deevo_ext.search.presets import configure
from deevo_ext.search.strategies import Strategy
from support.operators import NATIVE_BACKENDS, Evolution, same_bits, serving
from support.told import PAPER, PLAIN, told

S1, S2 = Source.SINUSOID_1, Source.SINUSOID_2

SERVING = serving("plan", "tell", among=NATIVE_BACKENDS)


def odds(run: Evolution) -> list[float]:
    at = run.configuration.offsets()
    return run.state[at.odds : at.sinusoid1_odds].tolist()


def p1(run: Evolution) -> float:
    return float(run.state[run.configuration.offsets().sinusoid1_odds])


def score(successes: int, failures: int) -> float:
    if successes + failures == 0:
        return 0.01
    return max((successes + 0.01) / (successes + failures + 0.01), 0.01)


def shares(scores: Sequence[float], total: float = 1.0) -> list[float]:
    return [total * s / sum(scores) for s in scores]


def test_strategy_odds_of_one_generation(backend: str) -> None:
    members = [(k, S1, 0.5, 0.5, 0.0) for k in (0, 0, 0, 1, 1, 2, 3)]
    run = told(PAPER, members, [1.0] * 7, [0.0, 0.0, 2.0, 0.0, 2.0, 2.0, 0.0])
    scores = [score(2, 1), score(1, 1), score(0, 1), score(1, 0), score(0, 0)]
    assert scores[2] == scores[4] == 0.01
    assert odds(run) == pytest.approx(shares(scores))
    assert sum(odds(run)) == pytest.approx(1.0)


def test_windows_forget(backend: str) -> None:
    """Successes of generation 1 count until the window of 3 generations has passed them."""
    c = configure("paper", strategy_period=3, sinusoid_period=2)
    state = c.initial_state()
    told_odds, told_p1 = [], []
    for generation in range(1, 7):
        better = generation == 1
        run = told(c, [(0, S1, 0.5, 0.5, 0), (1, S2, 0.5, 0.5, 0.5)], [1.0] * 2,
                   [0.5 if better else 2.0, 2.0], generation, state)  # fmt: skip
        state = run.state
        told_odds.append(odds(run)[0])
        told_p1.append(p1(run))
    for g in range(6):
        scores = [score(int(g < 3), min(g + 1, 3) - int(g < 3)), score(0, min(g + 1, 3))]
        assert told_odds[g] == pytest.approx(shares([*scores, 0.01, 0.01, 0.01])[0])
        rate = 1 / min(g + 1, 2) if g < 2 else 0.0
        assert told_p1[g] == pytest.approx((rate + 0.01) / (rate + 0.02))


def test_sinusoid_without_a_trial_gives_no_0_over_0(backend: str) -> None:
    only_2 = told(PAPER, [(0, S2, 0.5, 0.5, 0.5)] * 4, [1.0] * 4, [0.5, 0.5, 2.0, 2.0])
    assert p1(only_2) == pytest.approx(0.01 / 0.52)
    only_1 = told(PAPER, [(0, S1, 0.5, 0.5, 0.0)] * 4, [1.0] * 4, [0.5, 0.5, 2.0, 2.0])
    assert p1(only_1) == pytest.approx(0.51 / 0.52)
    neither = told(PAPER, [PLAIN] * 4, [1.0] * 4, [0.5] * 4)
    assert p1(neither) == 0.5


def test_adapt_start(backend: str) -> None:
    c = configure("paper", adapt_start=4)
    initial = c.initial_state()
    early = told(c, [PLAIN] * 2, [1.0] * 2, [0.0] * 2, 3)
    assert odds(early) == initial[c.offsets().odds : c.offsets().sinusoid1_odds].tolist()
    due = told(c, [PLAIN] * 2, [1.0] * 2, [0.0] * 2, 4, early.state)
    assert odds(due) == pytest.approx(shares([1.0, 0.01, 0.01, 0.01, 0.01]))


def test_adaptation_can_be_switched_off(backend: str) -> None:
    c = configure("paper", adapt_strategies=False, adapt_memories=False)
    run = told(c, [(0, S1, 0.1, 0.1, 0.1)] * 4, [1.0] * 4, [0.0] * 4)
    at = c.offsets()
    assert same_bits(run.state[: at.sinusoid1_odds], c.initial_state()[: at.sinusoid1_odds])
    assert run.accepted.tolist() == [1] * 4


# Caps and fixed shares


def pool_of(*shares: tuple[float, float | None]) -> Configuration:
    """Strategies with (cap, fixed)."""
    pool = [
        Strategy(f"s{k}", "target + F*(r1 - target)", cap=cap, fixed=fixed)
        for k, (cap, fixed) in enumerate(shares)
    ]
    return configure("paper", strategies=pool)


def odds_after(c: Configuration, successes: Sequence[int], trials: Sequence[int]) -> list[float]:
    members, fitness = [], []
    for k, (won, all_) in enumerate(zip(successes, trials, strict=True)):
        members += [(k, S1, 0.5, 0.5, 0.0)] * all_
        fitness += [0.0] * won + [2.0] * (all_ - won)
    return odds(told(c, members, [1.0] * len(members), fitness))


def test_cap_gives_its_excess_to_the_others(backend: str) -> None:
    c = pool_of((1.0, None), (1.0, None), (0.5, None))
    scores = [score(1, 9), score(3, 7), score(10, 0)]
    assert shares(scores)[2] > 0.5
    expected = [*shares(scores[:2], 0.5), 0.5]
    assert odds_after(c, [1, 3, 10], [10, 10, 10]) == pytest.approx(expected)


def test_capped_strategies_never_lift_each_other_above_their_caps(backend: str) -> None:
    """The excess of one cap lifts the next above its own, whose excess must not go back."""
    c = pool_of((0.4, None), (0.4, None), (1.0, None))
    result = odds_after(c, [8, 2, 0], [10, 10, 10])
    assert result == pytest.approx([0.4, 0.4, 0.2])
    assert result[0] <= 0.4
    assert result[1] <= 0.4


def test_cap_applies_beside_a_fixed_share(backend: str) -> None:
    c = pool_of((0.3, None), (1.0, None), (1.0, 0.5))
    assert odds_after(c, [10, 1, 5], [10, 10, 10]) == pytest.approx([0.3, 0.2, 0.5])
    lone = pool_of((0.5, None), (1.0, 0.5))
    assert odds_after(lone, [10, 1], [10, 10]) == pytest.approx([0.5, 0.5])


def test_fixed_odds_stay(backend: str) -> None:
    c = pool_of((1.0, 0.05), (1.0, None), (1.0, None))
    result = odds_after(c, [10, 5, 1], [10, 10, 10])
    assert result[0] == 0.05
    assert result[1:] == pytest.approx(shares([score(5, 5), score(1, 9)], 0.95))
    all_fixed = pool_of((1.0, 0.7), (1.0, 0.1), (1.0, 0.2))
    assert odds_after(all_fixed, [10, 5, 1], [10, 10, 10]) == [0.7, 0.1, 0.2]


def test_odds_are_never_negative_when_fixed_shares_fill_everything(backend: str) -> None:
    """0.1 seven times and 0.3 sum to a little more or less than 1 in float64."""
    c = pool_of(*[(1.0, 0.1)] * 7, (1.0, 0.3), (1.0, None))
    result = odds_after(c, [1] * 9, [2] * 9)
    assert min(result) >= 0.0
    assert sum(result) == pytest.approx(1.0)
