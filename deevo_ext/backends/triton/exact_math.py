"""Elementary functions from + - * / alone, in float64 and in the order of
`deevo_ext.backends.reference.exact_math`, whose bits they give.

Constants that float32 cannot hold appear only as operands beside a float64: Triton takes a bare
Python float elsewhere (as in tl.where) for a float32. A float64 `/` is rounded correctly.
"""

from __future__ import annotations

import triton
import triton.language as tl

LN2_HIGH = tl.constexpr(6.93147180369123816490e-01)
LN2_LOW = tl.constexpr(1.90821492927058770002e-10)
SQRT_HALF = tl.constexpr(0.70710678118654752440)
# Adding and subtracting 1.5 2^52 rounds |x| < 2^51 to a whole number, halves to even.
ROUNDER = tl.constexpr(6755399441055744.0)
MANTISSA = tl.constexpr(0x000FFFFFFFFFFFFF)
HALF_TO_ONE = tl.constexpr(0x3FE0000000000000)


@triton.jit
def rint(x):
    """x rounded to the nearest whole number, halves to even; |x| < 2^51."""
    return (x + ROUNDER) - ROUNDER


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
