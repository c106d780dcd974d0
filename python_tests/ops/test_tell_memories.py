"""What tell keeps of F, CR and frequency in the success-history memories."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch

from deevo_ext.ops.tables import Source
from deevo_ext.search.presets import configure
from deevo_ext.search.strategies import Strategy
from support.operators import NATIVE_BACKENDS, Evolution, same_bits, serving
from support.told import PAPER, told

INF, NAN = math.inf, math.nan
S1, S2, MEMORY, NONE = Source.SINUSOID_1, Source.SINUSOID_2, Source.MEMORY, Source.NONE

SERVING = serving("plan", "tell", among=NATIVE_BACKENDS)


def memories(run: Evolution) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    c, at = run.configuration, run.configuration.offsets()
    shape = (3, c.memory_size, len(c.strategies))
    f, cr, frequency = run.state[: at.pointer].reshape(shape)
    return f, cr, frequency


def pointers(run: Evolution) -> list[float]:
    at = run.configuration.offsets()
    return run.state[at.pointer : at.odds].tolist()


def test_lehmer_means_weighted_by_improvement(backend: str) -> None:
    members = [(0, S2, 0.2, 0.9, 0.3), (0, S2, 0.8, 0.5, 0.7), (0, S1, 0.6, 0.1, 0.0)]
    run = told(PAPER, members, [1.0, 1.0, 1.0], [0.75, 0.25, 1.5])
    f, cr, frequency = memories(run)
    assert f[0, 0] == pytest.approx((0.04 + 3 * 0.64) / (0.2 + 3 * 0.8))
    assert cr[0, 0] == pytest.approx((0.81 + 3 * 0.25) / (0.9 + 3 * 0.5))
    assert frequency[0, 0] == pytest.approx((0.09 + 3 * 0.49) / (0.3 + 3 * 0.7))
    assert (f[1:] == 0.6).all()
    assert (f[0, 1:] == 0.6).all()
    assert pointers(run) == [1.0, 0.0, 0.0, 0.0, 0.0]


def test_arithmetic_mean_of_cr(backend: str) -> None:
    c = configure("paper", cr_mean="arithmetic")
    run = told(c, [(0, S1, 0.2, 0.8, 0), (0, S1, 0.6, 0.0, 0)], [1.0, 1.0], [0.75, 0.25])
    assert memories(run)[1][0, 0] == pytest.approx(0.2)
    assert memories(run)[0][0, 0] == pytest.approx((0.04 + 3 * 0.36) / (0.2 + 3 * 0.6))


def test_frequency_memory_hears_sinusoid_2_alone(backend: str) -> None:
    members = [(0, S1, 0.6, 0.9, 0.0), (0, MEMORY, 0.6, 0.9, 0.0)]
    run = told(PAPER, members, [1.0, 1.0], [0.0, 0.0])
    assert (memories(run)[2] == 0.5).all()
    assert pointers(run)[0] == 1.0


@pytest.mark.parametrize("winner", [0, 1, 3])
def test_a_lone_winner_is_heard_whatever_its_index(backend: str, winner: int) -> None:
    """The authors' program tests the sum of the winners' indices instead of their number."""
    trials = [2.0] * 4
    trials[winner] = 0.5
    run = told(PAPER, [(1, S2, 0.3, 0.4, 0.2)] * 4, [1.0] * 4, trials)
    f, cr, frequency = memories(run)
    assert (f[0, 1], cr[0, 1], frequency[0, 1]) == (
        pytest.approx(0.3),
        pytest.approx(0.4),
        pytest.approx(0.2),
    )


def test_no_success_no_memory(backend: str) -> None:
    run = told(PAPER, [(0, S2, 0.3, 0.4, 0.2)] * 4, [1.0] * 4, [1.0, 2.0, NAN, INF])
    at = PAPER.offsets()
    assert same_bits(run.state[: at.odds], PAPER.initial_state()[: at.odds])


def test_trigonometric_successes_leave_f_alone(backend: str) -> None:
    pool = [Strategy("t", "trig(r1, r2, r3)", "none"), Strategy("b", "trig(r1, r2, r3)", "bin")]
    c = configure("paper", strategies=pool)
    run = told(c, [(0, NONE, 0.0, 1.0, 0.0), (1, NONE, 0.0, 0.25, 0.0)], [1.0, 1.0], [0.0, 0.0])
    f, cr, frequency = memories(run)
    assert (f == 0.6).all()
    assert (frequency == 0.5).all()
    assert cr[0, 0] == 0.8
    assert cr[0, 1] == pytest.approx(0.25)
    assert pointers(run) == [0.0, 1.0]


def test_linear_strategies_without_crossover_leave_cr_alone(backend: str) -> None:
    c = configure("paper", strategies=[("target + F*(r1 - r2)", "none")])
    run = told(c, [(0, MEMORY, 0.3, 1.0, 0.0)] * 2, [1.0, 1.0], [0.0, 2.0])
    f, cr, _ = memories(run)
    assert f[0, 0] == pytest.approx(0.3)
    assert (cr == 0.8).all()


def test_pointer_wraps(backend: str) -> None:
    c = configure("paper", memory_size=2)
    state = c.initial_state()
    for generation, slot in ((1, 0), (2, 1), (3, 0)):
        run = told(c, [(0, S1, generation / 10, 0.5, 0)] * 2, [1.0] * 2, [0.5, 2.0], generation,
                   state)  # fmt: skip
        state = run.state
        assert memories(run)[0][slot, 0] == pytest.approx(generation / 10)
        assert pointers(run)[0] == (slot + 1) % 2


def test_terminal_cr_stays(backend: str) -> None:
    """L-SHADE: once only CR = 0 succeeded, the slot is terminal for good."""
    c = configure("paper", memory_size=1)
    run = told(c, [(0, S1, 0.5, 0.0, 0)] * 2, [1.0] * 2, [0.5, 0.2])
    assert memories(run)[1][0, 0] == -1.0
    again = told(c, [(0, S1, 0.5, 0.9, 0)] * 2, [1.0] * 2, [0.5, 0.2], 2, run.state)
    assert memories(again)[1][0, 0] == -1.0
    mixed = told(c, [(0, S1, 0.5, 0.0, 0), (0, S1, 0.5, 0.3, 0)], [1.0] * 2, [0.5, 0.5])
    assert memories(mixed)[1][0, 0] == pytest.approx(0.3)
    arithmetic = configure("paper", memory_size=1, cr_mean="arithmetic")
    zero = told(arithmetic, [(0, S1, 0.5, 0.0, 0)] * 2, [1.0] * 2, [0.5, 0.2])
    assert memories(zero)[1][0, 0] == 0.0


def test_lehmer_0_over_0_of_f_and_frequency_keeps_the_memory(backend: str) -> None:
    run = told(PAPER, [(0, S2, 0.0, 0.5, 0.0)] * 2, [1.0] * 2, [0.5, 0.2])
    f, cr, frequency = memories(run)
    assert (f == 0.6).all()
    assert (frequency == 0.5).all()
    assert cr[0, 0] == pytest.approx(0.5)
    assert pointers(run)[0] == 1.0
    assert not run.state.isnan().any()


def lehmer(values: Sequence[tuple[float, float]]) -> float:
    return sum(w * x * x for w, x in values) / sum(w * x for w, x in values)


@pytest.mark.parametrize(
    ("parents", "trials", "weights"),
    [
        ([INF, 4.0, 2.0], [1.0, 1.0, 1.5], [3.0, 3.0, 0.5]),  # infinite counts as the largest
        ([NAN, 4.0, 2.0], [1.0, 1.0, 1.5], [3.0, 3.0, 0.5]),
        ([1.0, 4.0, 2.0], [-INF, 1.0, 1.5], [3.0, 3.0, 0.5]),
        ([INF, NAN, 2.0], [1.0, 7.0, 2.0], [1.0, 1.0, 0.0]),  # none is finite: 1
        ([1e308, 4.0, 2.0], [-1e308, 1.0, 1.5], [3.0, 3.0, 0.5]),  # overflow
        ([1.5e308, 1e308, 2.0], [0.0, 0.0, 2.0], [3.0, 2.0, 0.0]),  # sums would overflow
        ([1.5e-323, 1e-323, 2.0], [0.0, 0.0, 2.0], [3.0, 2.0, 0.0]),  # subnormal
    ],
)
def test_improvements(
    backend: str, parents: list[float], trials: list[float], weights: list[float]
) -> None:
    f = [0.2, 0.5, 0.9]
    run = told(PAPER, [(0, S1, x, 0.5, 0.0) for x in f], parents, trials)
    expected = lehmer(list(zip(weights, f, strict=True)))
    assert memories(run)[0][0, 0] == pytest.approx(expected)


def test_largest_improvement_is_the_whole_generations(backend: str) -> None:
    """An infinite one of strategy 0 counts as the largest finite one, of strategy 1."""
    members = [(0, S1, 0.2, 0.5, 0), (0, S1, 0.8, 0.5, 0), (1, S1, 0.5, 0.5, 0)]
    run = told(PAPER, members, [INF, 2.0, 9.0], [1.0, 1.0, 1.0])
    assert memories(run)[0][0, 0] == pytest.approx(lehmer([(8.0, 0.2), (1.0, 0.8)]))
