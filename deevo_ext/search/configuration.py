"""Every parameter of the evolution, with its default, meaning and source, and the presets.

Sources: D/E, the two last versions of the authors' program for SA-SHADE-tri-ensin; SaDE, Qin et al.
2009; SHADE and L-SHADE, Tanabe & Fukunaga 2013 and 2014; EpSin, Awad et al. 2016 and 2017
(cnEpSin); ours, where none of them decides.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import torch

from deevo_ext.errors import DeevoError
from deevo_ext.ops.tables import Setting, StateOffsets, StrategyColumn, state_offsets
from deevo_ext.search.pools import difference_pool, interpolation_pool, pool_of, shade_pool
from deevo_ext.search.strategies import Strategy, compile_pool, members_needed, parse

F_DISTRIBUTIONS = {"normal": 0, "cauchy": 1}
SINUSOIDS = {"ensemble": 0, "decreasing": 1, "increasing": 2, "none": 3}
CR_MEANS = {"lehmer": 0, "arithmetic": 1}
CROSSOVER_UNITS = ("weight", "channel", "tensor")


def _number(default: float, least: float, greatest: float) -> Any:
    """A field for a number in a closed interval."""
    return field(default=default, metadata={"range": (least, greatest)})


def _choice(default: str, allowed: Collection[str]) -> Any:
    """A field for one of a few words."""
    return field(default=default, metadata={"allowed": allowed})


@dataclass(frozen=True)
class Configuration:
    """Parameters of SA-SHADE-tri-ensin; the defaults are preset "paper".

    strategies: the pool, or the name of one: "interp" (D/E: four interpolations and trigonometric
        mutation with initial odds 0.2, capped at 0.8), "sade", "pbest" or "difference".
    generations: the horizon G of the schedule (D/E: 100 to 300).
    adapt_strategies: whether the odds of strategies follow their success rates (SaDE, D/E) or
        never change.
    strategy_period: the number of generations in the window of successes (E: 10).
    adapt_start: the first generation whose tell changes the odds (D/E: 1; SaDE waits 50).
    odds_floor: the least score of a strategy, which is also added to success rates (SaDE, D/E:
        0.01).
    adapt_memories: whether success-history memories are written (SHADE) or keep their first values.
    memory_size: the number of slots H per strategy (D/E, EpSin: 5).
    f_init: F of the sinusoids, and the first value in the memories of F (D/E: 0.6).
    f_std: the spread of F around its memory (D/E: 0.05).
    f_min: the lower bound of F (D/E: 1e-4).
    f_max: the upper bound of F (D/E: 0.99).
    f_distribution: the distribution of F around its memory, "normal" (D/E) or "cauchy" (SHADE).
    cr_init: the first value in the memories of CR (D/E: 0.8). CR acts in steps of 1/65536.
    cr_std: the spread of CR around its memory (D/E: 0.05).
    cr_min: the lower bound of CR (D/E: 0).
    cr_max: the upper bound of CR (D/E: 0.99).
    cr_mean: the mean of successful CRs that a memory takes, "lehmer" with L-SHADE's terminal value
        (D/E, L-SHADE) or "arithmetic" (SHADE 2013).
    sinusoid: the schedule of F in the first generations, an "ensemble" of both sinusoids (EpSin,
        D/E), one of them ("decreasing", "increasing"), or "none".
    sinusoid_1_frequency: the frequency of the decreasing sinusoid. At 0.5 (EpSin, D/E), as at any
        multiple of 1/2, it is constant, F = f_init, because generations are whole numbers; any
        other frequency makes it oscillate.
    frequency_init: the first value in the memories of the increasing sinusoid's frequency (D/E,
        EpSin: 0.5).
    frequency_std: the spread of that frequency around its memory (D/E, EpSin: 0.1).
    sinusoid_period: the number of generations in the sinusoids' window of successes, and of those
        at the beginning that have fair odds (D/E: 5).
    switch: the part of the generations after which F comes from the memories (EpSin, D/E: 0.5).
    pbest_min, pbest_max: bounds of the share p of best members of which pbest is one (SHADE). It is
        one of the best round(NP p), and p is uniform between the two.
    best_excludes_target: whether "best" is the best other member (E) or the best of all (D).
    trig_offset: whether trigonometric mutation weighs the loss minus the population's least loss
        (ours) or the loss itself.
    archive_size: the number of replaced parents that stay available to strategies that name
        "archive" (SHADE).
    crossover_unit: the gene that binomial crossover exchanges: "weight" (the standard), "channel"
        (a slice along a tensor's first dimension) or "tensor" (ours).
    j_rand: whether binomial crossover takes at least one gene from the mutant (SaDE, SHADE). D/E do
        not, and at millions of weights it makes no difference.
    lower, upper: bounds around 0 of every weight but BatchNorm variances; None (D/E) sets no bound.
        A mutant beyond a bound is put half way to it from its parent (SHADE). Bounds are rounded
        towards 0 to what the rows hold.
    population_min: the number of members left in the end by L-SHADE's linear reduction, in which
        the worst go first; at 0 (D/E) all stay.
    evaluations: the number of evaluations in which that reduction comes to its end, parents' first
        scores included (L-SHADE); the archive shrinks in proportion. At 0 it falls by generations,
        with the last one as its end, and the archive keeps its size: the population is then large
        for longer and has fewer generations for the same evaluations.
    """

    strategies: tuple[Strategy, ...] = field(default_factory=interpolation_pool)
    generations: int = _number(100, 1, 2**31 - 2)
    adapt_strategies: bool = True
    strategy_period: int = _number(10, 1, 10**6)
    adapt_start: int = _number(1, 1, 2**31 - 2)
    odds_floor: float = _number(0.01, 1e-12, 1.0)
    adapt_memories: bool = True
    memory_size: int = _number(5, 1, 10**6)
    f_init: float = _number(0.6, 0.0, 2.0)
    f_std: float = _number(0.05, 0.0, 10.0)
    f_min: float = _number(1e-4, -10.0, 10.0)
    f_max: float = _number(0.99, -10.0, 10.0)
    f_distribution: str = _choice("normal", F_DISTRIBUTIONS)
    cr_init: float = _number(0.8, 0.0, 1.0)
    cr_std: float = _number(0.05, 0.0, 1.0)
    cr_min: float = _number(0.0, 0.0, 1.0)
    cr_max: float = _number(0.99, 0.0, 1.0)
    cr_mean: str = _choice("lehmer", CR_MEANS)
    sinusoid: str = _choice("ensemble", SINUSOIDS)
    sinusoid_1_frequency: float = _number(0.5, 0.0, 10.0)
    frequency_init: float = _number(0.5, 0.0, 1.0)
    frequency_std: float = _number(0.1, 0.0, 10.0)
    sinusoid_period: int = _number(5, 1, 10**6)
    switch: float = _number(0.5, 0.0, 1.0)
    pbest_min: float = _number(0.1, 0.0, 1.0)
    pbest_max: float = _number(0.2, 0.0, 1.0)
    best_excludes_target: bool = False
    trig_offset: bool = False
    archive_size: int = _number(0, 0, 10**6)
    crossover_unit: str = _choice("weight", CROSSOVER_UNITS)
    j_rand: bool = False
    lower: float | None = None
    upper: float | None = None
    population_min: int = _number(0, 0, 10**6)
    evaluations: int = _number(0, 0, 2**53)

    def __post_init__(self) -> None:
        object.__setattr__(self, "strategies", pool_of(self.strategies))
        self._check_values()
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
        uses_archive = any("archive" in parse(s.formula).parents for s in self.strategies)
        if uses_archive and self.archive_size == 0:
            raise DeevoError(
                "a strategy names archive, but archive_size is 0; give its number of rows, each as "
                "large as a member (SHADE: as many as members; L-SHADE: 2.6 times as many)"
            )
        compile_pool(self.strategies)

    def _check_values(self) -> None:
        """Raises DeevoError, naming the parameter, for a value that none may have."""
        for part in fields(self):
            name, value = part.name, getattr(self, part.name)
            if "range" in part.metadata:
                low, high = part.metadata["range"]
                number = isinstance(value, (int, float)) and not isinstance(value, bool)
                if not (number and low <= value <= high):
                    raise DeevoError(f"{name} is {value!r}; expected a number in [{low}, {high}]")
                if part.type == "int" and not isinstance(value, int):
                    raise DeevoError(f"{name} is {value!r}; expected a whole number")
            elif part.type == "bool" and not isinstance(value, bool):
                raise DeevoError(f"{name} is {value!r}; expected True or False")
            elif "allowed" in part.metadata and (
                not isinstance(value, str) or value not in part.metadata["allowed"]
            ):
                allowed = ", ".join(part.metadata["allowed"])
                raise DeevoError(f"{name} is {value!r}; expected one of {allowed}")
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


# SHADE 1.1 with the constants that L-SHADE has; only a trial that is better replaces its parent.
_SHADE: dict[str, Any] = {
    "strategies": shade_pool(),
    "sinusoid": "none",
    "memory_size": 6,
    "f_distribution": "cauchy",
    "f_init": 0.5,
    "f_std": 0.1,
    "f_min": 0.0,
    "f_max": 1.0,
    "cr_init": 0.5,
    "cr_std": 0.1,
    "cr_max": 1.0,
    "pbest_min": 0.11,
    "pbest_max": 0.11,
    "j_rand": True,
}

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
    "shade": _SHADE,
    "l-shade": {**_SHADE, "population_min": 4},
}


def configure(preset: str | Configuration, **changes: Any) -> Configuration:
    """Returns a preset, or a configuration, with changes.

    Raises DeevoError for an unknown preset or parameter.
    """
    if not isinstance(preset, Configuration) and preset not in PRESETS:
        raise DeevoError(f"preset is {preset!r}; expected one of {', '.join(PRESETS)}")
    known = {f.name for f in fields(Configuration)}
    unknown = sorted(set(changes) - known)
    if unknown:
        raise DeevoError(
            f"unknown parameter {unknown[0]!r}; expected one of {', '.join(sorted(known))}"
        )
    if preset == "l-shade" and "evaluations" not in changes:
        raise DeevoError(
            'preset "l-shade" shrinks the population as evaluations are spent; give their number '
            "as evaluations"
        )
    if isinstance(preset, Configuration):
        return replace(preset, **changes)
    return Configuration(**{**PRESETS[preset], **changes})
