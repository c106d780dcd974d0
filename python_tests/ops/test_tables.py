"""The tables are the same in Python and in C++."""

from __future__ import annotations

from deevo_ext import _extension
from deevo_ext.ops import tables


def test_sizes_agree_with_the_compiled_ones() -> None:
    offsets = tables.state_offsets(5, 3, 10, 7)
    assert _extension.load().table_sizes() == (
        len(tables.Setting),
        tables.NUM_STRATEGY_COLUMNS,
        tables.NUM_CHOICE_COLUMNS,
        tables.NUM_PARAMETER_COLUMNS,
        tables.MAX_TERMS,
        len(tables.TermCode),
        offsets.size,
    )


def test_columns_fit_their_tables() -> None:
    last = tables.StrategyColumn.ODDS_FIXED
    assert last + 1 == tables.NUM_STRATEGY_COLUMNS
    codes, factors = tables.StrategyColumn.TERM_CODES, tables.StrategyColumn.TERM_COEFFICIENTS
    assert codes + tables.MAX_TERMS == factors
    assert factors + 4 * tables.MAX_TERMS == tables.StrategyColumn.ODDS_INIT
    assert tables.ChoiceColumn.ROWS + tables.MAX_TERMS == tables.ChoiceColumn.FORCED
    assert tables.ChoiceColumn.FORCED + 1 == tables.NUM_CHOICE_COLUMNS
    assert max(tables.ParameterColumn) + 1 == tables.NUM_PARAMETER_COLUMNS


def test_enumerations_have_no_gap() -> None:
    for table in (tables.Setting, tables.TermCode, tables.Source, tables.ParameterColumn):
        assert [entry.value for entry in table] == list(range(len(table)))


def test_parts_of_the_state_follow_each_other() -> None:
    h, k, strategy_period, sinusoid_period = 4, 3, 6, 2
    at = tables.state_offsets(h, k, strategy_period, sinusoid_period)
    sizes = {
        at.memory_f: h * k,
        at.memory_cr: h * k,
        at.memory_frequency: h * k,
        at.pointer: k,
        at.odds: k,
        at.sinusoid1_odds: 1,
        at.archive_count: 1,
        at.strategy_window: strategy_period * k * 2,
        at.sinusoid_window: sinusoid_period * 2 * 2,
    }
    end = 0
    for start, size in sizes.items():
        assert start == end
        end = start + size
    assert end == at.size
