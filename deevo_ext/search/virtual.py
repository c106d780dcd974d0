"""Virtual evolution: differential evolution of steps, scored by a linear model.

The individuals are scaled coordinates q [d] of steps. A virtual trial costs no forward pass, so the
evolution has the hundreds of generations that its adaptation needs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deevo_ext.distributed.ranks import ranks
from deevo_ext.errors import DeevoError
from deevo_ext.ops.philox import draw, words
from deevo_ext.ops.tables import POPULATION_MEMBER, Purpose
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


def first_individuals(known: Sequence[Tensor], number: int, seed: int) -> Tensor:
    """Returns float32 [INDIVIDUALS, d]: no step, the steps that are known, then random ones.

    known: steps [d], the convex fit first; of equal ones the first is taken, and no more than there
    is room for. Half of the random ones lie around no step and half around the convex fit, normal,
    with its root mean square, but at least 0.001. number: of the evolution, by which they are drawn
    (Philox, purpose 13, whose member word is the individual).
    """
    centre = known[0].float()
    first: list[Tensor] = []
    for q in (torch.zeros_like(centre), *(q.float() for q in known)):
        if not any(torch.equal(q, other) for other in first):
            first.append(q)
    spread = max(float(centre.square().mean().sqrt()), 1e-3)
    for i in range(len(first), INDIVIDUALS):
        uniform = (words(Purpose.FIRST_VIRTUAL, number, i, len(centre), seed) + 0.5) * 2.0**-32
        normal = torch.special.ndtri(torch.from_numpy(uniform)).float()
        first.append(spread * normal + (centre if i % 2 else 0.0))
    return torch.stack(first[:INDIVIDUALS])


def require_fit(configuration: Configuration) -> None:
    """Raises DeevoError for parameters that a virtual evolution's individuals do not fit."""
    individuals = first_individuals([torch.zeros(1)], 0, 0)
    try:
        DifferentialEvolution(Population.from_rows(individuals), configuration)
    except DeevoError as error:
        raise DeevoError(
            f"the virtual evolution of a recipe has {INDIVIDUALS} members: {error}"
        ) from error


def evolve_virtually(
    fitness: Callable[[Tensor], Tensor],
    individuals: Tensor,
    configuration: Configuration,
    number: int,
    seed: int,
) -> Virtual:
    """Evolves individuals [P, d] by the fitness [P] of rows [P, d], which is minimised.

    number: of the evolution in the run; each draws numbers of its own. Where ranks share the model
    that scores, each of them evolves all individuals, those of rank 0.
    """
    individuals = ranks().lead(lambda: individuals)
    low, high, *_ = draw(Purpose.FIRST_VIRTUAL, number, POPULATION_MEMBER, 0, seed)
    population = Population.from_rows(individuals)
    de = DifferentialEvolution(population, configuration, seed=low | (high >> 1) << 32)
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
