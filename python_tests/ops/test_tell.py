"""tell against an oracle with plain lists and histories, and backend against backend."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

import pytest
import torch

from deevo_ext import backends
from deevo_ext.errors import DeevoError
from deevo_ext.ops.tables import ChoiceColumn, ParameterColumn, Source, StrategyColumn
from deevo_ext.search.configuration import Configuration
from deevo_ext.search.presets import configure
from deevo_ext.search.strategies import Strategy, parse
from support.operators import (
    BIG_SEED,
    NATIVE_BACKENDS,
    Evolution,
    configurations,
    evolution,
    same_bits,
    serving,
)
from support.oracles import words

CONFIGURATIONS = configurations()
INF, NAN = math.inf, math.nan
S1, S2, MEMORY, NONE = Source.SINUSOID_1, Source.SINUSOID_2, Source.MEMORY, Source.NONE


@pytest.fixture(params=serving("plan", "tell", among=NATIVE_BACKENDS))
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    with backends.use(request.param):
        yield request.param


def number(x: float) -> float:
    return INF if math.isnan(x) else x


class Oracle:
    """SHADE's memories, SaDE's and cnEpSin's windows as histories of whole generations."""

    def __init__(self, c: Configuration, seed: int) -> None:
        self.c, self.seed = c, seed
        k = len(c.strategies)
        self.f = [[c.f_init] * k for _ in range(c.memory_size)]
        self.cr: list[list[float | None]] = [[c.cr_init] * k for _ in range(c.memory_size)]
        self.frequency = [[c.frequency_init] * k for _ in range(c.memory_size)]
        self.pointer = [0] * k
        self.p1 = 0.5
        self.live = self.spent = 0
        self.history: list[list[tuple[int, int, bool]]] = []  # (strategy, source, success)
        self.odds: list[float] | None = None
        self.accepted: list[bool] = []
        self.slots: list[int] = []
        self.living: list[int] | None = None  # None: everybody
        self.fitness: list[float] = []

    def tell(
        self,
        generation: int,
        parents: Sequence[float],
        trials: Sequence[float],
        choices: Sequence[Sequence[int]],
        parameters: Sequence[Sequence[float]],
    ) -> None:
        c = self.c
        strategy = [row[ChoiceColumn.STRATEGY] for row in choices]
        source = [row[ChoiceColumn.SOURCE] for row in choices]
        living = list(range(len(parents))) if self.living is None else self.living
        better = [number(t) < number(p) for p, t in zip(parents, trials, strict=True)]
        self.accepted = [yes and i in living for i, yes in enumerate(better)]
        winners = [i for i, yes in enumerate(self.accepted) if yes]
        gain = {i: number(parents[i]) - number(trials[i]) for i in winners}
        finite = [x for x in gain.values() if math.isfinite(x)]
        gain = {i: x if math.isfinite(x) else max(finite, default=1.0) for i, x in gain.items()}
        if c.adapt_memories:
            for k in range(len(c.strategies)):
                self.remember(k, [i for i in winners if strategy[i] == k], gain, source, parameters)
        self.history.append([(strategy[i], source[i], self.accepted[i]) for i in living])
        if c.adapt_strategies and generation >= c.adapt_start:
            self.share_out()
        recent = [entry for told in self.history[-c.sinusoid_period :] for entry in told]
        rates = []
        for which in (S1, S2):
            outcomes = [success for _, s, success in recent if s == which]
            rates.append(sum(outcomes) / len(outcomes) if outcomes else 0.0)
        self.p1 = (rates[0] + c.odds_floor) / (sum(rates) + 2 * c.odds_floor)
        self.slots = [-1] * len(parents)
        rows = self.rows(len(living), len(parents))
        for i in winners if rows else []:
            slot = self.live
            if self.live == rows:
                slot = (words(9, generation, i, 0, self.seed)[0] * rows) >> 32
            else:
                self.live += 1
            self.slots = [-1 if other == slot else other for other in self.slots]
            self.slots[i] = slot
        self.fitness = [
            number(t) if yes else number(p)
            for yes, p, t in zip(self.accepted, parents, trials, strict=True)
        ]
        if c.population_min:
            size, done = len(parents), Fraction(generation, c.generations)
            if c.evaluations:
                self.spent += len(living)
                done = Fraction(size + self.spent, c.evaluations)
            target = max(round(size + (c.population_min - size) * done), c.population_min)
            ranked = sorted(living, key=lambda i: (self.fitness[i], i))
            living = ranked[:target]
            self.live = min(self.live, self.rows(len(living), size))
        self.living = living
        self.fitness = [f if i in living else INF for i, f in enumerate(self.fitness)]

    def rows(self, living: int, members: int) -> int:
        archive = self.c.archive_size
        return round(Fraction(archive * living, members)) if self.c.evaluations else archive

    def remember(
        self,
        k: int,
        mine: list[int],
        gain: dict[int, float],
        source: list[int],
        parameters: Sequence[Sequence[float]],
    ) -> None:
        terms, crossover = parse(self.c.strategies[k].formula), self.c.strategies[k].crossover
        if not mine or (terms.trigonometric and crossover == "none"):
            return

        def mean(column: int, members: list[int], lehmer: bool) -> float | None:
            w = [gain[i] / max(gain.values()) for i in members]
            x = [parameters[i][column] for i in members]
            power = 1 if lehmer else 0
            top = math.fsum(a * b ** (power + 1) for a, b in zip(w, x, strict=True))
            bottom = math.fsum(a * b**power for a, b in zip(w, x, strict=True))
            return top / bottom if bottom > 0 else None

        slot = self.pointer[k]
        self.pointer[k] = (slot + 1) % self.c.memory_size
        if not terms.trigonometric:
            f = mean(ParameterColumn.F, mine, True)
            self.f[slot][k] = self.f[slot][k] if f is None else f
            adaptive = [i for i in mine if source[i] == S2]
            frequency = mean(ParameterColumn.FREQUENCY, adaptive, True)
            if frequency is not None:
                self.frequency[slot][k] = frequency
        if crossover == "bin":
            lehmer = self.c.cr_mean == "lehmer"
            cr = mean(ParameterColumn.CR, mine, lehmer)
            if self.cr[slot][k] is not None or not lehmer:  # None: terminal for good
                self.cr[slot][k] = cr

    def share_out(self) -> None:
        c = self.c
        recent = [entry for told in self.history[-c.strategy_period :] for entry in told]
        floor = c.odds_floor
        score: dict[int, float] = {}
        odds = [0.0] * len(c.strategies)
        for k, s in enumerate(c.strategies):
            outcomes = [success for which, _, success in recent if which == k]
            rate = (sum(outcomes) + floor) / (len(outcomes) + floor) if outcomes else floor
            if s.fixed is None:
                score[k] = max(rate, floor)
            else:
                odds[k] = s.fixed
        share = max(1.0 - sum(odds), 0.0)
        # Largest level x with sum_k min(cap_k, x score_k) <= share, by bisection.
        low, high = 0.0, 2.0 / min(score.values()) if score else 0.0
        for _ in range(200):
            middle = (low + high) / 2
            total = sum(min(c.strategies[k].cap, middle * s) for k, s in score.items())
            low, high = (middle, high) if total <= share else (low, middle)
        for k, s in score.items():
            odds[k] = min(c.strategies[k].cap, low * s)
        self.odds = odds

    def assert_matches(self, run: Evolution) -> None:
        at, state, c = run.configuration.offsets(), run.state.tolist(), self.c
        k = len(c.strategies)

        def close(given: list[float], expected: list[float]) -> None:
            assert given == pytest.approx(expected, rel=1e-11, abs=1e-11)

        def flat(rows: list[list[float]]) -> list[float]:
            return [x for row in rows for x in row]

        close(state[at.memory_f : at.memory_cr], flat(self.f))
        cr = [-1.0 if x is None else x for row in self.cr for x in row]
        close(state[at.memory_cr : at.memory_frequency], cr)
        close(state[at.memory_frequency : at.pointer], flat(self.frequency))
        assert state[at.pointer : at.odds] == [float(p) for p in self.pointer]
        if self.odds is not None:
            close(state[at.odds : at.odds + k], self.odds)
        close([state[at.sinusoid1_odds]], [self.p1])
        assert state[at.archive_count] == self.live
        assert run.accepted.tolist() == [int(yes) for yes in self.accepted]
        assert run.archive_slot.tolist() == self.slots
        assert run.fitness.tolist() == self.fitness
        assert run.alive.nonzero().flatten().tolist() == sorted(self.living or [])


def outcomes(source: random.Random, parents: list[float]) -> list[float]:
    """Trial fitness: better, equal, worse, and what broken networks report."""
    result = []
    for parent in parents:
        base = parent if math.isfinite(parent) else source.uniform(-2.0, 2.0)
        kind = source.randrange(12)
        result.append(
            [base, NAN, INF, base - 1e-14, base * 0.999][kind]
            if kind < 5
            else base + source.gauss(0.02, 0.05)
        )
    return result


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_many_generations_follow_the_oracle(name: str) -> None:
    c = CONFIGURATIONS[name]
    source = random.Random(name)
    fitness = [source.uniform(0.5, 2.0) for _ in range(8)] + [NAN, INF]
    run = evolution(c, torch.tensor(fitness, dtype=torch.float64), BIG_SEED)
    oracle = Oracle(c, BIG_SEED)
    for generation in range(1, 45):
        run.plan()
        parents = run.fitness.tolist()
        trials = outcomes(source, parents)
        oracle.tell(generation, parents, trials, run.choices.tolist(), run.parameters.tolist())
        run.tell(torch.tensor(trials, dtype=torch.float64))
        oracle.assert_matches(run)
        assert int(run.generation) == generation + 1


@pytest.mark.parametrize("members", [4, 6, 33, 130])
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_backends_agree_over_long_runs(name: str, members: int) -> None:
    c = CONFIGURATIONS[name]
    if members < c.members_needed:
        members = c.members_needed
    source = random.Random(members)
    fitness = torch.tensor([source.gauss(1.0, 0.5) for _ in range(members)], dtype=torch.float64)
    fitness[1] = NAN
    cpu = evolution(c, fitness, seed=source.getrandbits(63))
    reference = cpu.clone()
    for _ in range(30 if members < 30 else 6):
        cpu.plan()
        with backends.use("reference"):
            reference.plan()
        reference.assert_same(cpu)
        trials = torch.tensor(outcomes(source, cpu.fitness.tolist()), dtype=torch.float64)
        cpu.tell(trials)
        with backends.use("reference"):
            reference.tell(trials)
        reference.assert_same(cpu)


# Single rules


def told(
    c: Configuration,
    members: Sequence[tuple[int, Source, float, float, float]],
    parents: Sequence[float],
    trials: Sequence[float],
    generation: int = 1,
    state: torch.Tensor | None = None,
) -> Evolution:
    """A generation whose plan is written by hand: (strategy, source, F, CR, frequency)."""
    run = evolution(c, torch.tensor(parents, dtype=torch.float64), generation=generation)
    if state is not None:
        run.state.copy_(state)
    run.choices.zero_()
    run.choices[:, ChoiceColumn.GENERATION] = generation
    run.parameters.zero_()
    for i, (strategy, source, f, cr, frequency) in enumerate(members):
        run.choices[i, ChoiceColumn.STRATEGY] = strategy
        run.choices[i, ChoiceColumn.SOURCE] = int(source)
        run.parameters[i, :3] = torch.tensor([f, cr, frequency], dtype=torch.float64)
    run.tell(torch.tensor(trials, dtype=torch.float64))
    return run


def memories(run: Evolution) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    c, at = run.configuration, run.configuration.offsets()
    shape = (3, c.memory_size, len(c.strategies))
    f, cr, frequency = run.state[: at.pointer].reshape(shape)
    return f, cr, frequency


def pointers(run: Evolution) -> list[float]:
    at = run.configuration.offsets()
    return run.state[at.pointer : at.odds].tolist()


def odds(run: Evolution) -> list[float]:
    at = run.configuration.offsets()
    return run.state[at.odds : at.sinusoid1_odds].tolist()


def p1(run: Evolution) -> float:
    return float(run.state[run.configuration.offsets().sinusoid1_odds])


PAPER = configure("paper")
PLAIN = (0, MEMORY, 0.5, 0.5, 0.0)


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


# Refusals


def broken(**changes: Any) -> Evolution:
    run = evolution(configure("paper", archive_size=2), torch.ones(4, dtype=torch.float64))
    run.plan()
    at = run.configuration.offsets()
    for name, value in changes.items():
        if name == "pointer":
            run.state[at.pointer] = value
        elif name == "count":
            run.state[at.archive_count] = value
        elif name == "generation":
            run.generation.fill_(value)
        else:
            run.choices[2, ChoiceColumn[name.upper()]] = value
    return run


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"generation": 2}, "choices are of another generation"),
        ({"generation": 0}, "generation is not in 1..2147483647"),
        ({"generation": -(2**40)}, "generation is not in 1..2147483647"),
        ({"strategy": 5}, "choices name a strategy that does not exist"),
        ({"strategy": -1}, "choices name a strategy that does not exist"),
        ({"pointer": 5.0}, "state holds a memory pointer that does not exist"),
        ({"pointer": NAN}, "state holds a memory pointer that does not exist"),
        ({"pointer": -1.0}, "state holds a memory pointer that does not exist"),
        ({"count": 3.0}, "state holds an archive count beyond the archive"),
        ({"count": -1.0}, "state holds an archive count beyond the archive"),
    ],
)
def test_foreign_plans_and_states_are_refused(
    backend: str, changes: dict[str, Any], message: str
) -> None:
    run = broken(**changes)
    before = run.clone()
    with pytest.raises(DeevoError, match=f"deevo::tell: {message}"):
        run.tell(torch.zeros(4, dtype=torch.float64))
    run.assert_same(before)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        (StrategyColumn.NUM_TERMS, 6.0),
        (StrategyColumn.NUM_TERMS, -1.0),
        (StrategyColumn.BASE_TERM, 9.0),
        (StrategyColumn.TERM_CODES, -1.0),
        (StrategyColumn.TERM_CODES, 1e9),
        (StrategyColumn.TERM_CODES, NAN),
    ],
)
def test_plan_refuses_terms_that_do_not_exist(
    backend: str, column: StrategyColumn, value: float
) -> None:
    run = evolution(PAPER, torch.ones(4, dtype=torch.float64))
    run.strategies[4, column] = value
    before = run.clone()
    with pytest.raises(DeevoError, match="deevo::plan: strategies hold a term that does not exist"):
        run.plan()
    run.assert_same(before)
    run = evolution(PAPER, torch.ones(4, dtype=torch.float64), generation=0)
    with pytest.raises(DeevoError, match="deevo::plan: generation is not in"):
        run.plan()
