"""The comparison that says whether evolution was worth it, on images nothing else has read.

It measures the best parent, the initial weight average, the initial greedy soup, the logit ensemble
(NP times the inference cost), and the evolved member, mean and soup, each the best of its kind by
validation.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from deevo_ext.data.labelled import LabelledImages
from deevo_ext.errors import DeevoError
from deevo_ext.files import write_whole
from deevo_ext.fitness.evaluator import Evaluator
from deevo_ext.fitness.metrics import mean_score
from deevo_ext.fitness.statistics import Inherited
from deevo_ext.population.population import Population
from deevo_ext.runs.run import Evolution
from deevo_ext.runs.state import KINDS, Candidate
from deevo_ext.text import text_table

SOUP = "initial greedy soup"
ENSEMBLE = "logit ensemble"
HEADER = ("network", "loss", "top-1", "gained", "lost", "p", "inference", "passes", "seconds")
INITIAL_NAMES = {"member": "best parent", "mean": "initial weight average", "soup": SOUP}


@dataclass(frozen=True)
class Measured:
    """One network of the comparison, a line of its table.

    loss: mean cross-entropy in nats; top1 in 0..1; images: how many it was measured on; gained,
    lost: images right here and wrong under the initial greedy soup, and the reverse;
    forward_passes, seconds: spent to find this network (not to report on it); inference: its cost
    per image in forward passes; returned: whether it is the candidate that validation chose.
    """

    name: str
    loss: float
    top1: float
    images: int
    gained: int
    lost: int
    forward_passes: int
    seconds: float
    inference: int
    returned: bool

    @property
    def mcnemar(self) -> float:
        """The p of McNemar's exact test of gained against lost images."""
        return mcnemar(self.gained, self.lost)


@dataclass(frozen=True)
class PerImage:
    """losses float32 [N] (cross-entropy in nats) and correct bool [N] (top-1)."""

    losses: torch.Tensor
    correct: torch.Tensor


@dataclass(frozen=True)
class Comparison:
    """The table, and the returned candidate's loss minus the initial greedy soup's.

    networks: one for each line of the table. interval: the 95 % paired bootstrap interval of the
    difference; negative is better. images: the name of the images. note: says when an initial
    candidate scored better on validation than what evolution returned; else it is empty.
    """

    networks: list[Measured]
    difference: float
    interval: tuple[float, float]
    images: str
    note: str = ""

    @property
    def verdict(self) -> str:
        """One sentence; "no measurable difference" when the interval holds 0."""
        low, high = self.interval
        if not math.isfinite(self.difference):
            return (
                f"The evolved network cannot be compared with the {SOUP} on {self.images}: a loss "
                "is not finite."
            )
        if low <= 0.0 <= high:
            finding = "shows no measurable difference to"
        else:
            finding = "is better than" if high < 0.0 else "is worse than"
        return (
            f"The evolved network {finding} the {SOUP} on {self.images}: loss difference "
            f"{self.difference:+.5f}, 95 % paired bootstrap interval [{low:+.5f}, {high:+.5f}]."
        )

    def to_json(self) -> dict[str, Any]:
        """Returns JSON values; numbers that are not finite are null."""
        lines = [{**asdict(network), "mcnemar": network.mcnemar} for network in self.networks]
        return {
            "rows": [{k: _finite(v) for k, v in line.items()} for line in lines],
            "difference": _finite(self.difference),
            "interval": [_finite(bound) for bound in self.interval],
            "images": self.images,
            "verdict": self.verdict,
            "note": self.note,
        }

    @classmethod
    def load(cls, path: Path) -> Comparison:
        """Reads what `save` wrote; raises DeevoError for anything else."""
        try:
            saved = json.loads(path.read_text())
            names = [field.name for field in fields(Measured)]
            networks = [
                Measured(**{name: _number(line[name]) for name in names}) for line in saved["rows"]
            ]
            low, high = (_number(bound) for bound in saved["interval"])
            return cls(
                networks, _number(saved["difference"]), (low, high), saved["images"], saved["note"]
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DeevoError(
                f"{path} is not the table of a run ({error!r}); expected what deevo evolve or "
                "deevo demo wrote"
            ) from error

    def save(self, path: Path, **more: Any) -> None:
        """Writes the table as JSON, with `more` top-level values."""
        write_whole(path, (json.dumps({**self.to_json(), **more}, indent=2) + "\n").encode())

    def cells(self) -> list[tuple[str, ...]]:
        """Returns the table's lines as text, under HEADER."""
        return [
            (
                network.name,
                f"{network.loss:.4f}",
                f"{network.top1:.4f}",
                str(network.gained),
                str(network.lost),
                f"{network.mcnemar:.2g}",
                f"x{network.inference}",
                f"{network.forward_passes:,}",
                f"{network.seconds:.1f}",
            )
            for network in self.networks
        ]

    def format(self) -> str:
        """Returns the table as aligned text, with a sign before the network that was returned."""
        marks = (">" if network.returned else " " for network in self.networks)
        lines = [
            (f"{mark} {name}", *rest)
            for mark, (name, *rest) in zip(marks, self.cells(), strict=True)
        ]
        return f"{text_table(HEADER, lines)}\n\n{self.verdict} {self.note}".rstrip()


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _number(value: Any) -> Any:
    return math.nan if value is None else value


def mcnemar(gained: int, lost: int) -> float:
    """Returns the two-sided p of McNemar's exact test: were gains and losses equally likely.

    Twice the tail of the binomial distribution with odds 1/2, computed in whole numbers, at most 1.
    Source: McNemar, Psychometrika 12 (1947).
    """
    total = gained + lost
    term, tail = 1, 1
    for k in range(min(gained, lost)):
        term = term * (total - k) // (k + 1)
        tail += term
    return min(1.0, float(Fraction(2 * tail, 1 << total)))


def bootstrap_interval(
    differences: torch.Tensor, *, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Returns the 95 % percentile interval of the mean of paired differences, float64 [N]."""
    values = differences.double().numpy()
    generator = np.random.Generator(np.random.PCG64(seed))
    means = np.empty(resamples)
    for i in range(resamples):
        means[i] = values[generator.integers(0, values.size, values.size)].mean()
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def ensemble(evaluator: Evaluator, population: Population, images: LabelledImages) -> PerImage:
    """Measures the logit ensemble (mean logits) of the initial members, read again one by one."""
    total = torch.zeros(())
    for i in range(population.initial_size):
        row, statistics = population.reread(i)
        used = evaluator.used_statistics(row, Inherited(statistics))
        total = total + evaluator.logits(row, images, used).double()
    mean = (total / population.initial_size).float()
    losses = nn.functional.cross_entropy(mean, images.labels, reduction="none")
    return PerImage(losses, mean.argmax(dim=1) == images.labels)


def compare(run: Evolution, images: LabelledImages) -> Comparison:
    """Compares, on `images`, the networks of a finished run that had validation and files."""
    evaluator = run.evaluator
    assert evaluator is not None
    chosen = run.state.chosen()
    population = run.de.population
    members = population.initial_size

    def measure(candidate: Candidate) -> PerImage:
        losses, ranks = evaluator.losses(candidate.row, images, candidate.statistics)
        return PerImage(losses, ranks == 0)

    share = run.initial_seconds / max(run.initial_forward_passes, 1)
    # The initial candidates took 2 NP evaluations: the members, the mean, and NP - 1 soups.
    each = run.initial_forward_passes // (2 * members)
    initial_passes = {
        INITIAL_NAMES["member"]: members * each,
        INITIAL_NAMES["mean"]: 0,
        SOUP: (2 * members - 1) * each,
        ENSEMBLE: 0,
    }
    per_image = {INITIAL_NAMES[kind]: measure(run.state.initial[kind]) for kind in KINDS}
    per_image[ENSEMBLE] = ensemble(evaluator, population, images)
    per_image |= {f"evolved {kind}": measure(run.state.evolved[kind]) for kind in KINDS}
    returned, soup = f"evolved {chosen.kind}", per_image[SOUP]
    networks = []
    for name, scores in per_image.items():
        passes = initial_passes.get(name, run.forward_passes)
        seconds = passes * share if name in initial_passes else run.seconds
        networks.append(
            Measured(
                name=name,
                loss=mean_score(scores.losses, evaluator.micro_batch),
                top1=float(scores.correct.double().mean()),
                images=len(images),
                gained=int((scores.correct & ~soup.correct).sum()),
                lost=int((~scores.correct & soup.correct).sum()),
                forward_passes=passes,
                seconds=round(seconds, 3),
                inference=members if name == ENSEMBLE else 1,
                returned=name == returned,
            )
        )
    differences = per_image[returned].losses.double() - soup.losses.double()
    best = min(run.state.initial.values(), key=lambda candidate: candidate.score)
    note = ""
    if best.score < chosen.score:
        note = (
            f"On the validation images the {INITIAL_NAMES[best.kind]} scored better "
            f"({best.score:.5g}) than what evolution returned ({chosen.score:.5g}): keep it."
        )
    return Comparison(
        networks, float(differences.mean()), bootstrap_interval(differences), images.name, note
    )
