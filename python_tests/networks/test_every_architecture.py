"""Every architecture that the fused front end must take, against the module itself in float32."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn

from deevo_ext.networks.forward import PopulationForward
from deevo_ext.networks.graph.network_graph import Aten, Convolution, Linear, NetworkGraph
from support.convolutional import CifarResNet
from support.zoo import (
    as_row,
    pictures,
    randomised,
    shallow,
    timm_densenet,
    timm_model,
    torchvision_densenet,
    torchvision_model,
)

UNIT_ROUNDOFF = {"float32": 2.0**-24, "bfloat16": 2.0**-9}


def bound(graph: NetworkGraph, precision: str, largest: float) -> float:
    """How far logits may lie from eager float32's, |logits| <= largest.

    A layer's result is off by u for each rounding: in float32 the sums of n products are off by
    about sqrt(n) u (signs vary), in 16 bits weights, input and output are rounded once each.
    Errors of L layers add up like sqrt(L), and norms keep them from growing much. A factor 4 is for
    eager's own errors, for the largest of two thousand logits instead of a typical one, and for the
    growth that depth does bring: random networks of 100 layers amplify a little.
    """
    layers = [layer for layer in graph.layers if isinstance(layer, (Convolution, Linear))]
    longest = max(math.prod(layer.weights.shape[1:]) for layer in layers)
    u = UNIT_ROUNDOFF[precision]
    each = math.sqrt(longest) * u if precision == "float32" else math.sqrt(3) * u
    return 4 * math.sqrt(len(graph.layers)) * each * largest


def check(
    make: Callable[[], nn.Module], size: int, precisions: tuple[str, ...]
) -> list[NetworkGraph]:
    model = randomised(make, size)
    layout, row = as_row(model)
    images = pictures(2, size)
    with torch.no_grad():
        expected = model(images)
    largest = float(expected.abs().max())
    graphs = []
    for precision in precisions:
        forward = PopulationForward(
            model, layout, precision=precision, engine="fused", micro_batch=2
        )
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a graph, or the test fails
            found = forward.logits(row, images)
            graphs.append(forward.graph((3, size, size)))
        limit = bound(graphs[-1], precision, largest)
        assert float((found - expected).abs().max()) <= limit
        if precision == "float32":  # else a wrong graph could pass
            assert float((expected[0] - expected[1]).abs().max()) > 20 * limit
    return graphs


def norms_left(graph: NetworkGraph) -> int:
    return sum(isinstance(p, Aten) and "batch_norm" in p.operation for p in graph.layers)


BOTH = ("float32", "bfloat16")
# name, size, precisions; all of them without repeated blocks
TORCHVISION = [
    ("resnet18", 64, BOTH),
    ("resnet50", 64, ("float32",)),
    ("wide_resnet50_2", 64, ("float32",)),
    ("resnext50_32x4d", 64, ("float32",)),
    ("vgg11_bn", 64, ("float32",)),
    ("mobilenet_v2", 64, ("float32",)),
    ("mobilenet_v3_small", 64, BOTH),
    ("efficientnet_b0", 64, BOTH),
    ("regnet_y_400mf", 64, ("float32",)),
    ("regnet_x_400mf", 64, ("float32",)),
    ("convnext_tiny", 64, BOTH),
    ("vit_b_32", 224, ("float32",)),
]
TIMM = [
    ("resnet18", 64, ("float32",)),
    ("resnet50d", 64, ("float32",)),
    ("mobilenetv3_small_100", 64, ("float32",)),
    ("efficientnet_b0", 64, ("float32",)),
    ("regnety_002", 64, ("float32",)),
    ("convnext_atto", 64, ("float32",)),
    ("vit_tiny_patch16_224", 224, BOTH),
    ("vgg11_bn", 64, ("float32",)),
]


@pytest.mark.parametrize("name, size, precisions", TORCHVISION)
def test_torchvision(name: str, size: int, precisions: tuple[str, ...]) -> None:
    for graph in check(lambda: shallow(torchvision_model(name)), size, precisions):
        assert norms_left(graph) == 0 and graph.how == "torch.export"


@pytest.mark.parametrize("name, size, precisions", TIMM)
def test_timm(name: str, size: int, precisions: tuple[str, ...]) -> None:
    for graph in check(lambda: shallow(timm_model(name)), size, precisions):
        assert norms_left(graph) == 0 and graph.how == "torch.export"


@pytest.mark.parametrize("make", [torchvision_densenet, timm_densenet])
def test_densenets(make: Callable[[], nn.Module]) -> None:
    """A BatchNorm before a convolution stays: one a layer, a transition and at the end."""
    (graph,) = check(make, 64, ("float32",))
    assert norms_left(graph) == 9 + 3 + 1 and graph.how == "torch.export"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet101", "vgg16_bn", "mobilenet_v3_large", "vit_b_16"])
def test_large_torchvision(name: str) -> None:
    (graph,) = check(lambda: torchvision_model(name), 224, ("float32",))
    assert norms_left(graph) == 0


def test_small_resnet() -> None:
    for graph in check(CifarResNet, 32, BOTH):
        convolutions = [layer for layer in graph.layers if isinstance(layer, Convolution)]
        assert len(convolutions) == 19 and norms_left(graph) == 0
        assert sum(layer.residual for layer in convolutions) == 9
