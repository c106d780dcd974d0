"""A program as CUDA graphs that read staging rows. No GPU has run this yet.

Kernel launches of a small network take longer than the kernels; a graph replays all of them at
once. Graphs read fixed addresses, so rows are copied into staging rows. Where there are two of
them, the next rows are folded on a second stream while those before are evaluated.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deevo_ext.networks.execution.program import Program

# Libraries choose and allocate, and Triton compiles, on their first calls, which no graph may hold.
_WARM_UPS = 3
_CALLS = 5  # that are timed together
# A capture takes as long as some twenty passes, and its graphs own their activations.
OFTEN = 8
"""How often a shape comes before it is captured."""
_KEPT = 2  # shapes whose graphs are kept
Key = tuple[Any, ...]


@dataclass
class Slot:
    """Staging rows, and the graphs that read them; weights: what `prepare` made of them."""

    rows: Tensor
    statistics: Tensor | None
    weights: Any
    prepare: torch.cuda.CUDAGraph
    run: torch.cuda.CUDAGraph
    images: Tensor
    result: Tensor
    prepared: torch.cuda.Event
    finished: torch.cuda.Event


class GraphedProgram:
    """Runs a program by graphs, where that is faster; rows take turns in `slots` staging rows.

    Graphs belong to the shapes of rows, statistics and images. A shape runs kernel by kernel until
    it has come some times; a graph that does not beat the kernels one by one is not used. Where
    none can be captured, as beside another thread that allocates, this is said, and kernels are
    launched one by one from there on.

    stride: of rows in memory. example: makes images as the program takes them.
    """

    def __init__(
        self, program: Program, stride: int, slots: int, example: Callable[[], Tensor]
    ) -> None:
        self.program = program
        self._stride, self._count, self._example = stride, slots, example
        # By shape, the one that was used last at the end; none where graphs are slower.
        self._slots: dict[Key, list[Slot]] = {}
        self._uses: Counter[Key] = Counter()
        self._fails = False
        self._turn = 0
        self._side: Any = None

    def prepare(self, rows: Tensor, statistics: Tensor | None) -> Any:
        """Copies and folds rows on the second stream; returns their slot, or the program's own."""
        slots = self._of(rows, statistics)
        if not slots:
            return self.program.prepare(rows, statistics)
        self._turn += 1
        slot, side = slots[self._turn % len(slots)], self._side
        side.wait_stream(torch.cuda.current_stream())  # the rows may just have been written
        with torch.cuda.stream(side):
            side.wait_event(slot.finished)
            slot.rows.copy_(rows)
            if slot.statistics is not None and statistics is not None:
                slot.statistics.copy_(statistics)
                statistics.record_stream(side)  # a copy of them may go as this returns
            slot.prepare.replay()
            slot.prepared.record(side)
        rows.record_stream(side)
        return slot

    def run(self, prepared: Any, images: Tensor) -> Tensor:
        """The program's result; a slot's is overwritten by its next micro-batch."""
        if not isinstance(prepared, Slot):
            return self.program.run(prepared, images)
        current = torch.cuda.current_stream()
        current.wait_event(prepared.prepared)
        if images.shape != prepared.images.shape:
            result = self.program.run(prepared.weights, images)
        else:
            prepared.images.copy_(images)
            prepared.run.replay()
            result = prepared.result
        prepared.finished.record(current)
        return result

    def _of(self, rows: Tensor, statistics: Tensor | None) -> list[Slot]:
        """The slots of a shape; none where kernels are launched."""
        key = (rows.shape, rows.dtype, None if statistics is None else statistics.shape)
        if self._fails:
            return []
        self._uses[key] += 1
        if self._uses[key] <= OFTEN:
            return []
        if key not in self._slots:
            kept = [shape for shape, slots in self._slots.items() if slots]
            if len(kept) >= _KEPT:
                del self._slots[kept[0]], self._uses[kept[0]]
            try:
                self._slots[key] = self._captured(rows, statistics)
            except RuntimeError as error:
                self._slots.clear()
                self._fails = True
                warnings.warn(f"networks run without CUDA graphs: {error}", stacklevel=2)
                return []
        self._slots[key] = self._slots.pop(key)
        return self._slots[key]

    def _captured(self, rows: Tensor, statistics: Tensor | None) -> list[Slot]:
        """Captures a shape; none if replays take longer than launches."""
        self._side = self._side or torch.cuda.Stream(rows.device)
        slots = [self._slot(rows, statistics) for _ in range(self._count)]
        first = slots[0]
        launched = _seconds(lambda: self.program.run(first.weights, first.images))
        return slots if _seconds(first.run.replay) < launched else []

    def _slot(self, rows: Tensor, statistics: Tensor | None) -> Slot:
        width = max(self._stride, rows.shape[-1])
        staging = rows.new_zeros(*rows.shape[:-1], width)[..., : rows.shape[-1]]
        staging.copy_(rows)
        apart, images = None if statistics is None else statistics.clone(), self._example()
        side, main = self._side, torch.cuda.current_stream()
        side.wait_stream(main)
        with torch.cuda.stream(side):
            for _ in range(_WARM_UPS):
                self.program.run(self.program.prepare(staging, apart), images)
        main.wait_stream(side)
        prepare, run = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        # Other threads, such as those that load images, may call CUDA meanwhile.
        with torch.cuda.graph(prepare, capture_error_mode="thread_local"):
            weights = self.program.prepare(staging, apart)
        prepare.replay()
        with torch.cuda.graph(run, capture_error_mode="thread_local"):
            result = self.program.run(weights, images)
        events = torch.cuda.Event(), torch.cuda.Event()
        return Slot(staging, apart, weights, prepare, run, images, result, *events)


def _seconds(call: Callable[[], object]) -> float:
    """The seconds of several calls, what the host needs to make them included."""
    call()
    begun, done = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begun.record()
    for _ in range(_CALLS):
        call()
    done.record()
    done.synchronize()
    return begun.elapsed_time(done) / 1000
