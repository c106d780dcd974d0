"""One run of one variant on one population, and the lines that are kept of it."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

import deevo_ext as deevo
from deevo_ext.data import ImageSets
from deevo_ext.data.images import ImageSet
from deevo_ext.fitness.sampling import batch_indices
from deevo_ext.runs.soups import greedy_soup
from deevo_ext.runs.state import SOUP

from .bounds import learned_soup, tuned_soup
from .csv_files import Line, Lines
from .populations import Setting, folder_of, images_of, make, new_network
from .variants import PEERS, PLOTTED, RATED, VARIANTS

# Common to all variants: what a run costs, and how its result is chosen.
GENERATIONS = 30
IMAGES_PER_BATCH = 2000
GENERATIONS_PER_BATCH = 3
VALIDATE_EVERY = 15
VALIDATION = 4000
MICRO_BATCH = 500


@dataclass(frozen=True)
class Case:
    """A population and what it is evaluated with; network: its architecture, untrained."""

    folder: Path
    seed: int
    paths: list[Path]
    sets: ImageSets
    validation: ImageSet
    network: nn.Module


def case_of(root: Path, setting: Setting, seed: int) -> Case:
    """Loads a population and its images; trains the members that are missing."""
    paths, sets = make(root, setting, seed), images_of(seed)
    validation = sets.validation.subset(range(VALIDATION))
    folder = folder_of(root, setting, seed)
    return Case(folder, seed, paths, sets, validation, new_network(setting, sets))


def run(root: Path, setting: Setting, seed: int, what: str) -> Lines:
    """Runs a variant, peer or bound on a population and returns its lines of the records."""
    case = case_of(root, setting, seed)
    networks, generations = _evolved(case, what) if what in VARIANTS else (_fitted(case, what), [])
    about = {"variant": what, "population": seed}
    lines = {setting.name: [{**about, **line} for line in networks]}
    if generations:
        lines["curves"] = [{"setting": setting.name, **about, **line} for line in generations]
    return lines


def evolve(case: Case, name: str, options: dict[str, Any]) -> deevo.Result:
    """Runs `deevo.evolve` on a population; a run of this name that was cut off goes on."""
    return deevo.evolve(
        case.network,
        case.paths,
        case.sets.fitness,
        search="weights",
        run_dir=case.folder / "runs" / name,
        test_images=case.sets.test,
        basin="ignore",
        progress=False,
        **{"validation_images": case.validation, "seed": case.seed, **options},
    )


def _evolved(case: Case, name: str) -> tuple[list[Line], list[Line]]:
    """Evolves the population by a variant; returns the lines of its networks and generations.

    Each network has its test loss, its top-1 and what it took; the candidates of validation also
    have their loss there, and the best evolved one, which counts as returned whatever the run
    returned, its difference to the best initial one.
    Generations are kept of the variants that the plots show.
    """
    options: dict[str, Any] = {
        "generations": GENERATIONS,
        "images_per_batch": IMAGES_PER_BATCH,
        "generations_per_batch": GENERATIONS_PER_BATCH,
        "validate_every": VALIDATE_EVERY,
        "micro_batch": MICRO_BATCH,
        "precision": "float32",
        "chunk": len(case.paths) + 2,
    }
    result = evolve(case, name, options | VARIANTS[name].options)
    assert result.comparison is not None
    state, networks = result.run.state, []
    candidates = [*state.initial.values(), *state.evolved.values(), *state.treated]
    by_name = {candidate.name: candidate for candidate in candidates}
    rival = result.comparison.rival
    for network in result.comparison.networks:
        candidate, is_best = by_name.get(network.name), network.name == result.comparison.evolved
        (low, high) = rival.interval
        networks.append(
            {
                "network": network.name,
                "returned": int(is_best),
                "loss": network.loss,
                "top1": network.top1,
                "gained": network.gained,
                "lost": network.lost,
                "inference": network.inference,
                "forward_passes": network.forward_passes,
                "validation_loss": candidate.score if candidate else None,
                "difference": rival.mean if is_best else None,
                "low": low if is_best else None,
                "high": high if is_best else None,
                "generation": candidate.generation if candidate and is_best else None,
            }
        )
    history = result.history if name in PLOTTED else []
    return networks, [_generation(metrics, name in RATED) for metrics in history]


def _generation(metrics: dict[str, float], rated: bool) -> Line:
    """Makes the line of a generation in `curves.csv`.

    rated: whether trials and successes of each strategy are kept, too.
    """
    line: Line = {
        "generation": int(metrics["generation"]),
        "diversity": float(f"{metrics['diversity']:.5g}"),
    }
    for key in metrics:
        kind, _, rest = key.partition("/")
        strategy, _, what = rest.rpartition("/")
        if rated and kind == "strategy" and what in ("trials", "successes"):
            line[f"{what} of {strategy}"] = int(metrics[key])
    return line


def _fitted(case: Case, what: str) -> list[Line]:
    """Runs a peer or a bound; returns the lines of its network and of the greedy soup."""
    population = deevo.Population.from_checkpoints(case.network, case.paths)
    evaluator = _evaluator(case, population)
    greedy = _greedy(population, evaluator, case.validation)
    if what in PEERS:
        row = _random_soups(case, population, evaluator, greedy)
    else:
        row = _bound(case, population, greedy, what)
    passes = evaluator.forward_passes
    images = {"": case.sets.test, "validation_": case.validation, "fitness_": case.sets.fitness}
    soup, other = ({"network": name, "returned": int(name != SOUP)} for name in (SOUP, what))
    for prefix, part in images.items():
        scores = evaluator.scores(torch.stack([population.mean(greedy), row]), part)
        soup[f"{prefix}loss"], other[f"{prefix}loss"] = (score.loss for score in scores)
        if part is case.sets.test:
            soup["top1"], other["top1"] = (score.top1 for score in scores)
    return [soup, {**other, "forward_passes": passes if what in PEERS else None}]


def _random_soups(
    case: Case, population: deevo.Population, evaluator: deevo.Evaluator, greedy: list[int]
) -> torch.Tensor:
    """Finds the best of as many random soups as a run has evaluations: what search alone is worth.

    A soup is of any number of random members, its coefficients drawn evenly from the simplex. It
    is scored on batches like a run's; the best of each, and the greedy soup, go before validation.
    """
    fitness = case.sets.fitness
    generator = np.random.Generator(np.random.PCG64(case.seed))
    finalists = [population.mean(greedy)]
    batches = GENERATIONS * (GENERATIONS_PER_BATCH + 1) // GENERATIONS_PER_BATCH
    for batch in range(batches):
        rows = torch.stack([_drawn_soup(population, generator) for _ in range(population.size + 2)])
        chosen = batch_indices(fitness.labels, IMAGES_PER_BATCH, batch, case.seed)
        scores = evaluator.scores(rows, fitness.subset(chosen))
        finalists.append(rows[min(range(len(scores)), key=lambda i: scores[i].loss)])
    scores = evaluator.scores(torch.stack(finalists), case.validation)
    return finalists[min(range(len(scores)), key=lambda i: scores[i].loss)]


def _drawn_soup(population: deevo.Population, generator: np.random.Generator) -> torch.Tensor:
    count = int(generator.integers(1, population.size + 1))
    members = generator.permutation(population.size)[:count].tolist()
    return population.mean(members, generator.dirichlet(np.ones(count)).tolist())


def _bound(case: Case, population: deevo.Population, greedy: list[int], kind: str) -> torch.Tensor:
    """Fits one of `BOUNDS`, from the greedy soup on; returns its weights as a row."""
    members = [load_file(path) for path in case.paths]
    network, fitness = copy.deepcopy(case.network), case.sets.fitness
    if kind == "tuned-soup":
        state = tuned_soup(network, members, greedy, fitness)
    else:
        by_tensor = kind == "learned-tensor"
        state = learned_soup(network, members, greedy, fitness, by_tensor=by_tensor)
    row = torch.zeros_like(population.rows[0])
    population.layout.flatten(state, row)
    return row


def _evaluator(case: Case, population: deevo.Population) -> deevo.Evaluator:
    return deevo.Evaluator(case.network, population, micro_batch=MICRO_BATCH, precision="float32")


def _greedy(
    population: deevo.Population, evaluator: deevo.Evaluator, validation: ImageSet
) -> list[int]:
    """The members of the greedy soup that the validation images build."""
    losses = [score.loss for score in evaluator.scores(population.rows, validation)]
    return greedy_soup(
        population,
        range(population.size),
        losses,
        lambda row, _: evaluator.score(row, validation),
    )[0]
