"""From captured graphs to network graphs: what is fused, what stays, and the same values."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn

import deevo_ext as deevo
from deevo_ext.networks.forward import PopulationForward
from deevo_ext.networks.graph.export import NotExportable, as_dtype, capture
from deevo_ext.networks.graph.fuse import fuse
from deevo_ext.networks.graph.network_graph import Aten, Convolution, Linear, NetworkGraph
from support.convolutional import (
    ActivationBeforeSum,
    Body,
    NormFirst,
    Padded,
    Perceptron,
    ReadTwice,
    Residual,
    Standardised,
    SumOfBoth,
    Viewed,
)
from support.zoo import as_row, pictures, randomised


def build(make: type[nn.Module]) -> tuple[nn.Module, NetworkGraph]:
    model = randomised(make, 12)
    return model, fuse(
        capture(as_dtype(model, torch.float32, torch.device("cpu")), (2, 3, 12, 12), torch.float32),
        torch.float32,
    )


def kinds(graph: NetworkGraph) -> list[str]:
    return [
        f"{layer.name}: {', '.join(layer.fused)}"
        for layer in graph.layers
        if not isinstance(layer, Aten)
    ]


EXPECTED = {
    Residual: [
        "conv: batch norm bn, relu",
        "conv2: batch norm bn2, residual, relu",
        "fc: ",
    ],
    ActivationBeforeSum: ["conv: batch norm bn, silu", "conv2: batch norm bn2, silu", "fc: "],
    SumOfBoth: ["conv: batch norm bn", "conv3: residual, relu", "fc: "],
    ReadTwice: ["conv: ", "fc: "],
    Padded: [
        "conv: padding, batch norm bn, relu",
        "conv4: padding",
        *["conv2: "] * 5,
        "fc: ",
    ],
    NormFirst: ["conv: relu", "conv2: residual", "fc: "],
    Standardised: ["fc: "],
    Perceptron: ["fc1: batch norm bn, gelu", "fc2: "],
    Viewed: ["conv: ", "fc: "],
}


@pytest.mark.parametrize("engine", ["fused", "auto"])
@pytest.mark.parametrize("make", EXPECTED)
def test_patterns_and_values(make: type[nn.Module], engine: str) -> None:
    model, graph = build(make)
    assert kinds(graph) == EXPECTED[make]
    images = pictures(5, 12, 3)
    layout, row = as_row(model)
    forward = PopulationForward(model, layout, engine=engine, micro_batch=2)
    found = forward.logits(row, images)
    with torch.no_grad():
        expected = model(images)
    # A handful of layers, sums of up to 432 products of order 1: 432^(1/2) roundings each.
    limit = 10 * 21 * 2.0**-24 * max(1.0, float(expected.abs().max()))
    assert float((found - expected).abs().max()) <= limit
    assert torch.equal(found, forward.logits(row, images))  # nothing was written into the weights


def test_what_depends_on_weights_alone_is_done_once_a_member() -> None:
    _, graph = build(Standardised)
    assert {layer.operation for layer in graph.prologue} >= {"mean", "div", "sub"}
    assert graph.layers[0].operation == "conv2d"


def test_the_table_names_every_layer() -> None:
    _, graph = build(Residual)
    lines = str(graph).splitlines()
    assert lines[0].split()[:3] == ["layer", "operation", "engine"]
    assert len(lines) == 2 + len(graph.layers) and "torch.export" in lines[-1]
    conv = graph.layers[0]
    assert isinstance(conv, Convolution)
    # 2 images of 12x12, 8 channels from 27 inputs each, multiply and add.
    assert conv.flops == 2 * 2 * 144 * 8 * 27
    inputs, weights, outputs = 2 * 3 * 144 * 4, (8 * 27 + 8) * 4, 2 * 8 * 144 * 4
    assert conv.bytes == inputs + weights + outputs
    assert isinstance(graph.layers[-1], Linear) and graph.classes == 5


class DependsOnValues(Body):
    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.conv(x) if float(x.sum()) > 0 else self.conv(-x))


class Random(Body):
    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.conv(x) + torch.rand(1))


def test_what_cannot_be_captured_is_named_and_served_by_functional_call() -> None:
    model = randomised(DependsOnValues, 12)
    layout, row = as_row(model)
    forward = PopulationForward(model, layout, micro_batch=5)
    images = pictures(5, 12, 3)
    with pytest.warns(UserWarning, match="DependsOnValues is served unfused, by functional_call"):
        found = forward.logits(row, images)
    with torch.no_grad():
        assert torch.allclose(found, model(images), atol=1e-5)
    with pytest.raises(deevo.DeevoError, match="served without a graph"):
        forward.graph((3, 12, 12))
    with pytest.raises(NotExportable, match="random"):
        capture(randomised(Random, 12), (2, 3, 12, 12), torch.float32)


def test_tracing_stands_in_where_export_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(torch.export, "export", refuse)
    model = randomised(Residual, 12)
    found = capture(
        as_dtype(model, torch.float32, torch.device("cpu")), (2, 3, 12, 12), torch.float32
    )
    graph = fuse(found, torch.float32)
    assert graph.how == "torch.fx" and "conv: batch norm bn, relu" in kinds(graph)
    layout, row = as_row(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        forward = PopulationForward(model, layout, micro_batch=2)
        images = pictures(3, 12, 3)
        with torch.no_grad():
            assert torch.allclose(forward.logits(row, images), model(images), atol=1e-4)
