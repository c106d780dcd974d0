"""Pools of NHWC activations: the maximum or the mean of windows.

Maxima keep NaN, which stands for an overflow; means add in float32, window row by row. The bytes
are those of the input, read once (overlaps come from the caches), and of the output.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from deevo_ext.backends.triton.convolution import (
    DTYPES,
    OVERFLOW,
    check_tensor,
    fail,
    output_size,
    require_runnable,
    store_type_limit,
)
from deevo_ext.backends.triton.launch import launch
from deevo_ext.backends.windows import Window

ELEMENTS = 2048  # outputs of a program


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
    bfloat16). Returns out. Raises DeevoError naming the argument at fault.
    """
    name = "pool2d"
    if x.dim() != 4 or x.dtype not in DTYPES:
        fail(name, "x", f"{x.dtype} {tuple(x.shape)}", "[B, H, W, C] in float16, bfloat16, float32")
    require_runnable(name, window_kernel, x)
    kernel, stride, padding = window.kernel, window.stride, window.padding
    if any(2 * p > k for p, k in zip(padding, kernel, strict=True)) or min(*kernel, *stride) < 1:
        fail(name, "window", str(window), "padding of at most half the kernel")
    images, height, width, channels = x.shape
    size = (
        output_size(height, kernel[0], stride[0], padding[0], 1),
        output_size(width, kernel[1], stride[1], padding[1], 1),
    )
    for argument, tensor, shape in (
        ("x", x, tuple(x.shape)),
        ("out", out, (images, *size, channels)),
    ):
        check_tensor(name, argument, tensor, x, x.dtype, shape)
        if not tensor.is_contiguous():
            fail(name, argument, f"of strides {tensor.stride()}", "a contiguous tensor")
    block_c = min(128, triton.next_power_of_2(channels))
    block_m = max(1, ELEMENTS // block_c)
    positions = images * size[0] * size[1]
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
        *size,
        *kernel,
        *stride,
        *padding,
        BLOCK_M=block_m,
        BLOCK_C=block_c,
        MAXIMUM=window.maximum,
        COUNT_PADDING=window.count_padding,
        LIMIT=OVERFLOW[x.dtype],
        num_warps=4,
    )
    return out
