"""Elementary functions from + - * / sqrt alone, in float64 and in the order of
`deevo_ext.backends.reference.exact_math`, whose bits they give.

Constants that float32 cannot hold appear only as operands beside a float64: Triton takes a bare
Python float elsewhere (as in tl.where) for a float32. float64 `/` and sqrt are rounded correctly.
"""

from __future__ import annotations

import triton
import triton.language as tl

from deevo_ext.backends.reference import exact_math

LN2_HIGH = tl.constexpr(6.93147180369123816490e-01)
LN2_LOW = tl.constexpr(1.90821492927058770002e-10)
SQRT_HALF = tl.constexpr(0.70710678118654752440)
TWO_PI = tl.constexpr(6.283185307179586477)
# Adding and subtracting 1.5 2^52 rounds |x| < 2^51 to a whole number, halves to even.
ROUNDER = tl.constexpr(6755399441055744.0)
CENTRE_TOP = tl.constexpr(exact_math.CENTRE_TOP)
CENTRE_BOTTOM = tl.constexpr(exact_math.CENTRE_BOTTOM)
TAIL_TOP = tl.constexpr(exact_math.TAIL_TOP)
TAIL_BOTTOM = tl.constexpr(exact_math.TAIL_BOTTOM)
EXPONENT = tl.constexpr(0x7FF0000000000000)
MANTISSA = tl.constexpr(0x000FFFFFFFFFFFFF)
HALF_TO_ONE = tl.constexpr(0x3FE0000000000000)


@triton.jit
def rint(x):
    """x rounded to the nearest whole number, halves to even; |x| < 2^51."""
    return (x + ROUNDER) - ROUNDER


@triton.jit
def is_finite(x):
    return (x.to(tl.int64, bitcast=True) & EXPONENT) != EXPONENT


@triton.jit
def clip(x, low, high):
    """x moved into [low, high]."""
    return tl.where(x < low, low, tl.where(x > high, high, x))


@triton.jit
def exact_log(x):
    """Natural logarithm of a positive normal float64, by the series of 2 atanh."""
    bits = x.to(tl.int64, bitcast=True)
    exponent = (bits >> 52) - 1022
    m = ((bits & MANTISSA) | HALF_TO_ONE).to(tl.float64, bitcast=True)
    small = m < SQRT_HALF
    m = tl.where(small, m + m, m)
    e = tl.where(small, exponent - 1, exponent).to(tl.float64)
    f = m - 1.0
    s = f / (m + 1.0)
    z = s * s
    p = z * (1.0 / 23.0) + 1.0 / 21.0
    for i in tl.static_range(9):
        p = p * z + 1.0 / (19 - 2 * i)
    tail = s * (f - 2.0 * (z * p))
    return (e * LN2_HIGH) + (f - (tail - e * LN2_LOW))


@triton.jit
def sin2pi(t):
    """sin(2 pi t), t in turns: exact reduction, then the Taylor series up to x^23."""
    r = t - rint(t)
    r = tl.where(r > 0.25, 0.5 - r, r)
    r = tl.where(r < -0.25, -0.5 - r, r)
    x = r * TWO_PI
    z = x * x
    p = 1.0 - z / (22 * 23.0)
    for i in tl.static_range(10):
        p = 1.0 - (z / ((20 - 2 * i) * (21.0 - 2 * i))) * p
    return x * p


@triton.jit
def horner(coefficients: tl.constexpr, x):
    """Polynomial of degree 7, highest coefficient first."""
    value = coefficients[0] * x + coefficients[1]
    for i in tl.static_range(2, 8):
        value = value * x + coefficients[i]
    return value


@triton.jit
def normal_quantile(p):
    """Standard normal quantile for p in [2^-33, 1 - 2^-33]: Wichura's AS 241, PPND16."""
    q = p - 0.5
    centre = (q >= -0.425) & (q <= 0.425)
    r = 0.180625 - q * q
    inner = q * horner(CENTRE_TOP, r) / horner(CENTRE_BOTTOM, r)
    r = tl.sqrt(-exact_log(tl.where(q < 0.0, p, 1.0 - p))) - 1.6
    outer = horner(TAIL_TOP, r) / horner(TAIL_BOTTOM, r)
    return tl.where(centre, inner, tl.where(q < 0.0, -outer, outer))


@triton.jit
def cauchy_quantile(p):
    """Standard Cauchy quantile tan(pi (p - 1/2)), a quotient of two sines."""
    a = p - 0.5
    t = tl.where(a < 0.0, -a, a)
    x = sin2pi(t * 0.5) / sin2pi(0.25 - t * 0.5)
    return tl.where(a < 0.0, -x, x)
