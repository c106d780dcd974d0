"""What else one could use for a generation, each in a process of its own.

Every peer makes all trials of a generation and keeps the better of parent and trial; fitness is
made up, so that nothing but the step is timed. They make simple strategies (DE/rand/1/bin, or
adaptive ones of their own), ours mixes several: the peers' traffic is set to what our generation
needs.
"""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Callable
from typing import Any

import torch

from bench import child, handwritten, machine, measure
from bench.inputs import new_rows
from bench.job import Job, Skipped
from bench.row import Row, against_copy

Peer = tuple[Callable[[], Any], str]
"""A generation as a function, and what it is, with versions."""

ACCEPTED = 3
"""One in so many trials is better than its parent."""


def run_job(job: Job) -> Row:
    """The row that its own process gives."""
    if job.dtype_name != "float32":
        raise Skipped("peers are measured in float32")
    return child.run(job)


def run_child(job: Job) -> Row:
    """One peer, timed in turn with a copy of as much memory as its population takes."""
    before = machine.held_bytes("cpu")
    try:
        generation, version = _MAKERS[job.backend.partition("-")[0]](job)
    except ImportError as error:
        raise Skipped(f'{error}; "pip install .[bench]" brings the peers') from None
    started = time.perf_counter()
    generation()  # compiles, where it compiles
    built = time.perf_counter() - started
    peak = machine.peak_bytes("cpu") - before
    if job.device == "cuda":
        peak = machine.peak_bytes("cuda") or peak  # JAX does not allocate by torch
    floor = job.members * -(-job.weights // 64) * 64 * 4
    accepted = job.members // ACCEPTED
    traffic = (3 * job.members + accepted) * floor // job.members
    size = (job.members, job.weights, job.dtype, job.device)
    copy = measure.Copy(new_rows(*size), new_rows(*size), job.threads)
    times = measure.interleaved(generation, copy, effort=job.effort(least=3))
    row = against_copy(times, traffic, copy.bytes_copied)
    how = measure.how(job.device, "one set of buffers")
    row |= {**how, "peak_bytes": peak, "floor_bytes": floor, "peer": version, "note": version}
    return row | ({"build_s": built} if "compile" in job.backend else {})


def _evox(job: Job) -> Peer:
    """DE, JaDE or SHADE (https://github.com/EMI-Group/evox): a third of the trials improve."""
    from evox import algorithms

    algorithm = {"de": "DE", "jade": "JaDE", "shade": "SHADE"}[job.backend.removeprefix("evox-")]
    torch.manual_seed(job.seed)
    bound = torch.ones(job.weights, device=job.device)
    device = torch.device(job.device)
    made = getattr(algorithms, algorithm)(job.members, -bound, bound, device=device)

    def evaluate(rows: torch.Tensor) -> torch.Tensor:
        draw = torch.rand(job.members, device=job.device)
        return torch.where(draw < 1 / 3, -torch.inf, torch.inf)

    made.evaluate = evaluate

    @torch.no_grad()
    def generation() -> None:
        made.fit = torch.ones(job.members, device=job.device)
        made.step()

    return generation, f"EvoX {importlib.metadata.version('evox')} {algorithm}, eager"


def _evosax(job: Job) -> Peer:
    """DE (https://github.com/RobertTLange/evosax), ask and tell in one function compiled by JAX."""
    import jax
    import jax.numpy as jnp
    from evosax.algorithms import DifferentialEvolution

    platform = jax.default_backend()
    if (platform == "gpu") != (job.device == "cuda"):
        raise Skipped(f"JAX runs on its {platform} here, not on {job.device}")
    key = jax.random.key(job.seed)
    evolution = DifferentialEvolution(job.members, jnp.zeros(job.weights))
    params = evolution.default_params
    rows = jax.random.normal(key, (job.members, job.weights))
    state = evolution.init(key, rows, jnp.ones(job.members), params)
    held = [state, key]

    def one(state: Any, key: Any) -> tuple[Any, Any]:
        here, draw, following = jax.random.split(key, 3)
        trials, state = evolution.ask(here, state, params)
        better = jax.random.uniform(draw, (job.members,)) < 1 / 3
        state = state.replace(fitness=jnp.ones(job.members))
        state, _ = evolution.tell(here, trials, jnp.where(better, 0.0, 2.0), state, params)
        return state, following

    compiled = jax.jit(one, donate_argnums=(0,))

    def generation() -> None:
        held[:] = compiled(*held)
        jax.block_until_ready(held[0].population)

    versions = f"{importlib.metadata.version('evosax')}, JAX {jax.__version__}"
    return generation, f"evosax {versions}, on all cores"


_MAKERS = {"torch": handwritten.make, "evox": _evox, "evosax": _evosax}
