"""What the machine can do: how fast it copies and how fast it multiplies, measured in the same run.

Cases `copy`, `peak` and `matmul` are these measurements themselves. Rows that are not timed beside
a copy of their own buffers, and all that have FLOP, are held against them: on CPUs against `peak`,
on GPUs against the product of matrices that torch makes there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import cache, partial
from typing import Any

import torch

from bench import measure, peak
from bench.inputs import new_rows
from bench.job import Job
from deevo_ext.networks.execution.float32 import float32_products

COPY_BYTES = {"cpu": 256 << 20, "cuda": 2 << 30}
MATRIX = {"cpu": 2048, "cuda": 8192}


def run_job(job: Job) -> dict[str, Any]:
    """A limit as a row."""
    if job.case == "copy":
        row = _copy(job.device, job.threads, job.repetitions)
        cold = "larger than the caches"
        note = "glibc's memcpy, in one part per thread" if job.device == "cpu" else "tensor.copy_"
    elif job.case == "peak":
        row = peak.run(job.dtype_name, job.threads, job.repetitions)
        cold, note = "no memory", "multiply-adds in registers"
    else:
        row = _product(job.device, job.dtype_name, job.threads, job.repetitions, job.quick)
        cold, note = "warm", "torch.mm of square matrices"
    return {**row, **measure.how(job.device, cold), "note": note}


@cache
def copy_rate(device: str, threads: int) -> float:
    """Bytes a second, read and written counted apart."""
    row = _copy(device, threads, 7)
    return row["bytes"] / row["median_s"]


@cache
def product_rate(device: str, dtype_name: str, threads: int, quick: bool) -> float:
    """FLOP a second that nothing on the device exceeds, in a dtype (or tf32)."""
    if device == "cpu":
        row = peak.run(dtype_name, threads, 15)
    else:
        row = _product(device, dtype_name, threads, 5, quick)
    return row["flops"] / row["median_s"]


def _copy(device: str, threads: int, repetitions: int) -> dict[str, Any]:
    size = COPY_BYTES[device]
    source, target = (new_rows(1, size // 4, torch.float32, device) for _ in range(2))
    copy = measure.Copy(source, target, threads)
    times, _ = measure.interleaved(copy, effort=measure.Effort(repetitions, device))
    return {**measure.summary(times), "bytes": 2 * size}


def _product(
    device: str, dtype_name: str, threads: int, repetitions: int, quick: bool
) -> dict[str, Any]:
    n = 512 if quick else MATRIX[device]
    dtype = torch.float32 if dtype_name == "tf32" else getattr(torch, dtype_name)
    draw = torch.Generator().manual_seed(n)
    a, b = (torch.randn(n, n, generator=draw).to(device, dtype) for _ in range(2))
    run = partial(torch.mm, a, b, out=torch.empty_like(a))
    with _set_for_now(threads, dtype_name == "tf32"):
        times, _ = measure.interleaved(run, effort=measure.Effort(repetitions, device))
    return {**measure.summary(times), "bytes": 3 * n * n * dtype.itemsize, "flops": 2 * n**3}


@contextlib.contextmanager
def _set_for_now(threads: int, tf32: bool) -> Iterator[None]:
    """Torch's threads, and whether its products on GPUs may round to TF32."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with float32_products(tf32):
            yield
    finally:
        torch.set_num_threads(before)
