"""A 1x1 convolution whose weights stay in shared memory while programs walk along the positions.

out[m, o] = act(sum_c x[m, c] w[o, c] [+ sum_c x2[m', c] w2[o, c]] + bias[o] [+ residual[m, o]])

m runs over images and positions, m' is where the shortcut's stride puts m. On a GPU such layers
move memory rather than multiply: in float16 a ResNet-50's 64 to 256 channels with a residual are 28
operations a byte, of the 184 that an H200 has. So programs are persistent: each keeps the weights
of BLOCK_N channels, asks for the positions of its next tiles by asynchronous copies, and for the
next residual before it adds up this one. Bytes: those of both inputs, residual and output once each
(programs of all channels read the same positions at the same time, from L2), and the weights once a
program. Sums are in float32; overflows are NaN and stay, as in `convolution`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from deevo_ext.backends.triton.convolution import (
    OVERFLOW,
    Operands,
    Operation,
    store_type_limit,
)
from deevo_ext.backends.triton.launch import (
    launch,
    num_programs,
    power_of_two,
    require_conversions,
    require_device,
)

BLOCK_M = 64  # positions of a step; two residuals of them are in registers, of twice the warps
WARPS = {False: 4, True: 8}
# Two programs share a multiprocessor where each needs no more than the first number of bytes for
# weights and positions on their way; one alone has the second, of the 163 KiB of compute capability
# 8.0. What is left is the epilogue's.
SHARED_BYTES = {2: 80 << 10, 1: 128 << 10}
MOST_STAGES = 4


@dataclass(frozen=True)
class Walk:
    """Programs of a multiprocessor, their channels, and how many steps they have under way."""

    programs: int
    block_n: int
    stages: int


def walk_of(channels: int, out_channels: int, itemsize: int) -> Walk | None:
    """Returns the tiles for terms of both inputs together; None where weights are too large."""
    terms = channels * itemsize
    block_n = min(128, max(16, power_of_two(out_channels)))
    for programs, shared in SHARED_BYTES.items():
        stages = min(MOST_STAGES, (shared - terms * block_n) // (terms * BLOCK_M))
        if stages >= 2:
            return Walk(programs, block_n, stages)
    return None


@triton.jit
def load_residual(
    pointer, tile, positions, out_channels, n, BLOCK_M: tl.constexpr, RESIDUAL: tl.constexpr
):
    """A tile's residual; 0 where there is none."""
    within = tl.arange(0, BLOCK_M)
    if RESIDUAL:
        exists = (tile * BLOCK_M + within < positions)[:, None] & (n < out_channels)[None, :]
        base = pointer + tl.cast(tile, tl.int64) * BLOCK_M * out_channels
        return tl.load(base + within[:, None] * out_channels + n[None, :], mask=exists, other=0.0)
    else:
        return 0.0


@triton.jit
def pointwise_kernel(
    x_pointer, weight_pointer, bias_pointer, residual_pointer, x2_pointer, weight2_pointer,
    out_pointer,
    positions, channels, out_channels, out_height, out_width,
    height2, width2, channels2, stride2_h, stride2_w,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_K2: tl.constexpr,
    STAGES: tl.constexpr, RESIDUAL: tl.constexpr, SHORTCUT: tl.constexpr, RELU: tl.constexpr,
    LIMIT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    columns = tl.cdiv(out_channels, BLOCK_N)
    n = tl.program_id(0) % columns * BLOCK_N + tl.arange(0, BLOCK_N)
    first, step = tl.program_id(0) // columns, tl.num_programs(0) // columns
    tiles = tl.cdiv(positions, BLOCK_M)
    n_exists = n < out_channels
    within = tl.arange(0, BLOCK_M)
    k = tl.arange(0, BLOCK_K)
    k_exists = k < channels
    weight = tl.load(
        weight_pointer + n[None, :] * channels + k[:, None],
        mask=n_exists[None, :] & k_exists[:, None],
        other=0.0,
    )
    if SHORTCUT:
        k2 = tl.arange(0, BLOCK_K2)
        k2_exists = k2 < channels2
        weight2 = tl.load(
            weight2_pointer + n[None, :] * channels2 + k2[:, None],
            mask=n_exists[None, :] & k2_exists[:, None],
            other=0.0,
        )
    bias = tl.load(bias_pointer + n, mask=n_exists, other=0.0)
    residual = load_residual(residual_pointer, first, positions, out_channels, n, BLOCK_M, RESIDUAL)

    for tile in tl.range(first, tiles, step, num_stages=STAGES):
        m = tile * BLOCK_M + within
        m_exists = m < positions
        start = tl.cast(tile, tl.int64) * BLOCK_M
        a = tl.load(
            x_pointer + start * channels + within[:, None] * channels + k[None, :],
            mask=m_exists[:, None] & k_exists[None, :],
            other=0.0,
        )
        acc = tl.dot(a, weight, input_precision=PRECISION)
        if SHORTCUT:
            image = m // (out_height * out_width)
            y, x = m // out_width % out_height, m % out_width
            row = (image.to(tl.int64) * height2 + y * stride2_h) * width2 + x * stride2_w
            a2 = tl.load(
                x2_pointer + row[:, None] * channels2 + k2[None, :],
                mask=m_exists[:, None] & k2_exists[None, :],
                other=0.0,
            )
            acc = tl.dot(a2, weight2, acc, input_precision=PRECISION)
        following = load_residual(
            residual_pointer, tile + step, positions, out_channels, n, BLOCK_M, RESIDUAL
        )
        result = acc + bias[None, :]
        if RESIDUAL:
            result += residual.to(tl.float32)
        if RELU:
            result = tl.where(result <= 0.0, 0.0, result)
        result = store_type_limit(result, LIMIT)
        out = out_pointer + start * out_channels + within[:, None] * out_channels + n[None, :]
        exists = m_exists[:, None] & n_exists[None, :]
        tl.store(out, result.to(out_pointer.dtype.element_ty), mask=exists)
        residual = following


def launch_arguments(
    operands: Operands, operation: Operation, multiprocessors: int
) -> tuple[int, Sequence[Any], dict[str, Any]]:
    """Returns the kernel's grid, arguments and constants; tensors may be on the meta device.

    multiprocessors: of the device.
    """
    x, out = operands.x, operands.out
    residual, downsample = operands.residual, operands.downsample
    # What is absent needs an address all the same.
    x2, weight2, stride2 = downsample or (x, operands.weight, (1, 1))
    _, samples, height, width, out_channels = out.shape
    channels, channels2 = x.shape[4], x2.shape[4]
    block_k, block_k2 = power_of_two(channels), power_of_two(channels2)
    walk = walk_of(block_k + (block_k2 if downsample else 0), out_channels, x.element_size())
    assert walk is not None
    positions = samples * height * width
    columns = triton.cdiv(out_channels, walk.block_n)
    walkers = max(1, multiprocessors * walk.programs // columns)
    grid = columns * min(walkers, triton.cdiv(positions, BLOCK_M))
    added = out if residual is None else residual
    tensors = [x, operands.weight, operands.bias, added, x2, weight2, out]
    shape = [positions, channels, out_channels, height, width]
    constants = {
        "BLOCK_M": BLOCK_M,
        "BLOCK_N": walk.block_n,
        "BLOCK_K": block_k,
        "BLOCK_K2": block_k2,
        "STAGES": walk.stages,
        "RESIDUAL": residual is not None,
        "SHORTCUT": downsample is not None,
        "RELU": operation.activation == "relu",
        "LIMIT": OVERFLOW[out.dtype],
        "PRECISION": operation.precision if x.dtype == torch.float32 else "ieee",
    }
    options = {"num_warps": WARPS[residual is not None]}
    return grid, [*tensors, *shape, *x2.shape[2:], *stride2], constants | options


def pointwise(operands: Operands, operation: Operation) -> torch.Tensor:
    """Writes act(x weight + bias [+ residual] [+ downsample]) of one member; returns out.

    The operands are those of `conv2d` of one member, with a kernel of 1x1, channels that are
    multiples of 16, and weights for which there is a `walk_of`; no stride but the downsample's, no
    padding. Nothing is checked.
    """
    device = operands.x.device
    require_device("pointwise", pointwise_kernel, device)
    require_conversions("pointwise", operands.x)
    grid, arguments, meta = launch_arguments(operands, operation, num_programs(device, 1))
    launch(pointwise_kernel, (grid,), device, *arguments, **meta)
    return operands.out
