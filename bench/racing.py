"""What racing saves and what it costs, on real populations.

    python -m bench.racing POPULATION ... [--generations 100] [--error 0.01] [--json FILE]

POPULATION: a folder that `deevo_ext.demo.training.train_population` filled, named after the seed of
its data split and training as seedN; data: Fashion-MNIST, 10,000 fitness images, all of them in
every generation. Each population is evolved with full evaluations. Every trial is also raced, on
the scores that the full evaluation has given: how many images it would have seen, and whether the
decision would have been another. As a dropped trial is a rejected one, a raced run is the same run
bit for bit up to its first other decision; if there is one, the population is evolved a second time
with the races' decisions. The change is that of the loss of the network that 10,000 validation
images choose, on the 10,000 test images.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

import deevo_ext as deevo
from deevo_ext.data import FourSets, load
from deevo_ext.demo.training import load_member
from deevo_ext.evolution.course import Course
from deevo_ext.fitness.metrics import Metric
from deevo_ext.fitness.racing import LOOKS_PER_DOUBLING, Racing

PRESET = "sa-shade-tri-ensin"
_LOSS = Metric("loss")


class Population:
    """A population to be evolved, afresh each time."""

    def __init__(self, folder: Path, generations: int, micro_batch: int) -> None:
        found = re.fullmatch(r".*seed(\d+)", folder.name)
        if found is None:
            raise SystemExit(f"{folder}: expected a folder whose name ends in seedN")
        self.folder, self.generations, self.micro_batch = folder, generations, micro_batch
        self.sets: FourSets = load("fashion-mnist", int(found.group(1)))
        self.paths = sorted(folder.glob("member_*.safetensors"))

    def evolve(self, racing: Racing, *, raced: bool) -> dict[str, Any]:
        """One run; raced: whether the races decide, instead of only being watched."""
        model = load_member(self.paths[0])
        population = deevo.Population.from_checkpoints(model, self.paths)
        evaluator = deevo.Evaluator(model, population, micro_batch=self.micro_batch)
        fitness = deevo.ClassificationFitness(evaluator, self.sets.fitness, racing=racing)
        de = deevo.DifferentialEvolution(
            population, preset=PRESET, generations=self.generations, seed=0
        )
        everyone = torch.arange(population.size)
        looks = fitness.looks(0)

        def whole(rows: torch.Tensor) -> torch.Tensor:
            parts = [fitness.part(rows, 0, look, None) for look in range(len(looks))]
            return torch.cat(parts, dim=1)

        parents = whole(population.rows)
        initial = [evaluator.score(row, self.sets.test).loss for row in population.rows]
        validated = [evaluator.score(row, self.sets.validation).loss for row in population.rows]
        best_parent = initial[min(range(population.size), key=validated.__getitem__)]
        de.ask()
        de.tell([fitness.reduce(scores) for scores in parents])
        seen = accepted = other = trials = 0
        by_generation = []
        for _ in range(self.generations):
            rows = de.ask().rows(everyone)
            found = whole(rows)
            values = [fitness.reduce(scores) for scores in found]
            at = [racing.look(parents, end, len(looks) - 1) for end in looks[:-1]]
            images = []
            for member in everyone.tolist():
                wins = values[member] < fitness.reduce(parents[member])
                ends = (
                    end
                    for end, look in zip(looks, at, strict=False)
                    if look.loses(found[member, :end], parents[member, :end])
                )
                images.append(next(ends, looks[-1]))
                if torch.equal(rows[member], population.rows[member]):
                    images[-1] = looks[0]  # dropped as its own parent
                accepted += wins
                if images[-1] < looks[-1]:
                    other += wins
                    if raced:
                        values[member] = float("inf")
            seen += sum(images)
            trials += population.size
            generation = de.tell(values)
            assert generation is not None
            won = generation.members[generation.accepted]
            parents[won] = found[won]
            by_generation.append([sum(images) / (looks[-1] * len(images)), len(won)])
        course = Course(de, evaluator.statistics_of)
        course.validate(lambda row, own: evaluator.score_by(row, self.sets.validation, _LOSS, own))
        chosen = course.chosen()
        loss = evaluator.score(chosen.row, self.sets.test).loss
        return {
            "share": seen / (trials * looks[-1]),
            "accepted": accepted / trials,
            "decisions": trials,
            "other_decisions": other,
            "best_parent_test_loss": best_parent,
            "evolved_test_loss": loss,
            "by_generation": by_generation,
        }


def measure(population: Population, racing: Racing) -> dict[str, Any]:
    """One population's row."""
    started = time.perf_counter()
    full = population.evolve(racing, raced=False)
    raced = population.evolve(racing, raced=True) if full["other_decisions"] else full
    gain = full["best_parent_test_loss"] - full["evolved_test_loss"]
    change = raced["evolved_test_loss"] - full["evolved_test_loss"]
    return {
        "population": population.folder.name,
        "members": len(population.paths),
        "fitness_images": len(population.sets.fitness),
        "generations": population.generations,
        "racing": racing.describe(),
        "looks_per_doubling": LOOKS_PER_DOUBLING,
        "micro_batch": population.micro_batch,
        "strategies": PRESET,
        **{key: full[key] for key in full if key != "by_generation"},
        "raced_share": raced["share"],
        "raced_test_loss": raced["evolved_test_loss"],
        "change_of_gain": change / gain,
        "seconds": time.perf_counter() - started,
        "by_generation": full["by_generation"],
    }


def main() -> int:
    """Measures the populations named, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("populations", type=Path, nargs="+")
    parser.add_argument("--generations", type=int, default=100)
    parser.add_argument("--error", type=float, default=Racing.error)
    parser.add_argument("--first", type=float, default=Racing.first)
    parser.add_argument("--micro-batch", type=int, default=250)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    racing = Racing(options.error, options.first)
    rows: list[dict[str, Any]] = []
    for folder in options.populations:
        rows.append(measure(Population(folder, options.generations, options.micro_batch), racing))
        row = rows[-1]
        print(
            f"{row['population']}: {row['raced_share']:.1%} of the images, {row['accepted']:.1%} "
            f"accepted, {row['other_decisions']} of {row['decisions']} decisions differ, gain "
            f"changes by {row['change_of_gain']:+.1%}",
            flush=True,
        )
        if options.json:
            options.json.write_text(json.dumps(rows, indent=1) + "\n")
    shares = [row["raced_share"] for row in rows]
    changes = [abs(row["change_of_gain"]) for row in rows]
    print(f"median: {statistics.median(shares):.1%}, change {statistics.median(changes):.1%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
