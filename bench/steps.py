"""The case that times the optimizer: a generation as a user drives it, beside its function."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from bench import measure
from bench.job import Job
from deevo_ext import backends
from deevo_ext.evolution.optimizer import DifferentialEvolution
from deevo_ext.population import Population

SEED = 20_240_229


def time_step(job: Job) -> dict[str, Any]:
    """ask, all trials in new memory, tell; the yardstick copies the population once.

    What a generation costs over its operators' traffic, so it is meant for few weights.
    """
    draw = torch.Generator().manual_seed(SEED)
    model = nn.Linear(job.weights, 1, bias=False)
    rows = [torch.randn(1, job.weights, generator=draw) for _ in range(job.members)]
    population = Population.from_state_dicts(
        model, [{"weight": row} for row in rows], dtype=job.dtype
    )
    evolution = DifferentialEvolution(population, generations=10**6, seed=SEED)
    losses = torch.rand(64, job.members, dtype=torch.float64, generator=draw)
    members = torch.arange(job.members)
    evolution.ask()
    evolution.tell(losses[0])
    target = torch.zeros_like(population.rows)

    def step() -> None:
        trials = evolution.ask()
        trials.rows(members)
        evolution.tell(losses[trials.generation % 64])

    yardstick = measure.Yardstick(population.rows, target, 1)
    with backends.use(job.backend):
        times = measure.interleaved(step, yardstick, job.repetitions)
    traffic = 2 * yardstick.bytes_copied
    seconds, copies = times
    result, limit = measure.summary(seconds), measure.summary(copies)["median_s"]
    return {
        **result,
        "bytes": traffic,
        "limit_s": limit,
        "ratio": result["median_s"] / limit,
        "copy_bytes_per_s": traffic / limit,
        "repetitions": job.repetitions,
        "note": "latency",
    }
