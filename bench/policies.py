"""What each evaluation policy does to a real population.

    python -m bench.policies POPULATION [--generations 10] [--images 1000] [--json FILE]

POPULATION: a folder of `deevo_ext.demo.training.train_population` named seedN, of Fashion-MNIST.
Each policy evolves it with the same seed and the same number of images in a generation, and the
network that 1,000 validation images choose is judged on the 10,000 test images. BatchNorm policies
also say what they do to parents, to the trials of the first generation and to the plain average.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

import deevo_ext as deevo
from bench.racing import Population
from deevo_ext.demo.training import load_member
from deevo_ext.evolution.course import Candidate
from deevo_ext.evolution.report import bootstrap_interval
from deevo_ext.evolution.soup import average
from deevo_ext.fitness.evaluator import PerImage
from deevo_ext.fitness.statistics import Inherited

VALIDATION, CALIBRATION = 1000, 512

POLICIES: dict[str, dict[str, Any]] = {
    "batchnorm=evolve": {},
    "batchnorm=inherit": {"batchnorm": "inherit"},
    "batchnorm=recalibrate": {"batchnorm": "recalibrate"},
    "fixed images": {"images_per_batch": None},
    "importance": {"sampling": "importance"},
    "augment=mirror": {"augment": "mirror"},
    "metric=top1": {"metric": "top1"},
    "label_smoothing=0.1": {"label_smoothing": 0.1},
    "racing=0.01": {"racing": 0.01},
}


def evolve(population: Population, images: int, policy: dict[str, Any]) -> dict[str, Any]:
    """One run by a policy: its network's loss and top-1, beside those of the initial candidates."""
    sets = population.sets
    options: dict[str, Any] = {"images_per_batch": images, **policy}
    # The authors' pool, alone, which the published table is of.
    options |= {"strategies": "interp", "inject_soups": False}
    shown = sets.fitness
    if options["images_per_batch"] is None:
        shown = shown.subset(range(images))
    calibration = None
    if policy.get("batchnorm") == "recalibrate":
        calibration = sets.train.subset(range(CALIBRATION))
    started = time.perf_counter()
    result = deevo.evolve(
        load_member(population.paths[0]),
        population.paths,
        shown,
        sets.validation.subset(range(VALIDATION)),
        generations=population.generations,
        validate_every=population.generations,
        micro_batch=population.micro_batch,
        calibration_images=calibration,
        basin="ignore",
        progress=False,
        **options,
    )
    seconds = time.perf_counter() - started
    evaluator, course = result.run.evaluator, result.run.course
    assert evaluator is not None

    def judged(candidate: Candidate) -> PerImage:
        return evaluator.per_image(candidate.row, sets.test, candidate.statistics)

    evolved = judged(result.candidate)
    initial = {kind: judged(candidate) for kind, candidate in course.initial.items()}
    differences = evolved.losses.double() - initial["soup"].losses.double()
    accepted = [metrics["success_rate"] for metrics in result.history]
    return {
        "returned": f"{result.candidate.kind} of generation {result.candidate.generation}",
        "loss": float(evolved.losses.double().mean()),
        "top1": float(evolved.correct.double().mean()),
        "against_soup": float(differences.mean()),
        "interval": bootstrap_interval(differences, resamples=2000),
        **{f"initial_{k}_loss": float(v.losses.double().mean()) for k, v in initial.items()},
        "accepted": sum(accepted) / len(accepted),
        "forward_passes": result.run.forward_passes,
        "seconds": seconds,
    }


def first_trials(population: Population, batchnorm: str) -> dict[str, float]:
    """Mean loss on 1,000 validation images of parents and of their first trials."""
    sets, model = population.sets, load_member(population.paths[0])
    members = deevo.Population.from_checkpoints(model, population.paths, batchnorm=batchnorm)
    evaluator = deevo.Evaluator(
        model,
        members,
        micro_batch=population.micro_batch,
        calibration=sets.train.subset(range(CALIBRATION)),
    )
    images = sets.validation.subset(range(VALIDATION))
    de = deevo.DifferentialEvolution(
        members, strategies="interp", generations=population.generations, seed=0
    )
    parents = [
        s.loss for s in evaluator.scores(members.rows, images, Inherited(members.statistics))
    ]
    de.ask()
    de.tell(parents)
    rows = de.ask().rows(range(members.size))
    trials = [s.loss for s in evaluator.scores(rows, images, Inherited(members.statistics))]
    mean = evaluator.score(*_with_images(average(members, range(members.size)), images)).loss
    return {
        "parents_loss": sum(parents) / len(parents),
        "trials_loss": sum(trials) / len(trials),
        "worst_trial_loss": max(trials),
        "mean_loss": mean,
    }


def _with_images(
    soup: tuple[torch.Tensor, Inherited | None], images: deevo.ImageSet
) -> tuple[torch.Tensor, deevo.ImageSet, Inherited | None]:
    row, statistics = soup
    return row, images, statistics


def main() -> int:
    """Measures every policy on one population."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("population", type=Path)
    parser.add_argument("--generations", type=int, default=10)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--micro-batch", type=int, default=250)
    parser.add_argument("--only", nargs="*", default=list(POLICIES))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    population = Population(options.population, options.generations, options.micro_batch)
    rows = []
    for name in options.only:
        row: dict[str, Any] = {
            "policy": name,
            "population": options.population.name,
            "generations": options.generations,
            "images": options.images,
            **evolve(population, options.images, POLICIES[name]),
        }
        if name.startswith("batchnorm"):
            row |= first_trials(population, name.partition("=")[2])
        rows.append(row)
        print(
            f"{name}: {row['returned']}, loss {row['loss']:.5f}, top-1 {row['top1']:.4f}, "
            f"{row['against_soup']:+.5f} to the initial greedy soup, {row['accepted']:.0%} "
            f"accepted, {row['forward_passes']:,} passes",
            flush=True,
        )
        if options.json:
            options.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
