"""Convolutions and pools of the Triton engine against float64, and a ResNet against eager.

Without a GPU the kernels run in Triton's interpreter; test_triton_engine_compiled.py compiles them.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.nn import functional

from deevo_ext.errors import DeevoError
from deevo_ext.inference.triton.configurations import Configuration, candidates, default
from deevo_ext.inference.triton.convolution import conv2d, supports
from deevo_ext.inference.triton.pooling import avg_pool2d, global_avg_pool, max_pool2d
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


def check(layer: Layer, dtype: torch.dtype, **options: Any) -> torch.Tensor:
    operands = layer.operands(dtype)
    out = conv2d(**operands, **options)
    assert out is operands["out"]
    expected, bound = layer.expected(operands)
    difference = (out.double() - expected).abs()
    assert bool((difference <= bound).all()), (difference / bound).max()
    return out


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
    configuration = Configuration(block_m, block_n, block_k, 4, 2)
    check(LAYERS[name], torch.float32, configuration=configuration)


def test_every_candidate_gives_the_layer() -> None:
    layer = Layer(64, 96, kernel=3, padding=1, size=9, samples=2, members=1)
    found = candidates(180, 96, 64, 9, 1, torch.float16)
    assert found[0] == default(180, 96, 64, 9, 1, torch.float16) and len(set(found)) == len(found)
    assert len(found) > 5
    for configuration in found:
        check(layer, torch.float16, configuration=configuration)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_member_alone_is_a_member_among_others(dtype: torch.dtype) -> None:
    """With the configuration fixed neither K nor the other members' weights show."""
    layer = Layer(16, 32, kernel=3, padding=1, members=3, residual=True)
    operands = layer.operands(dtype)
    configuration = default(84, 32, 16, 9, 3, dtype)
    together = conv2d(**operands, configuration=configuration).clone()
    for k in range(3):
        one = dict(operands)
        for name in ("x", "weight", "bias", "residual", "out"):
            one[name] = operands[name][k : k + 1]
        assert same_bits(conv2d(**one, configuration=configuration)[0].cpu(), together[k].cpu())


def test_weights_are_read_where_fold_leaves_them() -> None:
    """Members' weights and biases are slices of longer rows."""
    operands = Layer(16, 16, kernel=3, padding=1).operands(torch.float32)
    expected = conv2d(**operands).clone()
    for name, pad in (("weight", 40), ("bias", 5)):
        tensor = operands[name]
        rows = torch.full((2, tensor[0].numel() + pad), math.nan, device=DEVICE)
        operands[name] = rows[:, 3 : 3 + tensor[0].numel()].view(tensor.shape).copy_(tensor)
    operands["out"].zero_()
    assert same_bits(conv2d(**operands).cpu(), expected.cpu())


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_overflow_becomes_nan_and_stays(dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    operands = Layer(16, 16, members=1, samples=1, activation="relu").operands(dtype)
    operands["weight"].zero_()
    operands["weight"][0, :, 0, 0, 0] = 2.0
    operands["bias"].zero_()
    operands["x"][0, 0, 0, 0, 0] = largest
    operands["x"][0, 0, 0, 1, 0] = -largest  # ReLU's side: 0, not an overflow
    operands["x"][0, 0, 0, 2, 0] = largest / 2
    out = conv2d(**operands).clone()
    assert bool(out[0, 0, 0, 0].isnan().all())
    assert bool((out[0, 0, 0, 1] == 0.0).all()) and bool((out[0, 0, 0, 2] == largest).all())
    operands["x"] = out
    operands["weight"][0, :, 0, 0, 0] = -1.0
    again = conv2d(**operands)
    assert bool(again[0, 0, 0, 0].isnan().all()), "ReLU must not hide it"
    pooled = torch.empty(1, 3, 4, 16, dtype=dtype, device=DEVICE)
    max_pool2d(again[0], (3, 3), (2, 2), (1, 1), pooled)
    assert bool(pooled[0, 0, 0].isnan().all()), "nor may a maximum"
    assert not bool(pooled[0, 2].isnan().any())


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
    assert torch.equal(max_pool2d(x, kernel, stride, padding, out).double(), expected)

    bias = torch.randn(shape[0], shape[3]).to(dtype).float().to(DEVICE)
    max_pool2d(x, kernel, stride, padding, out, bias, relu=True)
    expected = (expected + bias.double()[:, None, None]).clamp(min=0.0)
    relative, absolute = ROUNDING[dtype]
    bound = expected * (relative + 2.0**-24) * 1.01 + absolute
    assert bool(((out.double() - expected).abs() <= bound).all())

    terms = kernel[0] * kernel[1] + 1
    for count_include_pad in (True, False):

        def mean(t: torch.Tensor, count: bool = count_include_pad) -> torch.Tensor:
            means = functional.avg_pool2d(t, kernel, stride, padding, count_include_pad=count)
            return means.permute(0, 2, 3, 1)

        avg_pool2d(x, kernel, stride, padding, out, count_include_pad)
        bound = mean(planes.abs()) * terms * 2.0**-23  # Triton's float32 division is approximate
        bound = bound + mean(planes).abs() * relative + absolute
        assert bool(((out.double() - mean(planes)).abs() <= bound).all())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 3, 49, 40), (1, 2, 1, 200), (2, 2, 3, 5, 16)])
def test_mean_over_positions(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype).to(DEVICE)
    flat = x.double().flatten(2, -2)
    for out_dtype in {torch.float32, dtype}:
        out = torch.full((*shape[:2], shape[-1]), 7.0, dtype=out_dtype, device=DEVICE)
        global_avg_pool(x, out)
        relative, absolute = ROUNDING[out_dtype]
        bound = flat.abs().mean(2) * (flat.shape[2] + 2) * 2.0**-24
        bound = bound + flat.mean(2).abs() * relative + absolute
        assert bool(((out.double() - flat.mean(2)).abs() <= bound).all())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(3, 2, 6, 7, 16)}, "x is of 3 members; expected 1 or 2"),
        ({"x": torch.zeros(2, 2, 6, 7, 16).half()}, "weight is torch.float32"),
        ({"x": torch.zeros(2, 2, 6, 7, 20)}, "one that `supports` accepts"),
        ({"x": torch.zeros(2, 2, 16, 6, 7).permute(0, 1, 3, 4, 2)}, "x is of strides"),
        ({"bias": torch.zeros(2, 17)}, "bias is torch.float32 .2, 17."),
        ({"out": torch.zeros(2, 2, 6, 6, 16)}, "out is torch.float32 .2, 2, 6, 6, 16."),
        ({"residual": torch.zeros(1, 2, 6, 7, 16)}, "residual is"),
        ({"groups": 2}, "groups 2"),
        ({"activation": "silu"}, "'silu'"),
        ({"stride": (0, 1)}, "stride .0, 1."),
        ({"precision": "fp64"}, "precision is 'fp64'"),
        (
            {"downsample": (torch.zeros(2, 2, 6, 7, 24), torch.zeros(2, 16, 1, 1, 24), (1, 1))},
            "channels in sixteens",
        ),
        (
            {"downsample": (torch.zeros(2, 2, 5, 7, 16), torch.zeros(2, 16, 1, 1, 16), (1, 1))},
            r"expected \[6, 7\] positions",
        ),
    ],
)
def test_bad_layers_are_refused(change: dict[str, Any], message: str) -> None:
    operands = Layer().operands(torch.float32)
    moved = {k: v.to(DEVICE) if isinstance(v, torch.Tensor) else v for k, v in change.items()}
    if "downsample" in moved:
        x2, w2, stride = moved["downsample"]
        moved["downsample"] = (x2.to(DEVICE), w2.to(DEVICE), stride)
    with pytest.raises(DeevoError, match=message):
        conv2d(**{**operands, **moved})
    assert bool((operands["out"] == 7.0).all())


@pytest.mark.skipif(DEVICE == "cuda", reason="about the interpreter")
def test_the_interpreter_refuses_bfloat16() -> None:
    with pytest.raises(DeevoError, match="interpreter errs"):
        conv2d(**Layer().operands(torch.bfloat16))


def test_what_is_supported() -> None:
    weight = (2, 16, 3, 3, 16)
    good = ((2, 1, 8, 8, 16), weight, (1, 1), (1, 1), (1, 1), 1, "relu", torch.float16)
    assert supports(*good)
    for position, value in ((5, 2), (6, "gelu"), (7, torch.float64), (0, (2, 1, 8, 8, 8))):
        assert not supports(*good[:position], value, *good[position + 1 :])
