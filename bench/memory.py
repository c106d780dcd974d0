"""The case that measures memory: the peak of a real loop, in a process of its own."""

from __future__ import annotations

from typing import Any

import torch

from bench import child, machine
from bench.inputs import fill
from bench.job import Job
from deevo_ext import backends
from deevo_ext.population.population import Population
from deevo_ext.search.optimizer import DifferentialEvolution

ALLOWANCE = 64 * 1024 * 1024
GENERATIONS = 3
CHUNK = 8


def run_job(job: Job) -> dict[str, Any]:
    """The peak against the floor, the rows of NP members and of one chunk, plus an allowance.

    The allocator does not keep the same freed memory each time, so `job.repetitions` processes run
    and the worst counts.
    """
    peaks = [child.run(job)["peak_bytes"] for _ in range(job.repetitions)]
    peak = max(peaks)
    floor = (job.members + CHUNK) * -(-job.weights // 64) * 64 * job.dtype.itemsize
    limit = floor + ALLOWANCE
    return {
        "peak_bytes": peak,
        "floor_bytes": floor,
        "limit_bytes": limit,
        "ratio": peak / limit,
        "peaks": peaks,
        "chunk": CHUNK,
        "note": f"worst of {len(peaks)}, {CHUNK} trials at a time",
    }


def run_child(job: Job) -> dict[str, Any]:
    """Runs the loop, in this process: the bytes that it needed beyond what the imports did."""
    before = machine.held_bytes("cpu")
    population = _population(job)
    draw = torch.Generator().manual_seed(job.seed)
    evolution = DifferentialEvolution(population, generations=GENERATIONS, seed=job.seed)
    with backends.use(job.backend):
        for _ in range(GENERATIONS + 1):  # the first scores the parents
            fitness = torch.empty(job.members, dtype=torch.float64)
            for chosen, rows in evolution.ask().chunks(CHUNK):
                scores = torch.rand(len(rows), dtype=torch.float64, generator=draw)
                fitness[chosen] = scores + 0.0 * rows[:, 0].double()
            evolution.tell(fitness)
    return {"peak_bytes": machine.peak_bytes("cpu") - before}


def _population(job: Job) -> Population:
    """A population of one-parameter networks, made of state dicts that take no memory."""
    model = torch.nn.Module()
    model.weight = torch.nn.Parameter(torch.empty(job.weights, device="meta"))
    states = [{"weight": torch.tensor([0.5 + i]).expand(job.weights)} for i in range(job.members)]
    population = Population.from_state_dicts(model, states, dtype=job.dtype)
    fill(population.rows[:, : job.weights], job.seed)
    return population
