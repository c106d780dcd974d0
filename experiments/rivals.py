"""Other ways to search from the same networks: what evolution is compared with, by `waves.search`.

Each begins with what is at hand: the members and soups where it has a population, the greedy soup
where it has a centre, which it leaves in steps measured in the members' spread.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deevo_ext.population.blocks import Blocks
from deevo_ext.population.recipes import closed

from .waves import Rival, Start


class OpenAIES(Rival):
    """Salimans et al. 2017: mirrored normal noise, centred ranks, Adam."""

    SIGMA, RATE = 0.1, 0.01  # in units of the spread

    def __init__(self, start: Start) -> None:
        super().__init__(start)
        self.z = torch.zeros_like(start.centre, requires_grad=True)
        self.adam = torch.optim.Adam([self.z], lr=self.RATE)

    def ask(self, fresh: bool) -> Tensor:
        half = self.noise(self.start.wave // 2)
        self.proposed = torch.cat([half, -half])
        return self._rows(self.z.detach() + self.SIGMA * self.proposed)

    def tell(self, losses: Tensor) -> None:
        ranks = losses.argsort().argsort().float() / (len(losses) - 1) - 0.5
        self.z.grad = ranks @ self.proposed / (len(losses) * self.SIGMA)
        self.adam.step()

    def candidates(self) -> Tensor:
        return self._rows(self.z.detach()[None])

    def _rows(self, z: Tensor) -> Tensor:
        return self.start.centre + self.start.spread * z


class SparseMutations(Rival):
    """Whitaker & Whitley 2023: a normal mutation, split into children in disjoint subspaces.

    iterated: whether the best child, where it is better, is the parent of the next wave; else all
    waves are children of the greedy soup. The parent is scored in each wave.
    """

    SIGMA = 0.5  # in units of the spread

    def __init__(self, start: Start, iterated: bool) -> None:
        super().__init__(start)
        self.iterated, self.parent = iterated, start.centre
        self.best: list[tuple[float, Tensor]] = []

    def ask(self, fresh: bool) -> Tensor:
        children = self.start.wave - 1
        owner = torch.randint(children, self.parent.shape, generator=self.numbers)
        mutation = self.SIGMA * self.start.spread * self.noise(1)[0]
        masks = owner == torch.arange(children)[:, None]
        self.proposed = torch.cat([self.parent[None], self.parent + masks * mutation])
        return self.proposed

    def tell(self, losses: Tensor) -> None:
        parent, *others = losses.tolist()  # in one batch, so that gains of waves are comparable
        rows = zip(others, self.proposed[1:], strict=True)
        children = [(parent - loss, row) for loss, row in rows if math.isfinite(loss)]
        if self.iterated:
            gain, row = max(children, key=lambda child: child[0], default=(0.0, self.parent))
            self.parent = row if gain > 0 else self.parent
            self.best = []
        self.best = sorted([*self.best, *children], key=lambda child: -child[0])
        self.best = self.best[: self.start.wave - 1]

    def candidates(self) -> Tensor:
        return torch.stack([self.parent, *(row for _, row in self.best)])


class CMA(Rival):
    """`cma` in coordinates of its own. Nikolaus Hansen's package, its defaults but the wave."""

    def __init__(
        self,
        start: Start,
        rows_of: Callable[[Tensor], Tensor],
        dimensions: int,
        sigma: float,
        **options: Any,
    ) -> None:
        import cma

        super().__init__(start)
        self.rows_of = rows_of
        options |= {"popsize": start.wave, "seed": start.seed + 1, "verbose": -9}
        self.strategy = cma.CMAEvolutionStrategy(np.zeros(dimensions), sigma, options)

    def ask(self, fresh: bool) -> Tensor:
        self.proposed = self.strategy.ask()
        return self._rows(self.proposed)

    def tell(self, losses: Tensor) -> None:
        self.strategy.tell(self.proposed, losses.clamp_max(1e9).tolist())

    def candidates(self) -> Tensor:
        return self._rows([self.strategy.result.xfavorite])

    def _rows(self, points: list[np.ndarray]) -> Tensor:
        return self.rows_of(torch.from_numpy(np.stack(points)))


def separable_cma(start: Start) -> CMA:
    """Ros & Hansen 2008: a diagonal covariance, on all weights in units of the spread."""

    def rows_of(z: Tensor) -> Tensor:
        return start.centre + start.spread * z.float()

    return CMA(start, rows_of, len(start.centre), 0.1, CMA_diagonal=True)


def cma_soup(start: Start, by_layer: bool) -> CMA:
    """Learned soups as mergekit-evolve has them: CMA-ES on the members' coefficients.

    by_layer: one a member and layer, else one a member; they begin at the uniform soup, and a
    step's length is that soup's coefficient. What they lack to a sum of 1 is spread evenly.
    """
    population = start.population
    blocks = start.layers if by_layer else Blocks.whole(population.layout)
    members = population.size

    def rows_of(points: Tensor) -> Tensor:
        recipes = points.reshape(len(points), len(blocks), members) + 1 / members
        missing = (1 - recipes.sum(2, keepdim=True)) / members
        return blocks.compose(population, torch.stack([closed(r) for r in recipes + missing]))

    return CMA(start, rows_of, len(blocks) * members, 1 / members)


class Pymoo(Rival):
    """An algorithm of `pymoo` with the members and the soups as its population.

    Its population is scored anew on a fresh batch, as parents are in a search of weights.
    """

    def __init__(self, start: Start, make: Callable[..., Any]) -> None:
        from pymoo.core.problem import Problem
        from pymoo.core.termination import NoTermination

        super().__init__(start)
        first = torch.cat([start.rows, start.soups]).double().numpy()
        low, high = first.min(0), first.max(0)
        room = np.maximum(high - low, 1e-9)  # pads and equal weights have no range
        self.problem = Problem(n_var=first.shape[1], n_obj=1, xl=low - room, xu=high + room)
        self.algorithm = make(pop_size=len(first), sampling=first)
        self.algorithm.setup(self.problem, termination=NoTermination(), seed=start.seed)
        self.rescoring = False

    def ask(self, fresh: bool) -> Tensor:
        self.rescoring = fresh and self.algorithm.is_initialized
        self.asked = self.algorithm.pop if self.rescoring else self.algorithm.ask()
        return self._rows(self.asked)

    def tell(self, losses: Tensor) -> None:
        from pymoo.core.evaluator import Evaluator
        from pymoo.problems.static import StaticProblem

        values = losses.clamp_max(1e9)[:, None].numpy()
        if self.rescoring:
            self.asked.set("F", values)
            self.algorithm._set_optimum()
        else:
            Evaluator().eval(StaticProblem(self.problem, F=values), self.asked)
            self.algorithm.tell(infills=self.asked)

    def candidates(self) -> Tensor:
        return self._rows(self.algorithm.pop)

    def _rows(self, individuals: Any) -> Tensor:
        return torch.from_numpy(individuals.get("X")).float()


def swarm(start: Start) -> Pymoo:
    """Particle swarm with inertia, adaptive as in Zhan et al. 2009; at rest at first."""
    from pymoo.algorithms.soo.nonconvex.pso import PSO

    return Pymoo(start, partial(PSO, initial_velocity="zero"))


def genetic(start: Start) -> Pymoo:
    """A plain genetic algorithm: tournaments, simulated binary crossover, polynomial mutation."""
    from pymoo.algorithms.soo.nonconvex.ga import GA

    return Pymoo(start, GA)


RIVALS: dict[str, Callable[[Start], Rival]] = {
    "openai-es": OpenAIES,
    "sep-cma": separable_cma,
    "pso": swarm,
    "ga": genetic,
    "smd": partial(SparseMutations, iterated=False),
    "smd-iterated": partial(SparseMutations, iterated=True),
    "cma-member": partial(cma_soup, by_layer=False),
    "cma-layer": partial(cma_soup, by_layer=True),
}
