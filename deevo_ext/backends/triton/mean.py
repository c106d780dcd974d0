"""Means over the positions of NHWC activations.

Bytes: the activations read once, a float32 mean per channel written.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from deevo_ext.backends.triton.launch import launch, power_of_two, require_device
from deevo_ext.errors import DeevoError

ELEMENTS = 2048  # of a step
WARPS = 4


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


def require_conversions(operator: str, x: torch.Tensor) -> None:
    """Raises DeevoError for bfloat16 in the interpreter, which converts it wrongly."""
    if x.device.type == "cpu" and x.dtype == torch.bfloat16:
        raise DeevoError(
            f"deevo::{operator}: bfloat16 on the CPU, where Triton's interpreter converts it "
            "wrongly; expected float32 or float16"
        )
