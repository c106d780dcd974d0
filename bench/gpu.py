"""What timing on a GPU needs: events, a flushed L2 cache, and the device's own copy."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from bench.measure import LEAST_REPETITIONS
from bench.summary import answer, version

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
    budget_s: float = float("inf"),
) -> tuple[list[float], list[float]]:
    """As `measure.interleaved`, in seconds on the device and with nothing in its L2 cache."""
    events: tuple[list[Any], list[Any]] = ([], [])
    begun = time.perf_counter()
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
        if repetition >= LEAST_REPETITIONS and time.perf_counter() - begun > budget_s:
            break
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
    from deevo_ext import _build_info

    smi = ("nvidia-smi", "--format=csv,noheader,nounits", "--id=0")
    clocks = answer(*smi, "--query-gpu=clocks.sm,clocks.mem,clocks_event_reasons.active")
    return {
        "gpu": torch.cuda.get_device_name(),
        "driver": answer(*smi, "--query-gpu=driver_version"),
        "torch_cuda": torch.version.cuda,
        "cuda": _build_info.cuda_version,
        "triton": version("triton"),
        "gpu_clocks": clocks,  # SM and memory in MHz, and what holds them down
    }
