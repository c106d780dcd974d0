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
from deevo_ext.networks.graph.patterns import IDENTITIES, NORMS, Patterns

aten = torch.ops.aten

# A value's reshape, whatever its strides: exported strides are not those of channels-last tensors.
_RESHAPES = (aten.view.default, aten._unsafe_view.default)
# Operators that give new memory; of any other the result may show its inputs' memory.
_FRESH = frozenset(
    {"add", "sub", "mul", "div", "cat", "relu", "silu", "gelu", "sigmoid", "hardswish", "tanh"}
    | {"hardsigmoid", "layer_norm", "group_norm", "max_pool2d", "avg_pool2d", "mean", "matmul"}
    | {"_native_batch_norm_legit_no_training", "native_batch_norm", "batch_norm"}
)
# Who takes inputs of any strides, so that a copy that made them contiguous is not needed. Others,
# such as recurrent layers, read memory as it lies.
_ANY_STRIDES = frozenset(
    {"view", "_unsafe_view", "reshape", "flatten", "transpose", "permute", "unsqueeze", "squeeze"}
    | {"slice", "select", "expand", "split", "chunk", "getitem", "clone", "cat", "stack", "mean"}
    | {"add", "sub", "mul", "div", "relu", "gelu", "silu", "sigmoid", "tanh", "dropout", "softmax"}
    | {"conv2d", "convolution", "linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "layer_norm"}
    | {"_softmax", "native_layer_norm", "batch_norm", "scaled_dot_product_attention"}
)
_IN_PLACE = ("relu", "silu", "hardswish", "sigmoid", "hardsigmoid", "add", "mul", "gelu")


def fuse(capture: Capture, dtype: torch.dtype) -> NetworkGraph:
    """Returns the network graph of a captured one whose floating tensors have `dtype`."""
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
        patterns: dict[fx.Node, Layer] = {}
        taken: set[fx.Node] = set()
        for node in self.order:
            if node in self.batch and node not in taken:
                match = self.patterns.match(node)
                if match is not None:
                    taken.update(match.nodes)
                    patterns[match.last] = match.layer
        for node in self.order:
            if node in patterns:
                self._emit(node, patterns[node])
            elif node not in taken and node.op == "call_function":
                if node.target in IDENTITIES and not self._lays_out(node):
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
            layer.bytes = sum(_bytes_of(n) for n in nodes) + weights + _bytes_of(node)
        self.registers[node] = layer.writes = len(self.layers) + len(self.prologue) + 1
        (self.layers if in_batch else self.prologue).append(layer)

    def _lays_out(self, node: fx.Node) -> bool:
        """Whether it is a copy to contiguous memory, for someone who needs that."""
        if node.kwargs.get("memory_format") != torch.contiguous_format:
            return False
        targets = [getattr(u.target, "overloadpacket", u.target) for u in self.patterns.users[node]]
        return any(getattr(t, "__name__", "") not in _ANY_STRIDES for t in targets)

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
            _shape_of(first),
            _shape_of(value),
            value.dtype if isinstance(value, Tensor) else self.dtype,
            target=target,
            args=tuple(args),
            kwargs=dict(kwargs),
        )
        if target is not operator.getitem:
            layer.bytes = sum(_bytes_of(n) for n in inputs) + _bytes_of(node)
            layer.flops = _flops_of(node)
        return layer


def release(graph: NetworkGraph) -> None:
    """Says of each layer which registers nobody needs after it; the prologue's are kept."""
    members = {layer.writes for layer in graph.prologue}
    fresh: set[int] = set()
    shared: set[int] = {graph.image, *members}  # registers whose memory another one may show
    for layer in graph.layers:
        getitem = layer.operation == "getitem"  # of a norm's outputs, or of a split's views
        fused = not isinstance(layer, Aten)
        if fused or layer.operation in _FRESH or (getitem and layer.reads[0] in fresh):
            fresh.add(layer.writes)
        else:
            shared.update(layer.reads)
    seen = {graph.output}
    for layer in reversed(graph.layers):
        layer.frees = tuple(r for r in layer.reads if r not in seen and r not in members)
        seen.update(layer.reads)
        if isinstance(layer, Aten):
            layer.in_place = _in_place(layer, fresh - shared)


def _in_place(layer: Aten, owned: set[int]) -> Any:
    """The in-place form of a pointwise operator whose first input is its own and dies here."""
    first = layer.args[0] if layer.args else None
    if not isinstance(first, Register) or first.number not in layer.frees:
        return None
    if first.number not in owned or layer.in_shape != layer.out_shape:
        return None
    packet = getattr(layer.target, "overloadpacket", None)
    written = getattr(aten, layer.operation + "_", None) if packet is not None else None
    if layer.operation not in _IN_PLACE or written is None:
        return None
    overload = getattr(layer.target, "_overloadname", "")
    return getattr(written, overload) if overload in written.overloads() else None


def _shape_of(value: Any) -> tuple[int, ...]:
    """The shape of a node's value, of the first of several; () for none."""
    if isinstance(value, (tuple, list)):
        value = value[0]
    return tuple(value.shape) if isinstance(value, Tensor) else ()


def _bytes_of(node: fx.Node) -> int:
    """Bytes of a node's value."""
    value = node.meta.get("val")
    values = value if isinstance(value, (tuple, list)) else [value]
    return sum(size_of(tuple(v.shape), v.dtype) for v in values if isinstance(v, Tensor))


def _flops_of(node: fx.Node) -> int:
    """Operations, by torch's formulas for matrix products and attention; others count 0."""
    from torch.utils.flop_counter import flop_registry  # brings Triton with it

    formula = flop_registry.get(getattr(node.target, "overloadpacket", None))
    if formula is None:
        return 0
    args = fx.node.map_arg(node.args, lambda n: n.meta["val"])
    kwargs = fx.node.map_arg(node.kwargs, lambda n: n.meta["val"])
    return int(formula(*args, **kwargs, out_val=node.meta["val"]))
