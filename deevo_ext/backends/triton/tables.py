"""`deevo_ext.ops.tables` as the compile-time constants that a Triton kernel may name."""

from __future__ import annotations

import triton.language as tl

from deevo_ext.ops import tables
from deevo_ext.ops.tables import (
    ChoiceColumn,
    ParameterColumn,
    Purpose,
    Setting,
    Source,
    StrategyColumn,
    TermCode,
)

MAX_TERMS = tl.constexpr(tables.MAX_TERMS)
CHOICE_COLUMNS = tl.constexpr(tables.NUM_CHOICE_COLUMNS)
PARAMETER_COLUMNS = tl.constexpr(tables.NUM_PARAMETER_COLUMNS)
STRATEGY_COLUMNS = tl.constexpr(tables.NUM_STRATEGY_COLUMNS)

PURPOSE_MASK = tl.constexpr(int(Purpose.MASK))
PURPOSE_GENE_MASK = tl.constexpr(int(Purpose.GENE_MASK))
PURPOSE_CHOICE = tl.constexpr(int(Purpose.CHOICE))
PURPOSE_PARENTS = tl.constexpr(int(Purpose.PARENTS))
PURPOSE_F = tl.constexpr(int(Purpose.F))
PURPOSE_CR = tl.constexpr(int(Purpose.CR))
PURPOSE_FREQUENCY = tl.constexpr(int(Purpose.FREQUENCY))
PURPOSE_J_RAND = tl.constexpr(int(Purpose.J_RAND))
PURPOSE_ARCHIVE = tl.constexpr(int(Purpose.ARCHIVE))

GENERATION = tl.constexpr(int(ChoiceColumn.GENERATION))
STRATEGY = tl.constexpr(int(ChoiceColumn.STRATEGY))
SOURCE = tl.constexpr(int(ChoiceColumn.SOURCE))
THRESHOLD = tl.constexpr(int(ChoiceColumn.THRESHOLD))
TERMS = tl.constexpr(int(ChoiceColumn.TERMS))
BASE_ROW = tl.constexpr(int(ChoiceColumn.BASE_ROW))
ROWS = tl.constexpr(int(ChoiceColumn.ROWS))
FORCED = tl.constexpr(int(ChoiceColumn.FORCED))

F = tl.constexpr(int(ParameterColumn.F))
CR = tl.constexpr(int(ParameterColumn.CR))
FREQUENCY = tl.constexpr(int(ParameterColumn.FREQUENCY))
U = tl.constexpr(int(ParameterColumn.U))

SOURCE_NONE = tl.constexpr(int(Source.NONE))
SOURCE_SINUSOID_1 = tl.constexpr(int(Source.SINUSOID_1))
SOURCE_SINUSOID_2 = tl.constexpr(int(Source.SINUSOID_2))
SOURCE_MEMORY = tl.constexpr(int(Source.MEMORY))

KIND = tl.constexpr(int(StrategyColumn.KIND))
CROSSOVER = tl.constexpr(int(StrategyColumn.CROSSOVER))
BASE_TERM = tl.constexpr(int(StrategyColumn.BASE_TERM))
NUM_TERMS = tl.constexpr(int(StrategyColumn.NUM_TERMS))
TERM_CODES = tl.constexpr(int(StrategyColumn.TERM_CODES))
TERM_COEFFICIENTS = tl.constexpr(int(StrategyColumn.TERM_COEFFICIENTS))
ODDS_CAP = tl.constexpr(int(StrategyColumn.ODDS_CAP))
ODDS_FIXED = tl.constexpr(int(StrategyColumn.ODDS_FIXED))

TERM_BEST = tl.constexpr(int(TermCode.BEST))
TERM_PBEST = tl.constexpr(int(TermCode.PBEST))
TERM_R1 = tl.constexpr(int(TermCode.R1))
TERM_R2 = tl.constexpr(int(TermCode.R2))
TERM_R3 = tl.constexpr(int(TermCode.R3))
TERM_R4 = tl.constexpr(int(TermCode.R4))
TERM_R5 = tl.constexpr(int(TermCode.R5))
TERM_ARCHIVE = tl.constexpr(int(TermCode.ARCHIVE))

GENERATIONS = tl.constexpr(int(Setting.GENERATIONS))
SWITCH_GENERATION = tl.constexpr(int(Setting.SWITCH_GENERATION))
F_INIT = tl.constexpr(int(Setting.F_INIT))
F_STD = tl.constexpr(int(Setting.F_STD))
F_MIN = tl.constexpr(int(Setting.F_MIN))
F_MAX = tl.constexpr(int(Setting.F_MAX))
F_DISTRIBUTION = tl.constexpr(int(Setting.F_DISTRIBUTION))
SINUSOID_MODE = tl.constexpr(int(Setting.SINUSOID_MODE))
SINUSOID_1_FREQUENCY = tl.constexpr(int(Setting.SINUSOID_1_FREQUENCY))
FREQUENCY_STD = tl.constexpr(int(Setting.FREQUENCY_STD))
CR_STD = tl.constexpr(int(Setting.CR_STD))
CR_MIN = tl.constexpr(int(Setting.CR_MIN))
CR_MAX = tl.constexpr(int(Setting.CR_MAX))
SINUSOID_PERIOD = tl.constexpr(int(Setting.SINUSOID_PERIOD))
STRATEGY_PERIOD = tl.constexpr(int(Setting.STRATEGY_PERIOD))
MEMORY_SIZE = tl.constexpr(int(Setting.MEMORY_SIZE))
ODDS_FLOOR = tl.constexpr(int(Setting.ODDS_FLOOR))
ADAPT_START = tl.constexpr(int(Setting.ADAPT_START))
ADAPT_STRATEGIES = tl.constexpr(int(Setting.ADAPT_STRATEGIES))
ADAPT_MEMORIES = tl.constexpr(int(Setting.ADAPT_MEMORIES))
CR_MEAN = tl.constexpr(int(Setting.CR_MEAN))
PBEST_MIN = tl.constexpr(int(Setting.PBEST_MIN))
PBEST_MAX = tl.constexpr(int(Setting.PBEST_MAX))
BEST_EXCLUDES_TARGET = tl.constexpr(int(Setting.BEST_EXCLUDES_TARGET))
TRIG_OFFSET = tl.constexpr(int(Setting.TRIG_OFFSET))
ARCHIVE_CAPACITY = tl.constexpr(int(Setting.ARCHIVE_CAPACITY))
J_RAND_RANGE = tl.constexpr(int(Setting.J_RAND_RANGE))
GENES = tl.constexpr(int(Setting.GENES))
POPULATION_MIN = tl.constexpr(int(Setting.POPULATION_MIN))
