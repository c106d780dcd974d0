"""A network graph as launches of our own kernels, each of which computes a layer of all members.

Activations are [K, N, H, W, C], K members; images [1, N, H, W, C] are shared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deevo_ext.backends.windows import Window
from deevo_ext.networks.batched.served import (
    Tail,
    merged_shortcuts,
    movement,
    pool,
    refusal,
    served,
    tail_of,
)
from deevo_ext.networks.engines import ENGINES
from deevo_ext.networks.engines.triton import padded
from deevo_ext.networks.graph.network_graph import Aten, Convolution, Layer, NetworkGraph, size_of

LayerWeights = tuple[Tensor, Tensor, Tensor | None]
"""A convolution's [K, Co, kh, kw, C], the bias [K, Co], and its shortcut's [K, Co, 1, 1, C2]."""


@dataclass(frozen=True)
class MembersWeights:
    """Folded weights of some members, by layer, and those of the classifier [K, classes, C]."""

    members: int
    layers: dict[int, LayerWeights]
    classifier: tuple[Tensor, Tensor]


Launch = Callable[[list[Any], MembersWeights], Tensor]
"""function(registers, weights): the value of the register that a step writes."""


@dataclass
class Step:
    """A launch: layers[index] of the graph, with the shortcut's layer if it is computed inside."""

    index: int
    layer: Layer
    reads: tuple[int, ...]
    writes: int
    out_shape: tuple[int, ...]
    shortcut: int | None = None
    frees: tuple[int, ...] = ()


class Steps:
    """The launches of a graph in order, and the tail that the head's operator takes.

    padded: channels to which images are padded, by the index of each layer that reads them. The
    graph is told where each layer is computed. Raises DeevoError for a layer that no kernel of ours
    takes.
    """

    def __init__(self, graph: NetworkGraph, device: torch.device) -> None:
        self.graph, self.device = graph, device
        if graph.prologue:
            raise refusal(graph.prologue[0], "it computes weights from weights")
        for layer in graph.layers:
            reason = None
            if isinstance(layer, Convolution):
                reason = ENGINES["triton"].why_not(layer, device)
            if reason is not None:
                raise refusal(layer, reason)
        self.tail: Tail = served(graph.layers[-1], lambda: tail_of(graph))
        self.steps = self._schedule()
        self.padded = {
            index: padded(layer.in_shape[1])
            for index, layer in enumerate(graph.layers)
            if isinstance(layer, Convolution) and layer.reads[0] == graph.image
        }
        graph.layers[self.tail.classifier].dtype = graph.dtype  # the head's; its logits are float32

    def live_bytes(self) -> int:
        """Returns the most bytes of one member's activations that are alive at a time."""
        live: dict[int, int] = {}
        most = 0
        for step in self.steps:
            live[step.writes] = size_of(step.out_shape, self.graph.dtype)
            most = max(most, sum(live.values()))
            for number in step.frees:
                live.pop(number, None)
        return most

    def launches(self, chunk: int, precision: str) -> list[tuple[Step, Launch]]:
        """Returns each step with its kernel's call, tiled for `chunk` members.

        precision: "ieee" or "tf32", how products of float32 are formed.
        """
        return [(step, self._launch(step, chunk, precision)) for step in self.steps]

    def _schedule(self) -> list[Step]:
        """Layers in order, shortcuts merged."""
        graph, layers = self.graph, self.graph.layers
        pairs = merged_shortcuts(graph)
        inside = {first for pair in pairs.values() for first in pair} - set(pairs)
        steps = []
        for index, layer in enumerate(layers):
            if index in self.tail.inside or index == self.tail.classifier:
                layer.engine = f"in {layers[self.tail.classifier].name}"
                continue
            if not isinstance(layer, (Convolution, Aten)):
                raise refusal(layer, "it is not the classifier at the end")
            if graph.image in layer.reads[0 if isinstance(layer, Aten) else 1 :]:
                raise refusal(layer, "it reads the images, which only convolutions do here")
            layer.engine = "triton"
            if index in inside:
                continue  # its partner comes later and takes it
            step = Step(index, layer, layer.reads, layer.writes, layer.out_shape)
            if index in pairs:
                main, shortcut = pairs[index]
                kept, taken = layers[main], layers[shortcut]
                reads = (kept.reads[0], taken.reads[0])
                step = Step(main, kept, reads, layer.writes, layer.out_shape, shortcut)
                kept.engine, taken.engine = "triton", f"in {kept.name}"
                kept.fused = (*kept.fused, f"shortcut {taken.name}")
            steps.append(step)
        layers[self.tail.classifier].engine = "deevo.head"
        seen = {self.tail.features, graph.image}
        for step in reversed(steps):
            step.frees = tuple({r for r in step.reads if r not in seen})
            seen.update(step.reads)
        return steps

    def _launch(self, step: Step, chunk: int, precision: str) -> Launch:
        layer = step.layer
        if isinstance(layer, Convolution):
            return self._convolution(step, layer, chunk, precision)
        assert isinstance(layer, Aten)
        source = step.reads[0]
        move = served(layer, lambda: movement(layer))
        if move is not None:
            layer.engine = "copy"
            return lambda registers, weights: move(registers[source])
        window = served(layer, lambda: pool(layer))
        return self._pool(window, source, step.out_shape)

    def _convolution(self, step: Step, layer: Convolution, chunk: int, precision: str) -> Launch:
        from deevo_ext.backends.triton.convolution import Operands, Operation, conv2d
        from deevo_ext.backends.triton.tile_sizes import tile_sizes

        n, channels, height, width = step.out_shape
        into, taps = layer.weights.shape[1], layer.weights.shape[2] * layer.weights.shape[3]
        positions, dtype = n * height * width, self.graph.dtype
        sizes = tile_sizes(
            positions, channels, self.padded.get(step.index, into), taps, chunk, dtype
        )
        last, stride2 = layer, None
        if step.shortcut is not None:
            shortcut = self.graph.layers[step.shortcut]
            assert isinstance(shortcut, Convolution)
            stride2 = shortcut.stride
            last = shortcut if shortcut.residual else layer
        operation = Operation(
            layer.stride,
            layer.padding,
            layer.dilation,
            activation="none" if last.activation is None else "relu",
            precision=precision,
        )
        index, first, second = step.index, step.reads[0], step.reads[-1]
        residual = layer.residual and stride2 is None

        def launch(registers: list[Any], weights: MembersWeights) -> Tensor:
            weight, bias, weight2 = weights.layers[index]
            downsample = None
            if stride2 is not None and weight2 is not None:
                downsample = (registers[second], weight2, stride2)
            out = self._empty((weights.members, n, height, width, channels))
            added = registers[second] if residual else None
            operands = Operands(registers[first], weight, bias, out, added, downsample)
            return conv2d(operands, operation, sizes)

        return launch

    def _pool(self, window: Window, source: int, out_shape: Sequence[int]) -> Launch:
        from deevo_ext.backends.triton.pooling import pool2d

        n, channels, height, width = out_shape

        def launch(registers: list[Any], weights: MembersWeights) -> Tensor:
            x = registers[source].flatten(0, 1)
            out = self._empty((weights.members * n, height, width, channels))
            pool2d(x, window, out)
            return out.view(weights.members, n, height, width, channels)

        return launch

    def _empty(self, shape: tuple[int, ...]) -> Tensor:
        return torch.empty(shape, dtype=self.graph.dtype, device=self.device)
