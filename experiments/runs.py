"""One run of one variant on one population, and the lines that are kept of it."""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

import deevo_ext as deevo
from deevo_ext.data import ImageSets
from deevo_ext.data.images import ImageSet
from deevo_ext.fitness.metrics import Metric
from deevo_ext.fitness.sampling import batch_indices
from deevo_ext.networks.blocks import blocks_of
from deevo_ext.runs.soups import SOUPS, greedy_soup
from deevo_ext.runs.state import SOUP, TREATED_NAMES, Candidate, Candidates
from deevo_ext.runs.treatments import Treatments
from deevo_ext.runs.validation import Validation

from . import recipes, rivals
from .bounds import learned_soup, tuned_soup
from .csv_files import Line, Lines
from .populations import Setting, folder_of, images_of, make, new_network
from .variants import PEERS, PLOTTED, RATED, RECIPES, VARIANTS

# Common to all variants that search weights: what a run costs, and how its result is chosen.
GENERATIONS = 30
IMAGES_PER_BATCH = 2000
GENERATIONS_PER_BATCH = 3
VALIDATE_EVERY = 15
# Common to all.
VALIDATION = 4000
MICRO_BATCH = 500

_OF_EVOLVED = {names[1] for names in TREATED_NAMES.values()}

NETWORKS = "networks"
"""The name of a run's lines that go into its setting's file."""
# The metrics of a round that are kept, and their names; which of them are whole numbers.
_WHOLE = ("round", "by_channel", "accepted", "by_de", "left_out", "forward_passes")
_OF_A_ROUND = {
    **{name: name for name in ("round", "by_channel", "accepted", "by_de", "left_out")},
    **{name: name for name in ("radius", "length")},
    **{name: name for name in ("predicted_gain", "gain", "standard_error")},
    "validation/recipe": "validation_loss",
    "round_passes": "forward_passes",
    "seconds": "seconds",
}


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
    if what in VARIANTS:
        case = replace(case, paths=case.paths[: VARIANTS[what].members])
    about = {"variant": what, "population": seed}
    lines = _evolved(case, what) if what in VARIANTS else {NETWORKS: _fitted(case, what)}
    return {
        setting.name: [{**about, **line} for line in lines.pop(NETWORKS)],
        **{
            name: [{"setting": setting.name, **about, **line} for line in some]
            for name, some in lines.items()
            if some
        },
    }


def evolve(case: Case, name: str, options: dict[str, Any]) -> deevo.Result:
    """Runs `deevo.evolve` on a population; a run of this name that was cut off goes on."""
    return deevo.evolve(
        case.network,
        case.paths,
        case.sets.fitness,
        run_dir=case.folder / "runs" / name,
        test_images=case.sets.test,
        basin="ignore",
        progress=False,
        **{
            "search": "weights",
            "validation_images": case.validation,
            "seed": case.seed,
            **options,
        },
    )


def _evolved(case: Case, name: str) -> Lines:
    """Evolves the population by a variant; returns lines of its networks, generations and rounds.

    Each network has its test loss, its top-1 and what it took; the candidates of validation also
    have their loss there. The best evolved one counts as returned whatever the run returned, and
    has its difference to the best initial one; where nothing was evolved, what was returned counts.
    Generations are kept of the variants that the plots show.
    """
    options: dict[str, Any] = {
        "micro_batch": MICRO_BATCH,
        "precision": "float32",
        "chunk": len(case.paths) + 2,
    }
    if name not in RECIPES:
        options |= {
            "generations": GENERATIONS,
            "images_per_batch": IMAGES_PER_BATCH,
            "generations_per_batch": GENERATIONS_PER_BATCH,
            "validate_every": VALIDATE_EVERY,
        }
    began = time.process_time()
    result = evolve(case, name, options | VARIANTS[name].options)
    seconds = round(time.process_time() - began, 1)
    comparison = result.comparison
    assert comparison is not None
    state, networks = result.run.state, []
    candidates = [*state.initial.values(), *state.evolved.values(), *state.treated]
    by_name = {candidate.name: candidate for candidate in candidates}
    for network in comparison.networks:
        candidate, is_best = by_name.get(network.name), network.name == comparison.evolved
        rival = comparison.rival if is_best else None
        counts = network.returned if comparison.evolved is None else is_best
        networks.append(
            {
                "network": network.name,
                "returned": int(counts),
                "loss": network.loss,
                "top1": network.top1,
                "gained": network.gained,
                "lost": network.lost,
                "inference": network.inference,
                "forward_passes": network.forward_passes,
                "validation_loss": candidate.score if candidate else None,
                "difference": rival.mean if rival else None,
                "low": rival.interval[0] if rival else None,
                "high": rival.interval[1] if rival else None,
                "generation": candidate.generation if candidate and counts else None,
                "seconds": seconds if counts else None,
            }
        )
    lines = {NETWORKS: networks}
    if name in RECIPES:
        lines["rounds"] = [_round(metrics) for metrics in result.history]
        folder = case.folder / "runs" / name
        lines["recipes"] = recipes.coefficients(folder)
        lines["curves"] = recipes.generations(folder, len(result.history))
    elif name in PLOTTED:
        lines["curves"] = [_generation(metrics, name in RATED) for metrics in result.history]
    return lines


def _round(metrics: dict[str, float]) -> Line:
    """Makes the line of a round in `rounds.csv`; what there was no proposal for is empty."""
    line: Line = {key: metrics[name] for name, key in _OF_A_ROUND.items()}
    for key, value in line.items():
        if math.isnan(value):
            line[key] = None
        else:
            line[key] = int(value) if key in _WHOLE else float(f"{value:.5g}")
    return line


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
    """Runs a peer or a bound; returns the lines of its network and of the greedy soup.

    A peer's network and the soup are also refitted, as an evolved one is.
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
        chosen = batch_indices(fitness.labels, IMAGES_PER_BATCH, batch, case.seed)
        scores = evaluator.scores(rows, fitness.subset(chosen))
        finalists.append(rows[min(range(len(scores)), key=lambda i: scores[i].loss)])
    scores = evaluator.scores(torch.stack(finalists), case.validation)
    return finalists[min(range(len(scores)), key=lambda i: scores[i].loss)]


def _waves() -> int:
    """How often a run scores all rows: each generation's trials, and parents on a fresh batch."""
    return GENERATIONS * (GENERATIONS_PER_BATCH + 1) // GENERATIONS_PER_BATCH


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
    start = rivals.Start(
        population,
        torch.stack([population.mean(range(population.size)), population.mean(greedy)]),
        blocks_of(evaluator.forward, population, shape, "layer").blocks,
        population.size + SOUPS,
        case.seed,
    )

    def score(rows: torch.Tensor, batch: int) -> torch.Tensor:
        chosen = batch_indices(fitness.labels, IMAGES_PER_BATCH, batch, case.seed)
        losses = [score.loss for score in evaluator.scores(rows, fitness.subset(chosen))]
        return torch.tensor(losses, dtype=torch.float64)

    return rivals.search(
        rivals.RIVALS[name](start),
        _waves(),
        score,
        lambda row: evaluator.score(row, case.validation),
        waves_per_batch=GENERATIONS_PER_BATCH + 1,
        validate_every=_waves() * VALIDATE_EVERY // GENERATIONS,
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
