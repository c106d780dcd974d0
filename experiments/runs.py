"""One run of one variant on one population, and what is kept of it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

import deevo_ext as deevo
from deevo_ext.data.images import ImageSet
from deevo_ext.evolution.journal import FILE_NAME
from deevo_ext.evolution.soup import greedy_soup
from deevo_ext.files import write_whole
from deevo_ext.inference.fitness import batch_indices

from .bounds import learned_soup, tuned_soup
from .populations import Setting, folder_of, images_of, make, new_network
from .variants import Variant

# Common to all variants: what a run costs, and how its result is chosen.
GENERATIONS = 30
IMAGES_PER_BATCH = 2000
GENERATIONS_PER_BATCH = 3
VALIDATE_EVERY = 15
VALIDATION = 4000
MICRO_BATCH = 500


def run(root: Path, results: Path, setting: Setting, seed: int, variant: Variant) -> dict[str, Any]:
    """Evolves a population by a variant, unless that has been done; the record of the result."""
    target = results / setting.name / variant.name / f"{seed:02d}.json"
    if target.exists():
        return json.loads(target.read_text())
    paths = make(root, setting, seed)
    sets = images_of(seed)
    validation = sets.validation.subset(range(VALIDATION))
    network = new_network(setting, sets)
    folder = folder_of(root, setting, seed) / "runs" / variant.name
    options: dict[str, Any] = {
        "generations": GENERATIONS,
        "images_per_batch": IMAGES_PER_BATCH,
        "generations_per_batch": GENERATIONS_PER_BATCH,
        "validate_every": VALIDATE_EVERY,
        "micro_batch": MICRO_BATCH,
        **variant.options,
    }
    result = deevo.evolve(
        *(network, paths, sets.fitness, validation, sets.test),
        run_dir=folder,
        seed=seed,
        precision="float32",
        basin="ignore",
        chunk=len(paths) + 2,
        progress=False,
        **options,
    )
    assert result.comparison is not None
    course = result.run.course
    record = {
        "setting": setting.name,
        "seed": seed,
        "variant": variant.name,
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
    target.parent.mkdir(parents=True, exist_ok=True)
    write_whole(
        target.with_suffix(".journal.gz"),
        gzip.compress((folder / FILE_NAME).read_bytes(), mtime=0),
    )
    return _kept(target, record)


def random_soups(root: Path, results: Path, setting: Setting, seed: int) -> dict[str, Any]:
    """The best of as many random soups as a run has evaluations: what search alone is worth.

    A soup is of any number of random members, its coefficients drawn evenly from the simplex. It
    is scored on batches like a run's; the best of each, and the greedy soup, go before validation.
    """
    target = results / setting.name / "random-soups" / f"{seed:02d}.json"
    if target.exists():
        return json.loads(target.read_text())
    paths = make(root, setting, seed)
    sets = images_of(seed)
    validation = sets.validation.subset(range(VALIDATION))
    network = new_network(setting, sets)
    population = deevo.Population.from_checkpoints(network, paths)
    evaluator = deevo.Evaluator(network, population, micro_batch=MICRO_BATCH, precision="float32")
    everyone = list(range(population.size))
    greedy = _greedy(population, evaluator, validation)
    generator = np.random.Generator(np.random.PCG64(seed))
    finalists = [population.mean(greedy)]
    batches = GENERATIONS * (GENERATIONS_PER_BATCH + 1) // GENERATIONS_PER_BATCH
    for batch in range(batches):
        rows = torch.stack([_random_soup(population, generator) for _ in range(len(everyone) + 2)])
        chosen = batch_indices(sets.fitness.labels, IMAGES_PER_BATCH, batch, seed)
        scores = evaluator.scores(rows, sets.fitness.subset(chosen))
        finalists.append(rows[min(range(len(scores)), key=lambda i: scores[i].loss)])
    on_validation = [score.loss for score in evaluator.scores(torch.stack(finalists), validation)]
    best = finalists[min(range(len(finalists)), key=on_validation.__getitem__)]
    passes = evaluator.forward_passes
    soup, found = evaluator.scores(torch.stack([finalists[0], best]), sets.test)
    record = {
        "setting": setting.name,
        "seed": seed,
        "variant": "random-soups",
        "forward_passes": passes,
        "test": {"greedy soup": [soup.loss, soup.top1], "learned": [found.loss, found.top1]},
    }
    return _kept(target, record)


def _random_soup(population: deevo.Population, generator: np.random.Generator) -> torch.Tensor:
    count = int(generator.integers(1, population.size + 1))
    members = generator.permutation(population.size)[:count].tolist()
    return population.mean(members, generator.dirichlet(np.ones(count)).tolist())


def bound(root: Path, results: Path, setting: Setting, seed: int, kind: str) -> dict[str, Any]:
    """One of `BOUNDS` of a population, from its greedy soup: losses on each image set."""
    target = results / setting.name / kind / f"{seed:02d}.json"
    if target.exists():
        return json.loads(target.read_text())
    paths = make(root, setting, seed)
    sets = images_of(seed)
    members = [load_file(path) for path in paths]
    validation = sets.validation.subset(range(VALIDATION))
    network = new_network(setting, sets)
    population = deevo.Population.from_state_dicts(network, members)
    evaluator = deevo.Evaluator(network, population, micro_batch=MICRO_BATCH, precision="float32")
    greedy = _greedy(population, evaluator, validation)
    given = (new_network(setting, sets), members, greedy, sets.fitness)
    if kind == "tuned-soup":
        state = tuned_soup(*given)
    else:
        state = learned_soup(*given, by_tensor=kind == "learned-tensor")
    row = torch.zeros_like(population.rows[0])
    population.layout.flatten(state, row)
    soup = population.mean(greedy)
    record: dict[str, Any] = {"setting": setting.name, "seed": seed, "variant": kind}
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
    return _kept(target, record)


def _greedy(
    population: deevo.Population, evaluator: deevo.Evaluator, validation: ImageSet
) -> list[int]:
    """The members of the greedy soup that the validation images build."""
    losses = [score.loss for score in evaluator.scores(population.rows, validation)]
    return greedy_soup(
        *(population, range(population.size), losses),
        lambda row, _: evaluator.score(row, validation).loss,
    )[0]


def _kept(target: Path, record: dict[str, Any]) -> dict[str, Any]:
    """The record, which is now in its file too."""
    target.parent.mkdir(parents=True, exist_ok=True)
    write_whole(target, (json.dumps(record) + "\n").encode())
    return record


def _rounded(metrics: dict[str, float]) -> dict[str, float | None]:
    return {
        name: None if value != value else float(f"{value:.5g}") for name, value in metrics.items()
    }
