"""Pools of NHWC activations: windows (maximum or mean) and the mean over all positions.

Maxima keep NaN, which stands for an overflow; means add in float32, window row by row. The bytes
are those of the input, read once (overlaps come from the caches), and of the output.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from deevo_ext.backends.triton.mean import mean
from deevo_ext.inference.triton.convolution import (
    DTYPES,
    OVERFLOW,
    check_tensor,
    fail,
    launch,
    output_size,
    require_runnable,
    store_type_limit,
)

ELEMENTS = 2048  # outputs of a program


@triton.jit
def window_kernel(
    x_pointer, bias_pointer, out_pointer,
    positions, height, width, channels, out_height, out_width, per_member,
    kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, MAXIMUM: tl.constexpr, BIAS: tl.constexpr,
    RELU: tl.constexpr, COUNT_PADDING: tl.constexpr, LIMIT: tl.constexpr,
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
    if BIAS:
        member = image // per_member
        place = member[:, None] * channels + c[None, :]
        acc += tl.load(bias_pointer + place, mask=exists, other=0.0)
    if RELU:
        acc = tl.where(acc <= 0.0, 0.0, acc)
    acc = store_type_limit(acc, LIMIT)
    out = out_pointer + m.to(tl.int64)[:, None] * channels + c[None, :]
    tl.store(out, acc.to(out_pointer.dtype.element_ty), mask=exists)


def max_pool2d(
    x: torch.Tensor,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    out: torch.Tensor,
    bias: torch.Tensor | None = None,
    relu: bool = False,
) -> torch.Tensor:
    """Maxima of windows; then bias [K, C] float32 and ReLU, which commute with them.

    x [B, H, W, C] with B = K N, members outermost; out [B, Ho, Wo, C]; contiguous. Returns out.
    """
    return _window("max_pool2d", x, kernel, stride, padding, out, bias, relu, True, True)


def avg_pool2d(
    x: torch.Tensor,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    out: torch.Tensor,
    count_include_pad: bool = True,
) -> torch.Tensor:
    """Means of windows, as torch.nn.functional.avg_pool2d on NHWC; shapes as `max_pool2d`."""
    return _window("avg_pool2d", x, kernel, stride, padding, out, None, False, False,
                   count_include_pad)  # fmt: skip


def _window(
    name: str,
    x: torch.Tensor,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    out: torch.Tensor,
    bias: torch.Tensor | None,
    relu: bool,
    maximum: bool,
    count_padding: bool,
) -> torch.Tensor:
    if x.dim() != 4 or x.dtype not in DTYPES:
        fail(name, "x", f"{x.dtype} {tuple(x.shape)}", "[B, H, W, C] in float16, bfloat16, float32")
    require_runnable(name, window_kernel, x)
    if any(2 * p > k for p, k in zip(padding, kernel, strict=True)) or min(*kernel, *stride) < 1:
        given = f"kernel {kernel}, stride {stride}, padding {padding}"
        fail(name, "the window", given, "padding of at most half the kernel")
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
    members = 1
    if bias is not None:
        members = max(bias.shape[0], 1)
        check_tensor(name, "bias", bias, x, torch.float32, (members, channels))
        if images % members or not bias.is_contiguous():
            fail(name, "bias", f"of {members} members", f"a contiguous divisor of {images} images")
    block_c = min(128, triton.next_power_of_2(channels))
    block_m = max(1, ELEMENTS // block_c)
    positions = images * size[0] * size[1]
    grid = (triton.cdiv(positions, block_m), triton.cdiv(channels, block_c))
    arguments = [
        *(x, x if bias is None else bias, out, positions, height, width, channels, *size),
        *(images // members, *kernel, *stride, *padding),
    ]
    meta = {
        "BLOCK_M": block_m,
        "BLOCK_C": block_c,
        "MAXIMUM": maximum,
        "BIAS": bias is not None,
        "RELU": relu,
        "COUNT_PADDING": count_padding,
        "LIMIT": OVERFLOW[x.dtype],
        "num_warps": 4,
    }
    launch(window_kernel, grid, x.device, arguments, meta)
    return out


def global_avg_pool(x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """Means over positions, added in float32: x [K, N, P, C] (or [K, N, H, W, C]) -> out [K, N, C].

    out is float32 or of x's dtype; each contiguous but for the first dimension's stride.
    """
    name = "global_avg_pool"
    if x.dim() not in (4, 5) or x.dtype not in DTYPES or out.dtype not in (x.dtype, torch.float32):
        fail(name, "x", f"{x.dtype} {tuple(x.shape)}", "[K, N, P, C] in float16, bfloat16, float32")
    require_runnable(name, window_kernel, x)
    members, samples, channels = x.shape[0], x.shape[1], x.shape[-1]
    check_tensor(name, "x", x, x, x.dtype, tuple(x.shape))
    check_tensor(name, "out", out, x, out.dtype, (members, samples, channels))
    mean(x.view(members, samples, -1, channels), out)
    return out
