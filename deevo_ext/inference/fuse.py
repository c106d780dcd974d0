"""A captured graph as a plan: conv -> batch norm -> [+ residual] -> [activation], linear -> act.

What no pattern takes stays the ATen call it was. What depends on weights alone (standardised
weights, position tables) goes to the prologue, which runs once a member and not once a micro-batch.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx

from deevo_ext.inference.export import Capture, NotExportable
from deevo_ext.inference.nodes import (
    activation_of,
    bytes_of,
    flops_of,
    is_plain_sum,
    owner_of,
    pair,
    reachable,
    shape_of,
    taken_in,
)
from deevo_ext.inference.plan import (
    Activation,
    Aten,
    Convolution,
    Layer,
    Linear,
    Norm,
    Parameter,
    Plan,
    Register,
    Weights,
    size_of,
)

aten = torch.ops.aten

_NORMS = (
    aten._native_batch_norm_legit_no_training.default,
    aten.native_batch_norm.default,
    aten.cudnn_batch_norm.default,
    aten.batch_norm.default,
)
# Their value is their input's: a functional graph does not care about memory.
_IDENTITIES = (aten.clone.default, aten.alias.default, aten.detach.default)
# A value's reshape, whatever its strides: exported strides are not those of channels-last tensors.
_RESHAPES = (aten.view.default, aten._unsafe_view.default)
# Operators that give new memory; of any other the result may show its inputs' memory.
_FRESH = frozenset(
    {"add", "sub", "mul", "div", "cat", "relu", "silu", "gelu", "sigmoid", "hardswish", "tanh"}
    | {"hardsigmoid", "layer_norm", "group_norm", "max_pool2d", "avg_pool2d", "mean", "matmul"}
    | {"_native_batch_norm_legit_no_training", "native_batch_norm", "batch_norm"}
)
_IN_PLACE = ("relu", "silu", "hardswish", "sigmoid", "hardsigmoid", "add", "mul", "gelu")


def fuse(found: Capture, dtype: torch.dtype) -> Plan:
    """The plan of a captured graph whose floating tensors have `dtype`."""
    return _Fuser(found, dtype).plan()


class _Fuser:
    def __init__(self, found: Capture, dtype: torch.dtype) -> None:
        self.found, self.dtype = found, dtype
        self.live = reachable(found.output)
        self.order = [n for n in found.graph.nodes if n in self.live]
        self.users = {n: [u for u in n.users if u in self.live] for n in self.order}
        self.batch = {found.image}  # nodes that depend on the images
        for node in self.order:
            if any(parent in self.batch for parent in node.all_input_nodes):
                self.batch.add(node)
        self.position = {node: i for i, node in enumerate(self.order)}
        self.registers: dict[fx.Node, int] = {found.image: 0}
        self.constants: dict[int, Tensor] = {}
        self.layers: list[Layer] = []
        self.prologue: list[Layer] = []

    def plan(self) -> Plan:
        found = self.found
        shape = tuple(found.output.meta["val"].shape)
        image_shape = tuple(found.image.meta["val"].shape)
        if found.output not in self.batch:
            raise NotExportable("the logits do not depend on the images")
        if len(shape) != 2 or shape[0] != image_shape[0]:
            raise NotExportable(f"the output has shape {list(shape)}; expected [N, classes]")
        # A pattern's last node stands for it; its other nodes are taken and emit nothing.
        heads: dict[fx.Node, Layer] = {}
        taken: set[fx.Node] = set()
        for node in self.order:
            if node in self.batch and node not in taken:
                matched = self._match(node)
                if matched is not None:
                    last, nodes, layer = matched
                    taken.update(nodes)
                    heads[last] = layer
        for node in self.order:
            if node in heads:
                self._emit(node, heads[node])
            elif node not in taken and node.op == "call_function":
                if node.target in _IDENTITIES:
                    source = node.args[0]
                    assert isinstance(source, fx.Node)
                    if source in self.registers:
                        self.registers[node] = self.registers[source]
                        continue
                self._emit(node, self._aten(node))
        output = self.registers[found.output]
        self._release(output)
        return Plan(
            self.layers,
            self.prologue,
            self.registers[found.image],
            output,
            1 + max(self.registers.values()),
            image_shape,
            shape[1],
            self.dtype,
            found.how,
        )

    # Patterns

    def _match(self, node: fx.Node) -> tuple[fx.Node, list[fx.Node], Layer] | None:
        if node.op != "call_function":
            return None
        if node.target in (aten.conv2d.default, aten.convolution.default):
            return self._convolution(node)
        if node.target is aten.linear.default:
            return self._linear(node)
        return None

    def _convolution(self, node: fx.Node) -> tuple[fx.Node, list[fx.Node], Layer] | None:
        args: list[Any] = list(node.args)
        if node.target is aten.convolution.default:
            if args[6] or len(args[3]) != 2:
                return None
            x, weight, bias, stride, padding, dilation, groups = (*args[:6], args[8])
        else:
            defaults: list[Any] = [None, None, None, [1, 1], [0, 0], [1, 1], 1]
            x, weight, bias, stride, padding, dilation, groups = [*args, *defaults[len(args) :]]
        names = self._names(weight, bias)
        if names is None or x not in self.batch:
            return None
        assert isinstance(x, fx.Node)
        nodes, last = [node], node
        norm, last = self._norm_after(last, nodes)
        residual, activation, last = self._residual_after(last, nodes)
        if residual is None:
            activation, last = self._activation_after(last, nodes)
        w = tuple(weight.meta["val"].shape)
        fused = taken_in(norm, residual, activation)
        layer = Convolution(
            owner_of(names[0]),
            tuple(self.position[n] for n in (x, residual) if n is not None),
            0,
            tuple(x.meta["val"].shape),
            tuple(last.meta["val"].shape),
            self.dtype,
            fused=fused,
            weights=Weights(names[0], names[1], norm, w),
            stride=pair(stride),
            padding=pair(padding),
            dilation=pair(dilation),
            groups=int(groups),
            residual=residual is not None,
            activation=activation,
        )
        outputs = torch.Size(layer.out_shape).numel()
        layer.flops = 2 * outputs * w[1] * w[2] * w[3]
        return last, nodes, layer

    def _linear(self, node: fx.Node) -> tuple[fx.Node, list[fx.Node], Layer] | None:
        given: list[Any] = [*node.args, None]
        x, weight, bias = given[:3]
        names = self._names(weight, bias)
        if names is None or x not in self.batch:
            return None
        nodes, last = [node], node
        norm: Norm | None = None
        if node.meta["val"].dim() == 2:
            norm, last = self._norm_after(last, nodes)
        activation, last = self._activation_after(last, nodes)
        w = tuple(weight.meta["val"].shape)
        # Logits are not rounded to 16 bits: the last product is small and decides between members.
        head = last is self.found.output and norm is None
        layer = Linear(
            owner_of(names[0]),
            (self.position[x],),
            0,
            tuple(x.meta["val"].shape),
            tuple(last.meta["val"].shape),
            torch.float32 if head else self.dtype,
            fused=taken_in(norm, None, activation),
            weights=Weights(names[0], names[1], norm, w),
            activation=activation,
        )
        layer.flops = 2 * torch.Size(layer.out_shape).numel() * w[1]
        return last, nodes, layer

    def _norm_after(self, last: fx.Node, nodes: list[fx.Node]) -> tuple[Norm | None, fx.Node]:
        bn = self._only_user(last)
        if bn is None or bn.target not in _NORMS or bn.args[0] is not last:
            return None, last
        args: list[Any] = list(bn.args)
        if bn.target is aten._native_batch_norm_legit_no_training.default:
            training, eps = False, args[6]
        else:
            training, eps = args[5], args[7]
        tensors = [self._name(a) if a is not None else None for a in args[1:5]]
        given = [a is not None for a in args[1:5]]
        if training or not all(given[2:]) or [t is not None for t in tensors] != given:
            return None, last
        nodes.append(bn)
        result = bn
        if bn.target is not aten.batch_norm.default:
            users = self.users[bn]
            if [u.target for u in users] != [operator.getitem] or users[0].args[1] != 0:
                nodes.pop()
                return None, last
            result = users[0]
            nodes.append(result)
        gamma, beta, mean, variance = tensors
        assert mean is not None and variance is not None
        return Norm(gamma, beta, mean, variance, float(eps)), result

    def _residual_after(
        self, last: fx.Node, nodes: list[fx.Node]
    ) -> tuple[fx.Node | None, Activation | None, fx.Node]:
        """A sum with another activation of the same shape, and the ReLU behind it."""
        added = self._only_user(last)
        if added is None or not is_plain_sum(added):
            return None, None, last
        other: Any = next(a for a in added.args[:2] if a is not last)
        value, own = other.meta["val"], last.meta["val"]
        if other not in self.batch or value.shape != own.shape or value.dtype != own.dtype:
            return None, None, last
        # Of two convolutions that meet in a sum, the later one takes it.
        if self._later_convolution(other, last):
            return None, None, last
        nodes.append(added)
        activation, following = self._activation_after(added, [])
        if activation is None or activation.name != "relu":
            return other, None, added
        nodes.append(following)
        return other, activation, following

    def _activation_after(
        self, last: fx.Node, nodes: list[fx.Node]
    ) -> tuple[Activation | None, fx.Node]:
        following = self._only_user(last)
        found = activation_of(following) if following is not None else None
        if found is None or following is None:
            return None, last
        nodes.append(following)
        return found, following

    def _only_user(self, node: fx.Node) -> fx.Node | None:
        """The one node that reads `node`; None if there are more, or it is the output."""
        users = self.users[node]
        if len(users) != 1 or node is self.found.output or users[0].op != "call_function":
            return None
        if users[0].target in _IDENTITIES:
            return None
        return users[0]

    def _later_convolution(self, other: Any, last: fx.Node) -> bool:
        """Whether `other` comes of a convolution of its own after `last`."""
        node: Any = other
        while isinstance(node, fx.Node) and len(self.users[node]) == 1:
            if node.target in (aten.conv2d.default, aten.convolution.default):
                return self.position[node] > self.position[last]
            if node.target is not operator.getitem and node.target not in _NORMS:
                return False
            node = node.args[0]
        return False

    def _name(self, node: Any) -> str | None:
        return self.found.names.get(node) if isinstance(node, fx.Node) else None

    def _names(self, weight: Any, bias: Any) -> tuple[str, str | None] | None:
        w, b = self._name(weight), self._name(bias)
        if w is None or (bias is not None and b is None):
            return None
        return w, b

    # Layers

    def _emit(self, node: fx.Node, layer: Layer) -> None:
        in_batch = node in self.batch
        if not isinstance(layer, Aten):
            nodes = [self.order[i] for i in layer.reads]
            layer.reads = tuple(self.registers[n] for n in nodes)
            own = layer.weights  # type: ignore[attr-defined]
            weight = size_of((*own.shape, 1), self.dtype) + 4 * own.shape[0]
            layer.bytes = sum(bytes_of(n) for n in nodes) + weight + bytes_of(node)
        self.registers[node] = layer.writes = len(self.layers) + len(self.prologue) + 1
        (self.layers if in_batch else self.prologue).append(layer)

    def _aten(self, node: fx.Node) -> Layer:
        inputs = node.all_input_nodes
        target: Any = node.target
        norm = target in _NORMS
        reads: list[int] = []

        def place(item: fx.Node) -> Any:
            if item in self.registers:
                reads.append(self.registers[item])
                return Register(self.registers[item])
            if item in self.found.names:
                precise = norm and item is not node.args[0]
                return Parameter(self.found.names[item], precise)
            if item in self.found.constants:
                return self.found.constants[item]
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

    def _release(self, output: int) -> None:
        """Says after which layer each register is no longer needed; prologue's are kept."""
        members = {layer.writes for layer in self.prologue}
        fresh: set[int] = set()
        shown: set[int] = {0, *members}  # registers whose memory another one may show
        for layer in self.layers:
            getitem = layer.operation == "getitem"  # of a norm's outputs, or of a split's views
            fused = not isinstance(layer, Aten)
            if fused or layer.operation in _FRESH or (getitem and layer.reads[0] in fresh):
                fresh.add(layer.writes)
            else:
                shown.update(layer.reads)
        seen = {output}
        for layer in reversed(self.layers):
            layer.frees = tuple(r for r in layer.reads if r not in seen and r not in members)
            seen.update(layer.reads)
            if isinstance(layer, Aten):
                layer.in_place = _in_place(layer, fresh - shown)


def _in_place(layer: Aten, own: set[int]) -> Any:
    """The in-place form of a pointwise operator whose first input is its own and dies here."""
    first = layer.args[0] if layer.args else None
    if not isinstance(first, Register) or first.number not in layer.frees:
        return None
    if first.number not in own or layer.in_shape != layer.out_shape:
        return None
    packet = getattr(layer.target, "overloadpacket", None)
    written = getattr(aten, layer.operation + "_", None) if packet is not None else None
    if layer.operation not in _IN_PLACE or written is None:
        return None
    overload = getattr(layer.target, "_overloadname", "")
    return getattr(written, overload) if overload in written.overloads() else None
