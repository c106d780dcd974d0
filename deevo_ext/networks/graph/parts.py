"""A network graph cut into parts: the layers that have weights, each with all that belongs to it.

A part is a convolution, a linear layer or another product with weights, with the norms, scales and
shifts around it. Parts lie in modules, which are found by the flow of data alone: behind a layer
where a single register is live (a residual block's sum, a plain layer's output), a module ends.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

from deevo_ext.networks.graph.network_graph import (
    Aten,
    Convolution,
    Layer,
    Linear,
    NetworkGraph,
    owner_of,
)

# Operators that multiply by weights of their own; others that read weights only scale or shift.
_PRODUCTS = frozenset(
    {"linear", "bilinear", "matmul", "einsum", "embedding", "conv1d", "conv2d", "conv3d"}
    | {"conv_transpose1d", "conv_transpose2d", "conv_transpose3d"}
)


@dataclass
class Part:
    """A layer with the tensors around it.

    path: of the layer's module. tensors: names, as the graph has them, the layer's own first.
    module: the number of its module. flops: of a micro-batch, with those of the layers without
    weights that follow.
    """

    path: str
    tensors: list[str]
    module: int
    flops: int = 0


def parts_of(graph: NetworkGraph) -> list[Part]:
    """Returns the parts of a graph, in its order.

    A layer that only scales or shifts (a norm that is not folded, a layer scale, a position table)
    belongs to the product before it, where nothing else reads that product on the way, or to the
    first product behind it: to the one whose path has more in common with its own, of equal ones
    the one before. What is made of weights alone belongs to the layers that read it: a tensor may
    be in several parts.
    """
    tensors = tensors_of(graph)[1]
    modules = _modules(graph)
    owners = [i for i, layer in enumerate(graph.layers) if tensors[i] and _is_product(layer)]
    if not owners:
        owners = [i for i, names in enumerate(tensors) if names]
    parts = {i: Part(owner_of(tensors[i][0]), list(tensors[i]), modules[i]) for i in owners}
    if not parts:
        return []
    flow = _Flow(graph, parts)
    before = owners[0]
    for i, layer in enumerate(graph.layers):
        before = i if i in parts else before
        parts[before].flops += layer.flops
        if tensors[i] and i not in parts:
            around = [j for j in (flow.before(i), flow.behind(i)) if j is not None] or [before]
            path = owner_of(tensors[i][0])
            home = max(around, key=lambda j: len(common_path((path, parts[j].path))))
            parts[home].tensors += tensors[i]
    return list(parts.values())


def common_path(paths: Iterable[str]) -> list[str]:
    """Returns the components that all paths of modules begin with."""
    components = zip(*(path.split(".") for path in paths), strict=False)
    return [some[0] for some in itertools.takewhile(lambda c: len(set(c)) == 1, components)]


class _Flow:
    """Who writes and who reads each register, and which layers are owners of parts."""

    def __init__(self, graph: NetworkGraph, owners: Iterable[int]) -> None:
        self._layers, self._owners = graph.layers, frozenset(owners)
        self._members = {layer.writes for layer in graph.prologue}
        self._writer = {layer.writes: i for i, layer in enumerate(graph.layers)}
        self._readers: dict[int, int] = {graph.output: 1}
        for layer in graph.layers:
            for register in set(layer.reads):
                self._readers[register] = self._readers.get(register, 0) + 1

    def before(self, i: int) -> int | None:
        """The owner that a chain of layers leads to layer i from, each read by the next alone."""
        while True:
            sources = {r for r in self._layers[i].reads if r not in self._members}
            if len(sources) != 1:
                return None
            (register,) = sources
            if self._readers[register] != 1 or register not in self._writer:
                return None
            i = self._writer[register]
            if i in self._owners:
                return i

    def behind(self, i: int) -> int | None:
        """The first owner that depends on layer i."""
        reached = {self._layers[i].writes}
        for j in range(i + 1, len(self._layers)):
            if not reached.isdisjoint(self._layers[j].reads):
                if j in self._owners:
                    return j
                reached.add(self._layers[j].writes)
        return None


def _is_product(layer: Layer) -> bool:
    """Whether it is a layer in its own right, not a scale or shift of another one's result."""
    return (
        isinstance(layer, (Convolution, Linear)) or layer.flops > 0 or layer.operation in _PRODUCTS
    )


def tensors_of(graph: NetworkGraph) -> tuple[list[list[str]], list[list[str]]]:
    """Returns the names of the tensors that each layer is made of, by way of the prologue too.

    First for the layers of the prologue, then for those of the graph.
    """
    made: dict[int, list[str]] = {}
    for layer in graph.prologue:
        made[layer.writes] = _names(layer, made)
    return list(made.values()), [_names(layer, made) for layer in graph.layers]


def _names(layer: Layer, made: dict[int, list[str]]) -> list[str]:
    names = [name for register in layer.reads for name in made.get(register, ())]
    return list(dict.fromkeys((*names, *own_tensors(layer))))


def own_tensors(layer: Layer) -> list[str]:
    """Returns the names of the tensors that a layer reads itself."""
    if isinstance(layer, (Convolution, Linear)):
        shortcut = layer.shortcut if isinstance(layer, Convolution) else None
        return [*layer.weights.names, *(shortcut.weights.names if shortcut else ())]
    return [parameter.name for parameter in layer.parameters] if isinstance(layer, Aten) else []


def _modules(graph: NetworkGraph) -> list[int]:
    """The number of each layer's module; a new one begins where one register alone is live."""
    last = {register: i for i, layer in enumerate(graph.layers) for register in layer.reads}
    last[graph.output] = len(graph.layers)
    modules, number, live = [], 0, {graph.image}
    for i, layer in enumerate(graph.layers):
        modules.append(number)
        live = {r for r in (*live, layer.writes) if last.get(r, -1) > i}
        number += len(live) == 1
    return modules
