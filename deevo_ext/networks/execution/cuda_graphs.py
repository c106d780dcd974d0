"""A fused program as CUDA graphs over two staging rows. No GPU has run this yet.

Kernel launches of a small network take longer than the kernels; a graph replays all of them at
once. Graphs read fixed addresses, so a member's row is copied into a staging row, of which there
are two: the next member is folded on a second stream while this one is evaluated.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deevo_ext.networks.execution.program import FusedProgram

_WARM_UPS = 3  # cuDNN and cuBLAS choose and allocate on their first calls, which no graph may hold


@dataclass
class _Slot:
    """A staging row and the graphs that read it."""

    row: Tensor
    statistics: Tensor | None
    prepare: torch.cuda.CUDAGraph
    run: torch.cuda.CUDAGraph
    images: Tensor
    logits: Tensor
    prepared: torch.cuda.Event
    finished: torch.cuda.Event


class GraphedProgram:
    """Runs `program` by graphs; members take turns in the two staging rows.

    Where a graph cannot be captured, as beside another thread that allocates, it says so and runs
    the program kernel by kernel.
    """

    def __init__(self, program: FusedProgram, stride: int, row_dtype: torch.dtype) -> None:
        self.program = program
        self._stride, self._row_dtype = stride, row_dtype
        self._slots: list[_Slot] = []
        self._eager = False
        self._turn = 0
        self._side = torch.cuda.Stream(program.stager.device)

    def prepare(self, row: Tensor, statistics: Tensor | None) -> Any:
        """Copies and folds a member on the second stream; returns its slot."""
        if not self._slots and not self._eager:
            try:
                self._capture(statistics)
            except RuntimeError as error:
                self._slots, self._eager = [], True
                warnings.warn(f"networks run without CUDA graphs: {error}", stacklevel=2)
        if self._eager:
            return self.program.prepare(row, statistics)
        slot = self._slots[self._turn]
        self._turn = (self._turn + 1) % len(self._slots)
        main = torch.cuda.current_stream()
        self._side.wait_stream(main)  # the row may just have been written
        with torch.cuda.stream(self._side):
            self._side.wait_event(slot.finished)
            slot.row[: row.numel()].copy_(row)
            if slot.statistics is not None and statistics is not None:
                slot.statistics.copy_(statistics)
            slot.prepare.replay()
            slot.prepared.record(self._side)
        row.record_stream(self._side)
        return slot

    def run(self, prepared: Any, images: Tensor) -> Tensor:
        """Logits; they are overwritten by the slot's next micro-batch."""
        if self._eager:
            return self.program.run(prepared, images)
        slot: _Slot = prepared
        main = torch.cuda.current_stream()
        main.wait_event(slot.prepared)
        slot.images.copy_(images)
        slot.run.replay()
        slot.finished.record(main)
        return slot.logits

    def _capture(self, statistics: Tensor | None) -> None:
        graph, device = self.program.graph, self.program.stager.device
        shape = graph.image_shape
        images = torch.zeros(shape, dtype=graph.dtype, device=device)
        images = images.contiguous(memory_format=torch.channels_last)
        for _ in range(2):
            row = torch.zeros(self._stride, dtype=self._row_dtype, device=device)
            apart = None if statistics is None else torch.zeros_like(statistics)
            buffers = self.program.stager.buffers()
            self._side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._side):
                for _ in range(_WARM_UPS):
                    self.program.run(self.program.prepare(row, apart, buffers), images)
            torch.cuda.current_stream().wait_stream(self._side)
            prepare, run = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
            # Other threads, such as those that load images, may call CUDA meanwhile.
            with torch.cuda.graph(prepare, capture_error_mode="thread_local"):
                prepared = self.program.prepare(row, apart, buffers)
            prepare.replay()
            with torch.cuda.graph(run, capture_error_mode="thread_local"):
                logits = self.program.run(prepared, images)
            self._slots.append(
                _Slot(
                    row,
                    apart,
                    prepare,
                    run,
                    images,
                    logits,
                    torch.cuda.Event(),
                    torch.cuda.Event(),
                )
            )
