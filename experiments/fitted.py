"""What is compared with evolution: random soups, rivals, and what gradients reach."""

from __future__ import annotations

import copy
import time

import numpy as np
import torch
from safetensors.torch import load_file

import deevo_ext as deevo
from deevo_ext.data.images import ImageSet
from deevo_ext.fitness.metrics import Metric
from deevo_ext.fitness.sampling import batch_indices
from deevo_ext.networks.blocks import blocks_of
from deevo_ext.runs.soups import SOUPS, greedy_soup
from deevo_ext.runs.state import SOUP, TREATED_NAMES, Candidate, Candidates
from deevo_ext.runs.treatments import Treatments
from deevo_ext.runs.validation import Validation

from . import cases, rivals, waves
from .bounds import learned_soup, tuned_soup
from .cases import Case
from .csv_files import Line
from .variants import PEERS

_OF_EVOLVED = {names[1] for names in TREATED_NAMES.values()}


def fitted(case: Case, what: str) -> list[Line]:
    """Runs a peer or a bound; returns the lines of its network and of the greedy soup.

    A peer's network and the soup are also refitted, as a run's are at its end; of the peer's
    networks the one that validation prefers counts as returned.
    """
    began = time.process_time()
    population = deevo.Population.from_checkpoints(case.network, case.paths)
    evaluator = _evaluator(case, population)
    greedy = _greedy(population, evaluator, case.validation)
    if what == "random-soups":
        row = _random_soups(case, population, evaluator, greedy)
    elif what in rivals.RIVALS:
        row = _rival(case, population, evaluator, greedy, what)
    else:
        row = _bound(case, population, greedy, what)
    rows = {SOUP: population.mean(greedy), what: row}
    if what in PEERS:
        rows |= {one.name: one.row for one in _treated(case, evaluator, *rows.values())}
    passes, seconds = evaluator.forward_passes, round(time.process_time() - began, 1)
    images = {"": case.sets.test, "validation_": case.validation, "fitness_": case.sets.fitness}
    lines: dict[str, Line] = {name: {"network": name, "returned": 0} for name in rows}
    for prefix, part in images.items():
        scores = evaluator.scores(torch.stack([*rows.values()]), part)
        for line, score in zip(lines.values(), scores, strict=True):
            line[f"{prefix}loss"] = score.loss
            if part is case.sets.test:
                line["top1"] = score.top1
    found = [lines[name] for name in rows if name == what or name in _OF_EVOLVED]
    best = min(found, key=lambda line: line["validation_loss"])
    best |= {"returned": 1, "seconds": seconds}
    for line in found:
        line["forward_passes"] = passes if what in PEERS else None
    return list(lines.values())


def _treated(
    case: Case, evaluator: deevo.Evaluator, soup: torch.Tensor, row: torch.Tensor
) -> list[Candidate]:
    """Gives a peer's network what a run gives an evolved one at its end: a refit above all."""
    validation = Validation(evaluator, case.validation, Metric("loss"))
    state = Candidates(evaluator.population)
    scores = [score.loss for score in evaluator.scores(torch.stack([soup, row]), case.validation)]
    state.initial["soup"] = Candidate("soup", 0, (0,), scores[0], soup, None)
    state.evolved["member"] = Candidate("member", 1, (0,), scores[1], row, None)
    return Treatments(validation, case.sets.fitness, case.seed).of(state)


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
    wave = range(population.size + SOUPS)
    for batch in range(_waves()):
        rows = torch.stack([_drawn_soup(population, generator) for _ in wave])
        chosen = batch_indices(fitness.labels, cases.IMAGES_PER_BATCH, batch, case.seed)
        scores = evaluator.scores(rows, fitness.subset(chosen))
        finalists.append(rows[min(range(len(scores)), key=lambda i: scores[i].loss)])
    scores = evaluator.scores(torch.stack(finalists), case.validation)
    return finalists[min(range(len(scores)), key=lambda i: scores[i].loss)]


def _waves() -> int:
    """How often a run scores all rows: each generation's trials, and parents on a fresh batch."""
    return cases.GENERATIONS * (cases.GENERATIONS_PER_BATCH + 1) // cases.GENERATIONS_PER_BATCH


def _rival(
    case: Case,
    population: deevo.Population,
    evaluator: deevo.Evaluator,
    greedy: list[int],
    name: str,
) -> torch.Tensor:
    """Lets a rival search, on the batches of a run and validated as often as one."""
    fitness = case.sets.fitness
    evaluator.settle(fitness)
    shape = fitness.image_shape
    start = waves.Start(
        population,
        torch.stack([population.mean(range(population.size)), population.mean(greedy)]),
        blocks_of(evaluator.forward, population, shape, "layer").blocks,
        population.size + SOUPS,
        case.seed,
    )

    def score(rows: torch.Tensor, batch: int) -> torch.Tensor:
        chosen = batch_indices(fitness.labels, cases.IMAGES_PER_BATCH, batch, case.seed)
        losses = [score.loss for score in evaluator.scores(rows, fitness.subset(chosen))]
        return torch.tensor(losses, dtype=torch.float64)

    return waves.search(
        rivals.RIVALS[name](start),
        _waves(),
        score,
        lambda row: evaluator.score(row, case.validation),
        waves_per_batch=cases.GENERATIONS_PER_BATCH + 1,
        validate_every=_waves() * cases.VALIDATE_EVERY // cases.GENERATIONS,
    )


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
    return deevo.Evaluator(
        case.network, population, micro_batch=cases.MICRO_BATCH, precision="float32"
    )


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
