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
from deevo_ext.networks.batched.served import Tail, movement, pool, refusal, served, tail_of
from deevo_ext.networks.engines import ENGINES
from deevo_ext.networks.graph.network_graph import Aten, Convolution, Layer, NetworkGraph, size_of


@dataclass(frozen=True)
class MembersWeights:
    """Folded weights of some members.

    layers: by index in the graph, a convolution's [K, Co, kh, kw, C], the bias [K, Co], and with a
    merged shortcut its [K, Co, 1, 1, C2]. classifier: its weight [K, classes, C] and bias.
    """

    members: int
    layers: dict[int, tuple[Tensor, ...]]
    classifier: tuple[Tensor, Tensor]


Launch = Callable[[list[Any], MembersWeights], Tensor]
"""function(registers, weights): the value of the register that a layer writes."""


class Steps:
    """The launches of an arranged graph in order, and the tail that the head's operator takes.

    steps: the layers before the tail, by index. The graph is told where each layer is computed.
    Raises DeevoError for a layer that no kernel of ours takes.
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
        graph.layers[self.tail.classifier].dtype = graph.dtype  # the head's; its logits are float32

    def live_bytes(self) -> int:
        """Returns the most bytes of one member's activations that are alive at a time."""
        live: dict[int, int] = {}
        most = 0
        for layer in self.steps.values():
            live[layer.writes] = size_of(layer.out_shape, self.graph.dtype)
            most = max(most, sum(live.values()))
            for number in layer.frees:
                live.pop(number, None)
        return most

    def launches(self, chunk: int, precision: str) -> list[tuple[Layer, Launch]]:
        """Returns each layer with its kernel's call, tiled for `chunk` members.

        precision: "ieee" or "tf32", how products of float32 are formed.
        """
        return [
            (layer, self._launch(index, layer, chunk, precision))
            for index, layer in self.steps.items()
        ]

    def _schedule(self) -> dict[int, Layer]:
        graph, layers = self.graph, self.graph.layers
        steps: dict[int, Layer] = {}
        for index, layer in enumerate(layers):
            if index in self.tail.inside or index == self.tail.classifier:
                layer.engine = f"in {layers[self.tail.classifier].name}"
                continue
            if not isinstance(layer, (Convolution, Aten)):
                raise refusal(layer, "it is not the classifier at the end")
            if graph.image in layer.reads[0 if isinstance(layer, Aten) else 1 :]:
                raise refusal(layer, "it reads the images, which only convolutions do here")
            layer.engine = "triton"
            steps[index] = layer
        layers[self.tail.classifier].engine = "deevo.head"
        return steps

    def _launch(self, index: int, layer: Layer, chunk: int, precision: str) -> Launch:
        if isinstance(layer, Convolution):
            return self._convolution(index, layer, chunk, precision)
        assert isinstance(layer, Aten)
        source = layer.reads[0]
        move = served(layer, lambda: movement(layer))
        if move is not None:
            layer.engine = "copy"
            return lambda registers, weights: move(registers[source])
        window = served(layer, lambda: pool(layer))
        return self._pool(window, source, layer.out_shape)

    def _convolution(self, index: int, layer: Convolution, chunk: int, precision: str) -> Launch:
        from deevo_ext.backends.triton.convolution import Operands, Operation, conv2d
        from deevo_ext.backends.triton.tile_sizes import tile_sizes

        n, channels, height, width = layer.out_shape
        into, taps = layer.weights.shape[1], layer.weights.shape[2] * layer.weights.shape[3]
        sizes = tile_sizes(n * height * width, channels, into, taps, chunk, self.graph.dtype)
        operation = Operation(
            layer.stride,
            layer.padding,
            layer.dilation,
            activation="none" if layer.activation is None else "relu",
            precision=precision,
        )
        first, second, shortcut = layer.reads[0], layer.reads[-1], layer.shortcut

        def launch(registers: list[Any], weights: MembersWeights) -> Tensor:
            weight, bias, *others = weights.layers[index]
            downsample = None
            if shortcut is not None:
                downsample = (registers[second], others[0], shortcut.stride)
            out = self._empty((weights.members, n, height, width, channels))
            added = registers[second] if layer.residual else None
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
