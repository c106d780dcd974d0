"""One run of one variant on one population, and what is kept of it."""

from __future__ import annotations

import copy
import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

import deevo_ext as deevo
from deevo_ext.data import FourSets
from deevo_ext.data.images import ImageSet
from deevo_ext.evolution.journal import FILE_NAME
from deevo_ext.evolution.soup import greedy_soup
from deevo_ext.files import write_whole
from deevo_ext.fitness.classification import batch_indices

from .bounds import learned_soup, tuned_soup
from .populations import Setting, folder_of, images_of, make, new_network
from .variants import BOUNDS, PEERS, VARIANTS, Variant

# Common to all variants: what a run costs, and how its result is chosen.
GENERATIONS = 30
IMAGES_PER_BATCH = 2000
GENERATIONS_PER_BATCH = 3
VALIDATE_EVERY = 15
VALIDATION = 4000
MICRO_BATCH = 500


Record = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A population and what it is evaluated with; network: its architecture, untrained."""

    folder: Path
    seed: int
    paths: list[Path]
    sets: FourSets
    validation: ImageSet
    network: nn.Module


def record_of(root: Path, results: Path, setting: Setting, seed: int, what: str) -> Record:
    """The record of a variant, peer or bound on a population, which is made unless it is there."""
    target = results / setting.name / what / f"{seed:02d}.json"
    if target.exists():
        return json.loads(target.read_text())
    paths, sets = make(root, setting, seed), images_of(seed)
    case = Case(
        folder_of(root, setting, seed),
        seed,
        paths,
        sets,
        sets.validation.subset(range(VALIDATION)),
        new_network(setting, sets),
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    if what in BOUNDS:
        found = _bound(case, what)
    elif what in PEERS:
        found = _random_soups(case)
    else:
        found = _run(case, VARIANTS[what], target.with_suffix(".journal.gz"))
    record = {"setting": setting.name, "seed": seed, "variant": what, **found}
    write_whole(target, (json.dumps(record) + "\n").encode())
    return record


def _run(case: Case, variant: Variant, journal: Path) -> Record:
    """Evolves the population by a variant; its journal is kept in `journal`."""
    folder = case.folder / "runs" / variant.name
    options: Record = {
        "generations": GENERATIONS,
        "images_per_batch": IMAGES_PER_BATCH,
        "generations_per_batch": GENERATIONS_PER_BATCH,
        "validate_every": VALIDATE_EVERY,
        "micro_batch": MICRO_BATCH,
        **variant.options,
    }
    result = deevo.evolve(
        *(case.network, case.paths, case.sets.fitness, case.validation, case.sets.test),
        run_dir=folder,
        seed=case.seed,
        precision="float32",
        basin="ignore",
        chunk=len(case.paths) + 2,
        progress=False,
        **options,
    )
    assert result.comparison is not None
    course = result.run.course
    write_whole(journal, gzip.compress((folder / FILE_NAME).read_bytes(), mtime=0))
    return {
        "comparison": result.comparison.to_json(),
        "validation": {
            "initial": {kind: c.score for kind, c in course.initial.items()},
            "evolved": {kind: c.score for kind, c in course.evolved.items()},
        },
        "returned": result.candidate.record(),
        "forward_passes": result.run.forward_passes,
        "seconds": result.run.seconds,
        "history": [_rounded(metrics) for metrics in result.history],
    }


def _random_soups(case: Case) -> Record:
    """The best of as many random soups as a run has evaluations: what search alone is worth.

    A soup is of any number of random members, its coefficients drawn evenly from the simplex. It
    is scored on batches like a run's; the best of each, and the greedy soup, go before validation.
    """
    sets, validation = case.sets, case.validation
    population = deevo.Population.from_checkpoints(case.network, case.paths)
    evaluator = _evaluator(case, population)
    everyone = list(range(population.size))
    greedy = _greedy(population, evaluator, validation)
    generator = np.random.Generator(np.random.PCG64(case.seed))
    finalists = [population.mean(greedy)]
    batches = GENERATIONS * (GENERATIONS_PER_BATCH + 1) // GENERATIONS_PER_BATCH
    for batch in range(batches):
        rows = torch.stack([_drawn_soup(population, generator) for _ in range(len(everyone) + 2)])
        chosen = batch_indices(sets.fitness.labels, IMAGES_PER_BATCH, batch, case.seed)
        scores = evaluator.scores(rows, sets.fitness.subset(chosen))
        finalists.append(rows[min(range(len(scores)), key=lambda i: scores[i].loss)])
    on_validation = [score.loss for score in evaluator.scores(torch.stack(finalists), validation)]
    best = finalists[min(range(len(finalists)), key=on_validation.__getitem__)]
    passes = evaluator.forward_passes
    soup, found = evaluator.scores(torch.stack([finalists[0], best]), sets.test)
    return {
        "forward_passes": passes,
        "test": {"greedy soup": [soup.loss, soup.top1], "learned": [found.loss, found.top1]},
    }


def _drawn_soup(population: deevo.Population, generator: np.random.Generator) -> torch.Tensor:
    count = int(generator.integers(1, population.size + 1))
    members = generator.permutation(population.size)[:count].tolist()
    return population.mean(members, generator.dirichlet(np.ones(count)).tolist())


def _bound(case: Case, kind: str) -> Record:
    """One of `BOUNDS`, from the greedy soup: losses on each image set."""
    sets, validation = case.sets, case.validation
    members = [load_file(path) for path in case.paths]
    population = deevo.Population.from_state_dicts(case.network, members)
    evaluator = _evaluator(case, population)
    greedy = _greedy(population, evaluator, validation)
    given = (copy.deepcopy(case.network), members, greedy, sets.fitness)
    if kind == "tuned-soup":
        state = tuned_soup(*given)
    else:
        state = learned_soup(*given, by_tensor=kind == "learned-tensor")
    row = torch.zeros_like(population.rows[0])
    population.layout.flatten(state, row)
    soup = population.mean(greedy)
    record: Record = {}
    for name, images in (
        ("fitness", sets.fitness),
        ("validation", validation),
        ("test", sets.test),
    ):
        scores = evaluator.scores(torch.stack([soup, row]), images)
        record[name] = {
            "greedy soup": [scores[0].loss, scores[0].top1],
            "learned": [scores[1].loss, scores[1].top1],
        }
    return record


def _evaluator(case: Case, population: deevo.Population) -> deevo.Evaluator:
    return deevo.Evaluator(case.network, population, micro_batch=MICRO_BATCH, precision="float32")


def _greedy(
    population: deevo.Population, evaluator: deevo.Evaluator, validation: ImageSet
) -> list[int]:
    """The members of the greedy soup that the validation images build."""
    losses = [score.loss for score in evaluator.scores(population.rows, validation)]
    return greedy_soup(
        *(population, range(population.size), losses),
        lambda row, _: evaluator.score(row, validation).loss,
    )[0]


def _rounded(metrics: dict[str, float]) -> dict[str, float | None]:
    return {
        name: None if value != value else float(f"{value:.5g}") for name, value in metrics.items()
    }
