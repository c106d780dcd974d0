"""Why it works: what evolves steps best on one linear model, and how far that model holds.

The model is such as a run's first round has: the greedy soup's neighbourhood, a thousand images.
Every optimizer minimises the same fitness with as many evaluations; what it found is also scored on
a model of other images, and by the real network. The convex fit is the optimum of the loss, so it
says how much of what there is the others find.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import deevo_ext as deevo
from deevo_ext.data import ImageSet
from deevo_ext.fitness.metrics import Metric
from deevo_ext.fitness.virtual import guided_fitness, virtual_fitness
from deevo_ext.population.recipes import uniform
from deevo_ext.runs.recipe_run import RecipeRun
from deevo_ext.runs.rounds import RoundSearch
from deevo_ext.search.linear_model import LinearModel
from deevo_ext.search.presets import configure
from deevo_ext.search.virtual import GENERATIONS, INDIVIDUALS, evolve_virtually

from .cases import MICRO_BATCH, case_of
from .csv_files import Line, Lines
from .populations import Setting
from .variants import RAND_1, TO_PBEST

RIDGE = 0.01
IMAGES = 1000
LOOKS = (30, 100, GENERATIONS)
LENGTHS = (0.1, 0.3, 0.6, 1.0, 2.0)
_DRAWS = 3  # random steps of each length
CONVEX, CMA = "convex fit", "CMA-ES"

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "default": {},
    "uniform-odds": {"adapt_strategies": False},
    "no-memories": {"adapt_memories": False},
    "no-sinusoid": {"sinusoid": "none"},
    "no-trig": {"strategies": [TO_PBEST, RAND_1]},
    "constant-f": {"adapt_memories": False, "sinusoid": "none"},
    "paper": {"preset": "paper"},
}
"""Options of the virtual evolution; beside them `CONVEX` and `CMA`."""
METRICS = ("loss", "worst-class")


@dataclass(frozen=True)
class Neighbourhood:
    """A run's first round: its recipe [blocks, members], and models of two sets of images."""

    search: RoundSearch
    recipe: Tensor
    model: LinearModel
    other: LinearModel
    images: ImageSet

    def real(self, steps: list[Tensor], images: ImageSet, metric: Metric) -> list[float]:
        """The metric's fitness of the networks that steps [directions] lead to."""
        probing, evaluator = self.search.probing, self.search.evaluator
        recipes = torch.stack([probing.after(self.recipe, step, 1.0) for step in steps])
        rows, found = probing.compose(recipes), []
        for some in rows.split(probing.chunk):
            used = evaluator.used_statistics(some, None)
            scores = evaluator.image_scores(some, images, metric, used).cpu()
            found += metric.fitness(scores, images.labels).tolist()
        return found


def neighbourhood(root: Path, setting: Setting, seed: int) -> tuple[Neighbourhood, ImageSet]:
    """Probes around a population's greedy soup; also returns other images, which judge."""
    case = case_of(root, setting, seed)
    result = deevo.evolve(
        case.network,
        case.paths,
        case.sets.fitness,
        case.validation,
        rounds=1,
        passes=1,  # the initial networks alone
        seed=seed,
        micro_batch=MICRO_BATCH,
        precision="float32",
        basin="ignore",
        progress=False,
    )
    run = result.run
    assert isinstance(run, RecipeRun)
    search = run.rounds
    soup = run.state.initial["soup"]
    recipe = uniform(len(run.state.blocks), run.population.initial_size, soup.members)
    fitness = case.sets.fitness
    few = min(IMAGES, len(fitness) // 2)
    sets = [fitness.slice(0, few), fitness.slice(few, 2 * few)]
    model, other = (search.probing.model(recipe, images)[0] for images in sets)
    return Neighbourhood(search, recipe, model, other, sets[0]), case.validation


def compare_optimizers(root: Path, setting: Setting, seed: int) -> Lines:
    """Minimises both metrics on a linear model; returns lines of `virtual.csv`."""
    near, judges = neighbourhood(root, setting, seed)
    lines = []
    for name in METRICS:
        metric = Metric.of(name)
        fitness = (virtual_fitness(near.model, metric, RIDGE) if name == "loss"
                   else guided_fitness(near.model, metric, RIDGE, None))  # fmt: skip
        zero = torch.zeros(1, near.model.directions)
        plain = [virtual_fitness(model, metric, 0.0) for model in (near.model, near.other)]
        before = [float(fitness(zero)), *(float(one(zero)) for one in plain)]
        (start,) = near.real([near.model.step_of(zero[0].double()).float()], judges, metric)
        for called in (*OPTIMIZERS, CONVEX, CMA):
            best, course = _minimised(near.model, fitness, called, seed)
            step = near.model.step_of(best)
            q, elsewhere = best.float()[None], near.other.coordinates_of(step).float()[None]
            after = [float(fitness(q)), float(plain[0](q)), float(plain[1](elsewhere))]
            (end,) = near.real([step.float()], judges, metric)
            found = dict(zip(("fitness", "metric", "other"), after, strict=True))
            gains = {f"{k}_gain": b - found[k] for k, b in zip(found, before, strict=True)}
            looks = {f"fitness_gain_{g}": before[0] - f for g, f in course.items()}
            lines.append(
                {
                    "setting": setting.name,
                    "population": seed,
                    "metric": name,
                    "optimizer": called,
                    **{k: float(f"{v:.6g}") for k, v in {**gains, **looks}.items()},
                    "real_gain": float(f"{start - end:.6g}"),
                    "norm": float(f"{float(best.norm()):.5g}"),
                }
            )
    return {"virtual": lines}


def _minimised(
    model: LinearModel, fitness: Callable[[Tensor], Tensor], name: str, seed: int
) -> tuple[Tensor, dict[int, float]]:
    """The best q float64 [d] that an optimizer found, and its fitness after some generations."""
    if name == CONVEX:
        return model.fit(RIDGE), {}
    # Of a run's first individuals half lie around the convex fit, which for the loss is the end;
    # here all lie around no step, as far from it as the fit is.
    spread = float(model.fit(RIDGE).square().mean().sqrt())
    if name == CMA:
        return _by_cma(model.directions, spread, fitness, seed)
    generator = torch.Generator().manual_seed(seed)
    first = spread * torch.randn(INDIVIDUALS, model.directions, generator=generator)
    first[0] = 0.0
    options = dict(OPTIMIZERS[name])
    preset = options.pop("preset", "sa-shade-tri-ensin")
    configuration = configure(preset, generations=GENERATIONS, **options)
    course: dict[int, float] = {}
    best, evaluations = float("inf"), 0

    def watched(q: Tensor) -> Tensor:
        nonlocal best, evaluations
        found = fitness(q)
        best, evaluations = min(best, float(found.min())), evaluations + 1
        if evaluations - 1 in LOOKS:
            course[evaluations - 1] = best
        return found

    return evolve_virtually(watched, first, configuration, 0, seed).best, course


def _by_cma(
    size: int, spread: float, fitness: Callable[[Tensor], Tensor], seed: int
) -> tuple[Tensor, dict[int, float]]:
    """CMA-ES of the package cma, with as many individuals a generation, from no step."""
    import cma

    never = dict.fromkeys(("tolfun", "tolx", "tolfunhist"), 0)
    never |= dict.fromkeys(("tolstagnation", "tolflatfitness"), 10**9)
    options = {"popsize": INDIVIDUALS, "seed": seed + 1, "verbose": -9} | never
    strategy = cma.CMAEvolutionStrategy(np.zeros(size), spread, options)
    best, course = (float("inf"), np.zeros(size)), {}
    for generation in range(1, GENERATIONS + 1):
        asked = strategy.ask()
        values = fitness(torch.from_numpy(np.array(asked)).float()).tolist()
        strategy.tell(asked, values)
        at = min(range(len(values)), key=values.__getitem__)
        if values[at] < best[0]:
            best = (values[at], asked[at])
        if generation in LOOKS:
            course[generation] = best[0]
    return torch.from_numpy(best[1]).double(), course


def linearity(root: Path, setting: Setting, seed: int) -> Lines:
    """Promises of the model and what real networks do; returns lines of `linearity.csv`.

    On the images of the model, so that only the networks' curvature makes a difference: the convex
    fit at several lengths, its part in each block, and random steps of the same lengths.
    """
    near, _ = neighbourhood(root, setting, seed)
    model, metric = near.model, Metric.of("loss")
    score = virtual_fitness(model, metric, 0.0)
    fit = model.fit(RIDGE)
    members = near.recipe.shape[1]
    steps: list[tuple[str, float, Tensor]] = [("fit", length, length * fit) for length in LENGTHS]
    for block in range(len(near.recipe)):
        inside = torch.zeros_like(fit)
        some = slice(block * members, (block + 1) * members)
        inside[some] = fit[some]
        steps += [(f"block {block}", length, length * inside) for length in (0.3, 1.0)]
    generator = torch.Generator().manual_seed(seed)
    for length in LENGTHS:
        for _ in range(_DRAWS):
            q = torch.randn(len(fit), generator=generator, dtype=torch.float64)
            steps.append(("random", length, q * (length * fit.norm() / q.norm())))
    zero = torch.zeros_like(fit)
    promised = score(torch.stack([zero, *(q for *_, q in steps)]).float()).tolist()
    real = near.real(
        [model.step_of(q).float() for q in (zero, *(q for *_, q in steps))], near.images, metric
    )
    lines: list[Line] = [
        {
            "setting": setting.name,
            "population": seed,
            "step": name,
            "length": length,
            "norm": float(f"{float(q.norm()):.5g}"),
            "predicted": float(f"{promised[0] - one:.6g}"),
            "real": float(f"{real[0] - two:.6g}"),
        }
        for (name, length, q), one, two in zip(steps, promised[1:], real[1:], strict=True)
    ]
    return {"linearity": lines}
