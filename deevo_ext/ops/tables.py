"""Where each number lies in the small tensors that the operators share.

The same list as `csrc/include/deevo/tables.h`. A generation works on

- `settings` float64 [len(Setting)], constant during a run;
- `strategies` float64 [K, len(StrategyColumn)], a compiled pool (see `strategies`);
- `state` float64 [state_offsets(...).size], what the adaptation remembers;
- `fitness` float64 [NP], `alive` uint8 [NP] and `generation` int64 [1];
- the plan: `choices` int32 [NP, len(ChoiceColumn)], `parameters` float64
  [NP, len(ParameterColumn)], `coefficients` float32 [NP, MAX_TERMS] and `gene_mask` int32
  [NP, gene_words(G)], bits of unsigned words: which of the G genes take the mutant (G = 0: weights
  draw for themselves);
- `genes` int64 [G], where each contiguous segment of a row starts.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

MAX_TERMS = 5
CONTRACT_VERSION = 2
CONTRACTS = (1, 2)
"""Versions of the contract under which generations have the same bits: 2 adds the coefficients."""


class Purpose(IntEnum):
    """First counter word of Philox: what a random number is for."""

    MASK = 1
    GENE_MASK = 2
    CHOICE = 3
    PARENTS = 4
    F = 5
    CR = 6
    FREQUENCY = 7
    J_RAND = 8
    ARCHIVE = 9
    PERMUTATION = 10
    BATCH = 11
    DIRECTION = 12
    FIRST_VIRTUAL = 13
    PART = 14


POPULATION_MEMBER = 0xFFFFFFFF  # third counter word of draws that belong to no single member


class Setting(IntEnum):
    """Index of each setting; the meanings and sources are `search.configuration`'s."""

    GENERATIONS = 0
    SWITCH_GENERATION = 1
    F_INIT = 2
    F_STD = 3
    F_MIN = 4
    F_MAX = 5
    F_DISTRIBUTION = 6  # 0 normal, 1 Cauchy
    SINUSOID_MODE = 7  # 0 ensemble, 1 and 2 that sinusoid alone, 3 memory only
    SINUSOID_1_FREQUENCY = 8
    FREQUENCY_STD = 9
    CR_STD = 10
    CR_MIN = 11
    CR_MAX = 12
    SINUSOID_PERIOD = 13
    STRATEGY_PERIOD = 14
    MEMORY_SIZE = 15
    ODDS_FLOOR = 16
    ADAPT_START = 17
    ADAPT_STRATEGIES = 18
    ADAPT_MEMORIES = 19
    CR_MEAN = 20  # 0 Lehmer, 1 arithmetic
    PBEST_MIN = 21
    PBEST_MAX = 22
    BEST_EXCLUDES_TARGET = 23
    TRIG_OFFSET = 24
    ARCHIVE_CAPACITY = 25
    J_RAND_RANGE = 26  # weights (or genes, where there are any) to draw from; 0: no forced mutant
    GENES = 27  # G
    POPULATION_MIN = 28  # 0: no reduction
    EVALUATIONS = 29  # in which the population is reduced; 0: in GENERATIONS
    ARCHIVE_SHRINKS = 30  # whether its capacity falls in proportion to the living


class StrategyColumn(IntEnum):
    """Columns of a compiled strategy."""

    KIND = 0  # 0 linear, 1 trigonometric
    CROSSOVER = 1  # 0 none, 1 binomial
    BASE_TERM = 2
    NUM_TERMS = 3
    TERM_CODES = 4  # 5 columns
    TERM_COEFFICIENTS = 9  # 5 x 4 columns: factors of 1, F, U, F U
    ODDS_INIT = 29
    ODDS_CAP = 30
    ODDS_FIXED = 31  # negative: adapted


NUM_STRATEGY_COLUMNS = 32


class TermCode(IntEnum):
    """The rows that a strategy may name."""

    TARGET = 0
    BEST = 1
    PBEST = 2
    R1 = 3
    R2 = 4
    R3 = 5
    R4 = 6
    R5 = 7
    ARCHIVE = 8


class ChoiceColumn(IntEnum):
    """Columns of a plan's choices; a row index >= NP means row - NP of the archive."""

    GENERATION = 0
    STRATEGY = 1
    SOURCE = 2
    THRESHOLD = 3
    TERMS = 4
    BASE_ROW = 5
    ROWS = 6  # 5 columns
    FORCED = 11  # flat index of the weight that takes the mutant whatever is drawn; -1: none


NUM_CHOICE_COLUMNS = 12


def gene_words(genes: int) -> int:
    """Returns how many 32-bit words hold a bit per gene."""
    return (genes + 31) // 32


class Source(IntEnum):
    """Where a member's F came from."""

    NONE = 0
    SINUSOID_1 = 1
    SINUSOID_2 = 2
    MEMORY = 3


class ParameterColumn(IntEnum):
    """Columns of a plan's parameters."""

    F = 0
    CR = 1
    FREQUENCY = 2
    U = 3


NUM_PARAMETER_COLUMNS = 4


@dataclass(frozen=True)
class StateOffsets:
    """Where each part of the adaptation state begins.

    `memory_*` [H, K], `pointer` and `odds` [K], `sinusoid1_odds` and `archive_count` [1],
    `strategy_window` [strategy period, K, 2] and `sinusoid_window` [sinusoid period, 2, 2]
    (successes, failures).
    """

    memory_f: int
    memory_cr: int
    memory_frequency: int
    pointer: int
    odds: int
    sinusoid1_odds: int
    archive_count: int
    strategy_window: int
    sinusoid_window: int
    size: int


def state_offsets(
    memory_size: int, num_strategies: int, strategy_period: int, sinusoid_period: int
) -> StateOffsets:
    """Returns the offsets for H = memory_size memories and K strategies."""
    memories = memory_size * num_strategies
    pointer = 3 * memories
    odds = pointer + num_strategies
    sinusoid1_odds = odds + num_strategies
    strategy_window = sinusoid1_odds + 2
    sinusoid_window = strategy_window + strategy_period * num_strategies * 2
    return StateOffsets(
        memory_f=0,
        memory_cr=memories,
        memory_frequency=2 * memories,
        pointer=pointer,
        odds=odds,
        sinusoid1_odds=sinusoid1_odds,
        archive_count=sinusoid1_odds + 1,
        strategy_window=strategy_window,
        sinusoid_window=sinusoid_window,
        size=sinusoid_window + sinusoid_period * 4,
    )
