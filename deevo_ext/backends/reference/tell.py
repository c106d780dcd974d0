"""tell: what a generation teaches.

Greedy selection (a success is trial < parent), SHADE's memories by the weighted Lehmer mean, SaDE's
strategy odds and the odds of the two sinusoids from success windows, archive slots.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from deevo_ext.backends.checks import alive_members, check_told, require_subnormals
from deevo_ext.backends.reference.inputs import clean_fitness, offsets_of
from deevo_ext.ops.philox import draw, mulhi
from deevo_ext.ops.tables import (
    NUM_STRATEGY_COLUMNS,
    ChoiceColumn,
    ParameterColumn,
    Purpose,
    Setting,
    Source,
    StateOffsets,
    StrategyColumn,
)


def survivors_of_reduction(
    settings: list[float], fitness: list[float], living: list[int], generation: int
) -> list[int]:
    """L-SHADE's linear reduction: the best of the living, ascending.

    NP + (minimum - NP) e / E of NP physical rows, rounded, equal fitness by lower index first. e of
    E evaluations are spent: the parents', and one for each that lived in each generation. Without
    E generations count.
    """
    minimum, size = settings[Setting.POPULATION_MIN], float(len(fitness))
    if minimum == 0.0:
        return living
    if settings[Setting.EVALUATIONS] == 0.0:
        share = float(generation) / settings[Setting.GENERATIONS]
        target = max(round(size + (minimum - size) * share), int(minimum))
    else:
        slope = (minimum - size) / settings[Setting.EVALUATIONS]
        target, spent = len(fitness), size
        for _ in range(generation):
            spent = spent + float(target)
            target = max(round(slope * spent + size), int(minimum))
    return sorted(sorted(living, key=lambda i: fitness[i])[:target])


def archive_capacity(settings: list[float], members: int, living: int) -> int:
    """The rows of the archive that so many living of all members use."""
    rows = settings[Setting.ARCHIVE_CAPACITY]
    if not settings[Setting.ARCHIVE_SHRINKS]:
        return int(rows)
    return round(rows * float(living) / float(members))


def halving_sum(values: list[float]) -> float:
    """Sum in the contract's order: pad with +0 to a power of two, then repeatedly add halves."""
    padded = 1
    while padded < len(values):
        padded *= 2
    values = values + [0.0] * (padded - len(values))
    while len(values) > 1:
        half = len(values) // 2
        values = [a + b for a, b in zip(values[:half], values[half:], strict=True)]
    return values[0]


def select(
    parents: list[float], trials: list[float], living: list[int]
) -> tuple[list[bool], list[float]]:
    """Which trials of the living are accepted, and by how much each improves.

    An improvement that is not finite counts as the largest finite one of the generation, 1 if there
    is none.
    """
    accepted = [False] * len(parents)
    for member in living:
        accepted[member] = trials[member] < parents[member]
    improvement = [
        parent - trial if taken else 0.0
        for parent, trial, taken in zip(parents, trials, accepted, strict=True)
    ]
    largest = max((i for i in improvement if math.isfinite(i)), default=0.0)
    substitute = largest if largest > 0.0 else 1.0
    return accepted, [i if math.isfinite(i) else substitute for i in improvement]


@dataclass
class Tell:
    """One generation's results while the adaptation state is brought up to date.

    improvement: by how much each accepted trial is better than its parent.
    """

    settings: list[float]
    strategies: list[list[float]]
    choices: list[list[int]]
    parameters: list[list[float]]
    state: list[float]
    generation: int
    living: list[int]
    accepted: list[bool]
    improvement: list[float]

    @property
    def at(self) -> StateOffsets:
        """Where each part of the state begins."""
        return offsets_of(self.settings, len(self.strategies))

    def mean(
        self, k: int, column: ParameterColumn, lehmer: bool, source: Source | None = None
    ) -> float | None:
        """Mean of a parameter over strategy k's successes, weighted by their improvements.

        Lehmer: sum w x^2 / sum w x; arithmetic: sum w x / sum w. None for 0/0.
        """
        members = range(len(self.accepted))
        mine = [
            self.accepted[i]
            and self.choices[i][ChoiceColumn.STRATEGY] == k
            and (source is None or self.choices[i][ChoiceColumn.SOURCE] == source)
            for i in members
        ]
        largest = self.largest_improvement(k)
        bottom, top = [], []
        for i in members:
            x, w = self.parameters[i][column], self.improvement[i] / largest
            below = (w * x if lehmer else w) if mine[i] else 0.0
            bottom.append(below)
            top.append(below * x)
        denominator = halving_sum(bottom)
        return halving_sum(top) / denominator if denominator > 0.0 else None

    def largest_improvement(self, k: int) -> float:
        """The largest improvement of a success of strategy k; 0 without one."""
        return max(
            (
                self.improvement[i]
                for i in range(len(self.accepted))
                if self.accepted[i] and self.choices[i][ChoiceColumn.STRATEGY] == k
            ),
            default=0.0,
        )

    def update_memories(self, k: int) -> None:
        """SHADE's memories of strategy k: one slot is written, then its pointer moves on."""
        strategy = self.strategies[k]
        linear = strategy[StrategyColumn.KIND] == 0.0
        binomial = strategy[StrategyColumn.CROSSOVER] != 0.0
        if not (linear or binomial) or not self.largest_improvement(k) > 0.0:
            return
        pointer = int(self.state[self.at.pointer + k])
        slot = pointer * len(self.strategies) + k
        if linear:
            f = self.mean(k, ParameterColumn.F, lehmer=True)
            if f is not None:
                self.state[self.at.memory_f + slot] = f
            frequency = self.mean(k, ParameterColumn.FREQUENCY, True, Source.SINUSOID_2)
            if frequency is not None:
                self.state[self.at.memory_frequency + slot] = frequency
        if binomial:
            lehmer = self.settings[Setting.CR_MEAN] == 0.0
            cr = self.mean(k, ParameterColumn.CR, lehmer)
            # L-SHADE's terminal value: once only CR = 0 succeeded, the slot stays there.
            if lehmer and (cr is None or self.state[self.at.memory_cr + slot] < 0.0):
                cr = -1.0
            if cr is not None:
                self.state[self.at.memory_cr + slot] = cr
        memories = int(self.settings[Setting.MEMORY_SIZE])
        self.state[self.at.pointer + k] = float((pointer + 1) % memories)

    def count(self) -> None:
        """Successes and failures of this generation, into the rows of the two windows."""
        n = len(self.strategies)
        strategy_period = int(self.settings[Setting.STRATEGY_PERIOD])
        sinusoid_period = int(self.settings[Setting.SINUSOID_PERIOD])
        by_strategy = self.at.strategy_window + (self.generation - 1) % strategy_period * n * 2
        by_sinusoid = self.at.sinusoid_window + (self.generation - 1) % sinusoid_period * 4
        self.state[by_strategy : by_strategy + 2 * n] = [0.0] * (2 * n)
        self.state[by_sinusoid : by_sinusoid + 4] = [0.0] * 4
        for member in self.living:
            choice = self.choices[member]
            failed = 0 if self.accepted[member] else 1
            self.state[by_strategy + 2 * choice[ChoiceColumn.STRATEGY] + failed] += 1.0
            source = choice[ChoiceColumn.SOURCE]
            if source in (Source.SINUSOID_1, Source.SINUSOID_2):
                self.state[by_sinusoid + 2 * (source - 1) + failed] += 1.0

    def _totals(self, window: int, period: int, kinds: int, which: int) -> tuple[float, float]:
        starts = [window + (row * kinds + which) * 2 for row in range(period)]
        return sum(self.state[i] for i in starts), sum(self.state[i + 1] for i in starts)

    def update_strategy_odds(self) -> None:
        """SaDE's odds: (successes + e) / (trials + e), at least e; normalised, then capped."""
        n = len(self.strategies)
        period = int(self.settings[Setting.STRATEGY_PERIOD])
        floor = self.settings[Setting.ODDS_FLOOR]
        fixed = [strategy[StrategyColumn.ODDS_FIXED] for strategy in self.strategies]
        caps = [strategy[StrategyColumn.ODDS_CAP] for strategy in self.strategies]
        odds = [0.0] * n
        fixed_sum = score_sum = 0.0
        for k in range(n):
            if fixed[k] >= 0.0:
                odds[k] = fixed[k]
                fixed_sum = fixed_sum + fixed[k]
                continue
            successes, failures = self._totals(self.at.strategy_window, period, n, k)
            trials = successes + failures
            score = (successes + floor) / (trials + floor) if trials > 0.0 else floor
            odds[k] = max(score, floor)
            score_sum = score_sum + odds[k]
        share = max(1.0 - fixed_sum, 0.0)
        adapted = [k for k in range(n) if fixed[k] < 0.0]
        for k in adapted:
            odds[k] = share * (odds[k] / score_sum)
        for _ in range(n):  # strategies above their caps give the excess to the others, pro rata
            rest, below = share, 0.0
            for k in adapted:
                if odds[k] >= caps[k]:
                    rest = rest - caps[k]
                else:
                    below = below + odds[k]
            if not (below > 0.0 and any(odds[k] > caps[k] for k in adapted)):
                break
            scale = rest / below
            for k in adapted:
                odds[k] = caps[k] if odds[k] >= caps[k] else odds[k] * scale
        self.state[self.at.odds : self.at.odds + n] = odds

    def update_sinusoid_odds(self) -> None:
        """cnEpSin's probability of sinusoid 1; a sinusoid without a trial has success rate 0."""
        period = int(self.settings[Setting.SINUSOID_PERIOD])
        scores = []
        for which in range(2):
            successes, failures = self._totals(self.at.sinusoid_window, period, 2, which)
            trials = successes + failures
            rate = successes / trials if trials > 0.0 else 0.0
            scores.append(rate + self.settings[Setting.ODDS_FLOOR])
        self.state[self.at.sinusoid1_odds] = scores[0] / (scores[0] + scores[1])

    def assign_archive(self, seed: int) -> list[int]:
        """Slot of each replaced parent or -1: free slots first, then drawn ones.

        Of two members that draw one slot the higher wins.
        """
        capacity = archive_capacity(self.settings, len(self.accepted), len(self.living))
        live = int(self.state[self.at.archive_count])
        slots = [-1] * len(self.accepted)
        for i, taken in enumerate(self.accepted):
            if not taken or capacity == 0:
                continue
            if live < capacity:
                slots[i] = live
                live += 1
                continue
            slot = mulhi(draw(Purpose.ARCHIVE, self.generation, i, 0, seed)[0], capacity)
            slots = [-1 if other == slot else other for other in slots]
            slots[i] = slot
        self.state[self.at.archive_count] = float(live)
        return slots


def tell(
    settings: torch.Tensor,
    strategies: torch.Tensor,
    trial_fitness: torch.Tensor,
    choices: torch.Tensor,
    parameters: torch.Tensor,
    seed: int,
    state: torch.Tensor,
    fitness: torch.Tensor,
    alive: torch.Tensor,
    generation: torch.Tensor,
    accepted: torch.Tensor,
    archive_slot: torch.Tensor,
) -> None:
    """Updates state, fitness, alive and generation in place; fills accepted and archive_slot."""
    require_subnormals()
    parents, trials = clean_fitness(fitness), clean_fitness(trial_fitness)
    living = alive_members("tell", alive)
    taken, improvement = select(parents, trials, living)
    t = Tell(
        settings.tolist(),
        strategies.reshape(-1, NUM_STRATEGY_COLUMNS).tolist(),
        choices.tolist(),
        parameters.tolist(),
        state.tolist(),
        int(generation.item()),
        living,
        taken,
        improvement,
    )
    check_told(t.settings, len(t.strategies), t.choices, t.state, t.at, t.generation)
    if t.settings[Setting.ADAPT_MEMORIES]:
        for k in range(len(t.strategies)):
            t.update_memories(k)
    t.count()
    started = t.generation >= int(t.settings[Setting.ADAPT_START])
    if t.settings[Setting.ADAPT_STRATEGIES] and started:
        t.update_strategy_odds()
    t.update_sinusoid_odds()
    slots = t.assign_archive(seed)

    survivors = [b if a else p for p, b, a in zip(parents, trials, taken, strict=True)]
    left = set(survivors_of_reduction(t.settings, survivors, living, t.generation))
    rows = archive_capacity(t.settings, len(parents), len(left))  # the last ones go
    t.state[t.at.archive_count] = min(t.state[t.at.archive_count], float(rows))
    survivors = [f if member in left else math.inf for member, f in enumerate(survivors)]
    fitness.copy_(torch.tensor(survivors, dtype=torch.float64))
    alive.copy_(torch.tensor([member in left for member in range(len(parents))]))
    state.copy_(torch.tensor(t.state, dtype=torch.float64))
    accepted.copy_(torch.tensor(taken, dtype=torch.uint8))
    archive_slot.copy_(torch.tensor(slots, dtype=torch.int32))
    generation.add_(1)
