"""What each evaluation policy does to a real population.

Each policy evolves it with the same seed, by the authors' pool alone, and with the same number of
images in a generation; validation images choose the network that is judged on the test images.
Policies of BatchNorm also say what they do to parents, to the trials of the first generation and to
the plain average.
"""

from __future__ import annotations

import statistics
from dataclasses import replace
from pathlib import Path

import deevo_ext as deevo
from deevo_ext.data.images import ImageSet
from deevo_ext.fitness.statistics import Inherited
from deevo_ext.runs.given import Keywords
from deevo_ext.runs.soups import average
from deevo_ext.runs.state import SOUP

from .cases import Case, case_of
from .csv_files import Line, Lines
from .populations import Setting
from .runs import evolve

GENERATIONS, IMAGES, MICRO_BATCH = 10, 1000, 250
VALIDATION, CALIBRATION = 1000, 512

POLICIES: dict[str, Keywords] = {
    "batchnorm=evolve": {},
    "batchnorm=inherit": {"batchnorm": "inherit"},
    "batchnorm=recalibrate": {"batchnorm": "recalibrate"},
    "fixed images": {"generations_per_batch": GENERATIONS + 1},
    "importance": {"sampling": "importance"},
    "augment=mirror": {"augment": "mirror"},
    "metric=top1": {"metric": "top1"},
    "label_smoothing=0.1": {"label_smoothing": 0.1},
    "racing=0.01": {"racing": 0.01},
}


def measure(root: Path, setting: Setting, seed: int, name: str) -> Lines:
    """Evolves a population by a policy; returns its line of `policies.csv`."""
    case, policy = case_of(root, setting, seed), POLICIES[name]
    case = replace(case, validation=case.sets.validation.subset(range(VALIDATION)))
    calibration = _calibration(case) if name == "batchnorm=recalibrate" else None
    options: Keywords = {
        "generations": GENERATIONS,
        "validate_every": GENERATIONS,
        "images_per_batch": IMAGES,
        "micro_batch": MICRO_BATCH,
        "strategies": "interp",
        "inject_soups": False,
        "seed": 0,
    }
    result = evolve(case, f"policy-{name}", options | policy, calibration)
    comparison = result.comparison
    assert comparison is not None and comparison.rival is not None
    assert comparison.evolved is not None
    networks = {network.name: network for network in comparison.networks}
    evolved, rival = networks[comparison.evolved], comparison.rival
    low, high = rival.interval
    line = {
        "setting": setting.name,
        "population": seed,
        "policy": name,
        "generations": GENERATIONS,
        "images": IMAGES,
        "returned": f"{result.candidate.kind} of generation {result.candidate.generation}",
        "loss": evolved.loss,
        "top1": evolved.top1,
        "difference": rival.mean,
        "low": low,
        "high": high,
        "best_parent_loss": networks["best parent"].loss,
        "average_loss": networks["initial weight average"].loss,
        "greedy_soup_loss": networks[SOUP].loss,
        "accepted": statistics.mean(metrics["success_rate"] for metrics in result.history),
        "forward_passes": result.run.forward_passes,
    }
    if name.startswith("batchnorm"):
        line |= _first_trials(case, name.partition("=")[2])
    return {"policies": [line]}


def _first_trials(case: Case, batchnorm: str) -> Line:
    """Scores parents, their first trials and the plain average on the validation images."""
    members = deevo.Population.from_checkpoints(case.network, case.paths, batchnorm=batchnorm)
    evaluator = deevo.Evaluator(
        case.network, members, micro_batch=MICRO_BATCH, calibration=_calibration(case)
    )
    de = deevo.DifferentialEvolution(members, strategies="interp", generations=GENERATIONS, seed=0)
    inherited = Inherited(members.statistics)
    parents = [s.loss for s in evaluator.scores(members.rows, case.validation, inherited)]
    de.ask()
    de.tell(parents)
    rows = de.ask().rows(range(members.size))
    trials = [s.loss for s in evaluator.scores(rows, case.validation, inherited)]
    mean, mean_statistics = average(members, range(members.size))
    return {
        "parents_loss": statistics.mean(parents),
        "trials_loss": statistics.mean(trials),
        "worst_trial_loss": max(trials),
        "mean_loss": evaluator.score(mean, case.validation, mean_statistics),
    }


def _calibration(case: Case) -> ImageSet:
    return case.sets.train.subset(range(CALIBRATION))
