"""DE/rand/1/bin as one would write it in torch: a careful loop, all members at once, compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.inputs import fill, new_rows
from bench.job import Job

F, CR = 0.5, 0.9


def make(job: Job) -> tuple[Callable[[], Any], str]:
    """A generation of the peer `job.backend`, and what it is."""
    population = new_rows(job.members, job.weights, job.dtype, job.device)
    fill(population, job.seed)
    torch.manual_seed(job.seed)
    kind = job.backend.removeprefix("torch-")
    if kind == "loop":
        state = Loop(population)
        return state.generation, f"torch {torch.__version__}, a loop with reused buffers"
    step = torch.compile(vectorised, dynamic=False) if kind == "compile" else vectorised
    held = [population]

    def generation() -> None:
        held[0] = step(held[0], donors(job.members, job.device), better(job.members, job.device))

    words = "torch.compile of the vectorised" if kind == "compile" else "vectorised"
    return generation, f"torch {torch.__version__}, {words}"


def donors(members: int, device: str) -> Tensor:
    """Indices [3, NP]: three others for each member, none twice."""
    keys = torch.rand(members, members, device=device)
    keys.fill_diagonal_(2.0)
    return keys.argsort(dim=1)[:, :3].T.contiguous()


def better(members: int, device: str) -> Tensor:
    """Which trials replace their parents, bool [NP]: a third."""
    return torch.rand(members, device=device).argsort() < members // 3


def vectorised(population: Tensor, chosen: Tensor, accepted: Tensor, cr: float = CR) -> Tensor:
    """The next population, as the textbook's formula over all members."""
    a, b, c = (population[row] for row in chosen)
    mutant = a + F * (b - c)
    mask = torch.rand_like(population) < cr
    trials = torch.where(mask, mutant, population)
    return torch.where(accepted[:, None], trials, population)


class Loop:
    """Member by member, into buffers that are allocated once."""

    def __init__(self, population: Tensor, cr: float = CR) -> None:
        self.population, self.cr = population, cr
        self.trials = torch.zeros_like(population)
        self.random = torch.zeros_like(population[0])
        self.mask = torch.zeros_like(population[0], dtype=torch.bool)

    def generation(self) -> None:
        """All trials, then a third of them into their parents' places."""
        self.make_trials()
        self.keep(better(self.population.shape[0], str(self.population.device)))

    def make_trials(self) -> None:
        """trials [NP, D] from the population."""
        population, trials = self.population, self.trials
        chosen = donors(population.shape[0], str(population.device))
        for i, (a, b, c) in enumerate(chosen.T.tolist()):
            trial = trials[i]
            torch.sub(population[b], population[c], out=trial)
            trial.mul_(F).add_(population[a])
            self.random.uniform_()
            torch.lt(self.random, self.cr, out=self.mask)
            torch.where(self.mask, trial, population[i], out=trial)

    def keep(self, accepted: Tensor) -> None:
        """Accepted trials, bool [NP], replace their parents."""
        for i in accepted.nonzero().flatten().tolist():
            self.population[i].copy_(self.trials[i])
