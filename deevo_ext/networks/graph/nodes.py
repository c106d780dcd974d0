"""What the fuser asks about nodes of an ATen graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from deevo_ext.networks.graph.network_graph import Activation, Norm, size_of

aten = torch.ops.aten


def activation_of(node: fx.Node) -> Activation | None:
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


def reachable(output: fx.Node) -> set[fx.Node]:
    """All nodes that a node is made of, itself included."""
    nodes, waiting = set(), [output]
    while waiting:
        node = waiting.pop()
        if node not in nodes:
            nodes.add(node)
            waiting.extend(node.all_input_nodes)
    return nodes


def is_plain_sum(node: fx.Node) -> bool:
    """Whether it adds two different tensors, unscaled."""
    tensors = all(isinstance(a, fx.Node) for a in node.args[:2])
    distinct = len(node.args) == 2 and node.args[0] is not node.args[1]
    return node.target is aten.add.Tensor and tensors and distinct and not node.kwargs


def pair(value: Any) -> tuple[int, int]:
    """A convolution's argument that may be one number for both dimensions."""
    pair = [int(v) for v in value]
    return (pair[0], pair[-1])


def owner_of(name: str) -> str:
    """The module of a tensor's name."""
    return name.rpartition(".")[0] or name


def taken_in(norm: Norm | None, residual: Any, activation: Activation | None) -> tuple[str, ...]:
    """What a layer took in, in words."""
    parts = []
    if norm is not None:
        parts.append(f"batch norm {owner_of(norm.mean)}")
    if residual is not None:
        parts.append("residual")
    if activation is not None:
        parts.append(str(activation))
    return tuple(parts)


def shape_of(value: Any) -> tuple[int, ...]:
    """The shape of a node's value, of the first of several; () for none."""
    if isinstance(value, (tuple, list)):
        value = value[0]
    return tuple(value.shape) if isinstance(value, Tensor) else ()


def bytes_of(node: fx.Node) -> int:
    """Bytes of a node's value."""
    value = node.meta.get("val")
    values = value if isinstance(value, (tuple, list)) else [value]
    return sum(size_of(tuple(v.shape), v.dtype) for v in values if isinstance(v, Tensor))


def flops_of(node: fx.Node) -> int:
    """By torch's own formulas for matrix products and attention; pointwise operators count 0."""
    from torch.utils.flop_counter import flop_registry  # brings Triton with it

    formula = flop_registry.get(getattr(node.target, "overloadpacket", None))
    if formula is None:
        return 0
    args = fx.node.map_arg(node.args, lambda n: n.meta["val"])
    kwargs = fx.node.map_arg(node.kwargs, lambda n: n.meta["val"])
    return int(formula(*args, **kwargs, out_val=node.meta["val"]))
