"""Metrics that have no gradient: recipes and weights evolved for them, and training by the loss.

On the images that members were trained on there are 10,000 fitness images, and others validate; of
another kind there are 2,000 labelled images, of which folds choose, or a fifth of them where a
method knows no folds. Decisions of the cost matrix are those of least expected cost by the
network's probabilities, for all alike: who has costs and a trained network does not need evolution
for that. Nor for a temperature, which is fitted on the validation images.
"""

from __future__ import annotations

import copy
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import deevo_ext as deevo
from deevo_ext.data.images import ImageSet
from deevo_ext.fitness.metrics import Metric, Scores
from deevo_ext.runs.given import Keywords
from deevo_ext.runs.state import SOUP
from deevo_ext.training import few_labels
from deevo_ext.training.few_labels import logits_of
from deevo_ext.training.fine_tune import fine_tune

from . import adaptation, cases
from .bounds import TUNING, differentiable
from .cases import Case, case_of
from .csv_files import Line, Lines
from .kinds import SAME
from .populations import Setting
from .training import careful

PASSES = 600_000
LABELS, SEVERITY = 2000, 2
_BINS = 15
# What it costs to take a class (line) for another (column): drawn once, from 0.2 to 5.
_COSTS = 0.2 * 25.0 ** torch.rand(10, 10, generator=torch.Generator().manual_seed(0))
COSTS = _COSTS.fill_diagonal_(0.0)


def cost(logits: Tensor, labels: Tensor) -> Tensor:
    """The costs [n] of the decisions of least expected cost."""
    decided = (logits.softmax(dim=1) @ COSTS).argmin(dim=1)
    return COSTS[labels, decided]


def calibration_error(logits: Tensor, labels: Tensor) -> float:
    """Expected calibration error in 15 bins of confidence (Guo et al., arXiv 1706.04599)."""
    confidence, predicted = logits.softmax(dim=1).max(dim=1)
    surplus = confidence.double() - (predicted == labels).double()
    bins = (confidence * _BINS).long().clamp_max(_BINS - 1)
    sums = torch.zeros(_BINS, dtype=torch.float64).index_add_(0, bins, surplus)
    return float(sums.abs().sum() / len(labels))


METRICS: dict[str, str | Scores] = {
    "worst-class": "worst-class",
    "macro-f1": "macro-f1",
    "cost": cost,
    "calibration": Metric.of(calibration_error, whole=True),
}
SEARCHES = ("coefficients", "weights")
TRAINED, COOLED = "trained by the loss", "temperature fitted"


def measure(root: Path, setting: Setting, seed: int, kind: str, name: str) -> Lines:
    """Evolves a population for a metric by both searches, and trains its soup by the loss.

    Returns the networks' lines of `metrics.csv`; which search made a network is in its line.
    """
    case, metric = case_of(root, setting, seed), Metric.of(METRICS[name])
    fitness, validation, test = _images(case, kind)
    lines, soup = [], copy.deepcopy(case.network)
    for search in SEARCHES:
        parts: tuple[ImageSet, ImageSet | None] = (fitness, validation)
        if validation is None and search == "weights":
            fifth = len(fitness) // 5
            parts = (fitness.slice(fifth, len(fitness)), fitness.slice(0, fifth))
        began = time.process_time()
        result = _evolved(case, METRICS[name], search, *parts, test)
        seconds = round(time.process_time() - began, 2)
        lines += [{"search": search, **line, "seconds": seconds} for line in _lines(result)]
        if search == "coefficients":  # whose soup has its statistics re-estimated
            soup.load_state_dict(result.run.state.initial["soup"].state_dict(result.run.population))
    began = time.process_time()
    if validation is None:
        trained = careful(soup, fitness, seed, few_labels.LENGTHS).network
    else:
        trained = differentiable(copy.deepcopy(soup))
        fine_tune(trained, fitness, TUNING)
    seconds = round(time.process_time() - began, 2)
    judges = fitness if validation is None else validation
    for what, network in ((SOUP, soup), (TRAINED, trained)):
        logits = logits_of(network, test)
        scale = 1 / temperature(logits_of(network, judges), judges.labels)
        for called, some in ((what, logits), (f"{what}, {COOLED}", scale * logits)):
            if called != SOUP:
                lines.append(_line(called, some, test.labels, metric))
        if what == TRAINED:
            lines[-2]["seconds"] = seconds
    about = {"setting": setting.name, "population": seed, "kind": kind, "metric": name}
    return {"metrics": [about | line for line in lines]}


def temperature(logits: Tensor, labels: Tensor) -> float:
    """Returns what logits are to be divided by for the least loss on these images."""
    low, high = -3.0, 3.0  # of its logarithm; the loss is convex in the inverse temperature
    for _ in range(40):
        a, b = low + (high - low) / 3, high - (high - low) / 3
        losses = [F.cross_entropy(logits.double() / 2.718281828**t, labels) for t in (a, b)]
        low, high = (low, b) if losses[0] < losses[1] else (a, high)
    return float(2.718281828 ** ((low + high) / 2))


def _images(case: Case, kind: str) -> tuple[ImageSet, ImageSet | None, ImageSet]:
    """Fitness images, those of validation, if there are others, and those of the test."""
    if kind != SAME:
        labels = min(LABELS, len(case.sets.fitness))
        labelled, test, _ = adaptation.images_of(case, kind, SEVERITY, labels, 0)
        return labelled, None, test
    return case.sets.fitness, case.validation, case.sets.test


def _evolved(
    case: Case,
    metric: str | Scores,
    search: str,
    fitness: ImageSet,
    validation: ImageSet | None,
    test: ImageSet,
) -> deevo.Result:
    options: Keywords = {
        "search": search,
        "metric": metric,
        "seed": case.seed,
        "micro_batch": cases.MICRO_BATCH if validation is not None else 100,
        "precision": "float32",
        "chunk": len(case.paths) + 2,
        "basin": "ignore",
        "progress": False,
    }
    if search == "coefficients":
        options["passes"] = PASSES
    else:
        options |= {
            "generations": cases.GENERATIONS,
            "images_per_batch": min(cases.IMAGES_PER_BATCH, len(fitness)),
            "generations_per_batch": cases.GENERATIONS_PER_BATCH,
            "validate_every": cases.VALIDATE_EVERY,
        }
    return deevo.evolve(case.network, case.paths, fitness, validation, test, **options)


def _lines(result: deevo.Result) -> list[Line]:
    assert result.comparison is not None
    return [
        {
            "network": network.name,
            "returned": int(network.returned),
            "value": network.metric,
            "loss": network.loss,
            "top1": network.top1,
            "forward_passes": network.forward_passes,
        }
        for network in result.comparison.networks
    ]


def _line(name: str, logits: Tensor, labels: Tensor, metric: Metric) -> Line:
    return {
        "search": None,
        "network": name,
        "returned": 0,
        "value": metric(logits, labels),
        "loss": float(F.cross_entropy(logits.double(), labels)),
        "top1": float((logits.argmax(dim=1) == labels).double().mean()),
    }
