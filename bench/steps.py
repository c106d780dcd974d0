"""The case that times the optimizer: a generation as a user drives it, beside its function."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from bench import measure
from bench.job import Job
from bench.row import against_copy
from deevo_ext import backends
from deevo_ext.population.population import Population
from deevo_ext.search.optimizer import DifferentialEvolution


def time_step(job: Job) -> dict[str, Any]:
    """ask, all trials in new memory, tell; the yardstick copies the population once.

    What a generation costs over its operators' traffic, so it is meant for few weights.
    """
    draw = torch.Generator().manual_seed(job.seed)
    model = nn.Linear(job.weights, 1, bias=False)
    rows = [torch.randn(1, job.weights, generator=draw) for _ in range(job.members)]
    population = Population.from_state_dicts(
        model, [{"weight": row} for row in rows], dtype=job.dtype
    )
    evolution = DifferentialEvolution(population, generations=10**6, seed=job.seed)
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
        times = measure.interleaved(step, yardstick, job.repetitions, budget_s=job.budget_s)
    row = against_copy(times, 2 * yardstick.bytes_copied, yardstick.bytes_copied)
    return {**row, "clock": "wall", "cold": "warm", "note": "latency"}
