"""The cases that time operators: inputs as in real runs, a check against reference, the clock."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from bench import measure, steps
from bench.job import Job
from deevo_ext import backends, ops  # noqa: F401  (importing ops registers torch.ops.deevo)
from deevo_ext.evolution.configuration import configure
from deevo_ext.memory import zero_rows
from deevo_ext.strategies import compile_pool
from deevo_ext.tables import MAX_TERMS, NUM_CHOICE_COLUMNS, NUM_PARAMETER_COLUMNS

SEED = 20_240_229
NONNEGATIVE = 4_800  # the running variances of a ResNet-18, in columns
NO_BOUNDS = (-math.inf, math.inf)
CHECKED = 4_096  # columns at each end of a row that are compared with reference


class WrongResult(Exception):
    """A backend's result differs from reference's: its speed means nothing."""


class Adaptation:
    """plan's and tell's small tensors under the default preset, with random fitness.

    A third of the trials are better than their parents, as in real runs.
    """

    def __init__(self, members: int) -> None:
        configuration = configure("sa-shade-tri-ensin")
        draw = torch.Generator().manual_seed(SEED)
        self.settings = configuration.settings()
        self.strategies = compile_pool(configuration.strategies)
        self.state = configuration.initial_state()
        self.fitness = torch.rand(members, dtype=torch.float64, generator=draw) + 1.0
        self.alive = torch.ones(members, dtype=torch.uint8)
        self.generation = torch.ones(1, dtype=torch.int64)
        self.choices = torch.zeros(members, NUM_CHOICE_COLUMNS, dtype=torch.int32)
        self.parameters = torch.zeros(members, NUM_PARAMETER_COLUMNS, dtype=torch.float64)
        self.coefficients = torch.zeros(members, MAX_TERMS)
        self.genes = torch.empty(0, dtype=torch.int64)  # crossover draws per weight
        self.gene_mask = torch.zeros(members, 0, dtype=torch.int32)
        better = torch.zeros(members, dtype=torch.bool)
        better[torch.randperm(members, generator=draw)[: max(1, members // 3)]] = True
        self.trial_fitness = torch.where(better, self.fitness * 0.5, self.fitness * 2.0)
        self.accepted = better.to(torch.uint8)
        self.archive_slot = torch.full((members,), -1, dtype=torch.int32)
        self._start = {name: tensor.clone() for name, tensor in self.changed().items()}

    def changed(self) -> dict[str, torch.Tensor]:
        """What plan and tell write, by name."""
        names = ("state", "fitness", "alive", "generation", "choices", "parameters")
        plan = ("coefficients", "gene_mask", "accepted", "archive_slot")
        return {name: getattr(self, name) for name in (*names, *plan)}

    def reset(self) -> None:
        """Back to the first generation; a plan that was made stays."""
        for name in ("state", "fitness", "alive", "generation"):
            getattr(self, name).copy_(self._start[name])

    def plan(self) -> None:
        torch.ops.deevo.plan(
            self.settings,
            self.strategies,
            self.state,
            self.fitness,
            self.alive,
            self.generation,
            SEED,
            self.choices,
            self.parameters,
            self.coefficients,
            self.gene_mask,
        )

    def tell(self) -> None:
        torch.ops.deevo.tell(
            self.settings,
            self.strategies,
            self.trial_fitness,
            self.choices,
            self.parameters,
            SEED,
            self.state,
            self.fitness,
            self.alive,
            self.generation,
            self.accepted,
            self.archive_slot,
        )

    def bytes(self) -> int:
        """Of all these tensors, each touched once."""
        inputs = (self.settings, self.strategies, self.trial_fitness)
        return sum(t.numel() * t.element_size() for t in (*inputs, *self.changed().values()))


def new_rows(count: int, weights: int, dtype: torch.dtype) -> torch.Tensor:
    """Zeroed rows with stride and pages of a population's; every page has been written."""
    stride = -(-weights // 64) * 64
    return zero_rows(count, stride, dtype)[:, :weights]


def fill(rows: torch.Tensor) -> None:
    """Members a little apart from one another, as fine-tunings of one network are."""
    pattern = torch.randn(1 << 20, generator=torch.Generator().manual_seed(SEED))
    for i, row in enumerate(rows):
        for start in range(0, row.numel(), pattern.numel()):
            part = row[start : start + pattern.numel()]
            common = pattern.roll(start // pattern.numel())[: part.numel()]
            own = pattern.roll(7_919 * (i + 1) + start)[: part.numel()]
            part.copy_(0.05 * common + 0.01 * own)


def nonneg_start(weights: int) -> int:
    return max(0, weights - NONNEGATIVE) // 8 * 8


class Weights:
    """trials' and commit's matrices, and the same operators on some columns of them."""

    def __init__(self, job: Job, adaptation: Adaptation) -> None:
        self.adaptation = adaptation
        self.nonneg_start = nonneg_start(job.weights)
        self.population = new_rows(job.members, job.weights, job.dtype)
        fill(self.population)
        self.population[:, self.nonneg_start :].abs_()
        self.archive = new_rows(0, job.weights, job.dtype)
        self.members = torch.arange(job.members)
        self.first_weight = 0

    def ends(self) -> list[slice]:
        """The first columns, and the last ones down to the odd rest that fills no vector."""
        weights = self.population.shape[1]
        tail = max(0, weights - CHECKED) // 8 * 8
        return [slice(0, min(weights, CHECKED)), slice(tail, weights)]

    def part(self, columns: slice) -> Weights:
        """A copy of some columns, which are counted from where they are in the whole."""
        part = object.__new__(Weights)
        part.adaptation, part.members = self.adaptation, self.members
        part.population = self.population[:, columns].clone()
        part.archive = self.archive[:, columns].clone()
        part.nonneg_start = max(0, self.nonneg_start - columns.start)
        part.first_weight = columns.start
        return part

    def trials(self, out: torch.Tensor) -> None:
        torch.ops.deevo.trials(
            self.population,
            self.archive,
            self.adaptation.choices,
            self.adaptation.coefficients,
            self.adaptation.genes,
            self.adaptation.gene_mask,
            self.members,
            SEED,
            self.nonneg_start,
            self.first_weight,
            *NO_BOUNDS,
            out,
        )

    def commit(self) -> None:
        torch.ops.deevo.commit(
            self.population,
            self.archive,
            self.adaptation.choices,
            self.adaptation.coefficients,
            self.adaptation.genes,
            self.adaptation.gene_mask,
            self.adaptation.accepted,
            self.adaptation.archive_slot,
            SEED,
            self.nonneg_start,
            self.first_weight,
            *NO_BOUNDS,
        )


def same(what: str, job: Job, found: torch.Tensor, expected: torch.Tensor) -> None:
    """Raises WrongResult unless the two have the same bits."""
    if not torch.equal(
        found.contiguous().view(torch.uint8), expected.contiguous().view(torch.uint8)
    ):
        raise WrongResult(f"{job.case}: {what} of backend {job.backend} are not reference's bits")


def check_tables(job: Job, run: Callable[[Adaptation], None]) -> None:
    """plan or tell from the same start on both backends."""
    results = []
    for backend in (job.backend, "reference"):
        adaptation = planned(job.members)
        with backends.use(backend):
            run(adaptation)
        results.append(adaptation.changed())
    for name, expected in results[1].items():
        same(name, job, results[0][name], expected)


def planned(members: int) -> Adaptation:
    """Adaptation with a plan made, by reference."""
    adaptation = Adaptation(members)
    with backends.use("reference"):
        adaptation.plan()
    return adaptation


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
    timed = time_tables if job.case in ("plan", "tell") else time_weights
    return timed(job)


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
    adaptation = planned(job.members)
    run = adaptation.plan if job.case == "plan" else adaptation.tell
    check_tables(job, Adaptation.plan if job.case == "plan" else Adaptation.tell)
    traffic = adaptation.bytes()
    source, target = (torch.zeros(-(-traffic // 2), dtype=torch.uint8) for _ in range(2))
    yardstick = measure.Yardstick(source, target, 1)
    with backends.use(job.backend):
        times = measure.interleaved(run, yardstick, job.repetitions, adaptation.reset)
    return row(job, times, traffic, yardstick.bytes_copied, "latency")


def time_weights(job: Job) -> dict[str, Any]:
    """trials, commit, and the generation that consists of all four operators."""
    adaptation = planned(job.members)
    weights = Weights(job, adaptation)
    row_bytes = weights.population.stride(0) * weights.population.element_size()
    written = int(adaptation.accepted.sum())
    rows_moved = 0
    # The yardstick copies as many rows as make half the traffic, into the trials where there are
    # any: memory that is not needed otherwise could change the pages' layout.
    if job.case in ("trials", "generation"):
        out = new_rows(job.members, job.weights, job.dtype)
        check_trials(job, weights, out)
        rows_moved += 2 * job.members
    else:
        out = new_rows(-(-(job.members + written) // 2), job.weights, job.dtype)
    if job.case in ("commit", "generation"):
        check_commit(job, weights)
        rows_moved += job.members + written

    def generation() -> None:
        adaptation.plan()
        weights.trials(out)
        adaptation.tell()
        weights.commit()

    runs: dict[str, Callable[[], None]] = {
        "trials": lambda: weights.trials(out),
        "commit": weights.commit,
        "generation": generation,
    }
    if job.case == "generation":
        check_tables(job, Adaptation.plan)
        check_tables(job, Adaptation.tell)
    reset = adaptation.reset if job.case == "generation" else lambda: None
    yardstick = measure.Yardstick(weights.population, out, job.threads)
    with backends.use(job.backend):
        times = measure.interleaved(runs[job.case], yardstick, job.repetitions, reset)
    note = "" if job.case == "trials" else f"{written} of {job.members} accepted"
    result = row(job, times, rows_moved * row_bytes, yardstick.bytes_copied, note)
    if job.case == "trials" and job.dtype.itemsize == 2:
        result["note"] = f"{result['ratio'] / 2:.2f} of a float32 copy"
    return result
