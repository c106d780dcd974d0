"""Network graphs and modules made runnable: prepared once a member, run once a micro-batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call

from deevo_ext.networks.engines import Bound
from deevo_ext.networks.execution.modules import Modules, call
from deevo_ext.networks.execution.preprocessing import with_channels
from deevo_ext.networks.execution.weights import Staged, Stager
from deevo_ext.networks.graph.network_graph import Aten, Layer, NetworkGraph, Parameter, Register

Registers = list[Any]


class Program(Protocol):
    """A network of a population."""

    def prepare(self, row: Tensor, statistics: Tensor | None) -> Any:
        """A member's weights in the form that `run` wants; the row must outlive them."""
        ...

    def run(self, prepared: Any, images: Tensor) -> Tensor:
        """Logits [N, classes] of one micro-batch, in any floating dtype."""
        ...


@dataclass(frozen=True)
class FoldedWeights:
    """A member's weights: by layer as engines want them, as staged, and the prologue's results."""

    layers: list[Any]
    staged: Staged
    registers: Registers


class FusedProgram:
    """A graph with its engines."""

    def __init__(self, graph: NetworkGraph, stager: Stager, bounds: Mapping[int, Bound]) -> None:
        self.graph, self.stager, self.bounds = graph, stager, bounds
        self._prologue = [_aten_step(layer) for layer in graph.prologue if isinstance(layer, Aten)]
        self._steps = [self._step(index, layer) for index, layer in enumerate(graph.layers)]
        self._keeping = [
            _aten_step(layer, in_place=False) if isinstance(layer, Aten) else step
            for layer, step in zip(graph.layers, self._steps, strict=True)
        ]
        self._made = _makers(graph)

    def prepare(self, row: Tensor, statistics: Tensor | None) -> FoldedWeights:
        """Folds, casts and packs; runs what depends on the weights alone."""
        staged = self.stager.stage(row, statistics)
        ready: list[Any] = [None] * len(self.graph.layers)
        for index, weights in staged.layers.items():
            ready[index] = self.bounds[index].prepare(*weights)
        registers: Registers = [None] * self.graph.registers
        self.prologue(registers, ready, staged.parameters, range(len(self._prologue)))
        return FoldedWeights(ready, staged, registers)

    def prologue(
        self,
        registers: Registers,
        ready: list[Any],
        parameters: Mapping[Parameter, Tensor],
        layers: Iterable[int],
    ) -> None:
        """Runs layers of the prologue, by their positions there, into registers."""
        for index in layers:
            self._prologue[index](registers, ready, parameters)

    def run(self, prepared: Any, images: Tensor) -> Tensor:
        """Logits of one micro-batch."""
        registers = self.begin(prepared, images)
        self.advance(registers, prepared, 0, len(self._steps))
        return registers[self.graph.output]

    def example(self) -> Tensor:
        """Images as `run` takes them."""
        shape, where = self.graph.image_shape, self.stager.device
        images = torch.zeros(shape, dtype=self.graph.dtype, device=where)
        return images.contiguous(memory_format=torch.channels_last)

    def begin(self, prepared: FoldedWeights, images: Tensor) -> Registers:
        """Registers before the first layer; images may lack channels that the graph adds."""
        registers = list(prepared.registers)
        registers[self.graph.image] = with_channels(images, self.graph.image_shape[1])
        return registers

    def advance(self, registers: Registers, prepared: FoldedWeights, first: int, stop: int) -> None:
        """Runs the layers from `first` to `stop` - 1, which change the list of registers.

        Values that were made before `first` are read and not written to: others may hold them.
        """
        ready, parameters = prepared.layers, prepared.staged.parameters
        for index in range(first, stop):
            steps = self._steps if self._made[index] >= first else self._keeping
            steps[index](registers, ready, parameters)

    def _step(self, index: int, layer: Layer) -> Callable[..., None]:
        if isinstance(layer, Aten) and index not in self.bounds:
            return _aten_step(layer)
        run, writes, frees, dtype = self.bounds[index].run, layer.writes, layer.frees, layer.dtype
        first, second = layer.reads[0], layer.reads[1] if len(layer.reads) > 1 else None

        def step(registers: Registers, ready: list[Any], parameters: Any) -> None:
            x = registers[first].to(dtype)
            residual = None if second is None else registers[second]
            registers[writes] = run(ready[index], x, residual)
            for number in frees:
                registers[number] = None

        return step


def _makers(graph: NetworkGraph) -> list[int]:
    """Of each layer that writes into its input, which layer made that memory; else the layer."""
    maker: dict[int, int] = {}
    found = []
    for index, layer in enumerate(graph.layers):
        made = index
        if isinstance(layer, Aten) and layer.in_place is not None:
            made = maker.get(layer.args[0].number, -1)
        found.append(made)
        shown = layer.operation == "getitem"  # of a norm's outputs: their memory
        maker[layer.writes] = maker.get(layer.reads[0], -1) if shown else index
    return found


def _aten_step(layer: Aten, *, in_place: bool = True) -> Callable[..., None]:
    target, writes = (layer.in_place if in_place else None) or layer.target, layer.writes
    frees = layer.frees
    places = [_resolver(value) for value in layer.args]
    named = {name: _resolver(value) for name, value in layer.kwargs.items()}

    def step(registers: Registers, ready: list[Any], parameters: Any) -> None:
        args = [place(registers, parameters) for place in places]
        kwargs = {name: place(registers, parameters) for name, place in named.items()}
        registers[writes] = target(*args, **kwargs)
        for number in frees:
            registers[number] = None

    return step


def _resolver(value: Any) -> Callable[[Registers, Mapping[Parameter, Tensor]], Any]:
    if isinstance(value, Register):
        number = value.number
        return lambda registers, parameters: registers[number]
    if isinstance(value, Parameter):
        return lambda registers, parameters: parameters[value]
    if isinstance(value, (list, tuple)):
        parts = [_resolver(part) for part in value]
        return lambda registers, parameters: [part(registers, parameters) for part in parts]
    return lambda registers, parameters: value


class ModuleProgram:
    """A module as it is, by functional_call over zero-copy views, compiled or not.

    model: eval mode, tensors in `dtype`. views(row, statistics): the model's tensors by name.
    """

    def __init__(
        self,
        model: nn.Module,
        views: Callable[[Tensor, Tensor | None], dict[str, Tensor]],
        dtype: torch.dtype,
        count: int,
        *,
        compiled: bool = False,
    ) -> None:
        self._views, self._dtype = views, dtype
        self._modules = Modules(model, 1 if compiled else count)
        self._by: Callable[..., Any] = functional_call
        if compiled:
            self._by = torch.compile(functional_call, dynamic=False)

    def prepare(self, row: Tensor, statistics: Tensor | None) -> dict[str, Tensor]:
        """Views of the row, or copies in the dtype to compute in."""
        copies: dict[int, Tensor] = {}
        result = {}
        for name, tensor in self._views(row, statistics).items():
            if id(tensor) not in copies:  # tied names are copied once
                floating = tensor.is_floating_point()
                copies[id(tensor)] = tensor.to(self._dtype) if floating else tensor
            result[name] = copies[id(tensor)]
        return result

    def run(self, prepared: dict[str, Tensor], images: Tensor) -> Tensor:
        """Logits of one micro-batch."""
        with self._modules.take(images) as (module, own):
            return call(module, prepared, (own,), by=self._by)
