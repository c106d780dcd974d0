"""What our kernels take together: a block's last layer with its shortcut, and the head."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from deevo_ext.networks.batched.served import NotServed, is_flattening, is_global_mean
from deevo_ext.networks.graph.network_graph import Aten, Convolution, Layer, Linear, NetworkGraph


@dataclass(frozen=True)
class Tail:
    """Global mean and classifier: the register they read, and the layers that are in them."""

    features: int
    classifier: int
    inside: frozenset[int]


def tail_of(graph: NetworkGraph) -> Tail:
    """The pool and linear layer that a graph ends with; raises NotServed where it does not."""
    writers = _writers(graph)
    readers = _readers(graph)
    index = writers.get(graph.output)
    last = graph.layers[index] if index is not None else graph.layers[-1]
    if index is None or not isinstance(last, Linear) or last.activation is not None:
        raise NotServed("logits are a linear layer's here, without an activation", last)
    inside = []
    register, before = last.reads[0], writers.get(last.reads[0])
    shape = last.in_shape
    while before is not None:
        layer = graph.layers[before]
        shape = layer.out_shape
        if not isinstance(layer, Aten) or not (is_global_mean(layer) or is_flattening(layer)):
            break
        if readers[layer.writes] != 1:
            raise NotServed("others than the classifier read it", layer)
        inside.append(before)
        register, shape = layer.reads[0], layer.in_shape
        before = writers.get(register)
    pooled = any(_pools(graph.layers[i]) for i in inside)
    positions = shape[2] * shape[3] if len(shape) == 4 else 0
    if register == graph.image or not positions or (positions > 1 and not pooled):
        reason = "it reads something else than channels' means of [N, C, H, W], or those at 1x1"
        raise NotServed(reason, last)
    return Tail(register, index, frozenset(inside))


def merged_shortcuts(graph: NetworkGraph) -> dict[int, tuple[int, int]]:
    """Pairs of convolutions that meet in a sum, one of them a 1x1 shortcut.

    By the index of the later one: (main, shortcut), of which the shortcut becomes a second loop of
    the main one's kernel.
    """
    writers, readers = _writers(graph), _readers(graph)
    merged: dict[int, tuple[int, int]] = {}
    for index, layer in enumerate(graph.layers):
        if not isinstance(layer, Convolution) or not layer.residual:
            continue
        before = writers.get(layer.reads[1])
        other = graph.layers[before] if before is not None else None
        if before is None or not isinstance(other, Convolution) or readers[other.writes] != 1:
            continue
        if other.residual or other.activation is not None:
            continue
        for main, shortcut in ((before, index), (index, before)):
            if _is_shortcut(graph.layers[shortcut], graph.image):
                merged[index] = (main, shortcut)
                break
    return merged


def _is_shortcut(layer: Layer, image: int) -> bool:
    return (
        isinstance(layer, Convolution)
        and tuple(layer.weights.shape[2:]) == (1, 1)
        and layer.padding == (0, 0)
        and layer.groups == 1
        and layer.in_shape[1] % 16 == 0
        and layer.reads[0] != image
    )


def _pools(layer: Layer) -> bool:
    return isinstance(layer, Aten) and is_global_mean(layer)


def _writers(graph: NetworkGraph) -> dict[int, int]:
    return {layer.writes: index for index, layer in enumerate(graph.layers)}


def _readers(graph: NetworkGraph) -> Counter[int]:
    """How often each register is read, as the graph's output too."""
    return Counter([r for layer in graph.layers for r in layer.reads] + [graph.output])
