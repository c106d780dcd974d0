"""Whole runs of tell against an oracle of plain lists, and backend against backend."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from fractions import Fraction

import pytest
import torch

from deevo_ext import backends
from deevo_ext.ops.tables import ChoiceColumn, ParameterColumn, Source
from deevo_ext.search.configuration import Configuration
from deevo_ext.search.strategies import parse
from support.operators import BIG_SEED, Evolution, configurations, evolution
from support.oracles import words

CONFIGURATIONS = configurations()
INF, NAN = math.inf, math.nan
S1, S2 = Source.SINUSOID_1, Source.SINUSOID_2


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
