"""The table that says whether evolution was worth it, and its verdict.

Measured are networks that need no evolution, the initial ones, and evolved ones, each the best of
its kind by validation. The verdict compares two of them that validation chose: the best evolved
network and the best initial one. `runs.contenders` measures them.
"""

from __future__ import annotations

import html
import json
import math
from dataclasses import asdict, dataclass, fields
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deevo_ext.errors import DeevoError
from deevo_ext.files import write_whole
from deevo_ext.fitness.metrics import LABELS, Metric
from deevo_ext.fitness.resampling import INTERVAL_RESAMPLES, resampled_falls
from deevo_ext.runs.state import PARENT
from deevo_ext.text import html_table, text_table

HEADER = ("network", "loss", "top-1", "gained", "lost", "p", "inference", "passes", "seconds")
IN_EVERY_TABLE = ("loss", "top1")
"""Metrics that have their column in every table."""


@dataclass(frozen=True)
class Measured:
    """One network of the comparison, a line of its table.

    loss: mean cross-entropy in nats; top1 in 0..1; images: how many it was measured on; gained,
    lost: images right here and wrong under the initial greedy soup, and the reverse;
    forward_passes, seconds: spent to find this network (not to report on it); inference: its cost
    per image in forward passes; returned: whether it is the candidate that validation chose.
    metric: the user's metric where that is neither loss nor top-1, else None.
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
    metric: float | None = None

    @property
    def mcnemar(self) -> float:
        """The p of McNemar's exact test of gained against lost images."""
        return mcnemar(self.gained, self.lost)


@dataclass(frozen=True)
class Difference:
    """The best evolved network's metric minus another network's.

    name: the other network; interval: the 95 % paired bootstrap interval of the difference (called
    its mean). higher_is_better: whether a positive one is better, else a negative one.
    """

    name: str
    mean: float
    interval: tuple[float, float]
    higher_is_better: bool = False

    @classmethod
    def of(
        cls,
        name: str,
        metric: Metric,
        evolved: torch.Tensor,
        other: torch.Tensor,
        labels: torch.Tensor,
    ) -> Difference:
        """Makes it of both networks' outcomes of the same images, [N] or [N, classes]."""
        sign = -1.0 if metric.higher_is_better else 1.0
        if not metric.of_whole_sets:
            differences = sign * (evolved.double() - other.double())
            mean, interval = float(differences.mean()), bootstrap_interval(differences)
        else:
            both = metric.fitness(torch.stack([evolved, other]), labels)
            mean = sign * float(both[0] - both[1])
            falls = resampled_falls(metric, other, evolved[None], labels, INTERVAL_RESAMPLES)
            low, high = np.quantile(-sign * falls[:, 0].numpy(), [0.025, 0.975])
            interval = float(low), float(high)
        return cls(name, mean, interval, metric.higher_is_better)

    @classmethod
    def load(cls, saved: dict[str, Any]) -> Difference:
        """Makes it of its JSON values."""
        low, high = saved["interval"]
        mean, higher = _number(saved["mean"]), bool(saved.get("higher_is_better", False))
        return cls(saved["name"], mean, (_number(low), _number(high)), higher)

    @property
    def finding(self) -> str:
        """What the interval says of the evolved network, up to the other's name."""
        low, high = self.interval
        if low <= 0.0 <= high:
            return "shows no measurable difference to"
        return "is better than" if (low > 0.0) == self.higher_is_better else "is worse than"

    @property
    def figures(self) -> str:
        """The difference and its interval as text."""
        low, high = self.interval
        return f"{self.mean:+.5f}, 95 % paired bootstrap interval [{low:+.5f}, {high:+.5f}]"


@dataclass(frozen=True, repr=False)
class Comparison:
    """The table, and what the best evolved network is worth.

    networks: one for each line of the table. evolved: the name of the evolved network that
    validation chose, None where no step of the search was taken. rival: its difference to the
    initial network that validation would have chosen, None likewise; parent: to the best parent,
    or that of the returned initial network. metric: the name of what is compared, by which
    validation chose, too. images: the name of the images. note: what else is to be known; it may be
    empty.
    """

    networks: list[Measured]
    evolved: str | None
    rival: Difference | None
    parent: Difference
    metric: str
    images: str
    note: str = ""

    @property
    def verdict(self) -> str:
        """One sentence; "no measurable difference" when the interval holds 0."""
        rival, what = self.rival, LABELS.get(self.metric, self.metric)
        returned = next(network.name for network in self.networks if network.returned)
        if rival is None:
            text = f"No step of the search was taken; the {returned} is returned"
            if returned != PARENT:
                text += (
                    f", which {self.parent.finding} the {PARENT} on {self.images}: {what} "
                    f"difference {self.parent.figures}"
                )
            return f"{text}."
        network = f"the network that was evolved ({self.evolved})"
        if returned != self.evolved:
            network = f"validation chose the {returned}, which is returned; {network}"
        start = f"{network[0].upper()}{network[1:]}"
        if not (math.isfinite(rival.mean) and math.isfinite(self.parent.mean)):
            return (
                f"{start} cannot be compared with the best initial one, the {rival.name}, on "
                f"{self.images}: a {what} is not finite."
            )
        text = (
            f"{start} {rival.finding} the best initial one, the {rival.name}, on {self.images}: "
            f"{what} difference {rival.figures}"
        )
        if self.parent.name != rival.name:
            text += f"; it {self.parent.finding} the {PARENT}: {self.parent.figures}"
        return f"{text}."

    def to_json(self) -> dict[str, Any]:
        """Returns JSON values; numbers that are not finite are null."""
        lines = [{**asdict(network), "mcnemar": network.mcnemar} for network in self.networks]
        return {
            "rows": [{k: _finite(v) for k, v in line.items()} for line in lines],
            "evolved": self.evolved,
            **{
                key: difference
                and {
                    "name": difference.name,
                    "mean": _finite(difference.mean),
                    "interval": [_finite(bound) for bound in difference.interval],
                    "higher_is_better": difference.higher_is_better,
                }
                for key, difference in (("rival", self.rival), ("parent", self.parent))
            },
            "metric": self.metric,
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
            networks = []
            for line in saved["rows"]:
                values = {name: _number(line[name]) for name in names}
                networks.append(Measured(**{**values, "metric": line["metric"]}))
            texts = (str(saved[key]) for key in ("metric", "images", "note"))
            rival = None if saved["rival"] is None else Difference.load(saved["rival"])
            parent = Difference.load(saved["parent"])
            return cls(networks, saved["evolved"], rival, parent, *texts)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DeevoError(
                f"{path} is not the table of a run ({error!r}); expected what deevo evolve or "
                "deevo demo wrote"
            ) from error

    def save(self, path: Path, **more: Any) -> None:
        """Writes the table as JSON, with `more` top-level values."""
        write_whole(path, (json.dumps({**self.to_json(), **more}, indent=2) + "\n").encode())

    @property
    def header(self) -> tuple[str, ...]:
        """The table's header: HEADER, with the user's metric where it is neither loss nor top-1."""
        label = LABELS.get(self.metric, self.metric.rpartition(".")[2])
        more = () if self.metric in IN_EVERY_TABLE else (label,)
        return (*HEADER[:3], *more, *HEADER[3:])

    def cells(self) -> list[tuple[str, ...]]:
        """Returns the table's lines as text, under `header`."""
        return [
            (
                network.name,
                f"{network.loss:.4f}",
                f"{network.top1:.4f}",
                *(() if network.metric is None else (f"{network.metric:.4f}",)),
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
        return f"{text_table(self.header, lines)}\n\n{self.verdict} {self.note}".rstrip()

    __repr__ = format

    def _repr_html_(self) -> str:
        returned = {i for i, network in enumerate(self.networks) if network.returned}
        table = html_table(self.header, self.cells(), bold=returned)
        return f"{table}<p>{html.escape(f'{self.verdict} {self.note}'.rstrip())}</p>"


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
    values = differences.double().cpu().numpy()
    generator = np.random.Generator(np.random.PCG64(seed))
    means = np.empty(resamples)
    for i in range(resamples):
        means[i] = values[generator.integers(0, values.size, values.size)].mean()
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
