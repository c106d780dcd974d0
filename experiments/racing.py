"""What racing saves and what it costs, on real populations.

A population is evolved with full evaluations, on all fitness images in every generation. Every
trial is also raced, on the scores that the full evaluation has given: how many images it would have
seen, and whether the decision would have been another. As a dropped trial is a rejected one, a
raced run is the same run bit for bit up to its first other decision; if there is one, the
population is evolved a second time with the races' decisions. The change is that of the loss of the
network that the validation images choose, on the test images.
"""

from __future__ import annotations

from pathlib import Path

import torch

import deevo_ext as deevo
from deevo_ext.fitness.racing import LOOKS_PER_DOUBLING, Look, Racing
from deevo_ext.runs.state import RunState

from .cases import Case, case_of
from .csv_files import Line, Lines
from .populations import Setting

PRESET = "sa-shade-tri-ensin"
# The default of `deevo.evolve`; looks fall on its multiples.
MICRO_BATCH = 64


def measure(root: Path, setting: Setting, seed: int, generations: int, error: float) -> Lines:
    """Races a population; returns its line of `racing.csv`."""
    case, racing = case_of(root, setting, seed), Racing(error)
    full = _evolve(case, generations, racing, raced=False)
    raced = full
    if full["other_decisions"]:
        raced = _evolve(case, generations, racing, raced=True)
    gain = full["best_parent_test_loss"] - full["evolved_test_loss"]
    line = {
        "setting": setting.name,
        "population": seed,
        "strategies": PRESET,
        "generations": generations,
        "micro_batch": MICRO_BATCH,
        "looks_per_doubling": LOOKS_PER_DOUBLING,
        **racing.describe(),
        "members": len(case.paths),
        "fitness_images": len(case.sets.fitness),
        **full,
        "raced_share": raced["share"],
        "raced_test_loss": raced["evolved_test_loss"],
        "change_of_gain": (raced["evolved_test_loss"] - full["evolved_test_loss"]) / gain,
    }
    return {"racing": [line]}


def _evolve(case: Case, generations: int, racing: Racing, *, raced: bool) -> Line:
    """Evolves the population once.

    raced: whether the races decide, instead of only being watched.
    """
    test, validation = case.sets.test, case.sets.validation
    population = deevo.Population.from_checkpoints(case.network, case.paths)
    evaluator = deevo.Evaluator(case.network, population, micro_batch=MICRO_BATCH)
    fitness = deevo.ClassificationFitness(evaluator, case.sets.fitness, racing=racing)
    de = deevo.DifferentialEvolution(population, preset=PRESET, generations=generations, seed=0)
    everyone = torch.arange(population.size)
    looks = fitness.looks(0)

    def whole(rows: torch.Tensor) -> torch.Tensor:
        parts = [fitness.part(rows, 0, look, None) for look in range(len(looks))]
        return torch.cat(parts, dim=1)

    parents = whole(population.rows)
    validated = [evaluator.score(row, validation) for row in population.rows]
    best = min(range(population.size), key=validated.__getitem__)
    best_parent = evaluator.score(population.rows[best], test)
    de.ask()
    de.tell([fitness.reduce(scores, 0) for scores in parents])
    seen = accepted = other = 0
    for _ in range(generations):
        rows = de.ask().rows(everyone)
        trials = whole(rows)
        values = [fitness.reduce(scores, 0) for scores in trials]
        at = [Look(racing, parents, end, len(looks) - 1) for end in looks[:-1]]
        for member in everyone.tolist():
            ends = (
                end
                for end, look in zip(looks, at, strict=False)
                if look.loses(trials[member, :end], parents[member, :end])
            )
            images = next(ends, looks[-1])
            if torch.equal(rows[member], population.rows[member]):
                images = looks[0]  # dropped as its own parent
            seen += images
            wins = values[member] < fitness.reduce(parents[member], 0)
            accepted += wins
            if images < looks[-1]:
                other += wins
                if raced:
                    values[member] = float("inf")
        generation = de.tell(values)
        assert generation is not None
        won = generation.members[generation.accepted]
        parents[won] = trials[won]
    state = RunState(de, evaluator.used_statistics)
    state.validate(lambda row, inherited: evaluator.score(row, validation, inherited))
    decisions = generations * population.size
    return {
        "share": seen / (decisions * looks[-1]),
        "accepted": accepted / decisions,
        "decisions": decisions,
        "other_decisions": other,
        "best_parent_test_loss": best_parent,
        "evolved_test_loss": evaluator.score(state.chosen().row, test),
    }
