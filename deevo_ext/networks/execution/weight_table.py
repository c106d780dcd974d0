"""Where a graph's weights lie: in rows as they are, or where `fold` writes them.

A convolution's weight is scaled by its batch norm and laid out channels-last; a linear layer's is
used where it lies, unless it has a norm or another dtype. So are all other parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deevo_ext.networks.graph.network_graph import (
    Aten,
    Convolution,
    Linear,
    NetworkGraph,
    Parameter,
    Weights,
)
from deevo_ext.ops.fold_table import ABSENT, FoldColumn, Space, address, check_table, with_tiles
from deevo_ext.population.layout import Layout

_ALIGN = 8  # elements; 16 bytes in 16 bits
STAGED_WEIGHTS, STAGED_VECTORS = 3, 4
"""Spaces beside those of `ops.fold_table`: what `fold` writes."""


@dataclass(frozen=True)
class Tensors:
    """Where a network's tensors are: in rows, in statistics held apart, or fixed for all."""

    layout: Layout
    statistics_layout: Layout | None
    fixed: Mapping[str, Tensor]

    def views(self, row: Tensor, statistics: Tensor | None) -> dict[str, Tensor]:
        """Returns all of them by name, zero-copy."""
        tensors = {**self.fixed, **self.layout.views(row)}
        if self.statistics_layout is not None and statistics is not None:
            tensors.update(self.statistics_layout.views(statistics))
        return tensors


@dataclass(frozen=True)
class Place:
    """Where a tensor comes from: elements of a space, and how they are looked at."""

    space: int
    offset: int
    shape: tuple[int, ...]
    channels_last: bool = False

    def find(self, spaces: Sequence[Tensor]) -> Tensor:
        """Returns [K, *shape] of spaces [K, size]; channels-last ones as [K, out, kh, kw, in]."""
        flat = spaces[self.space][:, self.offset : self.offset + torch.Size(self.shape).numel()]
        shape = self.shape
        if self.channels_last:
            shape = (shape[0], *shape[2:], shape[1])
        return flat.view(flat.shape[0], *shape)


class WeightTable:
    """Finds each tensor of a graph, and makes the table that tells `fold` what to write.

    row_dtype: of the rows. Where the graph has more input channels than a tensor, they are zeros.

    layers: places of each convolution's and linear layer's weight and bias by its index in the
    graph; shortcuts: those of merged shortcuts. parameters: places of what ATen calls read from
    rows; fixed: tensors that they read instead. table, eps, constants: arguments of `fold`. sizes:
    elements of a member's staged weights and vectors.
    """

    def __init__(
        self,
        graph: NetworkGraph,
        tensors: Tensors,
        row_dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._dtype, self._row_dtype, self._device = graph.dtype, row_dtype, device
        layout, statistics_layout = tensors.layout, tensors.statistics_layout
        self._fixed_by_name = tensors.fixed
        self._addresses: dict[str, tuple[int, int, tuple[int, ...]]] = {}
        for space, source in ((Space.ROWS, layout), (Space.STATISTICS, statistics_layout)):
            for entry in source.entries if source is not None else ():
                for name in entry.names:
                    self._addresses[name] = (space, entry.offset, entry.shape)
        self._constants: list[Tensor] = []
        self._constant_size = 0
        self._entries: list[list[int]] = []
        self._eps: list[float] = []
        self.sizes = {STAGED_WEIGHTS: 0, STAGED_VECTORS: 0}
        self.layers: dict[int, tuple[Place, Place | None]] = {}
        self.shortcuts: dict[int, list[tuple[Place, Place | None]]] = {}
        self.parameters: dict[Parameter, Place] = {}
        self.fixed: dict[Parameter, Tensor] = {}
        for index, layer in enumerate(graph.layers):
            if isinstance(layer, (Convolution, Linear)):
                self.layers[index] = self._layer(layer.weights, layer.dtype)
            if isinstance(layer, Convolution) and layer.shortcut is not None:
                self.shortcuts[index] = [self._layer(layer.shortcut.weights, layer.dtype)]
        for layer in (*graph.prologue, *graph.layers):
            if isinstance(layer, Aten):
                for item in layer.parameters:
                    self._parameter(item)
        entries = torch.tensor(self._entries, dtype=torch.int64)
        table = with_tiles(entries.reshape(-1, FoldColumn.FIRST_TILE))
        constants = torch.cat(self._constants) if self._constants else torch.empty(0)
        statistics = statistics_layout.dim if statistics_layout is not None else 0
        check_table(table, layout.dim, statistics, constants.numel(), *self.sizes.values())
        self.table, self.constants = table.to(device), constants.to(device)
        self.eps = torch.tensor(self._eps, dtype=torch.float64, device=device)

    def _source(self, name: str) -> tuple[int, int, tuple[int, ...]]:
        if name not in self._addresses:
            tensor = self._fixed_by_name[name].detach().float()
            self._addresses[name] = (Space.CONSTANTS, self._constant_size, tuple(tensor.shape))
            self._constants.append(tensor.reshape(-1).to(self._device))
            self._constant_size += tensor.numel()
        return self._addresses[name]

    def _dtype_in(self, space: int) -> torch.dtype:
        return self._row_dtype if space == Space.ROWS else torch.float32

    def _layer(self, weights: Weights, dtype: torch.dtype) -> tuple[Place, Place | None]:
        space, offset, shape = self._source(weights.weight)
        if dtype != self._dtype:  # the classifier, in float32
            bias = self._vector(weights.bias) if weights.bias else None
            return self._vector(weights.weight), bias
        taps, padded = torch.Size(shape[2:]).numel(), weights.shape[1]
        same_layout = (taps == 1 or shape[1] == 1) and padded == shape[1]
        if weights.norm is None and same_layout and self._dtype_in(space) == self._dtype:
            weight = Place(space, offset, shape, len(shape) == 4)
            return weight, self._vector(weights.bias) if weights.bias else None
        entry, sources = self._entry(shape[0], shape[1], taps), {"WEIGHT": weights.weight}
        entry[FoldColumn.PADDED], shape = padded, (shape[0], padded, *shape[2:])
        if weights.bias is not None:
            sources["BIAS"] = weights.bias
        if weights.norm is not None:
            norm = weights.norm
            for column, name in (("GAMMA", norm.gamma), ("BETA", norm.beta)):
                if name is not None:
                    sources[column] = name
            sources["MEAN"], sources["VAR"] = norm.mean, norm.variance
        for column, name in sources.items():
            at, start, _ = self._source(name)
            entry[FoldColumn[column]] = address(at, start)
        entry[FoldColumn.TO_WEIGHT] = self._reserve(STAGED_WEIGHTS, shape[0] * shape[1] * taps)
        weight = Place(STAGED_WEIGHTS, entry[FoldColumn.TO_WEIGHT], shape, len(shape) == 4)
        bias = None
        if weights.bias is not None or weights.norm is not None:
            entry[FoldColumn.TO_SHIFT] = self._reserve(STAGED_VECTORS, shape[0])
            bias = Place(STAGED_VECTORS, entry[FoldColumn.TO_SHIFT], (shape[0],))
        self._add(entry, weights.norm.eps if weights.norm else 0.0)
        return weight, bias

    def _vector(self, name: str) -> Place:
        """Returns the place of a tensor in float32."""
        space, offset, shape = self._source(name)
        if self._dtype_in(space) == torch.float32:
            return Place(space, offset, shape)
        count = torch.Size(shape).numel()
        entry = self._entry(count, 1, 1)
        entry[FoldColumn.BIAS] = address(space, offset)
        entry[FoldColumn.TO_SHIFT] = self._reserve(STAGED_VECTORS, count)
        self._add(entry, 0.0)
        return Place(STAGED_VECTORS, entry[FoldColumn.TO_SHIFT], shape)

    def _parameter(self, item: Parameter) -> None:
        if item in self.parameters or item in self.fixed:
            return
        if item.name not in self._addresses or self._addresses[item.name][0] == Space.CONSTANTS:
            fixed = self._fixed_by_name[item.name].detach().to(self._device)
            if fixed.is_floating_point():
                fixed = fixed.to(torch.float32 if item.precise else self._dtype)
            self.fixed[item] = fixed
            return
        if item.precise:
            self.parameters[item] = self._vector(item.name)
            return
        space, offset, shape = self._source(item.name)
        if self._dtype_in(space) == self._dtype:
            self.parameters[item] = Place(space, offset, shape)
            return
        count = torch.Size(shape).numel()
        entry = self._entry(1, count, 1)
        entry[FoldColumn.WEIGHT] = address(space, offset)
        entry[FoldColumn.TO_WEIGHT] = self._reserve(STAGED_WEIGHTS, count)
        self._add(entry, 0.0)
        self.parameters[item] = Place(STAGED_WEIGHTS, entry[FoldColumn.TO_WEIGHT], shape)

    def _entry(self, out: int, into: int, taps: int) -> list[int]:
        entry = [ABSENT] * FoldColumn.FIRST_TILE
        entry[FoldColumn.OUT_CHANNELS : FoldColumn.TO_WEIGHT] = [out, into, taps, into]
        return entry

    def _add(self, entry: list[int], eps: float) -> None:
        self._entries.append(entry)
        self._eps.append(eps)

    def _reserve(self, space: int, count: int) -> int:
        """Returns the first of `count` elements to be written, aligned."""
        start = self.sizes[space]
        self.sizes[space] += -(-count // _ALIGN) * _ALIGN
        return start
