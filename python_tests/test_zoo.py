"""Every architecture that the fused front end must take, against the module itself in float32."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn

from deevo_ext.inference.forward import PopulationForward
from deevo_ext.inference.network_graph import Aten, Convolution, Linear, NetworkGraph
from support.zoo import (
    CifarResNet,
    as_row,
    pictures,
    randomised,
    timm_model,
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
# name, size, precisions, BatchNorms that stand before a convolution and stay
TORCHVISION = [
    ("resnet18", 64, BOTH, 0),
    ("resnet34", 224, ("float32",), 0),
    ("resnet50", 224, ("float32",), 0),
    ("wide_resnet50_2", 224, ("float32",), 0),
    ("resnext50_32x4d", 224, ("float32",), 0),
    ("vgg11_bn", 224, ("float32",), 0),
    ("mobilenet_v2", 224, ("float32",), 0),
    ("mobilenet_v3_small", 224, BOTH, 0),
    ("efficientnet_b0", 224, BOTH, 0),
    ("densenet121", 224, ("float32",), 62),
    ("regnet_y_400mf", 224, ("float32",), 0),
    ("regnet_x_400mf", 224, ("float32",), 0),
    ("convnext_tiny", 224, BOTH, 0),
    ("vit_b_32", 224, ("float32",), 0),
]
TIMM = [
    ("resnet18", 64, ("float32",), 0),
    ("resnet50d", 224, ("float32",), 0),
    ("mobilenetv3_small_100", 224, ("float32",), 0),
    ("efficientnet_b0", 224, ("float32",), 0),
    ("regnety_002", 224, ("float32",), 0),
    ("densenet121", 224, ("float32",), 62),
    ("convnext_atto", 224, ("float32",), 0),
    ("vit_tiny_patch16_224", 224, BOTH, 0),
    ("vgg11_bn", 224, ("float32",), 0),
]


@pytest.mark.parametrize("name, size, precisions, left", TORCHVISION)
def test_torchvision(name: str, size: int, precisions: tuple[str, ...], left: int) -> None:
    for graph in check(lambda: torchvision_model(name), size, precisions):
        assert norms_left(graph) == left and graph.how == "torch.export"


@pytest.mark.parametrize("name, size, precisions, left", TIMM)
def test_timm(name: str, size: int, precisions: tuple[str, ...], left: int) -> None:
    for graph in check(lambda: timm_model(name), size, precisions):
        assert norms_left(graph) == left and graph.how == "torch.export"


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
