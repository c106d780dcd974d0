"""The cases that time operators: a check against reference, then the clock."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from bench import measure, peers
from bench.cases import DE_PEERS
from bench.inputs import SIX_ROWS, Adaptation, Weights, new_rows, planned
from bench.job import Job, Skipped, WrongResult
from bench.row import Row, against_copy
from deevo_ext import backends
from deevo_ext.population.allocation import available_bytes
from deevo_ext.population.population import Population
from deevo_ext.search.optimizer import DifferentialEvolution


def same(what: str, job: Job, found: torch.Tensor, expected: torch.Tensor) -> None:
    """Raises WrongResult unless the two have the same bits."""
    if not torch.equal(
        found.cpu().contiguous().view(torch.uint8), expected.contiguous().view(torch.uint8)
    ):
        raise WrongResult(f"{job.case}: {what} of backend {job.backend} are not reference's bits")


def pool(job: Job) -> tuple[Any, ...]:
    """The strategies; none stands for the default preset's."""
    return (SIX_ROWS,) if job.case == "trials-six" else ()


def check_tables(job: Job, run: Callable[[Adaptation], None]) -> None:
    """plan or tell from the same start on both backends."""
    results = []
    for backend, device in ((job.backend, job.device), ("reference", "cpu")):
        adaptation = planned(job.members, job.seed, pool(job)).to(device)
        with backends.use(backend):
            run(adaptation)
        results.append(adaptation.changed())
    for name, expected in results[1].items():
        same(name, job, results[0][name], expected)


def check_trials(job: Job, weights: Weights, out: torch.Tensor) -> None:
    with backends.use(job.backend):
        weights.trials(out)
    for columns in weights.ends():
        part = weights.part(columns)
        expected = torch.empty_like(part.population)
        with backends.use("reference"):
            part.trials(expected)
        same(f"trials[:, {columns.start}:{columns.stop}]", job, out[:, columns], expected)


def check_commit(job: Job, weights: Weights) -> None:
    """Leaves the population after one commit."""
    parts = [(columns, weights.part(columns)) for columns in weights.ends()]
    with backends.use(job.backend):
        weights.commit()
    for columns, part in parts:
        with backends.use("reference"):
            part.commit()
        found = weights.population[:, columns]
        same(f"population[:, {columns.start}:{columns.stop}]", job, found, part.population)


def run_job(job: Job) -> Row:
    """Checks, then times: the row, without the columns that all rows have in common."""
    if job.backend in DE_PEERS:
        return peers.run_job(job)
    if job.case == "step":
        return time_step(job)
    return time_weights(job) if job.weights else time_tables(job)


def timed(
    job: Job,
    runs: list[Callable[[], None]],
    buffers: list[tuple[torch.Tensor, torch.Tensor]],
    reset: Callable[[], None],
) -> tuple[tuple[list[float], list[float]], int]:
    """Seconds of the runs, in turn, and of copying their buffers; bytes of one copy."""
    copies = [measure.Copy(*pair, job.threads) for pair in buffers]
    times = measure.interleaved(
        measure.in_turn(runs),
        measure.in_turn(copies),
        repetitions=job.repetitions,
        reset=reset,
        budget_s=job.budget_s,
        device=job.device,
    )
    return times, copies[0].bytes_copied


def how(job: Job, sets: int = 1) -> dict[str, str]:
    """Which clock, and what is in the caches."""
    clock = "CUDA graph, CUDA events" if job.case == "graph" else "CUDA events"
    cold = f"{sets} sets of buffers in turn" if sets > 1 else "larger than the caches"
    return measure.how(job.device, cold if job.weights else "warm", clock)


def time_tables(job: Job) -> Row:
    """plan and tell: a few kilobytes, so what counts is how long a call takes."""

    def both(adaptation: Adaptation) -> None:
        adaptation.tell()
        adaptation.plan()

    cases = {"plan": Adaptation.plan, "tell": Adaptation.tell, "plan+tell": both}
    adaptation = planned(job.members, job.seed, pool(job)).to(job.device)
    check_tables(job, cases[job.case])
    traffic = adaptation.bytes()
    half = -(-traffic // 2)
    source, target = (torch.zeros(half, dtype=torch.uint8, device=job.device) for _ in range(2))
    with backends.use(job.backend):
        run = partial(cases[job.case], adaptation)
        times, copied = timed(job, [run], [(source, target)], adaptation.restoring())
    return {**against_copy(times, traffic, copied), **how(job), "note": "latency"}


def time_weights(job: Job) -> Row:
    """trials, commit, the generation of all four operators, and what ends one as a graph."""
    adaptation = planned(job.members, job.seed, pool(job)).to(job.device)
    written = int(adaptation.accepted.sum())
    makes_trials = job.case in ("trials", "trials-six", "generation", "scaling")
    commits = job.case in ("commit", "generation", "graph", "scaling")
    # The yardstick copies as many rows as make half the traffic, into the trials where there are
    # any: memory that is not needed otherwise could change the pages' layout.
    others = job.members if makes_trials else -(-(job.members + written) // 2)
    one = (job.members + others) * -(-job.weights // 64) * 64 * job.dtype.itemsize
    if job.device == "cpu" and 1.1 * one > available_bytes():
        raise Skipped(f"needs {one >> 30} GiB, of which {available_bytes() >> 30} are free")
    sets = measure.sets_for(one, job.quick) if job.device == "cpu" else 1
    weights = [Weights(job, adaptation, number) for number in range(sets)]
    outs = [new_rows(others, job.weights, job.dtype, job.device) for _ in range(sets)]
    row_bytes = weights[0].population.stride(0) * job.dtype.itemsize
    if makes_trials:
        check_trials(job, weights[0], outs[0])
    if commits:
        check_commit(job, weights[0])
    moved = 2 * job.members * makes_trials + (job.members + written) * commits

    def generation(own: Weights, out: torch.Tensor) -> None:
        adaptation.plan()
        own.trials(out)
        adaptation.tell()
        own.commit()

    def end_of_generation(own: Weights, out: torch.Tensor) -> None:
        adaptation.tell()
        own.commit()
        adaptation.plan()

    steps_of: dict[str, Callable[[Weights, torch.Tensor], None]] = {
        "trials": Weights.trials,
        "trials-six": Weights.trials,
        "commit": lambda own, out: own.commit(),
        "generation": generation,
        "scaling": generation,
        "graph": end_of_generation,
    }
    reset = measure.nothing
    if job.case in ("generation", "scaling", "graph"):
        check_tables(job, Adaptation.plan)
        check_tables(job, Adaptation.tell)
        reset = adaptation.restoring()
    with backends.use(job.backend):
        runs: list[Callable[[], None]] = [
            partial(steps_of[job.case], own, out) for own, out in zip(weights, outs, strict=True)
        ]
        if job.case == "graph":
            runs = [measure.captured(runs[0])]
        buffers = [(own.population, out) for own, out in zip(weights, outs, strict=True)]
        times, copied = timed(job, runs, buffers, reset)
    result = against_copy(times, moved * row_bytes, copied)
    note = f"{written} of {job.members} accepted" if commits else ""
    if job.case == "trials" and job.dtype.itemsize == 2:
        note = f"{result['median_s'] / result['limit_s'] / 2:.2f} of a float32 copy"
    return {**result, **how(job, sets), "note": note}


def time_step(job: Job) -> Row:
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

    yardstick = measure.Copy(population.rows, target, 1)
    with backends.use(job.backend):
        times = measure.interleaved(
            step, yardstick, repetitions=job.repetitions, budget_s=job.budget_s
        )
    row = against_copy(times, 2 * yardstick.bytes_copied, yardstick.bytes_copied)
    return {**row, **measure.how("cpu"), "note": "latency"}
