"""exact_math against 120-bit values from mpmath, and the compiled twins bit for bit."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import mpmath
import pytest

from deevo_ext import _extension
from deevo_ext.backends.reference import exact_math


def uniform(word: int) -> float:
    return (word + 0.5) * 2.0**-32


def uniforms(count: int) -> list[float]:
    """Of the extreme words, of random ones, and many close to 0, 1/2 and 1."""
    source = random.Random(11)
    words = [0, 1, 2, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1]
    # Around the joints of the functions: AS 241's at 0.075 and 0.925, log's at sqrt(1/2).
    for joint in (0.075, 0.925, math.sqrt(0.5), 0.25, 0.75):
        words += [int(joint * 2**32) + i for i in range(-20, 21)]
    for _ in range(count):
        near = source.getrandbits(source.randint(1, 31))
        words += [source.getrandbits(32), near, 2**32 - 1 - near, 2**31 + near, 2**31 - 1 - near]
    return [uniform(word) for word in words]


def turns() -> list[float]:
    """Arguments of sin2pi: frequency times generation, of every magnitude and near every zero."""
    source = random.Random(12)
    values = [source.random() * 10.0 ** source.uniform(-12.0, 9.0) for _ in range(6000)]
    for k in range(3000):
        values.append(k / 4.0 + source.uniform(-1.0, 1.0) * 10.0 ** source.uniform(-14.0, -1.0))
    return values + [-value for value in values[::10]]


def error(have: float, want: mpmath.mpf) -> float:
    """In units of the last place of the correctly rounded value."""
    if want == 0:
        return 0.0 if have == 0.0 else math.inf
    return float(abs(mpmath.mpf(have) - want) / math.ulp(float(want)))


def worst(
    function: Callable[[float], float],
    exact: Callable[[mpmath.mpf], mpmath.mpf],
    arguments: list[float],
) -> float:
    with mpmath.workprec(120):
        return max(error(function(x), exact(mpmath.mpf(x))) for x in arguments)


def test_the_ruler_works() -> None:
    with mpmath.workprec(120):
        assert error(1.0, mpmath.mpf(1)) == 0.0
        assert error(1.0 + 2.0**-52, mpmath.mpf(1)) == 1.0
        assert error(0.1, mpmath.mpf(1) / 10) < 0.5
        assert error(1e-300, mpmath.mpf(0)) == math.inf


def test_log() -> None:
    arguments = [*uniforms(2000), 1.0, math.nextafter(1.0, 0.0), math.nextafter(1.0, 2.0), 2.0, 1e9]
    assert worst(exact_math.exact_log, mpmath.log, arguments) <= 1.0
    assert exact_math.exact_log(1.0) == 0.0


def test_sin2pi() -> None:
    assert worst(exact_math.sin2pi, lambda t: mpmath.sinpi(2 * t), turns()) <= 3.0


def test_sin2pi_is_exactly_zero_at_halves() -> None:
    """What makes the authors' sinusoid 1 constant: no residue of a rounded pi."""
    for k in [*range(2000), 10**6 + 1, 2**31, 2**40 + 1]:
        assert exact_math.sin2pi(k / 2.0) == 0.0


def test_normal_quantile() -> None:
    def exact(p: mpmath.mpf) -> mpmath.mpf:
        return mpmath.sqrt(2) * mpmath.erfinv(2 * p - 1)

    assert worst(exact_math.normal_quantile, exact, uniforms(500)) <= 7.0


def test_cauchy_quantile() -> None:
    def exact(p: mpmath.mpf) -> mpmath.mpf:
        return mpmath.tan(mpmath.pi * (p - mpmath.mpf(1) / 2))

    assert worst(exact_math.cauchy_quantile, exact, uniforms(2000)) <= 6.0


@pytest.mark.parametrize("name", ["normal_quantile", "cauchy_quantile"])
def test_quantiles_are_odd_and_rise(name: str) -> None:
    quantile = getattr(exact_math, name)
    previous = -math.inf
    for word in range(0, 2**32, 2**32 // 4001):
        value = quantile(uniform(word))
        assert value == -quantile(uniform(2**32 - 1 - word))
        assert value > previous
        previous = value


@pytest.mark.parametrize("name", ["exact_log", "sin2pi", "normal_quantile", "cauchy_quantile"])
def test_compiled_gives_the_same_bits(name: str) -> None:
    arguments = turns() if name == "sin2pi" else uniforms(3000)
    compiled, reference = getattr(_extension.load(), name), getattr(exact_math, name)
    different = [x for x in arguments if compiled(x).hex() != reference(x).hex()]
    assert different == []
