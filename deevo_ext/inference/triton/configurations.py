"""Tile sizes of the convolution kernel: what is chosen for a shape, and what is worth timing."""

from __future__ import annotations

from dataclasses import dataclass

import torch

MULTIPROCESSORS = 132  # of an H100 or H200; what the default choice reckons with


@dataclass(frozen=True)
class Configuration:
    """A program computes block_m output positions x block_n channels, block_k terms at a time."""

    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int


def _ceil(a: int, b: int) -> int:
    return -(-a // b)


def _power_of_two(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


def packed(channels: int) -> bool:
    """Whether a step of the K loop spans taps, since the channels are not a multiple of 16."""
    return channels % 16 != 0


def block_k_of(channels: int, taps: int, dtype: torch.dtype) -> int:
    """Terms per step: as many as 128 bytes of channels hold, and a divisor of the channels."""
    largest = 32 if dtype == torch.float32 else 64
    if packed(channels):
        return min(32, max(16, _power_of_two(channels * taps)))
    block = 16
    while block < largest and channels % (2 * block) == 0:
        block *= 2
    return block


def default(
    positions: int, out_channels: int, channels: int, taps: int, members: int, dtype: torch.dtype
) -> Configuration:
    """The configuration for `positions` output positions (N Ho Wo) of each of `members` members.

    Wide tiles while they still fill the machine; narrower ones for small images and batches.
    """
    block_k = block_k_of(channels, taps, dtype)
    block_n = min(128, max(16, _power_of_two(out_channels)))
    block_m = 128
    if dtype == torch.float32:  # three times the operand bytes, and no wgmma
        block_n = min(block_n, 64)

    def programs() -> int:
        return members * _ceil(positions, block_m) * _ceil(out_channels, block_n)

    while block_m > 64 and programs() < 2 * MULTIPROCESSORS:
        block_m //= 2
    while block_n > 32 and programs() < MULTIPROCESSORS:
        block_n //= 2
    # Offsets and masks of packed operands are computed per element: more threads, fewer registers.
    warps = 8 if block_m * block_n >= 128 * 128 or packed(channels) else 4
    return Configuration(block_m, block_n, block_k, warps, 4 if block_k <= 32 else 3)


def candidates(
    positions: int, out_channels: int, channels: int, taps: int, members: int, dtype: torch.dtype
) -> list[Configuration]:
    """Configurations to time, the default first."""
    first = default(positions, out_channels, channels, taps, members, dtype)
    found = [first]
    for block_m, block_n, warps in (
        *((128, 128, 8), (128, 128, 4), (128, 64, 4), (64, 128, 4), (64, 64, 4)),
        *((256, 64, 8), (128, 256, 8), (64, 32, 4), (128, 32, 4)),
    ):
        fits = block_n // 2 < _power_of_two(out_channels) and block_m // 2 < positions
        if dtype == torch.float32 and block_m * block_n > 128 * 64:
            fits = False
        if fits:
            for stages in (3, 4):
                found.append(Configuration(block_m, block_n, first.block_k, warps, stages))
    return list(dict.fromkeys(found))
