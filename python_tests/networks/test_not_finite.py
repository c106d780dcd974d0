"""NaN and infinity reach the loss: every engine, every fused pattern, whole networks.

The oracle is the module itself, by functional_call: where one of its logits is not finite, the loss
is +inf; elsewhere it is finite.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from deevo_ext import Population
from deevo_ext.networks.engines import ENGINES
from deevo_ext.networks.engines.base import activate
from deevo_ext.networks.forward import PopulationForward
from deevo_ext.networks.graph.network_graph import Activation, Convolution, Linear, Weights
from support.convolutions import DEVICE
from support.networks import ConvNet, Tail, pooled

CPU = torch.device("cpu")
ACTIVATIONS = [
    None,
    *(Activation(name) for name in ("relu", "silu", "hardswish", "sigmoid", "hardsigmoid")),
    *(Activation("tanh"), Activation("gelu"), Activation("gelu", (), "tanh")),
    *(Activation("hardtanh", ends) for ends in ((0.0, 6.0), (-1.0, 1.0))),
    Activation("leaky_relu", (0.1,)),
]
IMAGE, NAN, PLUS, MINUS = 4, 0, 1, 2  # images in a micro-batch, and what three of them hold


def poisoned(shape: tuple[int, ...]) -> Tensor:
    """Normal numbers; of one image all NaN, of one all +inf, of one -inf."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    x[NAN], x[PLUS], x[MINUS] = math.nan, math.inf, -math.inf
    return x


def check_engines(
    layer: Convolution | Linear, weight: Tensor, x: Tensor, residual: Tensor | None
) -> None:
    """Every engine that claims the layer is finite exactly where exact arithmetic is."""
    bias = torch.zeros(len(weight))
    if isinstance(layer, Convolution):
        exact = functional.conv2d(x, weight, bias, padding=layer.padding, groups=layer.groups)
    else:
        exact = functional.linear(x, weight, bias)
    if residual is not None:
        exact = exact + residual
    act = activate(layer.activation)
    exact = exact if act is None else act(exact)
    served = set()
    for engine in ENGINES.values():
        interpreted = engine.name == "triton" and layer.dtype == torch.bfloat16  # not on the CPU
        if engine.why_not(layer, CPU) is None and not interpreted:
            bound = engine.bind(layer)
            prepared = bound.prepare(weight.to(layer.dtype), bias)
            added = None if residual is None else residual.to(layer.dtype, copy=True)
            out = bound.run(prepared, x.to(layer.dtype), added)
            assert torch.equal(out.isfinite(), exact.isfinite()), engine.name
            served.add(engine.name)
    assert {"aten", "onednn", "onednn-packed"} <= served or layer.dtype != torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_layers_keep_what_is_not_finite(activation: Activation | None, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    for groups in (1, 8):
        for residual in (False, True):
            if residual and activation not in (None, Activation("relu")):
                continue  # the fuser leaves those apart
            for size in (2, 8):  # 2: `positions` serves it
                shape = (IMAGE, 8, size, size)
                weight = torch.randn((8, 8 // groups, 3, 3), generator=generator)
                other = poisoned(shape).flip(0) if residual else None
                layer = Convolution(
                    "conv",
                    (0, 1) if residual else (0,),
                    2,
                    shape,
                    shape,
                    dtype,
                    weights=Weights("w", "b", None, tuple(weight.shape)),
                    stride=(1, 1),
                    padding=(1, 1),
                    dilation=(1, 1),
                    groups=groups,
                    residual=residual,
                    activation=activation,
                )
                x = poisoned(shape).contiguous(memory_format=torch.channels_last)
                if other is not None:
                    other = other.contiguous(memory_format=torch.channels_last)
                check_engines(layer, weight, x, other)
    weight = torch.randn((5, 8), generator=generator)
    linear = Linear(
        "fc",
        (0,),
        1,
        (IMAGE, 6, 8),
        (IMAGE, 6, 5),
        dtype,
        weights=Weights("w", "b", None, (5, 8)),
        activation=activation,
    )
    check_engines(linear, weight, poisoned((IMAGE, 6, 8)), None)


def tail(*layers: nn.Module) -> nn.Module:
    return Tail(*layers, *pooled())


def around(kind: type[nn.Module]) -> nn.Module:
    return tail(kind(), nn.Conv2d(8, 8, 3), kind())


NETWORKS = {
    "residual": ConvNet,
    "relu": lambda: around(nn.ReLU),
    "relu6": lambda: around(nn.ReLU6),
    "hardtanh": lambda: around(nn.Hardtanh),
    "hardswish": lambda: around(nn.Hardswish),
    "hardsigmoid": lambda: around(nn.Hardsigmoid),
    "silu": lambda: around(nn.SiLU),
    "depthwise": lambda: tail(nn.ReLU6(), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ReLU6()),
    "maximum": lambda: tail(nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), nn.ReLU()),
    "mean": lambda: tail(nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(8, 8, 3), nn.ReLU()),
    "norm": lambda: tail(nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveMaxPool2d(2), nn.ReLU()),
    "linear": lambda: Tail(nn.ReLU(), *pooled()[:2], nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)),
}


def cases(population: Population) -> Iterator[tuple[str, Tensor]]:
    """Rows: sound, and with one tensor of weights at 3e38, or one weight infinite or NaN."""
    yield "sound", population.rows[0]
    for entry in population.layout.entries:
        if entry.name.endswith("weight") and len(entry.shape) > 1:
            for value in (3e38, math.inf, math.nan):
                row = population.rows[0].clone()
                weight = population.views(row)[entry.name]
                if value == 3e38:
                    weight.copy_(weight.sign() * value)
                else:
                    weight.flatten()[weight.numel() // 2] = value
                yield f"{entry.name} {value}", row


def check_network(network: str, engine: str) -> None:
    """Losses of sound and damaged rows, on sound and damaged images."""
    generator = torch.Generator().manual_seed(2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = NETWORKS[network]().eval()
    states = [{k: v.clone() for k, v in model.state_dict().items()} for _ in "12"]
    next(v for v in states[1].values() if v.is_floating_point()).mul_(1.5)
    population = Population.from_state_dicts(model, states)
    images = torch.randn((6, 3, 6, 6), generator=generator)
    images[1, 0, 1, 1], images[2], images[3, 1] = math.nan, math.inf, -math.inf
    labels = torch.zeros(6, dtype=torch.int64)
    forward = PopulationForward(model, population, engine=engine, micro_batch=6)
    names, rows = zip(*cases(population), strict=True)
    losses = forward(torch.stack(rows), images, labels).losses
    for name, row, loss in zip(names, rows, losses, strict=True):
        logits = functional_call(model, dict(population.views(row)), (images,))
        sound = logits.isfinite().all(1)
        assert torch.equal(loss.isfinite(), sound), name
        assert bool((loss[~sound] == math.inf).all()), name
    assert bool(losses[0, [0, 4, 5]].isfinite().all())  # the sound images of the sound row
    assert not bool(losses[1:, 0].isfinite().all())  # and weights that do overflow


@pytest.mark.parametrize("engine", ["auto", "fused", "eager"])
@pytest.mark.parametrize("network", NETWORKS)
def test_networks_give_infinite_losses(network: str, engine: str) -> None:
    check_network(network, engine)


@pytest.mark.skipif(DEVICE == "cuda", reason="runs in the interpreter, without a GPU")
@pytest.mark.parametrize("network", ["residual", "relu", "maximum", "mean"])
def test_our_kernels_give_infinite_losses(network: str) -> None:
    check_network(network, "triton")
