"""Every parameter of the evolution, with its default, meaning and source.

Sources: D/E, the two last versions of the authors' program for SA-SHADE-tri-ensin; SaDE, Qin et al.
2009; SHADE and L-SHADE, Tanabe & Fukunaga 2013 and 2014; EpSin, Awad et al. 2016 and 2017
(cnEpSin); ours, where none of them decides.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from deevo_ext.errors import DeevoError
from deevo_ext.ops.tables import Setting, StateOffsets, StrategyColumn, state_offsets
from deevo_ext.options import check_options, documented, option
from deevo_ext.search.pools import interpolation_pool, pool_of
from deevo_ext.search.strategies import Strategy, compile_pool, members_needed, parse

F_DISTRIBUTIONS = {"normal": 0, "cauchy": 1}
SINUSOIDS = {"ensemble": 0, "decreasing": 1, "increasing": 2, "none": 3}
CR_MEANS = {"lehmer": 0, "arithmetic": 1}
CROSSOVER_UNITS = ("weight", "channel", "tensor")


@documented()
@dataclass(frozen=True)
class Configuration:
    """Parameters of SA-SHADE-tri-ensin; the defaults are preset "paper"."""

    strategies: tuple[Strategy, ...] = option(
        interpolation_pool(),
        'the pool, or the name of one: "interp" (four interpolations and trigonometric mutation '
        'with initial odds 0.2, capped at 0.8), "sade", "pbest" or "difference"',
        "D/E: interp",
    )
    generations: int = option(
        100, "the horizon G of the schedule", "D/E: 100 to 300", within=(1, 2**31 - 2)
    )
    adapt_strategies: bool = option(
        True,
        "whether the odds of strategies follow their success rates or never change",
        "SaDE, D/E",
    )
    strategy_period: int = option(
        10, "the number of generations in the window of successes", "E: 10", within=(1, 10**6)
    )
    adapt_start: int = option(
        1,
        "the first generation whose tell changes the odds",
        "D/E: 1; SaDE waits 50",
        within=(1, 2**31 - 2),
    )
    odds_floor: float = option(
        0.01,
        "the least score of a strategy, which is also added to success rates",
        "SaDE, D/E: 0.01",
        within=(1e-12, 1.0),
    )
    adapt_memories: bool = option(
        True, "whether success-history memories are written or keep their first values", "SHADE"
    )
    memory_size: int = option(
        5, "the number of slots H per strategy", "D/E, EpSin: 5", within=(1, 10**6)
    )
    f_init: float = option(
        0.6,
        "F of the sinusoids, and the first value in the memories of F",
        "D/E: 0.6",
        within=(0.0, 2.0),
    )
    f_std: float = option(
        0.05, "the spread of F around its memory", "D/E: 0.05", within=(0.0, 10.0)
    )
    f_min: float = option(1e-4, "the lower bound of F", "D/E: 1e-4", within=(-10.0, 10.0))
    f_max: float = option(0.99, "the upper bound of F", "D/E: 0.99", within=(-10.0, 10.0))
    f_distribution: str = option(
        "normal",
        'the distribution of F around its memory, "normal" or, as in SHADE, "cauchy"',
        "D/E: normal",
        choices=F_DISTRIBUTIONS,
    )
    cr_init: float = option(
        0.8,
        "the first value in the memories of CR, which acts in steps of 1/65536",
        "D/E: 0.8",
        within=(0.0, 1.0),
    )
    cr_std: float = option(
        0.05, "the spread of CR around its memory", "D/E: 0.05", within=(0.0, 1.0)
    )
    cr_min: float = option(0.0, "the lower bound of CR", "D/E: 0", within=(0.0, 1.0))
    cr_max: float = option(0.99, "the upper bound of CR", "D/E: 0.99", within=(0.0, 1.0))
    cr_mean: str = option(
        "lehmer",
        'the mean of successful CRs that a memory takes, "lehmer" with the terminal value or '
        '"arithmetic" (SHADE 2013)',
        "D/E, L-SHADE: lehmer",
        choices=CR_MEANS,
    )
    sinusoid: str = option(
        "ensemble",
        'the schedule of F in the first generations, an "ensemble" of both sinusoids, one of them'
        ' ("decreasing", "increasing"), or "none"',
        "EpSin, D/E: ensemble",
        choices=SINUSOIDS,
    )
    sinusoid_1_frequency: float = option(
        0.5,
        "the frequency of the decreasing sinusoid. At 0.5, as at any multiple of 1/2, it is "
        "constant, F = f_init, because generations are whole numbers; any other frequency makes "
        "it oscillate",
        "EpSin, D/E: 0.5",
        within=(0.0, 10.0),
    )
    frequency_init: float = option(
        0.5,
        "the first value in the memories of the increasing sinusoid's frequency",
        "D/E, EpSin: 0.5",
        within=(0.0, 1.0),
    )
    frequency_std: float = option(
        0.1, "the spread of that frequency around its memory", "D/E, EpSin: 0.1", within=(0.0, 10.0)
    )
    sinusoid_period: int = option(
        5,
        "the number of generations in the sinusoids' window of successes, and of those at the "
        "beginning that have fair odds",
        "D/E: 5",
        within=(1, 10**6),
    )
    switch: float = option(
        0.5,
        "the part of the generations after which F comes from the memories",
        "EpSin, D/E: 0.5",
        within=(0.0, 1.0),
    )
    pbest_min: float = option(
        0.1,
        "the lower bound of the share p of best members of which pbest is one. It is one of the "
        "best round(NP p), and p is uniform between the bounds",
        "SHADE",
        within=(0.0, 1.0),
    )
    pbest_max: float = option(0.2, "the upper bound of that share", "SHADE", within=(0.0, 1.0))
    best_excludes_target: bool = option(
        False, 'whether "best" is the best other member, as in E, or the best of all', "D"
    )
    trig_offset: bool = option(
        False,
        "whether trigonometric mutation weighs the loss minus the population's least loss or the "
        "loss itself",
        "ours",
    )
    archive_size: int = option(
        0,
        'the number of replaced parents that stay available to strategies that name "archive", '
        "each as large as a member; at 0 as many as members, where a strategy names it",
        "SHADE: as many as members; L-SHADE: 2.6 times as many",
        within=(0, 10**6),
    )
    crossover_unit: str = option(
        "weight",
        'the gene that binomial crossover exchanges: "weight" (the standard), "channel" (a slice '
        'along a dimension of a tensor, the first) or "tensor"',
        "ours",
        choices=CROSSOVER_UNITS,
        search="weights",
    )
    j_rand: bool = option(
        False,
        "whether binomial crossover takes at least one gene from the mutant, which D/E do not; at"
        " millions of weights it makes no difference",
        "SaDE, SHADE",
    )
    lower: float | None = option(
        None,
        "the bound below 0 of every weight but BatchNorm variances; None, as in D/E, sets no "
        "bound. A mutant beyond a bound is put half way to it from its parent. Bounds are rounded"
        " towards 0 to what the rows hold",
        "SHADE",
        search="weights",
    )
    upper: float | None = option(
        None, "the bound above 0 of the same weights, likewise", search="weights"
    )
    population_min: int = option(
        0,
        "the number of members left in the end by a linear reduction, in which the worst go first; "
        "at 0, as in D/E, all stay",
        "L-SHADE",
        within=(0, 10**6),
    )
    evaluations: int = option(
        0,
        "the number of evaluations in which that reduction comes to its end, the parents' first "
        "scores included; the archive shrinks in proportion. At 0 generations are its clock, the "
        "last one its end, and the archive keeps its size: the population is then large for longer "
        "and has fewer generations for as many evaluations",
        "L-SHADE",
        within=(0, 2**53),
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "strategies", pool_of(self.strategies))
        check_options(self)
        self._check_bounds()
        if 0 < self.population_min < max(self.members_needed, 4):
            raise DeevoError(
                f"population_min is {self.population_min}; expected 0 (no reduction) or at least "
                f"{max(self.members_needed, 4)}, which the strategies need"
            )
        if self.evaluations and not self.population_min:
            raise DeevoError(
                f"evaluations is {self.evaluations} without population_min; they are the clock of "
                "the population's reduction: give the number of members to be left, too (L-SHADE: "
                "4), or limit a run by generations"
            )
        compile_pool(self.strategies)

    def _check_bounds(self) -> None:
        """Raises DeevoError, naming the parameter, for bounds that hold nothing between them."""
        for prefix in ("f", "cr", "pbest"):
            low, high = getattr(self, f"{prefix}_min"), getattr(self, f"{prefix}_max")
            if low > high:
                raise DeevoError(f"{prefix}_min is {low}, above {prefix}_max, {high}")
        for name, low, high in (("lower", -math.inf, 0.0), ("upper", 0.0, math.inf)):
            bound = getattr(self, name)
            if bound is not None and not (isinstance(bound, (int, float)) and low <= bound <= high):
                raise DeevoError(
                    f"{name} is {bound!r}; expected None or a number in [{low}, {high}]: bounds "
                    "lie around 0, which the pads of a row hold"
                )

    @property
    def members_needed(self) -> int:
        """The smallest population that the pool can work on."""
        return max(members_needed(parse(strategy.formula)) for strategy in self.strategies)

    def for_members(self, count: int) -> Configuration:
        """Returns it for a population of `count` members: with the archive that its pool needs."""
        uses_archive = any("archive" in parse(s.formula).parents for s in self.strategies)
        if self.archive_size or not uses_archive:
            return self
        return replace(self, archive_size=count)

    def settings(self, weights: int = 0, genes: int = 0) -> torch.Tensor:
        """Returns the operators' `settings` tensor, float64 [len(Setting)].

        weights: length of a row up to its last weight that is no pad, which j_rand is drawn from;
        genes: segments that crossover exchanges, 0 for single weights.
        """
        others: dict[Setting, float] = {
            Setting.SWITCH_GENERATION: self.switch * self.generations,
            Setting.F_DISTRIBUTION: F_DISTRIBUTIONS[self.f_distribution],
            Setting.SINUSOID_MODE: SINUSOIDS[self.sinusoid],
            Setting.CR_MEAN: CR_MEANS[self.cr_mean],
            Setting.ARCHIVE_CAPACITY: self.archive_size,
            Setting.J_RAND_RANGE: (genes or weights) if self.j_rand else 0,
            Setting.GENES: genes,
            Setting.ARCHIVE_SHRINKS: self.evaluations > 0,
        }
        values = [
            float(others[setting] if setting in others else getattr(self, setting.name.lower()))
            for setting in Setting
        ]
        return torch.tensor(values, dtype=torch.float64)

    def offsets(self) -> StateOffsets:
        """Returns where each part of the adaptation state lies."""
        return state_offsets(
            self.memory_size, len(self.strategies), self.strategy_period, self.sinusoid_period
        )

    def initial_state(self) -> torch.Tensor:
        """Returns the adaptation state before the first generation, float64 [offsets().size]."""
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
        """Returns the parameters as JSON values, which the constructor takes, too."""
        return {**asdict(self), "strategies": [asdict(strategy) for strategy in self.strategies]}
