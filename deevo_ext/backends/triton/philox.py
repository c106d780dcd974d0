"""Crossover's random bits from Philox4x32 (Salmon et al., SC 2011), on Triton's own generator.

Counter = (purpose, generation, member, block); `tl.philox` takes four 32-bit counters, a 64-bit key
(seed low, seed high) and the number of rounds, which is 7 for masks.
"""

from __future__ import annotations

import triton
import triton.language as tl

MASK_ROUNDS = tl.constexpr(7)


@triton.jit
def mask_draws(seed, purpose: tl.constexpr, generation, member, block, index):
    """16 random bits of weight 8 block + index % 8: half h of word w, index % 8 = 2w + h.

    Written for each weight; those of one block in one thread share their Philox call, because the
    compiler sees that their counters are equal.
    """
    w0, w1, w2, w3 = tl.philox(seed, purpose, generation, member, block, n_rounds=MASK_ROUNDS)
    low = tl.where((index & 2) == 0, w0, w1)
    high = tl.where((index & 2) == 0, w2, w3)
    word = tl.where((index & 4) == 0, low, high)
    return tl.where((index & 1) == 0, word & 0xFFFF, word >> 16).to(tl.int32)
