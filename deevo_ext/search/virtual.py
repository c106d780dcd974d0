"""Virtual evolution: differential evolution of steps, scored by a linear model.

The individuals are scaled coordinates q [d] of steps. A virtual trial costs no forward pass, so the
evolution has the hundreds of generations that its adaptation needs.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from deevo_ext.ops.philox import ROUNDS, key_of, philox4x32
from deevo_ext.ops.tables import Purpose
from deevo_ext.population.population import Population
from deevo_ext.search.configuration import Configuration
from deevo_ext.search.generation import diversity
from deevo_ext.search.optimizer import DifferentialEvolution

INDIVIDUALS, GENERATIONS = 64, 300


@dataclass(frozen=True)
class Virtual:
    """What a virtual evolution came to: its best q float64 [d], and each generation's metrics."""

    best: Tensor
    fitness: float
    history: list[dict[str, float]]


def first_individuals(
    known: Sequence[Tensor], d: int, number: int, seed: int, count: int = INDIVIDUALS
) -> Tensor:
    """Returns float32 [count, d]: the steps that are known, then random ones around them.

    known: distinct steps [d], the convex fit first. Half of the others lie around 0 and half around
    the convex fit, normal, with its root mean square. number: of the round, from which they are
    drawn (Philox, purpose 13).
    """
    rows = torch.zeros(count, d)
    first = [torch.zeros(d), *known][:count]
    rows[: len(first)] = torch.stack([q.float() for q in first])
    centre = known[0].float()
    spread = max(float(centre.square().mean().sqrt()), 1e-3)
    for i in range(len(first), count):
        rows[i] = spread * _normals(d, number, i, seed) + (centre if i % 2 else 0.0)
    return rows


def evolve_virtually(
    fitness: Callable[[Tensor], Tensor],
    individuals: Tensor,
    configuration: Configuration,
    seed: int,
) -> Virtual:
    """Evolves individuals [P, d] by the fitness [P] of rows [P, d], which is minimised."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of individuals that are equal
        population = Population.from_rows(individuals)
    de = DifferentialEvolution(population, configuration, seed=seed)
    everyone, d = list(range(population.size)), individuals.shape[1]  # rows end with a pad
    de.ask()
    de.tell(fitness(population.rows[:, :d]))
    history = []
    for _ in range(configuration.generations):
        generation = de.tell(fitness(de.ask().rows(everyone)[:, :d]))
        assert generation is not None
        metrics = generation.metrics()
        metrics["diversity"] = diversity(population.rows, de.living)
        history.append(metrics)
    best = de.best
    return Virtual(population.rows[best, :d].double().clone(), float(de.fitness[best]), history)


def _normals(d: int, number: int, individual: int, seed: int) -> Tensor:
    """Standard normal numbers float32 [d] by Box and Muller, of one individual."""
    blocks = np.arange((d + 3) // 4, dtype=np.uint64)
    counter = (int(Purpose.FIRST_VIRTUAL), number, individual, blocks)
    words = np.stack(philox4x32(counter, key_of(seed), ROUNDS), axis=1).astype(np.float64)
    uniform = (words + 0.5) * 2.0**-32
    radius = np.sqrt(-2.0 * np.log(uniform[:, :2]))
    angle = 2.0 * math.pi * uniform[:, 2:]
    both = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return torch.from_numpy(both.reshape(-1)[:d]).float()
