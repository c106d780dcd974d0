"""The tile sizes of the convolution kernel, chosen from a layer's shape."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton

from deevo_ext.backends.triton.launch import power_of_two

MULTIPROCESSORS = 132  # of an H100 or H200; what the default choice reckons with


@dataclass(frozen=True)
class TileSizes:
    """A program computes block_m output positions x block_n channels, block_k terms at a time."""

    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int


def packed(channels: int) -> bool:
    """Says whether a step of the K loop spans taps: where channels are no multiple of 16."""
    return channels % 16 != 0


def block_k_of(channels: int, taps: int, dtype: torch.dtype) -> int:
    """Returns the terms of a step: what 128 bytes of channels hold, a divisor of the channels."""
    largest = 32 if dtype == torch.float32 else 64
    if packed(channels):
        return min(32, max(16, power_of_two(channels * taps)))
    block = 16
    while block < largest and channels % (2 * block) == 0:
        block *= 2
    return block


def tile_sizes(
    positions: int, out_channels: int, channels: int, taps: int, members: int, dtype: torch.dtype
) -> TileSizes:
    """Chooses for `positions` output positions (N Ho Wo) of each of `members` members.

    Tiles are wide while they still fill the machine, and narrower for small images and batches.
    """
    block_k = block_k_of(channels, taps, dtype)
    block_n = min(128, max(16, power_of_two(out_channels)))
    block_m = 128
    if dtype == torch.float32:  # three times the operand bytes, and no wgmma
        block_n = min(block_n, 64)

    def programs() -> int:
        tiles = triton.cdiv(positions, block_m) * triton.cdiv(out_channels, block_n)
        return members * tiles

    while block_m > 64 and programs() < 2 * MULTIPROCESSORS:
        block_m //= 2
    while block_n > 32 and programs() < MULTIPROCESSORS:
        block_n //= 2
    # Offsets and masks of packed operands are computed per element: more threads, fewer registers.
    warps = 8 if block_m * block_n >= 128 * 128 or packed(channels) else 4
    return TileSizes(block_m, block_n, block_k, warps, 4 if block_k <= 32 else 3)
