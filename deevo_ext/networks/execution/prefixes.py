"""Networks that differ from one network in a few layers each, and share what lies before these.

What a network computes before the first layer that differs is computed once and kept, per
micro-batch; layers that are the same are prepared once. A network runs alone behind that place, in
the micro-batches that it would have by itself: so its logits have the bits that they would have.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from deevo_ext.networks.execution.feed import MicroBatch
from deevo_ext.networks.execution.program import FoldedWeights, FusedProgram, Registers
from deevo_ext.networks.execution.runner import Execution
from deevo_ext.networks.execution.sinks import Sink
from deevo_ext.networks.execution.weight_table import Tensors
from deevo_ext.networks.execution.weights import Staged, Stager
from deevo_ext.networks.graph.network_graph import NetworkGraph
from deevo_ext.networks.graph.parts import own_tensors, tensors_of
from deevo_ext.population.layout import Layout

KEPT_BYTES = {"cpu": 256 << 20, "cuda": 2 << 30}
"""Activations that are kept for several networks at a time, or those of one micro-batch."""

T = TypeVar("T")


@dataclass(frozen=True)
class Change:
    """The layers of a graph that some tensors make, as positions in the graph.

    first: where networks that differ in these tensors begin to differ; the number of layers where
    none reads them. layers, prologue: those that are made of them. layout: of all tensors that
    these read, a part of the rows' layout.
    """

    first: int
    layers: tuple[int, ...]
    prologue: tuple[int, ...]
    layout: Layout

    @classmethod
    def of(cls, graph: NetworkGraph, names: Collection[str], layout: Layout) -> Change:
        """Finds the layers that are made of tensors, by any of their names."""
        changed = {name for e in layout.entries if set(names) & {*e.names} for name in e.names}
        before, made = tensors_of(graph)
        prologue = tuple(i for i, read in enumerate(before) if not changed.isdisjoint(read))
        layers = tuple(i for i, read in enumerate(made) if not changed.isdisjoint(read))
        reading = [*(graph.prologue[i] for i in prologue), *(graph.layers[i] for i in layers)]
        own = {name for layer in reading for name in own_tensors(layer)}
        return cls(layers[0] if layers else len(graph.layers), layers, prologue, layout.part(own))


@dataclass(frozen=True)
class Changed:
    """Networks with a change of one kind.

    rows: makes [K, change.layout.dim] of what they read there; count: K.
    """

    change: Change
    rows: Callable[[], Tensor]
    count: int


class PrefixRunner:
    """Runs networks that share prefixes.

    tensors: where the program's weights come from. row_dtype: of the rows.

    Memory, beside what a runner needs for one micro-batch a thread: activations of one slice, at
    most KEPT_BYTES or those of one micro-batch, and the changed tensors of two kinds of change.
    """

    def __init__(
        self,
        program: FusedProgram,
        tensors: Tensors,
        row_dtype: torch.dtype,
        execution: Execution,
    ) -> None:
        self.program, self.execution = program, execution
        self._tensors, self._row_dtype = tensors, row_dtype
        self._changes: dict[tuple[str, ...], Change] = {}
        self._stagers: dict[Change, Stager] = {}
        self._held: list[int] | None = None

    def change(self, names: tuple[str, ...]) -> Change:
        """Returns what changes with some tensors of the rows."""
        if names not in self._changes:
            layout = self._tensors.layout
            self._changes[names] = Change.of(self.program.graph, names, layout)
        return self._changes[names]

    def flops_behind(self, names: tuple[str, ...]) -> int:
        """Returns the operations of a micro-batch from the entry of some tensors on."""
        return sum(layer.flops for layer in self.program.graph.layers[self.change(names).first :])

    def run(
        self,
        row: Tensor,
        changes: Sequence[Changed],
        batches: Callable[[int], Iterator[Sequence[MicroBatch]]],
        sink: Sink,
    ) -> None:
        """Gives the sink the logits of all changed networks, numbered in the order of `changes`.

        row: the network [D] that is changed. batches(most): yields the micro-batches in slices of
        at most so many.
        """
        places = sorted(range(len(changes)), key=lambda i: changes[i].change.first)
        starts = [0]
        for one in changes:
            starts.append(starts[-1] + one.count)
        ordered = [(starts[i], changes[i]) for i in places]
        with self.execution.torch_settings():
            (weights,) = self.execution.workers.run([lambda: self.program.prepare(row, None)])
            for micro_batches in batches(self._most(weights, ordered, batches)):
                self._run(weights, ordered, micro_batches, sink)
                del micro_batches  # before the next ones are prepared

    def _most(
        self,
        weights: FoldedWeights,
        ordered: Sequence[tuple[int, Changed]],
        batches: Callable[[int], Iterator[Sequence[MicroBatch]]],
    ) -> int:
        """Micro-batches of a slice: activations at two places of change at a time are kept."""
        if self._held is None:
            batch = next(batches(1))[0]
            (self._held,) = self.execution.workers.run(
                [lambda: held_bytes(self.program, weights, batch.images)]
            )
        largest = max(self._held[one.change.first] for _, one in ordered)
        return max(1, KEPT_BYTES[self.execution.device.type] // (2 * largest))

    def _run(
        self,
        weights: FoldedWeights,
        ordered: Sequence[tuple[int, Changed]],
        micro_batches: Sequence[MicroBatch],
        sink: Sink,
    ) -> None:
        """Runs all networks on one slice.

        Tasks wait for earlier ones alone. A network's changed layers are prepared beside the one
        before it.
        """
        graph = self.program.graph
        prepare: list[Callable[[], None]] = []
        runs: list[list[Callable[[], None]]] = []
        reached = 0
        before: list[_Shared[Registers] | None] = [None for _ in micro_batches]
        for place, (number, one) in enumerate(ordered):
            first = one.change.first
            uses = one.count + (place < len(ordered) - 1)
            entries = [_Shared[Registers](uses) for _ in micro_batches]
            every = list(zip(micro_batches, entries, strict=True))
            rows = _Shared[Tensor](one.count)
            made = [graph.prologue[i].writes for i in one.change.prologue]
            for k in range(one.count):
                own = _Shared[FoldedWeights](len(micro_batches))
                prepare.append(functools.partial(self._prepare, weights, one, k, rows, own))
                runs.append([])
                if k == 0:
                    runs[-1] += [
                        functools.partial(self._to_entry, weights, at, (reached, first), entry, b)
                        for (b, entry), at in zip(every, before, strict=True)
                    ]

                def run(
                    batch: MicroBatch,
                    entry: _Shared[Registers],
                    own: _Shared[FoldedWeights] = own,
                    made: Sequence[int] = made,
                    first: int = first,
                    number: int = number + k,
                ) -> None:
                    with entry.used() as shared, own.used() as changed:
                        registers = list(shared)
                    del shared
                    for register in made:
                        registers[register] = changed.registers[register]
                    self.program.advance(registers, changed, first, len(graph.layers))
                    sink.take(number, batch, registers[graph.output][: batch.size])

                runs[-1] += [functools.partial(run, batch, entry) for batch, entry in every]
            before, reached = list(entries), first
        tasks = prepare[:1]
        for k, some in enumerate(runs):
            tasks += [*prepare[k + 1 : k + 2], *some]
        self.execution.workers.run(tasks)

    def _to_entry(
        self,
        weights: FoldedWeights,
        before: _Shared[Registers] | None,
        layers: tuple[int, int],
        entry: _Shared[Registers],
        batch: MicroBatch,
    ) -> None:
        """Brings the network that is changed from one place of change to the next."""

        def compute() -> Registers:
            if before is None:
                registers = self.program.begin(weights, batch.images)
            else:
                with before.used() as earlier:
                    registers = list(earlier)
            self.program.advance(registers, weights, *layers)
            return registers

        entry.make(compute)

    def _prepare(
        self,
        weights: FoldedWeights,
        one: Changed,
        k: int,
        rows: _Shared[Tensor],
        own: _Shared[FoldedWeights],
    ) -> None:
        """Folds and packs the layers of the k-th network that are changed."""

        def compute() -> FoldedWeights:
            if not one.change.layers:
                return weights
            if k == 0:
                rows.make(one.rows)
            with rows.used() as every:
                row = every[k]
            return self._with(weights, one.change, row)

        own.make(compute)

    def _with(self, weights: FoldedWeights, change: Change, row: Tensor) -> FoldedWeights:
        """A network's weights, those that a change has not touched from the network it is of."""
        program, graph = self.program, self.program.graph
        if change not in self._stagers:
            part = dataclasses.replace(
                graph,
                layers=[graph.layers[i] for i in change.layers],
                prologue=[graph.prologue[i] for i in change.prologue],
            )
            tensors = dataclasses.replace(self._tensors, layout=change.layout)
            self._stagers[change] = Stager(part, tensors, self._row_dtype, self.execution.device)
        stager = self._stagers[change]
        staged = stager.stage(row, None, stager.buffers())
        ready = list(weights.layers)
        for position, tensors_ in staged.layers.items():
            index = change.layers[position]
            ready[index] = program.bounds[index].prepare(*tensors_)
        parameters = {**weights.staged.parameters, **staged.parameters}
        registers = list(weights.registers)
        program.prologue(registers, ready, parameters, change.prologue)
        return FoldedWeights(ready, Staged({}, parameters), registers)


def held_bytes(program: FusedProgram, weights: FoldedWeights, images: Tensor) -> list[int]:
    """Returns the bytes of activations that are needed before each layer, and behind the last."""
    own = {_memory(value) for value in weights.registers if isinstance(value, Tensor)}
    registers = program.begin(weights, images)
    found = []
    for index in range(len(program.graph.layers) + 1):
        values = [
            value
            for register in registers
            for value in (register if isinstance(register, (list, tuple)) else (register,))
            if isinstance(value, Tensor)
        ]
        memory = {_memory(value): value.untyped_storage().nbytes() for value in values}
        found.append(sum(size for at, size in memory.items() if at not in own))
        if index < len(program.graph.layers):
            program.advance(registers, weights, index, index + 1)
    return found


def _memory(value: Tensor) -> Any:
    return value.untyped_storage().data_ptr()


class _Shared(Generic[T]):
    """A value that is made once, and let go after as many uses."""

    def __init__(self, uses: int) -> None:
        self._future: Future[T] | None = Future()
        self._left = uses
        self._lock = threading.Lock()

    def make(self, compute: Callable[[], T]) -> None:
        future = self._future
        assert future is not None
        try:
            future.set_result(compute())
        except BaseException as error:
            future.set_exception(error)
            raise

    @contextlib.contextmanager
    def used(self) -> Iterator[T]:
        """The value, once it is there; with the last use's end it is gone."""
        future = self._future
        assert future is not None
        yield future.result()
        with self._lock:
            self._left -= 1
            if not self._left:
                self._future = None
