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
from pathlib import Path
from typing import Any

from deevo_ext.errors import DeevoError
from deevo_ext.files import write_whole
from deevo_ext.fitness.metrics import label_of
from deevo_ext.runs.paired import Difference, mcnemar, number
from deevo_ext.runs.state import PARENT, SOUP
from deevo_ext.text import html_table, text_table

HEADER = ("network", "loss", "top-1", "gained", "lost", "p", "inference", "passes", "seconds")
IN_EVERY_TABLE = ("loss", "top1")
"""Metrics that have their column in every table."""
LEGEND = (
    f"Gained are the images that a network gets right and the {SOUP} wrong, lost is the reverse, "
    "and p is that of McNemar's exact test of these two numbers: how often luck alone would "
    "part them so far. Inference is the cost of an image in forward passes; passes and seconds "
    "were spent to find the network."
)
"""What the table's columns mean, for its readers."""
_INTERVAL = "the 95 % paired bootstrap interval in brackets"


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

    def by(self, metric: str) -> float:
        """Returns what it came to by the table's metric."""
        value = {"loss": self.loss, "top1": self.top1}.get(metric, self.metric)
        return math.nan if value is None else value

    @property
    def mcnemar(self) -> float:
        """The p of McNemar's exact test of gained against lost images."""
        return mcnemar(self.gained, self.lost)


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
        """What was gained, in the table's metric; "no measurable difference" if that may be 0."""
        rival, what = self.rival, label_of(self.metric)
        unknown = f"a {what}, or that of a resample of the images, is not finite"
        returned = next(network.name for network in self.networks if network.returned)
        if rival is None:
            text = f"No step of the search was taken; the {returned} is returned"
            if returned != PARENT and not self.parent.finite:
                text += f", which cannot be compared with the {PARENT} on {self.images}: {unknown}"
            elif returned != PARENT:
                text += (
                    f", which {self.parent.finding} the {PARENT} on {self.images}: "
                    f"{what} {self._against(self.parent, returned)}, {_INTERVAL}"
                )
            return f"{text}.{self._ensemble}"
        assert self.evolved is not None
        network = f"the network that was evolved ({self.evolved})"
        if returned != self.evolved:
            network = f"validation chose the {returned}, which is returned; {network}"
        start = f"{network[0].upper()}{network[1:]}"
        if not rival.finite:
            return (
                f"{start} cannot be compared with the best initial one, the {rival.name}, on "
                f"{self.images}: {unknown}."
            )
        text = (
            f"{start} {rival.finding} the best initial one by validation, the {rival.name}, on "
            f"{self.images}: {what} {self._against(rival, self.evolved)}, {_INTERVAL}"
        )
        if self.parent.name != rival.name and not self.parent.finite:
            text += f"; it cannot be compared with the {PARENT}: {unknown}"
        elif self.parent.name != rival.name:
            text += (
                f"; it {self.parent.finding} the {PARENT}: "
                f"{self._against(self.parent, self.evolved)}"
            )
        return f"{text}.{self._ensemble}"

    def _against(self, difference: Difference, name: str) -> str:
        """What a network and the other one of a difference come to, and the difference."""
        values = {network.name: network.by(self.metric) for network in self.networks}
        both = f"{values[name]:.4f} against {values[difference.name]:.4f}"
        return f"{both}, a difference of {difference.figures}"

    @property
    def _ensemble(self) -> str:
        """What all members together come to, and what that costs."""
        for network in self.networks:
            if network.inference > 1:
                return (
                    f" The {network.name} of all {network.inference} comes to "
                    f"{network.by(self.metric):.4f} at {network.inference} times its cost per "
                    "image."
                )
        return ""

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
                values = {name: number(line[name]) for name in names}
                if saved["metric"] in IN_EVERY_TABLE:
                    values["metric"] = None  # there is none, and none that is not finite
                networks.append(Measured(**values))
            texts = (str(saved[key]) for key in ("metric", "images", "note"))
            rival = None if saved["rival"] is None else Difference.load(saved["rival"])
            parent = Difference.load(saved["parent"])
            return cls(networks, saved["evolved"], rival, parent, *texts)
        except FileNotFoundError as error:
            raise DeevoError(
                f"{path} does not exist: expected the folder of a finished run with test images; "
                "--resume FOLDER --test IMAGES gives a run its table"
            ) from error
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
        more = () if self.metric in IN_EVERY_TABLE else (label_of(self.metric),)
        return (*HEADER[:3], *more, *HEADER[3:])

    def cells(self) -> list[tuple[str, ...]]:
        """Returns the table's lines as text, under `header`."""
        return [
            (
                network.name,
                f"{network.loss:.4f}",
                f"{network.top1:.4f}",
                *(() if self.metric in IN_EVERY_TABLE else (f"{network.by(self.metric):.4f}",)),
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
        """Returns the table as aligned text, what it means, and the verdict.

        A sign stands before the network that was returned.
        """
        marks = (">" if network.returned else " " for network in self.networks)
        lines = [
            (f"{mark} {name}", *rest)
            for mark, (name, *rest) in zip(marks, self.cells(), strict=True)
        ]
        table = text_table(self.header, lines)
        return f"{table}\n\n{LEGEND}\n\n{self.verdict} {self.note}".rstrip()

    __repr__ = format

    def _repr_html_(self) -> str:
        returned = {i for i, network in enumerate(self.networks) if network.returned}
        table = html_table(self.header, self.cells(), bold=returned)
        return f"{table}<p>{html.escape(f'{self.verdict} {self.note}'.rstrip())}</p>"


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
