"""From flat rows to a graph's weights: folded and cast ones are staged, the rest viewed in place.

A convolution's weight is scaled by its batch norm and laid out channels-last; a linear layer's is
used where it lies, unless it has a norm or another dtype. So are all other parameters.
"""

from __future__ import annotations

import queue
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from deevo_ext.networks.execution.staging import Buffers, Lease, Staged
from deevo_ext.networks.execution.tensors import Tensors
from deevo_ext.networks.graph.network_graph import (
    Aten,
    Convolution,
    Linear,
    NetworkGraph,
    Parameter,
    Weights,
)
from deevo_ext.ops.fold_table import ABSENT, FoldColumn, address, check_table, with_tiles

_ALIGN = 8  # elements; 16 bytes in 16 bits


@dataclass(frozen=True)
class _Place:
    """Where a tensor comes from: a slice of a space, and how it is looked at."""

    space: int  # 0 row, 1 statistics, 2 constants; 3 and 4: the staged weights and vectors
    offset: int
    shape: tuple[int, ...]
    channels_last: bool = False

    def find(self, spaces: Sequence[Tensor]) -> Tensor:
        """[K, *shape] in spaces [K, size]; channels-last ones as [K, out, kh, kw, in]."""
        flat = spaces[self.space][:, self.offset : self.offset + torch.Size(self.shape).numel()]
        shape = self.shape
        if self.channels_last:
            shape = (shape[0], *shape[2:], shape[1])
        return flat.view(flat.shape[0], *shape)


@dataclass
class _Memory:
    """Elements of a staging buffer that are spoken for."""

    size: int = 0

    def reserve(self, count: int) -> int:
        """The first of `count` elements, aligned."""
        start = self.size
        self.size += -(-count // _ALIGN) * _ALIGN
        return start


@dataclass
class _Table:
    entries: list[list[int]] = field(default_factory=list)
    eps: list[float] = field(default_factory=list)
    weights: _Memory = field(default_factory=_Memory)
    vectors: _Memory = field(default_factory=_Memory)


class Stager:
    """Makes a graph's weights from rows of one layout.

    row_dtype: of the rows. padded: input channels, zeros beyond the layer's own, that convolutions'
    weights get, by index in the graph.
    """

    def __init__(
        self,
        graph: NetworkGraph,
        tensors: Tensors,
        row_dtype: torch.dtype,
        device: torch.device,
        padded: Mapping[int, int] | None = None,
    ) -> None:
        self.graph, self.dtype, self.row_dtype, self.device = graph, graph.dtype, row_dtype, device
        layout, statistics_layout = tensors.layout, tensors.statistics_layout
        self._fixed = tensors.fixed
        self._addresses: dict[str, tuple[int, int, tuple[int, ...]]] = {}
        for space, source in enumerate((layout, statistics_layout)):
            for entry in source.entries if source is not None else ():
                for name in entry.names:
                    self._addresses[name] = (space, entry.offset, entry.shape)
        self._constants: list[Tensor] = []
        self._constant_size = 0
        self._table = _Table()
        self._pool: queue.SimpleQueue[Buffers] = queue.SimpleQueue()
        self._layers: dict[int, tuple[_Place, _Place | None]] = {}
        self._parameters: dict[Parameter, _Place] = {}
        self._direct: dict[Parameter, Tensor] = {}
        for index, layer in enumerate(graph.layers):
            if isinstance(layer, (Convolution, Linear)):
                self._layers[index] = self._layer(
                    layer.weights, layer.dtype, (padded or {}).get(index, layer.weights.shape[1])
                )
        for layer in (*graph.prologue, *graph.layers):
            if isinstance(layer, Aten):
                for item in _parameters((layer.args, layer.kwargs)):
                    self._parameter(item)
        entries = torch.tensor(self._table.entries, dtype=torch.int64)
        table = with_tiles(entries.reshape(-1, FoldColumn.FIRST_TILE))
        constants = torch.cat(self._constants) if self._constants else torch.empty(0)
        statistics = statistics_layout.dim if statistics_layout is not None else 0
        check_table(
            table,
            layout.dim,
            statistics,
            constants.numel(),
            self._table.weights.size,
            self._table.vectors.size,
        )
        self.table, self.constants = table.to(device), constants.to(device)
        self.eps = torch.tensor(self._table.eps, dtype=torch.float64, device=device)

    @property
    def staged_bytes(self) -> int:
        """Bytes of one staging copy."""
        return self._table.weights.size * self.dtype.itemsize + self._table.vectors.size * 4

    def buffers(self) -> Buffers:
        """Memory for one member's staged weights and vectors."""
        weights = torch.empty(self._table.weights.size, dtype=self.dtype, device=self.device)
        return weights, torch.empty(self._table.vectors.size, device=self.device)

    def stage(
        self, row: Tensor, statistics: Tensor | None, buffers: Buffers | None = None
    ) -> Staged:
        """The weights of `row` [D] with `statistics` [S]; they live as long as row and lease."""
        lease = Lease(self._pool, self.buffers) if buffers is None else None
        weights, vectors = lease.buffers if lease is not None else buffers or self.buffers()
        apart = None if statistics is None else statistics[None]
        spaces = self._fold(row[None], apart, weights[None], vectors[None])

        def find(place: _Place) -> Tensor:
            tensor = place.find(spaces)[0]
            return tensor.permute(0, 3, 1, 2) if place.channels_last else tensor

        layers = {
            index: (find(weight), None if bias is None else find(bias))
            for index, (weight, bias) in self._layers.items()
        }
        parameters = {item: find(place) for item, place in self._parameters.items()}
        return Staged(layers, parameters | self._direct, lease)

    def stage_members(
        self, rows: Tensor, statistics: Tensor | None
    ) -> dict[int, tuple[Tensor, Tensor | None]]:
        """Weights of rows [K, D] with statistics [K, S]; they live as long as the rows.

        By layer (weight, bias): weight [K, out, kh, kw, in] or [K, out, in], bias float32 [K, out]
        or None; contiguous but for the first stride, which is 0 where members share a tensor.
        """
        count = rows.shape[0]
        weights = torch.empty(count, self._table.weights.size, dtype=self.dtype, device=self.device)
        vectors = torch.empty(count, self._table.vectors.size, device=self.device)
        spaces = self._fold(rows, statistics, weights, vectors)
        return {
            index: (weight.find(spaces), None if bias is None else bias.find(spaces))
            for index, (weight, bias) in self._layers.items()
        }

    def _fold(
        self, rows: Tensor, statistics: Tensor | None, weights: Tensor, vectors: Tensor
    ) -> Sequence[Tensor]:
        """Folds rows [K, D]; returns the spaces of `_Place`, [K, size] each."""
        if statistics is None:
            statistics = torch.empty(rows.shape[0], 0, device=self.device)
        if self.table.numel():
            torch.ops.deevo.fold(
                rows, statistics, self.constants, self.table, self.eps, weights, vectors
            )
        return rows, statistics, self.constants.expand(rows.shape[0], -1), weights, vectors

    def _source(self, name: str) -> tuple[int, int, tuple[int, ...]]:
        if name not in self._addresses:
            tensor = self._fixed[name].detach().float()
            self._addresses[name] = (2, self._constant_size, tuple(tensor.shape))
            self._constants.append(tensor.reshape(-1).to(self.device))
            self._constant_size += tensor.numel()
        return self._addresses[name]

    def _dtype_in(self, space: int) -> torch.dtype:
        return self.row_dtype if space == 0 else torch.float32

    def _layer(
        self, weights: Weights, dtype: torch.dtype, padded: int
    ) -> tuple[_Place, _Place | None]:
        space, offset, shape = self._source(weights.weight)
        if dtype != self.dtype:  # the head, in float32
            bias = self._vector(weights.bias) if weights.bias else None
            return self._vector(weights.weight), bias
        taps = torch.Size(shape[2:]).numel()
        same_layout = (taps == 1 or shape[1] == 1) and padded == shape[1]
        if weights.norm is None and same_layout and self._dtype_in(space) == self.dtype:
            weight = _Place(space, offset, shape, len(shape) == 4)
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
        entry[FoldColumn.TO_WEIGHT] = self._table.weights.reserve(shape[0] * shape[1] * taps)
        weight = _Place(3, entry[FoldColumn.TO_WEIGHT], shape, len(shape) == 4)
        bias = None
        if weights.bias is not None or weights.norm is not None:
            entry[FoldColumn.TO_SHIFT] = self._table.vectors.reserve(shape[0])
            bias = _Place(4, entry[FoldColumn.TO_SHIFT], (shape[0],))
        self._add(entry, weights.norm.eps if weights.norm else 0.0)
        return weight, bias

    def _vector(self, name: str) -> _Place:
        """A tensor as float32."""
        space, offset, shape = self._source(name)
        if self._dtype_in(space) == torch.float32:
            return _Place(space, offset, shape)
        count = torch.Size(shape).numel()
        entry = self._entry(count, 1, 1)
        entry[FoldColumn.BIAS] = address(space, offset)
        entry[FoldColumn.TO_SHIFT] = self._table.vectors.reserve(count)
        self._add(entry, 0.0)
        return _Place(4, entry[FoldColumn.TO_SHIFT], shape)

    def _parameter(self, item: Parameter) -> None:
        if item in self._parameters or item in self._direct:
            return
        if item.name not in self._addresses or self._addresses[item.name][0] == 2:
            fixed = self._fixed[item.name].detach().to(self.device)
            if fixed.is_floating_point():
                fixed = fixed.to(torch.float32 if item.precise else self.dtype)
            self._direct[item] = fixed
            return
        if item.precise:
            self._parameters[item] = self._vector(item.name)
            return
        space, offset, shape = self._source(item.name)
        if self._dtype_in(space) == self.dtype:
            self._parameters[item] = _Place(space, offset, shape)
            return
        count = torch.Size(shape).numel()
        entry = self._entry(1, count, 1)
        entry[FoldColumn.WEIGHT] = address(space, offset)
        entry[FoldColumn.TO_WEIGHT] = self._table.weights.reserve(count)
        self._add(entry, 0.0)
        self._parameters[item] = _Place(3, entry[FoldColumn.TO_WEIGHT], shape)

    def _entry(self, out: int, into: int, taps: int) -> list[int]:
        entry = [ABSENT] * FoldColumn.FIRST_TILE
        entry[FoldColumn.OUT_CHANNELS : FoldColumn.TO_WEIGHT] = [out, into, taps, into]
        return entry

    def _add(self, entry: list[int], eps: float) -> None:
        self._table.entries.append(entry)
        self._table.eps.append(eps)


def _parameters(value: object) -> list[Parameter]:
    if isinstance(value, Parameter):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [parameter for part in value for parameter in _parameters(part)]
    return []
