"""Pools of NHWC activations: the maximum or the mean of windows, and the mean over all positions.

Maxima keep NaN, which stands for an overflow; means add in float32. The bytes are those of the
input, read once (overlaps come from the caches), and of the output.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from deevo_ext.backends.triton.convolution import OVERFLOW, store_type_limit
from deevo_ext.backends.triton.launch import (
    launch,
    power_of_two,
    require_conversions,
    require_device,
)
from deevo_ext.backends.windows import Window

ELEMENTS = 2048  # outputs of a program, or elements of a step of mean
WARPS = 4


@triton.jit
def window_kernel(
    x_pointer, out_pointer,
    positions, height, width, channels, out_height, out_width,
    kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, MAXIMUM: tl.constexpr,
    COUNT_PADDING: tl.constexpr, LIMIT: tl.constexpr,
):  # fmt: skip
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    exists = (m < positions)[:, None] & (c < channels)[None, :]
    image = (m // (out_height * out_width)).to(tl.int64)
    top = m // out_width % out_height * stride_h - padding_h
    left = m % out_width * stride_w - padding_w
    if MAXIMUM:
        acc = tl.full((BLOCK_M, BLOCK_C), float("-inf"), dtype=tl.float32)
    else:
        acc = tl.zeros((BLOCK_M, BLOCK_C), dtype=tl.float32)
    count = tl.zeros((BLOCK_M,), dtype=tl.float32)
    for i in range(kernel_h):
        for j in range(kernel_w):
            ih, iw = top + i, left + j
            inside = (ih >= 0) & (ih < height) & (iw >= 0) & (iw < width)
            place = ((image * height + ih) * width + iw) * channels
            mask = exists & inside[:, None]
            v = tl.load(x_pointer + place[:, None] + c[None, :], mask=mask, other=0.0)
            v = v.to(tl.float32)
            if MAXIMUM:
                acc = tl.where(mask & ((v > acc) | (v != v)), v, acc)
            else:
                acc += v  # 0 outside
                count += inside.to(tl.float32)
    if not MAXIMUM:
        acc = acc / (kernel_h * kernel_w if COUNT_PADDING else count[:, None])
    acc = store_type_limit(acc, LIMIT)
    out = out_pointer + m.to(tl.int64)[:, None] * channels + c[None, :]
    tl.store(out, acc.to(out_pointer.dtype.element_ty), mask=exists)


def pool2d(x: torch.Tensor, window: Window, out: torch.Tensor) -> torch.Tensor:
    """Writes the maximum or the mean of each window, as torch's max_pool2d and avg_pool2d do.

    x is [B, H, W, C] and out [B, Ho, Wo, C], both contiguous and of one dtype (float32, float16 or
    bfloat16), which is not checked. Returns out.
    """
    require_device("pool2d", window_kernel, x.device)
    require_conversions("pool2d", x)
    height, width, channels = x.shape[1:]
    block_c = min(128, power_of_two(channels))
    block_m = max(1, ELEMENTS // block_c)
    positions = out[..., 0].numel()
    launch(
        window_kernel,
        (triton.cdiv(positions, block_m), triton.cdiv(channels, block_c)),
        x.device,
        x,
        out,
        positions,
        height,
        width,
        channels,
        *out.shape[1:3],
        *window.kernel,
        *window.stride,
        *window.padding,
        BLOCK_M=block_m,
        BLOCK_C=block_c,
        MAXIMUM=window.maximum,
        COUNT_PADDING=window.count_padding,
        LIMIT=OVERFLOW[x.dtype],
        num_warps=WARPS,
    )
    return out


@triton.jit
def mean_kernel(
    x, out, positions, channels, x_member, out_member, samples, inverse,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One image and BLOCK_C channels: BLOCK_P partial sums in order, then their sum."""
    image = tl.program_id(0).to(tl.int64)
    member, sample = image // samples, image % samples
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    acc = tl.zeros((BLOCK_P, BLOCK_C), dtype=tl.float32)
    base = x + member * x_member + sample * positions * channels
    for start in range(0, positions, BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)
        mask = (p < positions)[:, None] & (c < channels)[None, :]
        v = tl.load(base + p[:, None] * channels + c[None, :], mask=mask, other=0.0)
        acc += v.to(tl.float32)
    mean = tl.sum(acc, axis=0) * inverse
    place = out + member * out_member + sample * channels + c
    tl.store(place, mean, mask=c < channels)


def mean(x: torch.Tensor, out: torch.Tensor) -> None:
    """Writes the means over the positions of x [K, N, P, C] to out [K, N, C], float32.

    They are added in float32. Images of a member lie one after the other.
    """
    require_device("head", mean_kernel, x.device)
    require_conversions("head", x)
    members, samples, positions, channels = x.shape
    block_c = min(128, power_of_two(channels))
    launch(
        mean_kernel,
        (members * samples, triton.cdiv(channels, block_c)),
        x.device,
        x,
        out,
        positions,
        channels,
        x.stride(0),
        out.stride(0),
        samples,
        1.0 / positions,
        BLOCK_P=min(power_of_two(positions), max(1, ELEMENTS // block_c)),
        BLOCK_C=block_c,
        num_warps=WARPS,
    )
