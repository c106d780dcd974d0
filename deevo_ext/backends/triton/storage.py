"""Storage types on the device: how a weight is widened to float32 and rounded back.

bfloat16 travels as its bits in int16 and is converted by integer arithmetic: Triton's interpreter
converts bfloat16 wrongly in both directions, and what the interpreter proves is what a GPU runs.
float32 and float16 convert natively (to nearest even, subnormals kept).
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def widen(x):
    """A stored weight in float32; exact."""
    if x.dtype == tl.int16:
        return (x.to(tl.int32) << 16).to(tl.float32, bitcast=True)
    else:
        return x.to(tl.float32)


@triton.jit
def to_storage(v, dtype: tl.constexpr):
    """A float32 rounded to storage, halves to even, and whether the result is finite."""
    bits = v.to(tl.uint32, bitcast=True)
    if dtype == tl.int16:
        # A NaN may carry into any pattern, so the float32 is looked at too.
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        finite = ((bits & 0x7F800000) != 0x7F800000) & ((rounded & 0x7F80) != 0x7F80)
        return rounded.to(tl.int16), finite
    elif dtype == tl.float16:
        half = v.to(tl.float16)
        return half, (half.to(tl.int16, bitcast=True) & 0x7C00) != 0x7C00
    else:
        return v, (bits & 0x7F800000) != 0x7F800000
