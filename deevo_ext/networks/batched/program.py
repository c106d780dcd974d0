"""A network graph on our own kernels: members are folded together, launches have all of them."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from deevo_ext.networks.batched.steps import Launch, MembersWeights
from deevo_ext.networks.execution.weights import Stager
from deevo_ext.networks.graph.network_graph import Convolution, Layer, NetworkGraph

ONE_AT_A_TIME = threading.Lock()
"""For launches: Triton's interpreter serves one thread only."""


class BatchedProgram:
    """Runs the launches of a graph for the members of a chunk.

    features: the register that the head reads; classifier: the last layer's index.
    """

    def __init__(
        self,
        graph: NetworkGraph,
        stager: Stager,
        launches: Sequence[tuple[Layer, Launch]],
        features: int,
        classifier: int,
    ) -> None:
        self.graph, self.stager = graph, stager
        self._launches, self._features, self._classifier = launches, features, classifier
        self._convolutions = [
            i for i, layer in enumerate(graph.layers) if isinstance(layer, Convolution)
        ]

    def prepare(self, rows: Tensor, statistics: Tensor | None) -> MembersWeights:
        """Folds rows [K, D] with statistics [K, S], which must outlive the result."""
        staged = self.stager.stage_members(rows, statistics)

        def with_bias(index: int) -> tuple[Tensor, ...]:
            weight, bias, *shortcut = staged[index]
            if bias is None:
                bias = torch.zeros(weight.shape[:2], device=weight.device)
            return weight, bias, *shortcut

        # Rows hold both between each other, and the head wants memory that does not overlap.
        weight, bias, *_ = with_bias(self._classifier)
        layers = {index: with_bias(index) for index in self._convolutions}
        return MembersWeights(rows.shape[0], layers, (_apart(weight), bias.contiguous()))

    def run(self, weights: MembersWeights, images: Tensor) -> Tensor:
        """The classifier's input before its pool, [K, N, H, W, C], of images [1, N, H, W, C]."""
        registers: list[Any] = [None] * self.graph.registers
        registers[self.graph.image] = images
        with ONE_AT_A_TIME:
            for layer, launch in self._launches:
                registers[layer.writes] = launch(registers, weights)
                for number in layer.frees:
                    registers[number] = None
        return registers[self._features]

    def example(self) -> Tensor:
        """Images as `run` takes them."""
        n, channels, height, width = self.graph.image_shape
        shape = (1, n, height, width, channels)
        return torch.zeros(shape, dtype=self.graph.dtype, device=self.stager.device)


def _apart(x: Tensor) -> Tensor:
    """Members that do not share memory, as frozen tensors do."""
    return x.contiguous() if x.stride(0) < x[0].numel() else x
