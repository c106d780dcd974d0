"""Strategies: a formula in the notation of differential evolution, compiled to a table of terms.

A strategy is data: a formula and a crossover. The formula is an affine combination of rows,

    "target + F*(best - target) + F*(r1 - r2)"

with rows target, best, pbest, r1..r5, archive and factors that are affine in 1, F, U and F*U (U is
uniform on (0, 1), one per member and generation), or `"trig(r1, r2, r3)"`, Fan & Lampinen's
trigonometric mutation of three rows. Crossover is "bin" (binomial, with the member's CR) or "none".
The first row that a formula names is its base; at most five further rows may appear.
"""

from __future__ import annotations

import ast
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from deevo_ext.arguments import check_arguments
from deevo_ext.errors import DeevoError
from deevo_ext.ops.tables import MAX_TERMS, NUM_STRATEGY_COLUMNS, StrategyColumn, TermCode

CROSSOVERS = {"none": 0, "bin": 1}
ROWS = {code.name.lower(): code for code in TermCode}

Scalar = tuple[float, float, float, float]  # factors of 1, F, U, F U
Vector = dict[str, Scalar]  # by row

ONE: Scalar = (1.0, 0.0, 0.0, 0.0)
ZERO: Scalar = (0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Strategy:
    """A strategy: a formula and a crossover, as this module's docstring explains, with its odds.

    odds: the initial share of the trials, relative to the pool's sum.
    cap: the largest share that adaptation may give; 1 is no cap.
    fixed: a share that is never adapted, None for one that is.
    """

    name: str
    formula: str
    crossover: str = "bin"
    odds: float = 1.0
    cap: float = 1.0
    fixed: float | None = None

    def __post_init__(self) -> None:
        check_arguments(Strategy, vars(self))


@dataclass(frozen=True)
class Terms:
    """A parsed formula: the base row, and further rows with their coefficients or those of trig."""

    base: str
    rows: tuple[str, ...]
    coefficients: tuple[Scalar, ...]
    trigonometric: bool

    @property
    def parents(self) -> set[str]:
        """All rows that the formula names."""
        return {self.base, *self.rows}


def _fail(formula: str, reason: str) -> DeevoError:
    shown = repr(formula) if len(formula) <= _LONGEST else f"{formula[:60]!r}..."
    return DeevoError(
        f"strategy formula {shown}: {reason}. Write an affine combination of the rows "
        f'{", ".join(ROWS)} with factors of F and U, such as "target + F*(best - target)", or '
        '"trig(r1, r2, r3)"'
    )


def _multiply(formula: str, a: Scalar, b: Scalar) -> Scalar:
    products = [0.0] * 4
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            if x == 0.0 or y == 0.0:
                continue
            if i & j:  # indices are bit sets: 1 = F, 2 = U
                raise _fail(formula, "F and U may not be squared")
            products[i | j] += x * y
    return products[0], products[1], products[2], products[3]


_LONGEST = 300  # characters of a formula


class _Parser:
    """Evaluates the syntax tree over scalars and combinations of rows."""

    def __init__(self, formula: str) -> None:
        self.formula = formula
        self.order: list[str] = []

    def value(self, node: ast.expr) -> Scalar | Vector:
        match node:
            case ast.Constant(value=bool()):
                pass
            case ast.Constant(value=int() | float() as number):
                return (self.finite(number), 0.0, 0.0, 0.0)
            case ast.Name(id="F"):
                return (0.0, 1.0, 0.0, 0.0)
            case ast.Name(id="U"):
                return (0.0, 0.0, 1.0, 0.0)
            case ast.Name(id=name) if name in ROWS:
                self.order.append(name)
                return {name: ONE}
            case ast.Name(id=name):
                raise _fail(self.formula, f"{name!r} is unknown")
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return self.scaled(self.value(operand), (-1.0, 0.0, 0.0, 0.0))
            case ast.BinOp(op=ast.Add() | ast.Sub() as op, left=left, right=right):
                sign = 1.0 if isinstance(op, ast.Add) else -1.0
                first = self.value(left)
                return self.added(first, self.scaled(self.value(right), (sign, 0.0, 0.0, 0.0)))
            case ast.BinOp(op=ast.Mult(), left=left, right=right):
                a, b = self.value(left), self.value(right)
                if isinstance(a, dict):
                    if isinstance(b, dict):
                        raise _fail(self.formula, "two rows are multiplied")
                    return self.scaled(a, b)
                return self.scaled(b, a)
        raise _fail(self.formula, f"{ast.unparse(node)!r} is not part of the notation")

    def finite(self, number: int | float) -> float:
        try:
            value = float(number)
        except OverflowError:
            value = math.inf
        if not math.isfinite(value):
            raise _fail(self.formula, "a number is too large")
        return value

    def scaled(self, value: Scalar | Vector, factor: Scalar) -> Scalar | Vector:
        if isinstance(value, dict):
            return {row: _multiply(self.formula, c, factor) for row, c in value.items()}
        return _multiply(self.formula, value, factor)

    def added(self, a: Scalar | Vector, b: Scalar | Vector) -> Scalar | Vector:
        if isinstance(a, dict) and isinstance(b, dict):
            return {row: _sum(a.get(row, ZERO), b.get(row, ZERO)) for row in {**a, **b}}
        if isinstance(a, dict) or isinstance(b, dict):
            raise _fail(self.formula, "a row and a number are added")
        return _sum(a, b)


def _sum(a: Scalar, b: Scalar) -> Scalar:
    return a[0] + b[0], a[1] + b[1], a[2] + b[2], a[3] + b[3]


def _trigonometric(formula: str, call: ast.Call) -> Terms:
    names = [argument.id for argument in call.args if isinstance(argument, ast.Name)]
    valid = (
        isinstance(call.func, ast.Name)
        and call.func.id == "trig"
        and len(names) == len(call.args) == 3
        and not call.keywords
        and len(set(names)) == 3
        and all(name in ROWS and name != "archive" for name in names)
    )
    if not valid:
        raise _fail(formula, "trig takes three different rows of the population")
    return Terms(names[0], tuple(names[1:]), (ZERO, ZERO), True)


def parse(formula: str) -> Terms:
    """Parses a formula; raises DeevoError that quotes it and says what is wrong."""
    if not isinstance(formula, str):
        raise _fail(str(formula), f"it is a {type(formula).__name__}; expected a string")
    if len(formula) > _LONGEST:  # Python's parser and this one go down a tree of any depth
        raise _fail(formula, f"it has {len(formula)} characters, more than {_LONGEST}")
    try:
        body = ast.parse(formula.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise _fail(formula, f"it cannot be read ({error})") from None
    if isinstance(body, ast.Call):
        return _trigonometric(formula, body)
    parser = _Parser(formula)
    value = parser.value(body)
    if not isinstance(value, dict):
        raise _fail(formula, "it names no row")
    total = ZERO
    for coefficient in value.values():
        total = _sum(total, coefficient)
    if not all(abs(have - want) <= 1e-12 for have, want in zip(total, ONE, strict=True)):
        raise _fail(formula, "the factors of its rows must sum to 1 for every F and U")
    base = parser.order[0]
    rows = [row for row in dict.fromkeys(parser.order[1:]) if row != base and value[row] != ZERO]
    if len(rows) > MAX_TERMS:
        raise _fail(formula, f"it names {len(rows) + 1} rows, more than {MAX_TERMS + 1}")
    return Terms(base, tuple(rows), tuple(value[row] for row in rows), False)


def members_needed(terms: Terms) -> int:
    """Returns the size of the smallest population in which the formula's rows are distinct."""
    drawn = [int(row[1]) for row in terms.parents if row[0] == "r" and row[1:].isdigit()]
    return max([3, *(number + 1 for number in drawn)])


def compile_pool(pool: Sequence[Strategy]) -> torch.Tensor:
    """Returns the operators' `strategies` tensor, float64 [K, 32]; the odds sum to 1."""
    if not pool:
        raise DeevoError("strategies is empty; expected at least one Strategy")
    names = [strategy.name for strategy in pool]
    if len(set(names)) != len(names):
        raise DeevoError(f"strategies has names {names}; expected distinct ones")
    for strategy in pool:
        _check(strategy)
    fixed = sum(strategy.fixed or 0.0 for strategy in pool)
    adapted = sum(strategy.odds for strategy in pool if strategy.fixed is None)
    everything_fixed = all(strategy.fixed is not None for strategy in pool)
    if fixed > 1.0 + 1e-9 or (everything_fixed and fixed < 1.0 - 1e-9):
        raise DeevoError(
            f"the fixed shares of the strategies sum to {fixed}; expected at most 1, or exactly 1 "
            "when no strategy is adapted"
        )
    to_share = max(1.0 - fixed, 0.0)
    caps = sum(strategy.cap for strategy in pool if strategy.fixed is None)
    if not everything_fixed and caps < to_share - 1e-9:
        raise DeevoError(
            f"the caps of the adapted strategies sum to {caps}; expected at least {to_share}, the "
            "share that they divide among themselves"
        )
    table = torch.zeros(len(pool), NUM_STRATEGY_COLUMNS, dtype=torch.float64)
    for line, strategy in zip(table, pool, strict=True):
        terms = parse(strategy.formula)
        line[StrategyColumn.KIND] = float(terms.trigonometric)
        line[StrategyColumn.CROSSOVER] = CROSSOVERS[strategy.crossover]
        line[StrategyColumn.BASE_TERM] = ROWS[terms.base]
        line[StrategyColumn.NUM_TERMS] = len(terms.rows)
        for m, (name, coefficient) in enumerate(zip(terms.rows, terms.coefficients, strict=True)):
            line[StrategyColumn.TERM_CODES + m] = ROWS[name]
            start = StrategyColumn.TERM_COEFFICIENTS + 4 * m
            line[start : start + 4] = torch.tensor(coefficient, dtype=torch.float64)
        fixed_share = strategy.fixed
        share = to_share * (strategy.odds / adapted) if fixed_share is None else fixed_share
        line[StrategyColumn.ODDS_INIT] = share
        line[StrategyColumn.ODDS_CAP] = strategy.cap
        line[StrategyColumn.ODDS_FIXED] = -1.0 if fixed_share is None else fixed_share
    return table


def _check(strategy: Strategy) -> None:
    if strategy.crossover not in CROSSOVERS:
        raise DeevoError(
            f"strategy {strategy.name!r} has crossover {strategy.crossover!r}; expected one of "
            f"{', '.join(CROSSOVERS)}"
        )
    shares = {"odds": strategy.odds, "cap": strategy.cap, "fixed": strategy.fixed}
    for field, share in shares.items():
        low_enough = share is None or share <= (sys.float_info.max if field == "odds" else 1.0)
        high_enough = share is None or share > 0.0 or (field == "fixed" and share == 0.0)
        if not (low_enough and high_enough):
            raise DeevoError(
                f"strategy {strategy.name!r} has {field} {share}; expected a share above 0"
                + ("" if field == "odds" else ", at most 1")
            )
