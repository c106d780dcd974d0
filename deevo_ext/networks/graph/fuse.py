"""A captured graph as a network graph.

What a pattern takes becomes one layer; what none takes stays the ATen call it was. What depends on
weights alone (standardised weights, position tables) goes to the prologue, which runs once a member
and not once a micro-batch.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx

from deevo_ext.networks.graph.export import Capture, NotExportable
from deevo_ext.networks.graph.lifetimes import release
from deevo_ext.networks.graph.network_graph import (
    Aten,
    Convolution,
    Layer,
    Linear,
    NetworkGraph,
    Parameter,
    Register,
    size_of,
)
from deevo_ext.networks.graph.nodes import bytes_of, flops_of, shape_of
from deevo_ext.networks.graph.patterns import IDENTITIES, NORMS, Patterns

aten = torch.ops.aten

# A value's reshape, whatever its strides: exported strides are not those of channels-last tensors.
_RESHAPES = (aten.view.default, aten._unsafe_view.default)


def fuse(capture: Capture, dtype: torch.dtype) -> NetworkGraph:
    """The network graph of a captured one whose floating tensors have `dtype`."""
    return _Fuser(capture, dtype).graph()


class _Fuser:
    def __init__(self, capture: Capture, dtype: torch.dtype) -> None:
        self.capture, self.dtype = capture, dtype
        self.patterns = Patterns(capture, dtype)
        self.order, self.batch = self.patterns.order, self.patterns.batch
        self.registers: dict[fx.Node, int] = {capture.image: 0}
        self.layers: list[Layer] = []
        self.prologue: list[Layer] = []

    def graph(self) -> NetworkGraph:
        capture = self.capture
        shape = tuple(capture.output.meta["val"].shape)
        image_shape = tuple(capture.image.meta["val"].shape)
        if capture.output not in self.batch:
            raise NotExportable("the logits do not depend on the images")
        if len(shape) != 2 or shape[0] != image_shape[0]:
            raise NotExportable(f"the output has shape {list(shape)}; expected [N, classes]")
        # A pattern's last node stands for it; its other nodes are taken and emit nothing.
        heads: dict[fx.Node, Layer] = {}
        taken: set[fx.Node] = set()
        for node in self.order:
            if node in self.batch and node not in taken:
                match = self.patterns.match(node)
                if match is not None:
                    taken.update(match.nodes)
                    heads[match.last] = match.layer
        for node in self.order:
            if node in heads:
                self._emit(node, heads[node])
            elif node not in taken and node.op == "call_function":
                if node.target in IDENTITIES:
                    source = node.args[0]
                    assert isinstance(source, fx.Node)
                    if source in self.registers:
                        self.registers[node] = self.registers[source]
                        continue
                self._emit(node, self._aten(node))
        graph = NetworkGraph(
            self.layers,
            self.prologue,
            self.registers[capture.image],
            self.registers[capture.output],
            1 + max(self.registers.values()),
            image_shape,
            shape[1],
            self.dtype,
            capture.how,
        )
        release(graph)
        return graph

    def _emit(self, node: fx.Node, layer: Layer) -> None:
        in_batch = node in self.batch
        if isinstance(layer, (Convolution, Linear)):
            nodes = [self.order[i] for i in layer.reads]
            layer.reads = tuple(self.registers[n] for n in nodes)
            shape = layer.weights.shape
            weights = size_of((*shape, 1), self.dtype) + 4 * shape[0]
            layer.bytes = sum(bytes_of(n) for n in nodes) + weights + bytes_of(node)
        self.registers[node] = layer.writes = len(self.layers) + len(self.prologue) + 1
        (self.layers if in_batch else self.prologue).append(layer)

    def _aten(self, node: fx.Node) -> Layer:
        inputs = node.all_input_nodes
        target: Any = node.target
        norm = target in NORMS
        reads: list[int] = []

        def place(item: fx.Node) -> Any:
            if item in self.registers:
                reads.append(self.registers[item])
                return Register(self.registers[item])
            if item in self.capture.names:
                precise = norm and item is not node.args[0]
                return Parameter(self.capture.names[item], precise)
            if item in self.capture.constants:
                return self.capture.constants[item]
            raise NotExportable(f"{node} reads {item}, which nothing made")

        args, kwargs = fx.node.map_arg((node.args, node.kwargs), place)
        if target in _RESHAPES:
            target = aten.reshape.default
        value = node.meta.get("val")
        first = inputs[0].meta["val"] if inputs else value
        layer = Aten(
            node.name,
            tuple(dict.fromkeys(reads)),
            0,
            shape_of(first),
            shape_of(value),
            value.dtype if isinstance(value, Tensor) else self.dtype,
            target=target,
            args=tuple(args),
            kwargs=dict(kwargs),
        )
        if target is not operator.getitem:
            layer.bytes = sum(bytes_of(n) for n in inputs) + bytes_of(node)
            layer.flops = flops_of(node)
        return layer
