"""What operators are timed on: tensors as in real runs."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch

from bench.job import Job
from deevo_ext import backends, ops  # noqa: F401  (importing ops registers torch.ops.deevo)
from deevo_ext.ops.tables import MAX_TERMS, NUM_CHOICE_COLUMNS, NUM_PARAMETER_COLUMNS
from deevo_ext.population.allocation import zero_rows
from deevo_ext.search.parameters import Parameters
from deevo_ext.search.presets import configure
from deevo_ext.search.strategies import Strategy, compile_pool

NONNEGATIVE = 4_800  # the running variances of a ResNet-18, in columns
# Base and five further rows, the most that a strategy can have.
SIX_ROWS = Strategy("six", "target + F*(best - target) + F*(r1 - r2) + F*(r3 - r4)")
CHECKED = 4_096  # columns at each end of a row that are compared with reference

_SCHEMAS = {
    name: getattr(torch.ops.deevo, name).default._schema.arguments
    for name in ("plan", "tell", "trials", "commit")
}
_NAMES = {name: [argument.name for argument in schema] for name, schema in _SCHEMAS.items()}
_WRITTEN = {
    argument.name
    for argument in (*_SCHEMAS["plan"], *_SCHEMAS["tell"])
    if argument.alias_info is not None and argument.alias_info.is_write
}


def call(name: str, values: dict[str, Any]) -> None:
    """Calls an operator on the values that are named as its arguments."""
    getattr(torch.ops.deevo, name)(*(values[argument] for argument in _NAMES[name]))


class Adaptation:
    """plan's and tell's small tensors, of the default preset or a pool, with random fitness.

    A third of the trials are better than their parents, as in real runs.
    """

    def __init__(self, members: int, seed: int, pool: tuple[Strategy, ...] = ()) -> None:
        changes: Parameters = {"strategies": pool} if pool else {}
        configuration = configure("sa-shade-tri-ensin", **changes)
        draw = torch.Generator().manual_seed(seed)
        self.seed = seed
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

    def to(self, device: str) -> Adaptation:
        """A copy on a device."""
        other = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, torch.Tensor):
                setattr(other, name, value.to(device, copy=True))
        return other

    def changed(self) -> dict[str, torch.Tensor]:
        """What plan and tell write, by name."""
        return {name: tensor for name, tensor in vars(self).items() if name in _WRITTEN}

    def restoring(self) -> Callable[[], None]:
        """A function that puts all that plan and tell write back to what it is now."""
        start = {name: tensor.clone() for name, tensor in self.changed().items()}

        def restore() -> None:
            for name, tensor in self.changed().items():
                tensor.copy_(start[name])

        return restore

    def plan(self) -> None:
        call("plan", vars(self))

    def tell(self) -> None:
        call("tell", vars(self))

    def bytes(self) -> int:
        """The bytes of all these tensors, each touched once."""
        inputs = (self.settings, self.strategies, self.trial_fitness)
        return sum(t.numel() * t.element_size() for t in (*inputs, *self.changed().values()))


def new_rows(count: int, weights: int, dtype: torch.dtype, device: str = "cpu") -> torch.Tensor:
    """Zeroed rows with stride and pages of a population's; every page has been written."""
    stride = -(-weights // 64) * 64
    if device == "cpu":
        return zero_rows(count, stride, dtype)[:, :weights]
    return torch.zeros(count, stride, dtype=dtype, device=device)[:, :weights]


def fill(rows: torch.Tensor, seed: int) -> None:
    """Members a little apart from one another, as fine-tunings of one network are."""
    count = min(1 << 20, rows.shape[1])
    pattern = torch.randn(count, generator=torch.Generator().manual_seed(seed)).to(rows.device)
    twice = torch.cat([pattern, pattern])  # any slice of it is the pattern, turned
    common, apart = 0.05 * twice, 0.01 * twice
    for i, row in enumerate(rows):
        for start in range(0, row.numel(), count):
            part = row[start : start + count]
            a, b = start // count * 31 % count, (7_919 * (i + 1) + start // 3) % count
            terms = (common[a : a + len(part)], apart[b : b + len(part)])
            if rows.dtype == torch.float32:
                torch.add(*terms, out=part)
            else:
                part.copy_(torch.add(*terms))


def nonneg_start(weights: int) -> int:
    """The first column of the tail that holds no negative weight."""
    return max(0, weights - NONNEGATIVE) // 8 * 8


class Weights:
    """trials' and commit's matrices, and the same operators on some columns of them."""

    def __init__(self, job: Job, adaptation: Adaptation, number: int = 0) -> None:
        self.adaptation = adaptation
        self.nonneg_start = nonneg_start(job.weights)
        self.population = new_rows(job.members, job.weights, job.dtype, job.device)
        fill(self.population, job.seed + number)
        self.population[:, self.nonneg_start :].abs_()
        self.archive = new_rows(0, job.weights, job.dtype, job.device)
        self.members = torch.arange(job.members, device=job.device)
        self.first_weight = 0
        self.lower, self.upper = -math.inf, math.inf

    def ends(self) -> list[slice]:
        """The first columns, and the last ones down to the odd rest that fills no vector."""
        weights = self.population.shape[1]
        tail = max(0, weights - CHECKED) // 8 * 8
        return [slice(0, min(weights, CHECKED)), slice(tail, weights)]

    def part(self, columns: slice) -> Weights:
        """A copy of some columns on the CPU, which are counted from where they are in the whole."""
        part = copy.copy(self)
        part.adaptation, part.members = self.adaptation.to("cpu"), self.members.cpu()
        part.population = self.population[:, columns].to("cpu", copy=True)
        part.archive = self.archive[:, columns].to("cpu", copy=True)
        part.nonneg_start = max(0, self.nonneg_start - columns.start)
        part.first_weight = columns.start
        return part

    def trials(self, out: torch.Tensor) -> None:
        call("trials", {**vars(self.adaptation), **vars(self), "out": out})

    def commit(self) -> None:
        call("commit", {**vars(self.adaptation), **vars(self)})


def planned(members: int, seed: int, pool: tuple[Strategy, ...] = ()) -> Adaptation:
    """Adaptation with a plan made, by reference on the CPU."""
    adaptation = Adaptation(members, seed, pool)
    with backends.use("reference"):
        adaptation.plan()
    return adaptation
