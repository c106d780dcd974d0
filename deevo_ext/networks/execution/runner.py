"""Runners: rows of weights and micro-batches of images in, results to a sink.

`MemberRunner` runs one member after the other, `batched.runner.BatchedRunner` several at once,
`user_engine.FunctionRunner` what a user wrote.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from deevo_ext.networks.execution.feed import MicroBatch
from deevo_ext.networks.execution.float32 import float32_products
from deevo_ext.networks.execution.modules import logits_of
from deevo_ext.networks.execution.preprocessing import with_channels
from deevo_ext.networks.execution.program import Program
from deevo_ext.networks.execution.sinks import Sink
from deevo_ext.networks.execution.workers import Workers

DTYPES = {
    "float32": torch.float32,
    "tf32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
"""The dtype of tensors in each precision."""
_ALONE = threading.RLock()


@dataclass(frozen=True)
class Execution:
    """Where and how networks run: images per forward pass, and the threads that run them."""

    device: torch.device
    precision: str
    micro_batch: int
    workers: Workers

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of images, activations and weights."""
        return DTYPES[self.precision]

    def in_float32(self, micro_batch: int) -> Execution:
        """Returns the same for float32 tensors: tf32, unless the precision is float32."""
        precision = "float32" if self.precision == "float32" else "tf32"
        return replace(self, precision=precision, micro_batch=micro_batch)

    @contextlib.contextmanager
    def torch_settings(self) -> Iterator[None]:
        """On CUDA, makes the device the current one, whose streams graphs and timings lie on.

        Products of float32 are formed in tf32 exactly where that is the precision. One thread is
        inside at a time, which may come in again: what it sets is the process', and the graphs of
        its networks have one set of staging rows.
        """
        if self.device.type != "cuda":
            yield
            return
        with _ALONE, torch.cuda.device(self.device), float32_products(self.precision == "tf32"):
            yield


class Runner(ABC):
    """Runs one network graph, module or function for rows of weights."""

    def __init__(self, execution: Execution) -> None:
        self.execution = execution

    @abstractmethod
    def run(
        self,
        rows: Tensor,
        statistics: Tensor | None,
        batches: Iterable[Sequence[MicroBatch]],
        sink: Sink,
    ) -> None:
        """Runs rows [K, D] with statistics [K, S] on images, as `ImageFeed.batches` gives them."""


class SliceRunner(Runner):
    """Runs all rows on a slice's micro-batches before the next slice is asked for.

    channels: that the images get, zeros behind their own, once for all rows; None: their own.
    """

    def __init__(self, execution: Execution, channels: int | None = None) -> None:
        super().__init__(execution)
        self._channels = channels

    def run(
        self,
        rows: Tensor,
        statistics: Tensor | None,
        batches: Iterable[Sequence[MicroBatch]],
        sink: Sink,
    ) -> None:
        """Runs rows on images, slice by slice."""
        for micro_batches in batches:
            if self._channels is not None:
                micro_batches = [
                    replace(batch, images=with_channels(batch.images, self._channels))
                    for batch in micro_batches
                ]
            with self.execution.torch_settings():
                self._run(rows, statistics, micro_batches, sink)
            del micro_batches  # before the next ones are prepared

    @abstractmethod
    def _run(
        self,
        rows: Tensor,
        statistics: Tensor | None,
        micro_batches: Sequence[MicroBatch],
        sink: Sink,
    ) -> None:
        """Runs all rows on the micro-batches of one slice."""


class MemberRunner(SliceRunner):
    """Runs a program member by member.

    A member is prepared (folded, packed) once a slice, beside the micro-batches of the one before
    it, and its weights are freed after its last micro-batch; on the CPU, where members have one
    micro-batch each, right before it and by the same thread, in whose caches they then are.
    """

    def __init__(self, program: Program, execution: Execution, channels: int | None = None) -> None:
        super().__init__(execution, channels)
        self.program = program

    def _run(
        self,
        rows: Tensor,
        statistics: Tensor | None,
        micro_batches: Sequence[MicroBatch],
        sink: Sink,
    ) -> None:
        count, device = rows.shape[0], self.execution.device
        at_once = device.type == "cpu" and len(micro_batches) == 1

        def prepare(k: int) -> Any:
            apart = None if statistics is None else statistics[k].to(device, torch.float32)
            return self.program.prepare(rows[k].to(device), apart)

        # Only this list may hold members' weights: whoever else did would keep all K of them.
        ready: list[Future[Any] | None] = [Future() for _ in range(count)]
        left = [len(micro_batches)] * count

        def member(k: int) -> Future[Any]:
            future = ready[k]
            assert future is not None
            return future

        def begin(k: int) -> None:
            try:
                member(k).set_result(prepare(k))
            except BaseException as error:
                member(k).set_exception(error)
                raise

        def run(k: int, batch: MicroBatch) -> None:
            if at_once:
                begin(k)
            sink.take(k, batch, self._logits(member(k).result(), batch)[: batch.size])
            left[k] -= 1
            if not left[k]:
                ready[k] = None

        tasks: list[Callable[[], None]] = []
        for k in range(count):
            ahead = () if at_once else (0, 1) if k == 0 else (k + 1,)
            tasks.extend(functools.partial(begin, other) for other in ahead if other < count)
            tasks.extend(functools.partial(run, k, batch) for batch in micro_batches)
        self.execution.workers.run(tasks)

    def _logits(self, weights: Any, batch: MicroBatch) -> Tensor:
        """A micro-batch's logits; raises DeevoError where the model gives something else."""
        return logits_of(lambda images: self.program.run(weights, images), batch.images, batch.name)
