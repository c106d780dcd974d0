"""What else one could use for a generation, each in a process of its own.

Every peer makes all trials of a generation and keeps the better of parent and trial; fitness is
given, so that nothing but the step is timed. They make simple strategies (DE/rand/1/bin, or their
own adaptive ones), ours mixes its own: the peers' traffic is set to what our generation needs.
"""

from __future__ import annotations

import importlib

from bench import child, machine, measure
from bench.inputs import fill, new_rows
from bench.job import Job, Skipped
from bench.row import Row, against_copy

# By how a backend's name begins: a module whose `make(job)` gives the generation as a function, and
# the peer's version.
_MODULES = {"torch": "handwritten", "evox": "evox_de", "evosax": "evosax_de"}
ACCEPTED = 3
"""One in so many trials is better than its parent."""


def run_job(job: Job) -> Row:
    """The row that its own process gives."""
    if job.dtype_name != "float32":
        raise Skipped("peers are measured in float32")
    return child.run(job)


def run_child(job: Job) -> Row:
    """One peer, timed in turn with a copy of as much memory as its population takes."""
    module = importlib.import_module(f"bench.peers.{_MODULES[job.backend.partition('-')[0]]}")
    before = machine.memory("cpu")
    try:
        generation, version = module.make(job)
    except ImportError as error:
        raise Skipped(f'{error}; "pip install .[bench]" brings the peers') from None
    built, _ = measure.interleaved(generation, repetitions=1)  # compiles, where it compiles
    peak = machine.peak_memory("cpu") - before
    if job.device == "cuda":
        peak = machine.peak_memory("cuda") or peak  # JAX does not allocate by torch
    floor = job.members * -(-job.weights // 64) * 64 * 4
    accepted = job.members // ACCEPTED
    traffic = (3 * job.members + accepted) * floor // job.members
    size = (job.members, job.weights, job.dtype, job.device)
    source = new_rows(*size)
    fill(source, job.seed)
    copy = measure.Copy(source, new_rows(*size), job.threads)
    times = measure.interleaved(
        generation,
        copy,
        repetitions=job.repetitions,
        budget_s=job.budget_s,
        least=3,
        device=job.device,
    )
    row = against_copy(times, traffic, copy.bytes_copied)
    how = measure.how(job.device, "one set of buffers")
    row |= {**how, "peak_bytes": peak, "floor_bytes": floor, "peer": version, "note": version}
    return row | ({"build_s": built[0]} if "compile" in job.backend else {})
