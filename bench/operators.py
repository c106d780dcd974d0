"""The cases that time operators: a check against reference, then the clock."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from bench import gpu, measure, steps
from bench.inputs import SIX_ROWS, Adaptation, Weights, new_rows, planned
from bench.job import PEERS, Job
from deevo_ext import backends

TABLE_CASES = ("plan", "tell", "plan+tell")  # without weights


class WrongResult(Exception):
    """A backend's result differs from reference's: its speed means nothing."""


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
        adaptation = planned(job.members, pool(job)).to(device)
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


def run_job(job: Job) -> dict[str, Any]:
    """Checks, then times: the row, without the columns that all rows have in common."""
    torch.set_num_threads(job.threads)
    if job.case == "step":
        return steps.time_step(job)
    return time_tables(job) if job.case in TABLE_CASES else time_weights(job)


def interleaved(
    job: Job,
    run: Callable[[], None],
    source: torch.Tensor,
    target: torch.Tensor,
    reset: Callable[[], None],
) -> tuple[tuple[list[float], list[float]], int]:
    """Seconds of run and of copying source to target, by the device's clock; bytes of a copy."""
    if job.device == "cuda":
        copy = gpu.Copy(source, target)
        return gpu.interleaved(run, copy, job.repetitions, reset), copy.bytes_copied
    yardstick = measure.Yardstick(source, target, job.threads)
    return measure.interleaved(run, yardstick, job.repetitions, reset), yardstick.bytes_copied


def row(
    job: Job, times: tuple[list[float], list[float]], traffic: int, copied: int, note: str
) -> dict[str, Any]:
    """limit_s: the time for `traffic` at the speed of the run's memcpy, which reads and writes."""
    seconds, copies = times
    limit = measure.summary(copies)["median_s"] * traffic / (2 * copied)
    result = measure.summary(seconds)
    return {
        **result,
        "bytes": traffic,
        "limit_s": limit,
        "ratio": result["median_s"] / limit,
        "copy_bytes_per_s": traffic / limit,
        "repetitions": job.repetitions,
        "note": note,
    }


def time_tables(job: Job) -> dict[str, Any]:
    """plan and tell: a few kilobytes, so what counts is how long a call takes."""

    def both(adaptation: Adaptation) -> None:
        adaptation.tell()
        adaptation.plan()

    cases = {"plan": Adaptation.plan, "tell": Adaptation.tell, "plan+tell": both}
    adaptation = planned(job.members, pool(job)).to(job.device)
    check_tables(job, cases[job.case])
    traffic = adaptation.bytes()
    half = -(-traffic // 2)
    source, target = (torch.zeros(half, dtype=torch.uint8, device=job.device) for _ in range(2))
    with backends.use(job.backend):
        run = partial(cases[job.case], adaptation)
        times, copied = interleaved(job, run, source, target, adaptation.restoring())
    return row(job, times, traffic, copied, "latency")


def time_weights(job: Job) -> dict[str, Any]:
    """trials, commit, the generation of all four operators, and what ends one as a graph."""
    adaptation = planned(job.members, pool(job)).to(job.device)
    weights = Weights(job, adaptation)
    row_bytes = weights.population.stride(0) * weights.population.element_size()
    written = int(adaptation.accepted.sum())
    rows_moved = 0
    is_peer = job.backend in PEERS
    # The yardstick copies as many rows as make half the traffic, into the trials where there are
    # any: memory that is not needed otherwise could change the pages' layout.
    if job.case in ("trials", "trials-six", "generation"):
        out = new_rows(job.members, job.weights, job.dtype, job.device)
        if not is_peer:
            check_trials(job, weights, out)
        rows_moved += 2 * job.members
    else:
        half = -(-(job.members + written) // 2)
        out = new_rows(half, job.weights, job.dtype, job.device)
    if job.case in ("commit", "generation", "graph"):
        check_commit(job, weights)
        rows_moved += job.members + written

    def generation() -> None:
        adaptation.plan()
        weights.trials(out)
        adaptation.tell()
        weights.commit()

    def end_of_generation() -> None:
        adaptation.tell()
        weights.commit()
        adaptation.plan()

    if job.case in ("generation", "graph"):
        check_tables(job, Adaptation.plan)
        check_tables(job, Adaptation.tell)
    reset: Callable[[], None] = lambda: None  # noqa: E731
    if job.case == "generation":
        reset = adaptation.reset
    if job.case == "graph":
        reset = adaptation.restoring()
    note = f"{written} of {job.members} accepted"
    if job.case.startswith("trials"):
        note = "own random numbers, not reference's bits" if is_peer else ""
    with contextlib.nullcontext() if is_peer else backends.use(job.backend):
        if is_peer:
            plan = adaptation.choices, adaptation.coefficients
            run = gpu.peer(job.backend, weights.population, *plan, out)
        elif job.case == "graph":
            run = gpu.captured(end_of_generation)
        else:
            runs: dict[str, Callable[[], None]] = {
                "trials": lambda: weights.trials(out),
                "trials-six": lambda: weights.trials(out),
                "commit": weights.commit,
                "generation": generation,
            }
            run = runs[job.case]
        times, copied = interleaved(job, run, weights.population, out, reset)
    result = row(job, times, rows_moved * row_bytes, copied, note)
    if job.case == "trials" and job.dtype.itemsize == 2 and not is_peer:
        result["note"] = f"{result['ratio'] / 2:.2f} of a float32 copy"
    return result
