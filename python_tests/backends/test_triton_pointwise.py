"""The kernel for 1x1 convolutions against float64; in the interpreter where there is no GPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from deevo_ext.backends.triton.pointwise import pointwise, walk_of
from support.convolutions import DEVICE, Layer

# Triton's interpreter converts bfloat16 wrongly; a GPU does not.
DTYPES = (torch.float32, torch.float16) + ((torch.bfloat16,) if DEVICE == "cuda" else ())
LAYERS = {
    "plain": Layer(channels=32, out=24, members=1),
    "residual": Layer(32, 40, residual=True, activation="relu", members=1),
    "many tiles": Layer(16, 136, residual=True, size=13, samples=3, members=1),
    "shortcut": Layer(48, 32, downsample=80, activation="relu", members=1, size=9),
    "one position": Layer(channels=16, out=16, size=1, samples=1, members=1),
    "many channels": Layer(channels=112, out=16, size=9, members=1, activation="relu"),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", LAYERS)
def test_layers(name: str, dtype: torch.dtype) -> None:
    layer = LAYERS[name]
    operands = layer.operands(dtype)
    assert pointwise(operands, layer.operation) is operands.out
    expected, bound = layer.expected(operands)
    difference = (operands.out.double() - expected).abs()
    assert bool((difference <= bound).all()), (difference / bound).max()


def test_a_shortcut_has_a_stride_of_its_own() -> None:
    """The block's last convolution has none: its input is as large as its output."""
    layer = Layer(32, 16, downsample=16, members=1, size=9)
    operands = layer.operands(torch.float32)
    assert operands.downsample is not None
    _, weight2, _ = operands.downsample
    larger = torch.randn(1, 2, 17, 19, 16, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    strided = replace(operands, downsample=(larger, weight2, (2, 2)))
    picked = replace(operands, downsample=(larger[:, :, ::2, ::2].contiguous(), weight2, (1, 1)))
    pointwise(strided, layer.operation)
    expected, bound = layer.expected(picked)
    assert bool(((operands.out.double() - expected).abs() <= bound).all())


def test_weights_too_large_for_shared_memory_have_no_tiles() -> None:
    sizes = [walk_of(channels, 256, 2) for channels in (64, 128, 256, 512)]
    assert [None if size is None else size.programs for size in sizes] == [2, 2, 1, None]
    for channels, walk in zip((64, 128, 256), sizes, strict=False):
        assert walk is not None
        # Weights and positions of 64 a step; 163 KiB of compute capability 8.0 hold all programs.
        assert walk.programs * 2 * channels * (walk.block_n + 64 * walk.stages) <= 163 << 10
