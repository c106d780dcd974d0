"""What the contract says of masks, rounding and trials, in plain Python and NumPy.

They share nothing with `deevo_ext.backends`.
"""

from __future__ import annotations

import struct
from fractions import Fraction

import numpy as np
import torch
from numpy.typing import NDArray

from support.weights import Weights


def philox_words(counter: tuple[int, ...], key: tuple[int, int], rounds: int) -> list[int]:
    """Philox4x32 in Python integers, from the paper: S-P network over (L, R) pairs."""
    low = 0xFFFFFFFF
    x, k = list(counter), list(key)
    for _ in range(rounds):
        p, q = x[0] * 0xD2511F53, x[2] * 0xCD9E8D57
        x = [(q >> 32) ^ x[1] ^ k[0], q & low, (p >> 32) ^ x[3] ^ k[1], p & low]
        k = [(k[0] + 0x9E3779B9) & low, (k[1] + 0xBB67AE85) & low]
    return x


def words(purpose: int, generation: int, member: int, block: int, seed: int) -> list[int]:
    """The contract's four words of one counter (masks: 7 rounds, everything else 10)."""
    key = (seed % 2**32, seed // 2**32)
    return philox_words((purpose, generation, member, block), key, 7 if purpose == 1 else 10)


def mask_bits(weight: int, generation: int, member: int, seed: int) -> int:
    """Weight 8b + 2w + h uses word w of block b, h = 0 its low 16 bits."""
    block, rest = divmod(weight, 8)
    word, half = divmod(rest, 2)
    drawn = words(1, generation, member, block % 2**32, seed)[word]
    return drawn // 65536 if half else drawn % 65536


def bfloat16_nearest(value: float) -> int:
    """Bits of the bfloat16 nearest to a float32, ties to even, found among its two neighbours."""
    bits = struct.unpack("<I", struct.pack("<f", value))[0]
    sign, magnitude = bits >> 31, bits & 0x7FFFFFFF
    down = magnitude >> 16

    def exact(pattern: int) -> Fraction:
        if pattern == 0x7F80:  # where the next value would be
            return Fraction(2) ** 128
        return Fraction(struct.unpack("<f", struct.pack("<I", pattern << 16))[0])

    x = Fraction(struct.unpack("<f", struct.pack("<I", magnitude))[0])
    below, above = x - exact(down), exact(down + 1) - x
    up = above < below or (above == below and down % 2 == 1)
    return sign << 15 | (down + 1 if up else down)


def float16_nearest(value: float) -> int:
    """Bits of the IEEE half nearest to a number, ties to even; infinity beyond the largest."""
    try:
        return struct.unpack("<H", struct.pack("<e", value))[0]
    except OverflowError:
        return 0xFC00 if value < 0 else 0x7C00


def numpy_rows(rows: torch.Tensor) -> NDArray[np.float32]:
    """Stored rows in float32."""
    if rows.dtype != torch.bfloat16:
        return rows.numpy().astype(np.float32)
    bits = rows.contiguous().view(torch.int16).numpy().view(np.uint16).astype(np.uint32)
    return (bits << np.uint32(16)).view(np.float32)


def oracle_trial(w: Weights, member: int) -> torch.Tensor:
    """The trial of one member: NumPy float32 arithmetic, masks and rounding weight by weight."""
    rows = np.concatenate([numpy_rows(w.population), numpy_rows(w.archive)])
    choice = w.choices[member].tolist()
    factors = w.coefficients[member].numpy()
    base = rows[choice[5]]
    with np.errstate(all="ignore"):
        v = base.copy()
        for m in range(choice[4]):
            difference = rows[choice[6 + m]] - base
            v = v + factors[m] * difference
        assert v.dtype == np.float32
        half = np.float32(0.5) * rows[member]
        lower, upper = (np.float32(bound) for bound in w.bounds)
        below, above = (np.float32(0.5) * (bound + rows[member]) for bound in (lower, upper))
    parent = w.population[member]
    out = parent.clone()
    stored = out.view(torch.int32 if parent.dtype == torch.float32 else torch.int16)
    for j in range(parent.numel()):
        if not _crosses(w, member, w.first_weight + j):
            continue
        x = v[j]
        if j >= w.nonneg_start:
            x = x if x > 0 else half[j]
        else:
            x = below[j] if x < lower else above[j] if x > upper else x
        if not np.isfinite(x):
            continue
        if parent.dtype == torch.float32:
            stored[j] = int(x.view(np.int32))
            continue
        half_precision = parent.dtype == torch.float16
        bits = float16_nearest(float(x)) if half_precision else bfloat16_nearest(float(x))
        if bits & 0x7FFF == (0x7C00 if half_precision else 0x7F80):
            continue
        stored[j] = bits - 65536 if bits >= 32768 else bits
    return out


def _crosses(w: Weights, member: int, flat: int) -> bool:
    choice = w.choices[member].tolist()
    if len(w.genes) > 0:
        gene = max(k for k, start in enumerate(w.genes.tolist()) if start <= flat)
        assert w.gene_mask is not None
        return w.gene_mask[member].tolist()[gene // 32] >> gene % 32 & 1 == 1
    return flat == choice[11] or mask_bits(flat, choice[0], member, w.seed) < choice[3]
