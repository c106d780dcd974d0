"""Formulas become the table that they say; wrong ones are refused in words."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import asdict

import pytest
import torch

from deevo_ext.errors import DeevoError
from deevo_ext.ops.tables import MAX_TERMS, Setting, StrategyColumn, TermCode
from deevo_ext.search.pools import POOLS, interpolation_pool
from deevo_ext.search.presets import configure
from deevo_ext.search.strategies import (
    Strategy,
    Terms,
    compile_pool,
    members_needed,
    parse,
)
from support.operators import MIXED, SADE, SHADE, evolution

ROWS = ("target", "best", "pbest", "r1", "r2", "r3", "r4", "r5", "archive")
FORMULAS = sorted(
    {s.formula for s in (*interpolation_pool(), *SADE, *SHADE, *MIXED) if "trig" not in s.formula}
    | {
        "target",
        "-target + 2*r1",
        "(1 - F)*target + F*r1",
        "r1*(1 - F*U) + U*best*F",
        "0.25*(r1 + r2 + r3 + r4)",
        "target + 2*F*(0.5*U*(best - target) - 3*(r1 - r2)) + (1 - 1)*r5",
        "F*r1 + U*r2 + (1 - F - U)*r3",
        "target + F*(r1 + r2 - r3 - r4 + r5 - target)",
        "target + (F - F)*r1",
    }
)


@pytest.mark.parametrize("formula", FORMULAS)
def test_base_plus_differences_is_the_formula(formula: str) -> None:
    """Python evaluates the formula itself; numbers stand for rows, so any algebra slip shows."""
    terms = parse(formula)
    source = random.Random(formula)
    for _ in range(20):
        rows = {name: source.uniform(-3.0, 3.0) for name in ROWS}
        f, u = source.uniform(-1.0, 2.0), source.random()
        value = rows[terms.base]
        for name, (one, by_f, by_u, by_fu) in zip(terms.rows, terms.coefficients, strict=True):
            factor = one + by_f * f + by_u * u + by_fu * f * u
            value += factor * (rows[name] - rows[terms.base])
        expected = eval(formula, {"__builtins__": {}}, {**rows, "F": f, "U": u})
        assert value == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_base_is_the_first_row_named() -> None:
    assert parse("r1 + F*(r2 - r3)").base == "r1"
    assert parse("F*(best - target) + target").base == "best"
    assert parse("trig(r2, best, target)") == Terms(
        "r2", ("best", "target"), ((0.0, 0.0, 0.0, 0.0),) * 2, True
    )


def test_rows_without_weight_are_dropped() -> None:
    assert parse("target + F*(r1 - target) - F*(r1 - target)").rows == ()
    assert parse("target + F*(r1 - r2) + F*(r2 - r3)").rows == ("r1", "r3")


@pytest.mark.parametrize(
    ("formula", "reason"),
    [
        ("", "cannot be read"),
        ("target +", "cannot be read"),
        ("target; r1", "cannot be read"),
        ("x1 + F*(r2 - r3)", "'x1' is unknown"),
        ("r6", "'r6' is unknown"),
        ("target + F*(r1 - r2) + r3", "must sum to 1"),
        ("F*target", "must sum to 1"),
        ("0.5*r1 + 0.4*r2", "must sum to 1"),
        ("target + U*r1", "must sum to 1"),
        ("1e999*target - 1e999*target + r1", "a number is too large"),
        ("target + F*F*(r1 - r2)", "may not be squared"),
        ("target + F*U*U*(r1 - r2)", "may not be squared"),
        ("target + F*(1 - F)*(r1 - r2)", "may not be squared"),
        ("target*r1", "two rows are multiplied"),
        ("target + 1", "a row and a number are added"),
        ("F + 1 - F", "names no row"),
        ("target/2 + r1/2", "not part of the notation"),
        ("target**1", "not part of the notation"),
        ("max(target, r1)", "three different rows"),
        ("True*target", "not part of the notation"),
        ("target if F else r1", "not part of the notation"),
        ("target + F*(best + pbest + r1 - r2 - r3 - r4)", "names 7 rows, more than 6"),
        ("trig(r1, r2)", "three different rows"),
        ("trig(r1, r2, r2)", "three different rows"),
        ("trig(r1, r2, archive)", "three different rows"),
        ("trig(r1, r2, F)", "three different rows"),
        ("trig(r1, r2, r3, r4)", "three different rows"),
        ("trig(r1, r2, 3)", "three different rows"),
        ("trig(r1, r2, c=r3)", "three different rows"),
        ("trig(r1, r2, r3) + target", "not part of the notation"),
    ],
)
def test_wrong_formulas_are_refused(formula: str, reason: str) -> None:
    with pytest.raises(DeevoError, match=reason) as caught:
        parse(formula)
    assert repr(formula) in str(caught.value)


@pytest.mark.parametrize(
    ("formula", "needed"),
    [
        ("target + F*(best - target)", 3),
        ("target + F*(r1 - target)", 3),
        ("r1 + F*(r2 - r3)", 4),
        ("trig(r1, r2, r3)", 4),
        ("target + F*(r4 - best)", 5),
        ("r1 + F*(r2 - r3) + F*(r4 - r5)", 6),
    ],
)
def test_members_needed(formula: str, needed: int) -> None:
    """r1..rk are distinct and differ from the target: k + 1 members."""
    assert members_needed(parse(formula)) == needed


# Trigonometric mutation


def planned_trig(
    losses: Sequence[float], settings: Sequence[tuple[int, float]] = ()
) -> list[float]:
    """c of target, r1, r2 for a trial of three members, by the operator."""
    pool = [Strategy("trig", "trig(target, r1, r2)", "none")]
    run = evolution(configure("paper", strategies=pool), torch.tensor(losses, dtype=torch.float64))
    for setting, value in settings:
        run.settings[setting] = value
    run.plan()
    c2, c3 = run.coefficients[0, :2].tolist()
    first, second = run.choices[0, 6:8].tolist()
    assert {first, second} == {1, 2}
    c = {first: c2, second: c3}
    return [1.0 - c2 - c3, c[1], c[2]]


def long_formula(f: Sequence[float]) -> list[float]:
    """Fan & Lampinen's sum of three weighted differences around the mean, collected by row."""
    total = sum(abs(x) for x in f)
    p1, p2, p3 = (abs(x) / total for x in f)
    third = 1.0 / 3.0
    return [
        third + (p2 - p1) - (p1 - p3),
        third - (p2 - p1) + (p3 - p2),
        third - (p3 - p2) + (p1 - p3),
    ]


@pytest.mark.parametrize(
    "losses", [(1.0, 2.0, 6.0), (0.9702, 0.9727, 0.9697), (-3.0, 0.5, 2.0), (0.0, 0.0, 5.0)]
)
def test_trig_is_the_long_formula(losses: tuple[float, ...]) -> None:
    c = planned_trig(losses)
    assert c == pytest.approx(long_formula(losses), abs=5e-7)  # float32 coefficients
    assert sum(c) == pytest.approx(1.0, abs=1e-15)


def test_trig_examples_of_the_literature() -> None:
    assert planned_trig((1.0, 2.0, 6.0)) == pytest.approx((1.0, 2 / 3, -2 / 3), abs=5e-7)
    assert planned_trig((4.0, 4.0, 4.0)) == pytest.approx((1 / 3,) * 3, abs=5e-7)


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ((0.0, 0.0, 0.0), (1 / 3, 1 / 3, 1 / 3)),
        ((0.0, -0.0, 0.0), (1 / 3, 1 / 3, 1 / 3)),
        ((1.0, math.inf, 3.0), (0.5, 0.0, 0.5)),
        ((1.0, math.nan, 3.0), (0.5, 0.0, 0.5)),
        ((math.nan, math.inf, 3.0), (0.0, 0.0, 1.0)),
        ((math.inf, 1.0, 1.0), (0.0, 0.5, 0.5)),
        ((math.inf, math.nan, math.inf), (1 / 3, 1 / 3, 1 / 3)),
        ((1e308, 1e308, 1e308), (1 / 3, 1 / 3, 1 / 3)),  # the sum overflows
        ((5e-324, 0.0, 0.0), (-5 / 3, 4 / 3, 4 / 3)),  # subnormal sum
    ],
)
def test_trig_degenerate_losses(losses: tuple[float, ...], expected: tuple[float, ...]) -> None:
    assert planned_trig(losses) == pytest.approx(expected, abs=1e-6)


def test_trig_offset_weighs_losses_above_the_least() -> None:
    offset = [(int(Setting.TRIG_OFFSET), 1.0)]
    assert planned_trig((3.0, 4.0, 8.0), offset) == pytest.approx(
        long_formula((0.0, 1.0, 5.0)), abs=5e-7
    )
    assert planned_trig((3.0, 3.0, 3.0), offset) == pytest.approx((1 / 3,) * 3, abs=5e-7)
    assert planned_trig((math.inf,) * 3, offset) == pytest.approx((1 / 3,) * 3, abs=5e-7)


# Pools


def test_table_of_a_pool() -> None:
    table = compile_pool(MIXED)
    assert table.dtype == torch.float64
    for row, strategy in zip(table.tolist(), MIXED, strict=True):
        terms = parse(strategy.formula)
        assert row[StrategyColumn.KIND] == terms.trigonometric
        assert row[StrategyColumn.CROSSOVER] == (strategy.crossover == "bin")
        assert TermCode(int(row[StrategyColumn.BASE_TERM])).name.lower() == terms.base
        assert row[StrategyColumn.NUM_TERMS] == len(terms.rows)
        for m in range(MAX_TERMS):
            start = StrategyColumn.TERM_COEFFICIENTS + 4 * m
            factors = tuple(row[start : start + 4])
            if m < len(terms.rows):
                code = int(row[StrategyColumn.TERM_CODES + m])
                assert TermCode(code).name.lower() == terms.rows[m]
                assert factors == terms.coefficients[m]
            else:
                assert factors == (0.0,) * 4
        assert row[StrategyColumn.ODDS_CAP] == strategy.cap
        assert row[StrategyColumn.ODDS_FIXED] == (
            -1.0 if strategy.fixed is None else strategy.fixed
        )


def odds_of(pool: Sequence[Strategy]) -> list[float]:
    return compile_pool(pool)[:, StrategyColumn.ODDS_INIT].tolist()


def test_initial_odds() -> None:
    assert odds_of(interpolation_pool()) == pytest.approx([0.2] * 5)
    a, b = Strategy("a", "r1", odds=3.0), Strategy("b", "r1", odds=1.0)
    assert odds_of([a, b]) == pytest.approx([0.75, 0.25])
    fixed = Strategy("c", "r1", fixed=0.2)
    assert odds_of([a, fixed, b]) == pytest.approx([0.6, 0.2, 0.2])
    assert odds_of([Strategy("c", "r1", fixed=1.0)]) == [1.0]
    assert odds_of([Strategy("c", "r1", fixed=0.0), a]) == pytest.approx([0.0, 1.0])
    assert odds_of([Strategy("c", "r1", fixed=1.0), a]) == [1.0, 0.0]


def test_odds_sum_to_1_whatever_the_rounding() -> None:
    shares = (0.7, 0.1, 0.2)
    for order in ((0, 1, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)):
        pool = [Strategy(f"s{i}", "r1", fixed=shares[i]) for i in order]
        assert sum(odds_of(pool)) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("pool", "message"),
    [
        ([], "strategies is empty"),
        ([Strategy("a", "r1"), Strategy("a", "best")], "distinct"),
        ([Strategy("a", "r1", "exp")], "crossover 'exp'"),
        ([Strategy("a", "r1", odds=0.0)], "odds 0.0"),
        ([Strategy("a", "r1", odds=1.0), Strategy("b", "r1", odds=-1.0)], "odds -1.0"),
        ([Strategy("a", "r1", odds=math.inf)], "odds inf"),
        ([Strategy("a", "r1", cap=0.0)], "cap 0.0"),
        ([Strategy("a", "r1", cap=1.5)], "cap 1.5"),
        ([Strategy("a", "r1", fixed=-0.1)], "fixed -0.1"),
        ([Strategy("a", "r1", fixed=1.1)], "fixed 1.1"),
        ([Strategy("a", "r1", fixed=0.5)], "sum to 0.5"),
        ([Strategy("a", "r1", fixed=0.7), Strategy("b", "r1", fixed=0.7)], "sum to 1.4"),
        ([Strategy("a", "r1", cap=0.3), Strategy("b", "r1", cap=0.3)], "caps .* sum to 0.6"),
        ([Strategy("a", "r1", cap=0.3), Strategy("b", "r1", fixed=0.5)], "caps .* sum to 0.3"),
        ([Strategy("a", "r1 +")], "cannot be read"),
    ],
)
def test_wrong_pools_are_refused(pool: list[Strategy], message: str) -> None:
    with pytest.raises(DeevoError, match=message):
        compile_pool(pool)


def test_odds_that_are_no_number_are_refused() -> None:
    with pytest.raises(DeevoError, match="odds is nan"):
        Strategy("a", "r1", odds=math.nan)


def test_strategies_survive_json() -> None:
    for strategy in MIXED:
        assert Strategy(**json.loads(json.dumps(asdict(strategy)))) == strategy


@pytest.mark.parametrize("name", POOLS)
def test_pools_go_by_their_names(name: str) -> None:
    c = configure("paper", strategies=name, archive_size=8)
    assert c.strategies == POOLS[name]()
    assert c.members_needed <= 5


def test_trigonometric_mutation_keeps_its_share() -> None:
    pool = POOLS["difference"]()
    assert odds_of(pool) == pytest.approx([0.475, 0.475, 0.05])


@pytest.mark.parametrize(
    "formula",
    [
        "-" * 1000 + "r1",
        "(" * 150 + "r1" + ")" * 150,
        "+".join(["r1"] * 5000),
        "r1 + " + "9" * 280 + "*1e200*(r2 - r3)",
        "9" * 400 + "*r1",
        "target + 1e999*(r1 - r2)",
        "r1\0",
        "",
        7,
        None,
    ],
)
def test_formulas_of_any_length_are_one_clear_error(formula: str) -> None:
    with pytest.raises(DeevoError, match=r"^strategy formula ") as refused:
        parse(formula)
    assert len(str(refused.value)) < 800
