"""What plan is tried with, fitness and states of every kind, and how often draws should occur."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from deevo_ext.search.configuration import Configuration
from support.operators import Evolution, evolution

INF, NAN = math.inf, math.nan
FITNESS: dict[str, Callable[[int], torch.Tensor]] = {
    "random": lambda n: torch.rand(n, generator=torch.Generator().manual_seed(n)).double(),
    "equal": lambda n: torch.full((n,), 0.25, dtype=torch.float64),
    "zeros": lambda n: torch.tensor([0.0, -0.0] * n, dtype=torch.float64)[:n],
    "ties": lambda n: torch.arange(n, dtype=torch.float64) % 3 - 1,
    "gaps": lambda n: torch.tensor([NAN, 2.0, INF, 0.5, -1.0, NAN] * n, dtype=torch.float64)[:n],
    "lost": lambda n: torch.tensor([NAN, INF] * n, dtype=torch.float64)[:n],
    "one left": lambda n: torch.tensor([INF, 3.0] + [NAN] * n, dtype=torch.float64)[:n],
    "minus infinity": lambda n: torch.tensor([1.0, -INF, 5.0, INF] * n, dtype=torch.float64)[:n],
    "huge": lambda n: torch.tensor([1e308, -1e308, 1.7e308] * n, dtype=torch.float64)[:n],
    "subnormal": lambda n: torch.arange(n, dtype=torch.float64) * 5e-324,
}


def planned(configuration: Configuration, members: int, **kwargs: Any) -> Evolution:
    run = evolution(configuration, FITNESS["random"](members), **kwargs)
    run.plan()
    return run


def scrambled_state(run: Evolution) -> None:
    """Memories, odds and windows as after some generations, terminal values among them."""
    at, c = run.configuration.offsets(), run.configuration
    source = torch.Generator().manual_seed(3)
    memories = at.pointer
    run.state[:memories] = torch.rand(memories, generator=source, dtype=torch.float64)
    run.state[at.memory_cr] = -1.0
    run.state[at.memory_frequency] = 0.01
    odds = torch.rand(len(c.strategies), generator=source, dtype=torch.float64) + 0.1
    run.state[at.odds : at.sinusoid1_odds] = odds / odds.sum()
    run.state[at.sinusoid1_odds] = 0.3
    run.state[at.archive_count] = c.archive_size


def assert_frequencies(counts: list[int], odds: list[float]) -> None:
    """Pearson's statistic below its mean plus 5 standard deviations."""
    total = sum(counts)
    used = [(have, p * total) for have, p in zip(counts, odds, strict=True) if p > 0]
    assert all(have == 0 for have, p in zip(counts, odds, strict=True) if p == 0)
    statistic = sum((have - want) ** 2 / want for have, want in used)
    freedom = len(used) - 1
    assert statistic < freedom + 5.0 * math.sqrt(2.0 * max(freedom, 1))
