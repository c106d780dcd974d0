"""Every engine that claims a layer computes it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from deevo_ext.networks.engines import ENGINES, candidates
from deevo_ext.networks.graph.network_graph import Activation, Convolution, Linear, Weights

CPU = torch.device("cpu")
ACTIVATIONS = [
    None,
    Activation("relu"),
    Activation("hardtanh", (0.0, 6.0)),
    Activation("silu"),
    Activation("hardswish"),
    Activation("gelu"),
    Activation("gelu", (), "tanh"),
    Activation("sigmoid"),
    Activation("hardsigmoid"),
    Activation("tanh"),
    Activation("leaky_relu", (0.1,)),
]


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_engines_agree(activation: Activation | None, dtype: torch.dtype) -> None:
    """Every engine that claims a layer computes act(conv + bias + residual); linear likewise."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    for groups, residual in ((1, False), (4, False), (1, True)):
        if residual and activation not in (None, Activation("relu")):
            continue  # the fuser leaves those apart
        weight, bias = draw(8, 8 // groups, 3, 3) / 8, draw(8)
        x, other = (draw(2, 8, 7, 9).contiguous(memory_format=torch.channels_last) for _ in "xr")
        layer = Convolution(
            "conv",
            (0,),
            1,
            (2, 8, 7, 9),
            (2, 8, 7, 9),
            dtype,
            weights=Weights("w", "b", None, tuple(weight.shape)),
            stride=(1, 1),
            padding=(1, 1),
            dilation=(1, 1),
            groups=groups,
            residual=residual,
            activation=activation,
        )
        exact = nn.functional.conv2d(x.double(), weight.double(), bias.double(), 1, 1, 1, groups)
        _agree(layer, exact + other.double() if residual else exact, x, weight, bias,
               other if residual else None)  # fmt: skip
    weight, bias, x = draw(5, 8) / 3, draw(5), draw(4, 6, 8)
    layer = Linear(
        "fc",
        (0,),
        1,
        (4, 6, 8),
        (4, 6, 5),
        dtype,
        weights=Weights("w", "b", None, (5, 8)),
        activation=activation,
    )
    exact = nn.functional.linear(x.double(), weight.double(), bias.double())
    _agree(layer, exact, x, weight, bias, None)


# Input map, kernel, stride and padding, and whether `positions` claims the layer.
SMALL_MAPS = [
    ((2, 2), (3, 3), (1, 1), (1, 1), True),
    ((4, 4), (3, 3), (2, 2), (1, 1), True),
    ((3, 2), (3, 5), (1, 1), (1, 2), True),
    ((5, 3), (3, 3), (2, 1), (1, 1), True),
    ((3, 3), (7, 7), (2, 2), (3, 3), True),
    ((1, 1), (3, 3), (1, 1), (1, 1), True),
    ((4, 4), (3, 3), (1, 1), (1, 1), False),  # 16 positions
    ((3, 3), (3, 3), (1, 1), (0, 0), False),  # no padding
    ((2, 2), (1, 1), (1, 1), (1, 1), False),  # and 16 positions, 12 of which see padding alone
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("size", "kernel", "stride", "padding", "claimed"), SMALL_MAPS)
@pytest.mark.parametrize("residual", [False, True])
def test_engines_agree_on_small_maps(
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    claimed: bool,
    residual: bool,
    dtype: torch.dtype,
) -> None:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    channels, taps = 8, kernel[0] * kernel[1]
    weight = draw(6, channels, *kernel) / math.sqrt(channels * taps)
    weight = weight.contiguous(memory_format=torch.channels_last)
    x, bias = draw(3, channels, *size).contiguous(memory_format=torch.channels_last), draw(6)
    exact = nn.functional.conv2d(x.double(), weight.double(), bias.double(), stride, padding)
    other = draw(*exact.shape).contiguous(memory_format=torch.channels_last) if residual else None
    layer = Convolution(
        "conv",
        (0,),
        1,
        tuple(x.shape),
        tuple(exact.shape),
        dtype,
        weights=Weights("w", "b", None, tuple(weight.shape)),
        stride=stride,
        padding=padding,
        dilation=(1, 1),
        groups=1,
        residual=residual,
        activation=Activation("relu"),
    )
    names = {engine.name for engine in candidates(layer, CPU)}
    if ENGINES["onednn"].why_not(layer, CPU) is None:  # a CPU that multiplies this dtype
        assert ("positions" in names) == claimed
    _agree(layer, exact if other is None else exact + other.double(), x, weight, bias, other)


def _agree(
    layer: Convolution | Linear,
    exact: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    residual: torch.Tensor | None,
) -> None:
    act, functional = layer.activation, nn.functional
    if act is not None:
        exact = {
            "relu": torch.relu,
            "hardtanh": lambda v: v.clamp(*act.scalars),
            "silu": functional.silu,
            "hardswish": functional.hardswish,
            "gelu": lambda v: functional.gelu(v, approximate=act.approximate),
            "sigmoid": torch.sigmoid,
            "hardsigmoid": functional.hardsigmoid,
            "tanh": torch.tanh,
            "leaky_relu": lambda v: functional.leaky_relu(v, 0.1),
        }[act.name](exact)
    engines = candidates(layer, CPU)
    assert {engine.name for engine in engines} >= {"aten"}
    for engine in engines:
        bound = engine.bind(layer)
        prepared = bound.prepare(weight.to(layer.dtype), bias)
        other = None if residual is None else residual.to(layer.dtype)
        found = bound.run(prepared, x.to(layer.dtype), other)
        # Inputs, weights, bias, residual and result are rounded; |terms| < 4, sums of 72 at most
        # (392 of smaller terms on small maps).
        u = 2.0**-24 * 72 if layer.dtype == torch.float32 else 2.0**-9 * 8
        assert float((found.double() - exact).abs().max()) <= 8 * u, engine.name
