"""What the machine can do: how fast it copies and how fast it multiplies, measured in the same run.

Cases `copy` and `matmul` are these measurements themselves. Rows that are not timed beside a copy
of their own buffers, and all that have FLOP, are held against them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch

from bench import gpu, measure
from bench.job import Job
from deevo_ext.population.allocation import zero_rows

COPY_BYTES = {"cpu": 256 << 20, "cuda": 2 << 30}
MATRIX = {"cpu": 2048, "cuda": 8192}


def run_job(job: Job) -> dict[str, Any]:
    """A limit as a row."""
    if job.case == "copy":
        times, traffic = _copy(job.device, job.threads, job.repetitions)
        rest: dict[str, Any] = {"bytes": traffic}
        note = "glibc's memcpy, in one part per thread" if job.device == "cpu" else "tensor.copy_"
    else:
        times, flops, traffic = _product(
            job.device, job.dtype_name, job.threads, job.repetitions, job.quick
        )
        rest = {"bytes": traffic, "flops": flops}
        note = "torch.mm of square matrices"
    return {
        **measure.summary(times),
        **rest,
        "repetitions": len(times),
        "clock": "wall" if job.device == "cpu" else "cuda events",
        "cold": "larger than the caches" if job.case == "copy" else "warm",
        "note": note,
    }


@cache
def copy_rate(device: str, threads: int) -> float:
    """Bytes a second, read and written counted apart."""
    times, traffic = _copy(device, threads, 7)
    return traffic / measure.summary(times)["median_s"]


@cache
def product_rate(device: str, dtype_name: str, threads: int, quick: bool) -> float:
    """FLOP a second of a matrix product in a dtype (or tf32)."""
    times, flops, _ = _product(device, dtype_name, threads, 5, quick)
    return flops / measure.summary(times)["median_s"]


def _copy(device: str, threads: int, repetitions: int) -> tuple[list[float], int]:
    size = COPY_BYTES[device]
    if device == "cuda":
        source, target = (torch.zeros(size, dtype=torch.uint8, device=device) for _ in range(2))
        copy = gpu.Copy(source, target)
        return gpu.interleaved(copy, lambda: None, repetitions)[0], 2 * size
    source, target = (zero_rows(1, size // 4, torch.float32) for _ in range(2))
    yardstick = measure.Yardstick(source, target, threads)
    return measure.interleaved(yardstick, lambda: None, repetitions)[0], 2 * size


def _product(
    device: str, dtype_name: str, threads: int, repetitions: int, quick: bool
) -> tuple[list[float], int, int]:
    n = 512 if quick else MATRIX[device]
    dtype = torch.float32 if dtype_name == "tf32" else getattr(torch, dtype_name)
    draw = torch.Generator().manual_seed(n)
    a, b = (torch.randn(n, n, generator=draw).to(device, dtype) for _ in range(2))
    out = torch.empty_like(a)
    with _threads(threads), _tf32(dtype_name == "tf32"):
        run: Callable[[], Any] = lambda: torch.mm(a, b, out=out)  # noqa: E731
        timed = gpu.interleaved if device == "cuda" else measure.interleaved
        times = timed(run, lambda: None, repetitions)[0]
    return times, 2 * n**3, 3 * n * n * dtype.itemsize


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32
    matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        matmul.allow_tf32 = before
