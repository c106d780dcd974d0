"""conv2d of K members in one launch: implicit GEMM with its epilogue, and optionally a downsample.

out[k, n, y, x, o] = act(sum_{i, j, c} in[k, n, y s + i d - p, x s + j d - p, c] w[k, o, i, j, c]
                         + bias[k, o] + residual[k, n, y, x, o])

A GEMM of [N Ho Wo] positions by [Co] channels over [kh kw C] terms whose left operand is gathered,
never stored (as in Chetlur et al., "cuDNN", 2014); members are an axis of the grid. Products of
float16 and bfloat16 run on tensor cores and are added in float32; float32 ones as `precision` says.
Per member, bytes: input, weights, residual read and output written once each, as long as the tiles
of a group of programs share their operands in L2.

A result that overflows its type is stored as NaN, and ReLU keeps NaN, so that no later layer can
hide an overflow: the member's loss is then +inf.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from deevo_ext.backends.triton.launch import launch, require_conversions, require_device
from deevo_ext.backends.triton.tile_sizes import TileSizes, packed, tile_sizes

# Where a float32 becomes infinite in a type: the middle between the largest value and the next.
OVERFLOW = {
    torch.float16: 65520.0,
    torch.bfloat16: 2.0**128 - 2.0**119,
    torch.float32: float("inf"),
}
GROUP = 8  # row tiles that pass over the channel tiles together


@dataclass(frozen=True)
class Operands:
    """The tensors of `conv2d`, each contiguous but for the first dimension's stride.

    x is [K or 1, N, H, W, C], where 1 means that the members share it, and weight is
    [K, Co, kh, kw, C]. Both have one dtype: float32, float16 or bfloat16. bias is [K, Co] in
    float32. residual and out are [K, N, Ho, Wo, Co] in the dtype of x.

    downsample is a block's 1x1 shortcut, which is added before rounding: its input
    [K or 1, N, H2, W2, C2] with C2 a multiple of 16, its weight [K, Co, 1, 1, C2] and its stride.
    bias is then the sum of both biases.
    """

    x: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor
    out: torch.Tensor
    residual: torch.Tensor | None = None
    downsample: tuple[torch.Tensor, torch.Tensor, tuple[int, int]] | None = None


@dataclass(frozen=True)
class Operation:
    """What `conv2d` does with its operands.

    activation is "none" or "relu". precision says how products of float32 are formed: "ieee" or
    "tf32".
    """

    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    activation: str = "none"
    precision: str = "ieee"


@triton.jit
def tile_of(program, positions, channels, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
            GROUP: tl.constexpr):  # fmt: skip
    """The program's tile: GROUP tiles of positions go through all tiles of channels together."""
    rows = tl.cdiv(positions, BLOCK_M)
    columns = tl.cdiv(channels, BLOCK_N)
    group = program // (GROUP * columns)
    height = tl.minimum(rows - group * GROUP, GROUP)
    within = program % (GROUP * columns)
    return group * GROUP + within % height, within // height


@triton.jit
def store_type_limit(y, LIMIT: tl.constexpr):
    """NaN where rounding to the output's type would give infinity."""
    return tl.where(tl.abs(y) >= LIMIT, float("nan"), y)


@triton.jit
def convolution_kernel(
    x_pointer, weight_pointer, bias_pointer, residual_pointer, x2_pointer, weight2_pointer,
    out_pointer,
    x_member, weight_member, bias_member, residual_member, x2_member, weight2_member, out_member,
    positions, height, width, channels, out_height, out_width, out_channels,
    kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w,
    height2, width2, channels2, stride2_h, stride2_w,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_K2: tl.constexpr,
    GROUP: tl.constexpr, PACKED: tl.constexpr, CHANNELS: tl.constexpr, KERNEL_W: tl.constexpr,
    POINTWISE: tl.constexpr, RESIDUAL: tl.constexpr, DOWNSAMPLE: tl.constexpr, RELU: tl.constexpr,
    LIMIT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    tile_m, tile_n = tile_of(tl.program_id(0), positions, out_channels, BLOCK_M, BLOCK_N, GROUP)
    member = tl.program_id(1).to(tl.int64)
    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    m_exists, n_exists = m < positions, n < out_channels
    image = m // (out_height * out_width)
    y = m // out_width % out_height
    x = m % out_width

    if PACKED:  # as constants they say that neighbouring terms are neighbours in memory
        channels = CHANNELS
        kernel_w = KERNEL_W
    top, left = y * stride_h - padding_h, x * stride_w - padding_w
    row = ((image.to(tl.int64) * height + top) * width + left) * channels
    rows = x_pointer + member * x_member + row
    terms = kernel_h * kernel_w * channels
    columns = weight_pointer + member * weight_member + n.to(tl.int64) * terms
    k = tl.arange(0, BLOCK_K)
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)

    for start in range(0, terms, BLOCK_K):
        if PACKED:  # a step spans taps
            term = start + k
            term_exists = term < terms
            tap, c = term // channels, term % channels
            down, right = tap // kernel_w * dilation_h, tap % kernel_w * dilation_w
            ih, iw = top[:, None] + down[None, :], left[:, None] + right[None, :]
            inside = (ih >= 0) & (ih < height) & (iw >= 0) & (iw < width)
            inside = inside & m_exists[:, None] & term_exists[None, :]
            offset = (down * width + right) * channels + c
            b_exists = n_exists[None, :] & term_exists[:, None]
        else:  # a step is BLOCK_K channels of one tap
            tap, c = start // channels, start % channels
            down, right = tap // kernel_w * dilation_h, tap % kernel_w * dilation_w
            # Triton 3.6 does not see by itself that 16 bytes can be loaded at a time.
            offset = tl.multiple_of((down * width + right) * channels + c, 16) + k
            b_exists = n_exists[None, :]
            if POINTWISE:  # no padding: every tap is inside
                inside = m_exists[:, None]
            else:
                ih, iw = top + down, left + right
                inside = (ih >= 0) & (ih < height) & (iw >= 0) & (iw < width)
                inside = (inside & m_exists)[:, None]
        a = tl.load(rows[:, None] + offset[None, :], mask=inside, other=0.0)
        b = tl.load(columns[None, :] + (start + k)[:, None], mask=b_exists, other=0.0)
        acc = tl.dot(a, b, acc, input_precision=PRECISION)

    if DOWNSAMPLE:  # a 1x1 convolution of another input, into the same sums
        row2 = (image.to(tl.int64) * height2 + y * stride2_h) * width2 + x * stride2_w
        rows2 = x2_pointer + member * x2_member + row2 * channels2
        columns2 = weight2_pointer + member * weight2_member + n.to(tl.int64) * channels2
        k2 = tl.arange(0, BLOCK_K2)
        for start in range(0, channels2, BLOCK_K2):
            a = tl.load(rows2[:, None] + (start + k2)[None, :], mask=m_exists[:, None], other=0.0)
            b = tl.load(
                columns2[None, :] + (start + k2)[:, None], mask=n_exists[None, :], other=0.0
            )
            acc = tl.dot(a, b, acc, input_precision=PRECISION)

    bias = tl.load(bias_pointer + member * bias_member + n, mask=n_exists, other=0.0)
    result = acc + bias[None, :]
    place = m.to(tl.int64)[:, None] * out_channels + n[None, :]
    exists = m_exists[:, None] & n_exists[None, :]
    if RESIDUAL:
        residual = tl.load(
            residual_pointer + member * residual_member + place, mask=exists, other=0.0
        )
        result += residual.to(tl.float32)
    if RELU:
        result = tl.where(result <= 0.0, 0.0, result)
    result = store_type_limit(result, LIMIT)
    out = out_pointer + member * out_member + place
    tl.store(out, result.to(out_pointer.dtype.element_ty), mask=exists)


def launch_arguments(
    operands: Operands, operation: Operation, sizes: TileSizes | None
) -> tuple[tuple[int, int], Sequence[Any], dict[str, Any]]:
    """Returns the kernel's grid, arguments and constants; tensors may be on the meta device."""
    x, weight, bias, out = operands.x, operands.weight, operands.bias, operands.out
    residual, downsample = operands.residual, operands.downsample
    samples, height, width, channels = x.shape[1:]
    members, out_channels, kernel_h, kernel_w, _ = weight.shape
    positions = samples * out.shape[2] * out.shape[3]
    if sizes is None:
        sizes = tile_sizes(positions, out_channels, channels, kernel_h * kernel_w, members, x.dtype)
    # What is absent needs an address all the same.
    x2, weight2, stride2 = downsample or (x, weight, (1, 1))
    added = out if residual is None else residual
    tensors = [x, weight, bias, added, x2, weight2, out]
    strides = [0 if tensor.shape[0] == 1 else tensor.stride(0) for tensor in tensors]
    shape = [positions, height, width, channels, out.shape[2], out.shape[3], out_channels]
    window = [kernel_h, kernel_w, *operation.stride, *operation.padding, *operation.dilation]
    shortcut = [*x2.shape[2:], *stride2]
    block_k2 = 16
    while downsample and block_k2 < sizes.block_k and x2.shape[4] % (2 * block_k2) == 0:
        block_k2 *= 2
    constants = {
        "BLOCK_M": sizes.block_m,
        "BLOCK_N": sizes.block_n,
        "BLOCK_K": sizes.block_k,
        "BLOCK_K2": block_k2,
        "GROUP": GROUP,
        "PACKED": packed(channels),
        "CHANNELS": channels if packed(channels) else 0,
        "KERNEL_W": kernel_w if packed(channels) else 0,
        "POINTWISE": kernel_h == kernel_w == 1 and operation.padding == (0, 0),
        "RESIDUAL": residual is not None,
        "DOWNSAMPLE": downsample is not None,
        "RELU": operation.activation == "relu",
        "LIMIT": OVERFLOW[out.dtype],
        "PRECISION": operation.precision if x.dtype == torch.float32 else "ieee",
    }
    tiles = triton.cdiv(positions, sizes.block_m)
    tiles *= triton.cdiv(out_channels, sizes.block_n)
    options = {"num_warps": sizes.warps, "num_stages": sizes.stages}
    arguments = [*tensors, *strides, *shape, *window, *shortcut]
    return (tiles, members), arguments, constants | options


def conv2d(
    operands: Operands, operation: Operation, sizes: TileSizes | None = None
) -> torch.Tensor:
    """Writes act(conv2d(x, weight) + bias [+ residual] [+ downsample]) of K members; returns out.

    sizes: those of the tiles, chosen from the shapes by default; others add in another order.
    Shapes and dtypes are not checked: who calls this has a network graph.
    """
    require_device("conv2d", convolution_kernel, operands.x.device)
    require_conversions("conv2d", operands.x)
    grid, arguments, meta = launch_arguments(operands, operation, sizes)
    launch(convolution_kernel, grid, operands.x.device, *arguments, **meta)
    return operands.out
