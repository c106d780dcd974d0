"""The case that measures memory: the peak of a real loop, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import torch

from bench import ROOT
from bench.inputs import SEED, fill
from bench.job import Job
from deevo_ext import backends
from deevo_ext.evolution.optimizer import DifferentialEvolution
from deevo_ext.population import Population

ALLOWANCE = 64 * 1024 * 1024
GENERATIONS = 3


def run_job(job: Job, chunk: int) -> dict[str, Any]:
    """The peak against the floor, the rows of NP members and of one chunk, plus an allowance.

    The allocator does not keep the same freed memory each time, so `job.repetitions` processes run
    and the worst counts.
    """
    dtype = str(job.dtype).removeprefix("torch.")
    numbers = [job.members, job.weights, job.threads, chunk]
    command = [sys.executable, "-m", "bench", "--child", job.backend, dtype, *map(str, numbers)]
    peaks = []
    for _ in range(job.repetitions):
        result = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
        peaks.append(json.loads(result.stdout.splitlines()[-1]))
    peak = max(peaks)
    floor = (job.members + chunk) * -(-job.weights // 64) * 64 * job.dtype.itemsize
    limit = floor + ALLOWANCE
    return {
        "peak_bytes": peak,
        "floor_bytes": floor,
        "limit_bytes": limit,
        "ratio": peak / limit,
        "peaks": peaks,
        "chunk": chunk,
        "note": f"worst of {len(peaks)}, {chunk} trials at a time",
    }


def child(backend: str, dtype: str, *numbers: str) -> int:
    """Runs the loop and prints the bytes that it needed beyond what the imports did."""
    members, weights, threads, chunk = map(int, numbers)
    torch.set_num_threads(threads)
    before = _status("VmRSS")
    population = _population(members, weights, getattr(torch, dtype))
    draw = torch.Generator().manual_seed(SEED)
    evolution = DifferentialEvolution(population, generations=GENERATIONS, seed=SEED)
    with backends.use(backend):
        for _ in range(GENERATIONS + 1):  # the first scores the parents
            fitness = torch.empty(members, dtype=torch.float64)
            for chosen, rows in evolution.ask().chunks(chunk):
                scores = torch.rand(len(rows), dtype=torch.float64, generator=draw)
                fitness[chosen] = scores + 0.0 * rows[:, 0].double()
            evolution.tell(fitness)
    print(_status("VmHWM") - before)
    return 0


def _population(members: int, weights: int, dtype: torch.dtype) -> Population:
    """Of networks of one parameter; the state dicts that it is made of take no memory."""
    model = torch.nn.Module()
    model.weight = torch.nn.Parameter(torch.empty(weights, device="meta"))
    states = [{"weight": torch.tensor([0.5 + i]).expand(weights)} for i in range(members)]
    population = Population.from_state_dicts(model, states, dtype=dtype)
    fill(population.rows[:, :weights])
    return population


def _status(field: str) -> int:
    """A size out of /proc/self/status, in bytes."""
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024
