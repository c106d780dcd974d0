"""Every parameter of the evolution, with its default, meaning and source, and the presets.

Sources: D/E, the two last versions of the authors' program for SA-SHADE-tri-ensin; SaDE, Qin et al.
2009; SHADE and L-SHADE, Tanabe & Fukunaga 2013 and 2014; EpSin, Awad et al. 2016 and 2017
(cnEpSin); ours, where none of them decides.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch

from deevo_ext.errors import DeevoError
from deevo_ext.ops.tables import Setting, StateOffsets, StrategyColumn, state_offsets
from deevo_ext.search.pools import difference_pool, interpolation_pool, pool_of
from deevo_ext.search.ranges import CR_MEANS, F_DISTRIBUTIONS, SINUSOIDS, check_ranges
from deevo_ext.search.strategies import Strategy, compile_pool, members_needed, parse


@dataclass(frozen=True)
class Configuration:
    """Parameters of SA-SHADE-tri-ensin; the defaults are preset "paper".

    strategies: the pool, or the name of one, "interp" (D/E: four interpolations and trigonometric
        mutation with initial odds 0.2, capped at 0.8), "sade", "pbest" or "difference".
    generations: horizon G of the schedule (D/E 100 to 300).
    adapt_strategies: strategy odds follow success rates (SaDE, D/E), else they never change.
    strategy_period: generations in the success window (E: 10).
    adapt_start: first generation whose tell changes the odds (D/E: 1; SaDE waits 50).
    odds_floor: least score of a strategy, and what is added to success rates (SaDE, D/E: 0.01).
    adapt_memories: success-history memories are written (SHADE), else they keep their first values.
    memory_size: slots H per strategy (D/E, EpSin: 5).
    f_init, f_std, f_min, f_max: F of the sinusoids and first memory value, spread, bounds (D/E 0.6,
        0.05, 1e-4, 0.99).
    f_distribution: "normal" (D/E) or "cauchy" (SHADE) around the memory.
    cr_init, cr_std, cr_min, cr_max: the same for CR (D/E 0.8, 0.05, 0, 0.99). CR acts in steps of
        1/65536.
    cr_mean: "lehmer" with L-SHADE's terminal value (D/E, L-SHADE) or "arithmetic" (SHADE 2013).
    sinusoid: "ensemble" (EpSin, D/E), one of them ("decreasing", "increasing"), or "none".
    sinusoid_1_frequency: of the decreasing sinusoid. At 0.5 (EpSin, D/E) and integer generations it
        is constant, F = f_init: any multiple of 1/2 is; choose another for an oscillation.
    frequency_init, frequency_std: first memory value and spread of the increasing sinusoid's
        frequency (D/E, EpSin: 0.5, 0.1).
    sinusoid_period: generations of the sinusoids' success window, and of fair odds before (D/E: 5).
    switch: part of the generations before F comes from the memories (EpSin, D/E: 0.5).
    pbest_min, pbest_max: pbest is one of the best round(NP p), p uniform between the two (SHADE).
    best_excludes_target: "best" is the best other member (E), else the best of all (D).
    trig_offset: trigonometric mutation weighs loss minus the population's least loss (ours, off).
    archive_size: replaced parents that stay available to strategies that name "archive" (SHADE).
    crossover_unit: what binomial crossover exchanges: "weight" (the standard), "channel" (a slice
        along a tensor's first dimension) or "tensor" (ours).
    j_rand: binomial crossover takes at least one weight (channel, tensor) from the mutant (SaDE,
        SHADE; D/E have none, and at millions of weights it makes no difference).
    lower, upper: bounds around 0 of every weight but BatchNorm variances; a mutant beyond one is
        put half way to it from its parent (SHADE). They are rounded towards 0 to what the rows
        hold. None: none (D/E).
    population_min: members left after the last generation by L-SHADE's linear reduction, with
        generations as its clock; the worst go first. 0: nobody goes (D/E).
    """

    strategies: tuple[Strategy, ...] = field(default_factory=interpolation_pool)
    generations: int = 100
    adapt_strategies: bool = True
    strategy_period: int = 10
    adapt_start: int = 1
    odds_floor: float = 0.01
    adapt_memories: bool = True
    memory_size: int = 5
    f_init: float = 0.6
    f_std: float = 0.05
    f_min: float = 1e-4
    f_max: float = 0.99
    f_distribution: str = "normal"
    cr_init: float = 0.8
    cr_std: float = 0.05
    cr_min: float = 0.0
    cr_max: float = 0.99
    cr_mean: str = "lehmer"
    sinusoid: str = "ensemble"
    sinusoid_1_frequency: float = 0.5
    frequency_init: float = 0.5
    frequency_std: float = 0.1
    sinusoid_period: int = 5
    switch: float = 0.5
    pbest_min: float = 0.1
    pbest_max: float = 0.2
    best_excludes_target: bool = False
    trig_offset: bool = False
    archive_size: int = 0
    crossover_unit: str = "weight"
    j_rand: bool = False
    lower: float | None = None
    upper: float | None = None
    population_min: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "strategies", pool_of(self.strategies))
        check_ranges({f.name: getattr(self, f.name) for f in fields(self)})
        if 0 < self.population_min < max(self.members_needed, 4):
            raise DeevoError(
                f"population_min is {self.population_min}; expected 0 (no reduction) or at least "
                f"{max(self.members_needed, 4)}, which the strategies need"
            )
        uses_archive = any("archive" in parse(s.formula).parents for s in self.strategies)
        if uses_archive and self.archive_size == 0:
            raise DeevoError(
                "a strategy names archive, but archive_size is 0; give a size (SHADE: NP)"
            )
        compile_pool(self.strategies)

    @property
    def members_needed(self) -> int:
        """The smallest population that the pool can work on."""
        return max(members_needed(parse(strategy.formula)) for strategy in self.strategies)

    def settings(self, weights: int = 0, genes: int = 0) -> torch.Tensor:
        """The operators' `settings` tensor, float64 [len(Setting)].

        weights: length of a row up to its last weight that is no pad, which j_rand is drawn from;
        genes: segments that crossover exchanges, 0 for single weights.
        """
        values: dict[Setting, float] = {
            Setting.GENERATIONS: self.generations,
            Setting.SWITCH_GENERATION: self.switch * self.generations,
            Setting.F_INIT: self.f_init,
            Setting.F_STD: self.f_std,
            Setting.F_MIN: self.f_min,
            Setting.F_MAX: self.f_max,
            Setting.F_DISTRIBUTION: F_DISTRIBUTIONS[self.f_distribution],
            Setting.SINUSOID_MODE: SINUSOIDS[self.sinusoid],
            Setting.SINUSOID_1_FREQUENCY: self.sinusoid_1_frequency,
            Setting.FREQUENCY_STD: self.frequency_std,
            Setting.CR_STD: self.cr_std,
            Setting.CR_MIN: self.cr_min,
            Setting.CR_MAX: self.cr_max,
            Setting.SINUSOID_PERIOD: self.sinusoid_period,
            Setting.STRATEGY_PERIOD: self.strategy_period,
            Setting.MEMORY_SIZE: self.memory_size,
            Setting.ODDS_FLOOR: self.odds_floor,
            Setting.ADAPT_START: self.adapt_start,
            Setting.ADAPT_STRATEGIES: self.adapt_strategies,
            Setting.ADAPT_MEMORIES: self.adapt_memories,
            Setting.CR_MEAN: CR_MEANS[self.cr_mean],
            Setting.PBEST_MIN: self.pbest_min,
            Setting.PBEST_MAX: self.pbest_max,
            Setting.BEST_EXCLUDES_TARGET: self.best_excludes_target,
            Setting.TRIG_OFFSET: self.trig_offset,
            Setting.ARCHIVE_CAPACITY: self.archive_size,
            Setting.J_RAND_RANGE: (genes or weights) if self.j_rand else 0,
            Setting.GENES: genes,
            Setting.POPULATION_MIN: self.population_min,
        }
        return torch.tensor([float(values[setting]) for setting in Setting], dtype=torch.float64)

    def offsets(self) -> StateOffsets:
        """Where each part of the adaptation state lies."""
        return state_offsets(
            self.memory_size, len(self.strategies), self.strategy_period, self.sinusoid_period
        )

    def initial_state(self) -> torch.Tensor:
        """The adaptation state before the first generation, float64 [offsets().size]."""
        at = self.offsets()
        state = torch.zeros(at.size, dtype=torch.float64)
        state[at.memory_f : at.memory_cr] = self.f_init
        state[at.memory_cr : at.memory_frequency] = self.cr_init
        state[at.memory_frequency : at.pointer] = self.frequency_init
        odds = compile_pool(self.strategies)[:, StrategyColumn.ODDS_INIT]
        state[at.odds : at.sinusoid1_odds] = odds
        state[at.sinusoid1_odds] = 0.5
        return state

    def to_json(self) -> dict[str, Any]:
        """Plain values, for journals."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values["strategies"] = [strategy.to_json() for strategy in self.strategies]
        return values

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Configuration:
        """The inverse of `to_json`."""
        return cls(**values)


PRESETS: dict[str, dict[str, Any]] = {
    # The authors' versions D/E as analysed: with their constant first sinusoid, but successes
    # counted before replacement, a lone winner at index 0 too, 0/0 ruled out, float64 fitness.
    "paper": {},
    # What docs/evidence.md supports: differences of members in place of interpolations, whose
    # population contracts to a soup; F around the classic 0.5; more of each mutant taken; a first
    # sinusoid that does oscillate; the best member not wasting its trials on moving to itself.
    "sa-shade-tri-ensin": {
        "strategies": difference_pool(),
        "f_init": 0.5,
        "f_std": 0.2,
        "f_max": 1.0,
        "cr_init": 0.9,
        "sinusoid_1_frequency": 0.1,
        "best_excludes_target": True,
    },
}


def configure(preset: str, **changes: Any) -> Configuration:
    """A preset with changes; raises DeevoError for an unknown preset or parameter."""
    if preset not in PRESETS:
        raise DeevoError(f"preset is {preset!r}; expected one of {', '.join(PRESETS)}")
    known = {f.name for f in fields(Configuration)}
    unknown = sorted(set(changes) - known)
    if unknown:
        raise DeevoError(
            f"unknown parameter {unknown[0]!r}; expected one of {', '.join(sorted(known))}"
        )
    return replace(Configuration(**PRESETS[preset]), **changes)
