"""Convolutions and pools of the Triton engine against float64, and a ResNet against eager.

Without a GPU the kernels run in Triton's interpreter; test_triton_engine_compiled.py compiles them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional

from deevo_ext.backends.triton.convolution import Operands, Operation, conv2d
from deevo_ext.backends.triton.pointwise import pointwise
from deevo_ext.backends.triton.pooling import mean, pool2d
from deevo_ext.backends.triton.tile_sizes import TileSizes, tile_sizes
from deevo_ext.backends.windows import Window
from deevo_ext.errors import DeevoError
from support.convolutions import DEVICE, ROUNDING, Layer
from support.operators import same_bits

# Triton's interpreter converts bfloat16 wrongly; a GPU does not.
DTYPES = (torch.float32, torch.float16) + ((torch.bfloat16,) if DEVICE == "cuda" else ())

LAYERS = {
    "pointwise": Layer(channels=32, out=24),
    "pointwise, stride 2": Layer(channels=16, out=40, stride=2, size=7),
    "3x3": Layer(channels=48, out=16, kernel=3, padding=1, activation="relu"),
    "3x3, stride 2": Layer(channels=16, out=16, kernel=3, padding=1, stride=2, size=7),
    "no padding": Layer(channels=16, out=16, kernel=3),
    "dilated": Layer(channels=16, out=16, kernel=3, padding=2, dilation=2),
    "stem": Layer(4, 16, kernel=7, padding=3, stride=2, size=11, shared=True, activation="relu"),
    "odd channels": Layer(channels=24, out=10, kernel=3, padding=1),
    "one channel": Layer(channels=1, out=1, kernel=5, padding=2, members=1),
    "residual": Layer(channels=32, out=32, residual=True, activation="relu"),
    "3x3, residual": Layer(16, 16, kernel=3, padding=1, residual=True, activation="relu"),
    "downsample": Layer(64, 32, kernel=1, downsample=48, activation="relu"),
    "3x3, downsample": Layer(16, 32, kernel=3, padding=1, downsample=16, activation="relu"),
    "many tiles": Layer(channels=16, out=80, size=13, samples=3, members=3),
    "one position": Layer(channels=16, out=16, size=1, samples=1, members=1),
}


def check(layer: Layer, dtype: torch.dtype, sizes: TileSizes | None = None) -> None:
    operands = layer.operands(dtype)
    out = conv2d(operands, layer.operation, sizes)
    assert out is operands.out
    expected, bound = layer.expected(operands)
    difference = (out.double() - expected).abs()
    assert bool((difference <= bound).all()), (difference / bound).max()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", LAYERS)
def test_layers(name: str, dtype: torch.dtype) -> None:
    check(LAYERS[name], dtype)


@pytest.mark.parametrize("block_m", [16, 64])
@pytest.mark.parametrize("block_n", [16, 32])
@pytest.mark.parametrize("block_k", [16, 32])
@pytest.mark.parametrize("name", ["3x3", "stem", "downsample", "odd channels"])
def test_tiles(name: str, block_m: int, block_n: int, block_k: int) -> None:
    """Any tile size gives the layer; block_k must divide the channels of a layer that has them."""
    if LAYERS[name].channels % 32 and name == "3x3":
        block_k = 16
    sizes = TileSizes(block_m, block_n, block_k, 4, 2)
    check(LAYERS[name], torch.float32, sizes)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_member_alone_is_a_member_among_others(dtype: torch.dtype) -> None:
    """With the tile sizes fixed neither K nor the other members' weights show."""
    layer = Layer(16, 32, kernel=3, padding=1, members=3, residual=True)
    operands = layer.operands(dtype)
    sizes = tile_sizes(84, 32, 16, 9, 3, dtype)
    together = conv2d(operands, layer.operation, sizes).clone()
    for k in range(3):
        names = ("x", "weight", "bias", "residual", "out")
        one = replace(operands, **{name: getattr(operands, name)[k : k + 1] for name in names})
        alone = conv2d(one, layer.operation, sizes)
        assert same_bits(alone[0].cpu(), together[k].cpu())


def test_weights_are_read_where_fold_leaves_them() -> None:
    """Members' weights and biases are slices of longer rows."""
    layer = Layer(16, 16, kernel=3, padding=1)
    operands = layer.operands(torch.float32)
    expected = conv2d(operands, layer.operation).clone()
    for name, pad in (("weight", 40), ("bias", 5)):
        tensor = getattr(operands, name)
        rows = torch.full((2, tensor[0].numel() + pad), math.nan, device=DEVICE)
        slices = rows[:, 3 : 3 + tensor[0].numel()].view(tensor.shape).copy_(tensor)
        operands = replace(operands, **{name: slices})
    operands.out.zero_()
    assert same_bits(conv2d(operands, layer.operation).cpu(), expected.cpu())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("convolve", [conv2d, pointwise])
def test_an_overflow_becomes_nan_and_stays(
    convolve: Callable[[Operands, Operation], torch.Tensor], dtype: torch.dtype
) -> None:
    largest = torch.finfo(dtype).max
    layer = Layer(16, 16, members=1, samples=1, activation="relu", residual=True)
    operands = layer.operands(dtype)
    for tensor in (operands.weight, operands.bias, operands.residual):
        assert tensor is not None
        tensor.zero_()
    operands.weight[0, :, 0, 0, 0] = 2.0
    operands.x[0, 0, 0, 0, 0] = largest
    operands.x[0, 0, 0, 1, 0] = -largest  # ReLU's side: 0, not an overflow
    operands.x[0, 0, 0, 2, 0] = largest / 2
    out = convolve(operands, layer.operation).clone()
    assert bool(out[0, 0, 0, 0].isnan().all())
    assert bool((out[0, 0, 0, 1] == 0.0).all()) and bool((out[0, 0, 0, 2] == largest).all())
    operands.weight[0, :, 0, 0, 0] = -1.0
    again = convolve(replace(operands, x=out), layer.operation)
    assert bool(again[0, 0, 0, 0].isnan().all()), "ReLU must not hide it"
    pooled = torch.empty(1, 3, 4, 16, dtype=dtype, device=DEVICE)
    pool2d(again[0], Window(True, (3, 3), (2, 2), (1, 1)), pooled)
    assert bool(pooled[0, 0, 0].isnan().all()), "nor may a maximum"
    assert not bool(pooled[0, 2].isnan().any())
    operands.x.zero_()
    assert operands.residual is not None
    operands.residual[0, 0, 0, 3] = math.nan
    assert bool(convolve(operands, layer.operation)[0, 0, 0, 3].isnan().all())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "shape"),
    [
        ((3, 3), (2, 2), (1, 1), (4, 9, 10, 24)),
        ((2, 2), (2, 2), (0, 0), (2, 6, 6, 130)),
        ((3, 2), (1, 2), (1, 0), (1, 5, 8, 3)),
    ],
)
def test_windows(dtype: torch.dtype, kernel: Any, stride: Any, padding: Any, shape: Any) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype).to(DEVICE)
    planes = x.double().permute(0, 3, 1, 2)
    expected = functional.max_pool2d(planes, kernel, stride, padding).permute(0, 2, 3, 1)
    out = torch.full(expected.shape, 7.0, dtype=dtype, device=DEVICE)
    pool2d(x, Window(True, kernel, stride, padding), out)
    assert torch.equal(out.double(), expected)

    relative, absolute = ROUNDING[dtype]
    terms = kernel[0] * kernel[1] + 1
    for count_include_pad in (True, False):

        def means_of(t: torch.Tensor, count: bool = count_include_pad) -> torch.Tensor:
            means = functional.avg_pool2d(t, kernel, stride, padding, count_include_pad=count)
            return means.permute(0, 2, 3, 1)

        pool2d(x, Window(False, kernel, stride, padding, count_include_pad), out)
        bound = means_of(planes.abs()) * terms * 2.0**-23  # Triton's division is approximate
        bound = bound + means_of(planes).abs() * relative + absolute
        assert bool(((out.double() - means_of(planes)).abs() <= bound).all())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 3, 49, 40), (1, 2, 1, 200), (2, 2, 15, 16)])
def test_mean_over_positions(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype).to(DEVICE)
    out = torch.full((*shape[:2], shape[3]), 7.0, device=DEVICE)
    mean(x, out)
    relative, absolute = ROUNDING[torch.float32]
    expected = x.double().mean(2)
    bound = x.double().abs().mean(2) * (shape[2] + 2) * 2.0**-24
    bound = bound + expected.abs() * relative + absolute
    assert bool(((out.double() - expected).abs() <= bound).all())


@pytest.mark.skipif(DEVICE == "cuda", reason="about the interpreter")
def test_the_interpreter_refuses_bfloat16() -> None:
    with pytest.raises(DeevoError, match="interpreter converts it"):
        conv2d(Layer().operands(torch.bfloat16), Operation())
