"""EvoX's DE, JaDE and SHADE (https://github.com/EMI-Group/evox)."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from typing import Any

import torch

from bench.job import Job


def make(job: Job) -> tuple[Callable[[], Any], str]:
    """A generation of the algorithm, with random fitness of which a third improves."""
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
