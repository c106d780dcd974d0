"""What else one could use for a generation, each in a process of its own.

Every peer makes all trials of a generation and keeps the better of parent and trial; fitness is
given, so that nothing but the step is timed. They make simple strategies (DE/rand/1/bin, or their
own adaptive ones), ours mixes its own: the peers' traffic is set to what our generation needs.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, Protocol

import torch

from bench import child, measure
from bench.inputs import fill, new_rows
from bench.job import Job, Skipped
from bench.row import Row, against_copy

_MODULES = {
    "torch-loop": "handwritten",
    "torch-vectorised": "handwritten",
    "torch-compile": "handwritten",
    "evox-de": "evox_de",
    "evox-jade": "evox_de",
    "evox-shade": "evox_de",
    "evosax-de": "evosax_de",
}
ACCEPTED = 3
"""One in so many trials is better than its parent."""


class Make(Protocol):
    """What a peer's module has: the generation as a function, and the peer's version."""

    def __call__(self, job: Job) -> tuple[Callable[[], Any], str]: ...


def run_job(job: Job) -> Row:
    """The row that its own process gives."""
    if job.dtype_name != "float32":
        raise Skipped("peers are measured in float32")
    return child.run(job)


def run_child(job: Job) -> Row:
    """One peer, timed in turn with a copy of as much memory as its population takes."""
    torch.set_num_threads(job.threads)
    module = importlib.import_module(f"bench.peers.{_MODULES[job.backend]}")
    before = measure.status_bytes("VmRSS")
    try:
        generation, version = module.make(job)
    except ImportError as error:
        raise Skipped(f'{error}; "pip install .[bench]" brings the peers') from None
    built = measure.interleaved(generation, lambda: None, 1)[0]  # compiles, where it compiles
    peak = measure.status_bytes("VmHWM") - before
    floor = job.members * -(-job.weights // 64) * 64 * 4
    accepted = job.members // ACCEPTED
    traffic = (3 * job.members + accepted) * floor // job.members
    size = (job.members, job.weights, job.dtype, job.device)
    if job.device == "cuda":
        from bench import gpu

        copy = gpu.Copy(new_rows(*size), new_rows(*size))
        peak = torch.cuda.max_memory_allocated() or peak
        times = gpu.interleaved(generation, copy, job.repetitions, budget_s=job.budget_s)
        copied, how = copy.bytes_copied, {"clock": "CUDA events", "cold": "L2 flushed"}
    else:
        source = new_rows(*size)
        fill(source, job.seed)
        yardstick = measure.Yardstick(source, new_rows(*size), job.threads)
        times = measure.interleaved(
            generation, yardstick, job.repetitions, budget_s=job.budget_s, least=3
        )
        copied, how = yardstick.bytes_copied, {"clock": "wall", "cold": "one set of buffers"}
    row = against_copy(times, traffic, copied)
    row |= {**how, "peak_bytes": peak, "floor_bytes": floor, "peer": version, "note": version}
    return row | ({"build_s": built[0]} if "compile" in job.backend else {})
