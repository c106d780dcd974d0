"""Clock, yardstick and cold caches."""

from __future__ import annotations

import ctypes
import itertools
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

LEAST_REPETITIONS = 5
_MOST_SETS = 512
# Larger than any L2 cache; and writing it keeps the GPU busy while the host enqueues what is timed,
# so that events measure the device and not the host.
_FLUSH_BYTES = 1 << 30

_memcpy = ctypes.CDLL(None).memcpy
_memcpy.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
_memcpy.restype = ctypes.c_void_p


@dataclass
class Copy:
    """The yardstick: copies one tensor's memory to another's, of the same device.

    On CPUs by glibc's memcpy in one part per thread, which run at the same time because ctypes
    releases the interpreter's lock; on GPUs by torch. Both tensors must have been written before:
    the first touch of a page costs more than copying it.
    """

    source: torch.Tensor
    target: torch.Tensor
    threads: int

    @property
    def bytes_copied(self) -> int:
        return min(t.untyped_storage().nbytes() for t in (self.source, self.target))

    def __call__(self) -> None:
        size, parts = self.bytes_copied, self.threads
        if self.source.is_cuda:
            source, target = (
                torch.empty(0, dtype=torch.uint8, device="cuda").set_(tensor.untyped_storage())
                for tensor in (self.source, self.target)
            )
            target[:size].copy_(source[:size])
            return
        if size < 1 << 20:
            parts = 1
        cuts = [size * part // parts // 64 * 64 for part in range(parts)] + [size]
        start, end = self.source.data_ptr(), self.target.data_ptr()
        workers = [
            threading.Thread(target=_memcpy, args=(end + a, start + a, b - a))
            for a, b in pairwise(cuts[1:])
        ]
        for worker in workers:
            worker.start()
        _memcpy(end, start, cuts[1])
        for worker in workers:
            worker.join()


@dataclass(frozen=True)
class Effort:
    """How often something is timed, and by whose clock.

    budget_s: after so many seconds no more repetitions begin, once there are `least`. device: on
    "cuda" seconds are the device's own, with nothing in its L2 cache.
    """

    repetitions: int
    device: str = "cpu"
    budget_s: float = float("inf")
    least: int = LEAST_REPETITIONS


def nothing() -> None:
    """Stands for a yardstick or a reset where there is none."""


def interleaved(
    run: Callable[[], Any],
    yardstick: Callable[[], Any] = nothing,
    *,
    effort: Effort,
    reset: Callable[[], None] = nothing,
    warm_up: bool = True,
) -> tuple[list[float], list[float]]:
    """Seconds of each repetition of `run` and of `yardstick`, alternating, after one of each.

    reset: called before each `run`, not timed. warm_up: False where `run` was called before.
    """
    times: tuple[list[Callable[[], float]], list[Callable[[], float]]] = ([], [])
    timed = _on_device if effort.device == "cuda" else _on_the_wall
    begun = time.perf_counter()
    for repetition in range(0 if warm_up else 1, effort.repetitions + 1):
        reset()
        for function, pending in zip((run, yardstick), times, strict=True):
            seconds = timed(function)
            if repetition > 0:
                pending.append(seconds)
        if repetition >= effort.least and time.perf_counter() - begun > effort.budget_s:
            break
    if effort.device == "cuda":
        torch.cuda.synchronize()
    runs, yardsticks = ([seconds() for seconds in pending] for pending in times)
    return runs, yardsticks


def _on_the_wall(function: Callable[[], Any]) -> Callable[[], float]:
    start = time.perf_counter()
    function()
    seconds = time.perf_counter() - start
    return lambda: seconds


def _on_device(function: Callable[[], Any]) -> Callable[[], float]:
    """The seconds can be asked for once the device has got that far."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    _flush_buffer().zero_()
    start.record()
    function()
    end.record()
    return lambda: start.elapsed_time(end) * 1e-3


@cache
def _flush_buffer() -> torch.Tensor:
    return torch.empty(_FLUSH_BYTES, dtype=torch.uint8, device="cuda")


def captured(run: Callable[[], None]) -> Callable[[], None]:
    """Replays what run does, as a CUDA graph; run is called once before and once to capture."""
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def how(device: str, cold: str = "warm", clock: str = "CUDA events") -> dict[str, str]:
    """What a row says of its clock and of the caches; clock: of GPUs, cold: of CPUs."""
    if device == "cuda":
        return {"clock": clock, "cold": "L2 flushed"}
    return {"clock": "wall", "cold": cold}


def summary(seconds: Sequence[float]) -> dict[str, Any]:
    """median_s, p20_s, p80_s and repetitions."""
    p20, median, p80 = np.percentile(seconds, [20, 50, 80]).tolist()
    return {"median_s": median, "p20_s": p20, "p80_s": p80, "repetitions": len(seconds)}


def sets_for(bytes_of_one: int, quick: bool = False) -> int:
    """How many sets of buffers, used in turn, leave nothing of a set in the caches; quick: 2."""
    most = 2 if quick else _MOST_SETS
    return max(1, min(most, -(-2 * last_level_cache() // max(1, bytes_of_one))))


def in_turn(functions: Sequence[Callable[[], Any]]) -> Callable[[], Any]:
    """A function that calls the next of them each time."""
    if len(functions) == 1:
        return functions[0]
    ring = itertools.cycle(functions)
    return lambda: next(ring)()


@cache
def last_level_cache() -> int:
    """Bytes of the largest cache; 32 MiB where the kernel does not say."""
    sizes = [
        int(text[:-1]) << {"K": 10, "M": 20}[text[-1]]
        for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
        if (text := path.read_text().strip())[-1:] in ("K", "M")
    ]
    return max(sizes, default=32 << 20)
