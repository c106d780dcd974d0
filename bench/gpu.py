"""What timing on a GPU needs: events, a flushed L2 cache, the device's own copy, and peers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from deevo_ext import info
from deevo_ext.tables import ChoiceColumn

# Larger than any L2 cache; and writing it keeps the device busy while the host enqueues what is
# timed, so that events measure the device and not the host.
FLUSH_BYTES = 1 << 30


@dataclass
class Copy:
    """torch's copy of one tensor's memory to another's: the device's copy bandwidth."""

    source: torch.Tensor
    target: torch.Tensor

    @property
    def bytes_copied(self) -> int:
        return min(t.untyped_storage().nbytes() for t in (self.source, self.target))

    def __call__(self) -> None:
        source, target = map(_bytes_of, (self.source, self.target))
        target[: self.bytes_copied].copy_(source[: self.bytes_copied])


def _bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    flat = torch.empty(0, dtype=torch.uint8, device=tensor.device)
    return flat.set_(tensor.untyped_storage())


@cache
def _flush_buffer() -> torch.Tensor:
    return torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda")


def interleaved(
    run: Callable[[], None],
    yardstick: Callable[[], None],
    repetitions: int,
    reset: Callable[[], None] = lambda: None,
) -> tuple[list[float], list[float]]:
    """As `measure.interleaved`, in seconds on the device and with nothing in its L2 cache."""
    events: tuple[list[Any], list[Any]] = ([], [])
    for repetition in range(repetitions + 1):
        reset()
        for function, seen in zip((run, yardstick), events, strict=True):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            _flush_buffer().zero_()
            start.record()
            function()
            end.record()
            if repetition > 0:
                seen.append((start, end))
    torch.cuda.synchronize()
    runs, copies = ([a.elapsed_time(b) * 1e-3 for a, b in seen] for seen in events)
    return runs, copies


def captured(run: Callable[[], None]) -> Callable[[], None]:
    """Replays what run does, as a CUDA graph; run is called once before and once to capture."""
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def environment() -> dict[str, Any]:
    """The GPU of this process and what drives it."""
    gpu = info.collect()["gpu"]
    return {
        "gpu": torch.cuda.get_device_name(),
        "driver": gpu["driver"],
        "torch_cuda": torch.version.cuda,
        "cuda": info.collect()["extension"]["cuda_version"],
    }


def _trial(
    parent: torch.Tensor,
    base: torch.Tensor,
    rows: list[torch.Tensor],
    coefficients: torch.Tensor,
    rate: torch.Tensor,
    out: torch.Tensor,
) -> None:
    """A trial as one would write it in torch: its own random numbers, no promise of bits."""
    start = base.float()
    v = start
    for m, row in enumerate(rows):
        v = v + coefficients[m] * (row.float() - start)
    stored = v.to(parent.dtype)
    take = (torch.rand(parent.shape, device=parent.device) < rate) & stored.isfinite()
    out.copy_(torch.where(take, stored, parent))


def peer(
    name: str,
    population: torch.Tensor,
    choices: torch.Tensor,
    coefficients: torch.Tensor,
    out: torch.Tensor,
) -> Callable[[], None]:
    """All members' trials in plain torch, one member after the other, compiled or not."""
    trial = torch.compile(_trial, dynamic=False) if name == "torch.compile" else _trial
    rates = (choices[:, ChoiceColumn.THRESHOLD] / 65536.0).float()
    plans = choices.tolist()

    def run() -> None:
        for member, choice in enumerate(plans):
            terms = choice[ChoiceColumn.TERMS]
            rows = [population[row] for row in choice[ChoiceColumn.ROWS :][:terms]]
            base = population[choice[ChoiceColumn.BASE_ROW]]
            trial(population[member], base, rows, coefficients[member], rates[member], out[member])

    return run
