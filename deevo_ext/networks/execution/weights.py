"""From flat rows to a graph's weights: folded ones are staged, the rest viewed in place."""

from __future__ import annotations

import queue
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deevo_ext.networks.execution.weight_table import Place, Tensors, WeightTable
from deevo_ext.networks.graph.network_graph import NetworkGraph, Parameter
from deevo_ext.ops.library import BoundOperator

Buffers = tuple[Tensor, Tensor]
"""Memory for one member's staged weights and vectors."""

LayerWeights = tuple[Tensor, Tensor | None, *tuple[Tensor, ...]]
"""A layer's weight and bias; with a merged shortcut the sum of both biases, and its weight."""


@dataclass(eq=False)
class Staged:
    """One member's weights.

    layers: of each convolution and linear layer by its index in the graph; weights
    [out, in, kh, kw] with channels-last strides or [out, in], in the graph's dtype; bias float32 or
    None. parameters: what ATen calls read.
    """

    layers: dict[int, LayerWeights]
    parameters: dict[Parameter, Tensor]


class Stager:
    """Makes a graph's weights from rows of one layout; the arguments are those of `WeightTable`."""

    def __init__(
        self,
        graph: NetworkGraph,
        tensors: Tensors,
        row_dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._dtype, self.device = graph.dtype, device
        self._table = WeightTable(graph, tensors, row_dtype, device)
        self._sizes = tuple(self._table.sizes.values())
        self._idle: queue.SimpleQueue[Buffers] = queue.SimpleQueue()
        self._folds: dict[tuple[Any, ...], BoundOperator] = {}

    @property
    def staged_bytes(self) -> int:
        """Bytes of one staging copy."""
        return self._sizes[0] * self._dtype.itemsize + self._sizes[1] * 4

    def buffers(self) -> Buffers:
        """Returns memory for one member's staged weights and vectors."""
        weights = torch.empty(self._sizes[0], dtype=self._dtype, device=self.device)
        return weights, torch.empty(self._sizes[1], device=self.device)

    def stage(
        self, row: Tensor, statistics: Tensor | None, buffers: Buffers | None = None
    ) -> Staged:
        """Returns the weights of `row` [D] with `statistics` [S]; they live as long as the row.

        Without `buffers` they are in memory that is used again once nobody holds the result: fresh
        memory of a network's size costs more in page faults than folding into it does.
        """
        weights, vectors = used = buffers or self._idle_buffers()
        apart = None if statistics is None else statistics[None]
        spaces = self._fold(row[None], apart, weights[None], vectors[None])

        def find(place: Place) -> Tensor:
            tensor = place.find(spaces)[0]
            return tensor.permute(0, 3, 1, 2) if place.channels_last else tensor

        layers = self._layers(find)
        parameters = {item: find(place) for item, place in self._table.parameters.items()}
        staged = Staged(layers, parameters | self._table.fixed)
        if buffers is None:
            weakref.finalize(staged, self._idle.put, used)
        return staged

    def _idle_buffers(self) -> Buffers:
        try:
            return self._idle.get_nowait()
        except queue.Empty:
            return self.buffers()

    def stage_members(self, rows: Tensor, statistics: Tensor | None) -> dict[int, LayerWeights]:
        """Returns weights of rows [K, D] with statistics [K, S]; they live as long as the rows.

        Of each layer: weights [K, out, kh, kw, in] or [K, out, in], bias float32 [K, out] or None;
        contiguous but for the first stride, which is 0 where members share a tensor.
        """
        count = rows.shape[0]
        weights = torch.empty(count, self._sizes[0], dtype=self._dtype, device=self.device)
        vectors = torch.empty(count, self._sizes[1], device=self.device)
        spaces = self._fold(rows, statistics, weights, vectors)
        return self._layers(lambda place: place.find(spaces))

    def _layers(self, find: Callable[[Place], Tensor]) -> dict[int, LayerWeights]:
        layers: dict[int, LayerWeights] = {}
        for index, place in self._table.layers.items():
            places = [place, *self._table.shortcuts.get(index, ())]
            weight, *shortcut = [find(weight) for weight, _ in places]
            biases = [find(bias) for _, bias in places if bias is not None]
            bias = sum(biases[1:], biases[0]) if biases else None
            layers[index] = (weight, bias, *shortcut)
        return layers

    def _fold(
        self, rows: Tensor, statistics: Tensor | None, weights: Tensor, vectors: Tensor
    ) -> Sequence[Tensor]:
        """Folds rows [K, D]; returns the spaces of each `Place`, [K, size] each."""
        if statistics is None:
            statistics = torch.empty(rows.shape[0], 0, device=self.device)
        t = self._table
        if t.table.numel():
            every = dict(rows=rows, statistics=statistics, weights=weights, vectors=vectors)
            # The table is checked against a kind of rows once: for each member that would take
            # longer than to fold a small network.
            kind = (rows.dtype, rows.shape[1], statistics.shape[1])
            if kind not in self._folds:
                table = dict(constants=t.constants, table=t.table, eps=t.eps)
                self._folds[kind] = BoundOperator("fold", **every, **table).release(*every)
            self._folds[kind](**every)
        return rows, statistics, t.constants.expand(rows.shape[0], -1), weights, vectors
