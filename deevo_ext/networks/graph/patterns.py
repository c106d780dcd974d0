"""Patterns in a captured graph: what a convolution or a linear layer takes in."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from deevo_ext.networks.graph.export import Capture
from deevo_ext.networks.graph.network_graph import (
    Activation,
    Convolution,
    Linear,
    Norm,
    Weights,
    owner_of,
    two,
)

aten = torch.ops.aten

NORMS = (
    aten._native_batch_norm_legit_no_training.default,
    aten.native_batch_norm.default,
    aten.cudnn_batch_norm.default,
    aten.batch_norm.default,
)
"""BatchNorms in eval mode."""
# Their value is their input's: a functional graph does not care about memory.
IDENTITIES = (aten.clone.default, aten.alias.default, aten.detach.default)
# Paddings, and the names of their arguments.
_PADS: dict[Any, tuple[str, ...]] = {
    aten.pad.default: ("self", "pad", "mode", "value"),
    aten.constant_pad_nd.default: ("self", "pad", "value"),
}


@dataclass(frozen=True)
class Match:
    """A pattern: its nodes, of which `last` stands for all, and the layer that they become.

    The layer's `reads` are positions of nodes in the order of the graph.
    """

    last: fx.Node
    nodes: list[fx.Node]
    layer: Convolution | Linear


class Patterns:
    """Finds patterns among the nodes that the logits are made of.

    order: those nodes. batch: the ones that depend on the images. position: of each in the order.
    """

    def __init__(self, capture: Capture, dtype: torch.dtype) -> None:
        self.capture, self.dtype = capture, dtype
        live = _reachable(capture.output)
        self.order = [n for n in capture.graph.nodes if n in live]
        self.users = {n: [u for u in n.users if u in live] for n in self.order}
        self.batch = {capture.image}
        for node in self.order:
            if any(parent in self.batch for parent in node.all_input_nodes):
                self.batch.add(node)
        self.position = {node: i for i, node in enumerate(self.order)}

    def match(self, node: fx.Node) -> Match | None:
        """Returns the pattern that begins with a node, if there is one."""
        if node.op != "call_function":
            return None
        if node.target in (aten.conv2d.default, aten.convolution.default):
            return self._convolution(node)
        if node.target is aten.linear.default:
            return self._linear(node)
        return None

    def _convolution(self, node: fx.Node) -> Match | None:
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
        zeros = _zeros_around(x) if self._only_user(x) is node else None
        if zeros is not None:
            nodes.append(x)
            own = two(padding)
            x, padding = x.all_input_nodes[0], (own[0] + zeros[0], own[1] + zeros[1])
        norm, last = self._norm_after(last, nodes)
        residual, activation, last = self._residual_after(last, nodes)
        if residual is None:
            activation, last = self._activation_after(last, nodes)
        w = tuple(weight.meta["val"].shape)
        fused = ("padding",) * (zeros is not None) + _taken_in(norm, residual, activation)
        layer = Convolution(
            owner_of(names[0]),
            tuple(self.position[n] for n in (x, residual) if n is not None),
            0,
            tuple(x.meta["val"].shape),
            tuple(last.meta["val"].shape),
            self.dtype,
            fused=fused,
            weights=Weights(names[0], names[1], norm, w),
            stride=two(stride),
            padding=two(padding),
            dilation=two(dilation),
            groups=int(groups),
            residual=residual is not None,
            activation=activation,
        )
        outputs = torch.Size(layer.out_shape).numel()
        layer.flops = 2 * outputs * w[1] * w[2] * w[3]
        return Match(last, nodes, layer)

    def _linear(self, node: fx.Node) -> Match | None:
        args: list[Any] = [*node.args, None]
        x, weight, bias = args[:3]
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
        classifies = last is self.capture.output and norm is None
        layer = Linear(
            owner_of(names[0]),
            (self.position[x],),
            0,
            tuple(x.meta["val"].shape),
            tuple(last.meta["val"].shape),
            torch.float32 if classifies else self.dtype,
            fused=_taken_in(norm, None, activation),
            weights=Weights(names[0], names[1], norm, w),
            activation=activation,
        )
        layer.flops = 2 * torch.Size(layer.out_shape).numel() * w[1]
        return Match(last, nodes, layer)

    def _norm_after(self, last: fx.Node, nodes: list[fx.Node]) -> tuple[Norm | None, fx.Node]:
        bn = self._only_user(last)
        if bn is None or bn.target not in NORMS or bn.args[0] is not last:
            return None, last
        args: list[Any] = list(bn.args)
        if bn.target is aten._native_batch_norm_legit_no_training.default:
            training, eps = False, args[6]
        else:
            training, eps = args[5], args[7]
        tensors = [self._name(a) if a is not None else None for a in args[1:5]]
        present = [a is not None for a in args[1:5]]
        if training or not all(present[2:]) or [t is not None for t in tensors] != present:
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
        if added is None or not _is_plain_sum(added):
            return None, None, last
        other: Any = next(a for a in added.args[:2] if a is not last)
        a, b = other.meta["val"], last.meta["val"]
        if other not in self.batch or a.shape != b.shape or a.dtype != b.dtype:
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
        activation = _activation_of(following) if following is not None else None
        if activation is None or following is None:
            return None, last
        nodes.append(following)
        return activation, following

    def _only_user(self, node: fx.Node) -> fx.Node | None:
        """The one node that reads `node`; None if there are more, or it is the output."""
        users = self.users[node]
        if len(users) != 1 or node is self.capture.output or users[0].op != "call_function":
            return None
        if users[0].target in IDENTITIES:
            return None
        return users[0]

    def _later_convolution(self, other: Any, last: fx.Node) -> bool:
        """Whether `other` comes of a convolution of its own after `last`."""
        node: Any = other
        while isinstance(node, fx.Node) and len(self.users[node]) == 1:
            if node.target in (aten.conv2d.default, aten.convolution.default):
                return self.position[node] > self.position[last]
            if node.target is not operator.getitem and node.target not in NORMS:
                return False
            node = node.args[0]
        return False

    def _name(self, node: Any) -> str | None:
        return self.capture.names.get(node) if isinstance(node, fx.Node) else None

    def _names(self, weight: Any, bias: Any) -> tuple[str, str | None] | None:
        w, b = self._name(weight), self._name(bias)
        if w is None or (bias is not None and b is None):
            return None
        return w, b


def _reachable(output: fx.Node) -> set[fx.Node]:
    """All nodes that a node is made of, itself included."""
    nodes, waiting = set(), [output]
    while waiting:
        node = waiting.pop()
        if node not in nodes:
            nodes.add(node)
            waiting.extend(node.all_input_nodes)
    return nodes


def _zeros_around(node: fx.Node) -> tuple[int, int] | None:
    """How many zeros a node puts above and below, and left and right; None for any other node.

    A convolution does that itself, without a copy; not where the sides of a pair differ.
    """
    if node.target not in _PADS:
        return None
    given: dict[str, Any] = dict(zip(_PADS[node.target], node.args, strict=False))
    given |= node.kwargs
    amounts = given["pad"]
    if given.get("mode", "constant") != "constant" or given.get("value") or len(amounts) != 4:
        return None
    left, right, above, below = amounts
    return (above, left) if above == below >= 0 and left == right >= 0 else None


def _activation_of(node: fx.Node) -> Activation | None:
    """The activation that a node is, if it is one."""
    if node.op != "call_function":
        return None
    rest: list[Any] = list(node.args[1:])
    target, options = node.target, dict(node.kwargs)
    plain = {
        aten.relu.default: "relu",
        aten.silu.default: "silu",
        aten.hardswish.default: "hardswish",
        aten.sigmoid.default: "sigmoid",
        aten.hardsigmoid.default: "hardsigmoid",
        aten.tanh.default: "tanh",
    }
    if target in plain:
        return Activation(plain[target])
    if target is aten.relu6.default:
        return Activation("hardtanh", (0.0, 6.0))
    if target is aten.hardtanh.default:
        low, high = (*rest, -1.0, 1.0)[:2] if len(rest) != 1 else (rest[0], 1.0)
        return Activation("hardtanh", (float(low), float(high)))
    if target is aten.clamp.default and len(rest) == 2 and None not in rest:
        return Activation("hardtanh", (float(rest[0]), float(rest[1])))
    if target is aten.leaky_relu.default:
        return Activation("leaky_relu", (float(rest[0]) if rest else 0.01,))
    if target is aten.gelu.default:
        return Activation("gelu", (), str(options.get("approximate", "none")))
    return None


def _is_plain_sum(node: fx.Node) -> bool:
    """Whether it adds two different tensors, unscaled."""
    tensors = all(isinstance(a, fx.Node) for a in node.args[:2])
    distinct = len(node.args) == 2 and node.args[0] is not node.args[1]
    return node.target is aten.add.Tensor and tensors and distinct and not node.kwargs


def _taken_in(norm: Norm | None, residual: Any, activation: Activation | None) -> tuple[str, ...]:
    """What a layer took in, in words."""
    parts = []
    if norm is not None:
        parts.append(f"batch norm {owner_of(norm.mean)}")
    if residual is not None:
        parts.append("residual")
    if activation is not None:
        parts.append(str(activation))
    return tuple(parts)
