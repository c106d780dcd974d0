"""What a journal records: dataclasses, and their way to JSON and back without the loss of a bit.

A JSON object has its dataclass' fields, without those that are None by default. Floats are hex text
but for fields marked DECIMAL, float32 tensors base64 text; dictionaries are JSON values already.
Records refuse values that no run gives them, by ValueError.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import numpy as np
import torch

from deevo_ext.fitness.scoring import Race

DECIMAL = {"decimal": True}
SEARCHES = ("weights", "coefficients")
BLOCKS, CHANNELS = "blocks", "channels"
"""What a round's directions are: a member on a block each, or differences of members by channel."""
_T = TypeVar("_T")


@dataclass(frozen=True)
class Header:
    """Everything that decides a run; the dictionaries come from the `describe` of its parts.

    checkpoints: [path, SHA-256] of each initial checkpoint; paths inside the run folder are
    relative to it. validation: None for a run without validation. search: "weights" or
    "coefficients"; switches: torch's (`runs.switches`). Version 1 of the contract searched weights
    only and kept no switches: there both are None.
    """

    contract: int
    deevo_ext: str
    configuration: dict[str, Any]
    seed: int
    layout: str
    population: dict[str, Any]
    checkpoints: list[list[str]]
    fitness: dict[str, Any]
    validation: dict[str, Any] | None
    search: str | None = None
    switches: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if any(len(source) != 2 for source in self.checkpoints):
            raise ValueError("checkpoints are no pairs of a path and a SHA-256")
        absent = self.search is None and self.switches is None
        known = self.search in SEARCHES and self.switches is not None
        if not (absent if self.contract == 1 else known):
            raise ValueError(f"contract {self.contract} with search {self.search!r}")


@dataclass(frozen=True)
class CandidateRecord:
    """A candidate of one validation: the members that it is the average of, and its score."""

    members: list[int]
    score: float

    def __post_init__(self) -> None:
        _require_scores([self.score])
        if not self.members or min(self.members) < 0 or len(set(self.members)) < len(self.members):
            raise ValueError(f"{self.members} are no members")


@dataclass(frozen=True)
class ValidationRecord:
    """One validation: its candidate of each kind, and the scores of all members."""

    member: CandidateRecord
    mean: CandidateRecord
    soup: CandidateRecord
    scores: list[float]

    def __post_init__(self) -> None:
        _require_scores(self.scores)

    @property
    def candidates(self) -> dict[str, CandidateRecord]:
        """The candidates by kind."""
        return {"member": self.member, "mean": self.mean, "soup": self.soup}


@dataclass(frozen=True, kw_only=True)
class GenerationRecord:
    """One generation; 0 is the initial population.

    generations: the length of the schedule from here on, where it is new; batch: the number of the
    batch of images; parents: the members' fitness, where it was taken
    anew; trials: the trials' fitness; racing: the outcome of the trials' race; validation: the
    scores, where a validation was due; engines: what computes each evaluator's scores from here on
    (`EngineTable.record`), where it is new; traffic: the bytes that rank 0 received, where there
    were several ranks; forward_passes, seconds: what the generation cost.
    """

    generation: int
    generations: int | None = None
    batch: int | None = None
    parents: list[float] | None = None
    trials: list[float] | None = None
    racing: Race | None = None
    validation: ValidationRecord | None = None
    engines: list[dict[str, Any]] | None = None
    traffic: int | None = None
    forward_passes: int
    seconds: float = field(metadata=DECIMAL)

    def __post_init__(self) -> None:
        scored = (self.batch, self.trials, self.parents, self.racing, self.generations)
        first, missing = self.generation == 0, (self.batch is None or self.trials is None)
        if (
            self.generation < 0
            or missing != first
            or (first and any(v is not None for v in scored))
        ):
            raise ValueError(f"it is no generation {self.generation}")
        _require_scores([*(self.parents or ()), *(self.trials or ())])
        _require_costs(self.forward_passes, self.seconds)
        if (race := self.racing) is not None:
            possible = race.images and all(0 < seen <= race.of for seen in race.images)
            if not (
                possible and 0 <= race.non_finite <= len(race.images) <= len(self.trials or ())
            ):
                raise ValueError(f"{race} is no race of these trials")


@dataclass(frozen=True)
class ProposalRecord:
    """A step that a round proved with a real network, as `runs.proposals.Proposal` explains it."""

    proposer: str
    ridge: float
    length: float
    predicted: float
    score: float


@dataclass(frozen=True, kw_only=True)
class RoundRecord:
    """One round of the coefficients' search, as `runs.proposals.Outcome` explains it.

    directions: "channels" where they are differences by channel, None where they are blocks.
    images: how many made the model, chose and tested. radius: of its steps. left_out: directions
    without slopes. held_out: what the best of the fits gains on held-out images, by the run's
    metric. proposals, best, gain, standard_error, accepted: the outcome; step: float32
    [directions], where it was taken. recipe_sha256: of the recipe after the round. score: the
    network's on the validation images, where it is new. folds: float32, the recipes of the folds'
    networks after the step, where folds tested it. slices: of the linear model's images, over which
    its sums are shared out; None where it was too small for that. engines, traffic, forward_passes,
    seconds: as of a generation.
    """

    round: int
    directions: str | None = None
    images: list[int]
    radius: float
    left_out: list[int]
    held_out: float
    proposals: list[ProposalRecord]
    best: int | None = None
    gain: float
    standard_error: float
    accepted: bool
    step: torch.Tensor | None = None
    recipe_sha256: str
    score: float | None = None
    folds: torch.Tensor | None = None
    slices: int | None = None
    engines: list[dict[str, Any]] | None = None
    traffic: int | None = None
    forward_passes: int
    seconds: float = field(metadata=DECIMAL)

    def __post_init__(self) -> None:
        if self.accepted != (self.step is not None) or self.accepted != (self.score is not None):
            raise ValueError("a step is recorded where it is taken, with its score")
        if self.folds is not None and not self.accepted:
            raise ValueError("folds have networks of a step that is not taken")
        if self.best is not None and not 0 <= self.best < len(self.proposals):
            raise ValueError(f"there is no proposal {self.best}")
        if self.accepted and self.best is None:
            raise ValueError("no proposal was accepted")
        if self.round < 1 or not 0 < self.radius <= 1:
            raise ValueError(f"round {self.round} with radius {self.radius}")
        if self.directions not in (None, CHANNELS):
            raise ValueError(f"there are no directions {self.directions!r}")
        _require_costs(self.forward_passes, self.seconds)


@dataclass(frozen=True)
class Returned:
    """The candidate that a run returned; statistics: only where images alone could tell them.

    treatment: what was done to it after the evolution; tensors_sha256: of the file that holds what
    this has changed. Both None where nothing was.
    """

    generation: int
    kind: str
    members: list[int]
    score: float
    weights_sha256: str
    statistics: torch.Tensor | None = None
    treatment: str | None = None
    tensors_sha256: str | None = None


@dataclass(frozen=True)
class End:
    """The last line of a run that is finished."""

    returned: Returned


def _require_costs(forward_passes: int, seconds: float) -> None:
    if not (0 <= forward_passes < 1 << 63 and 0 <= seconds < math.inf):
        raise ValueError(f"costs of {forward_passes} passes, {seconds} seconds")


def _require_scores(scores: Iterable[float]) -> None:
    if -math.inf in scores:
        raise ValueError("-inf is no score")


def to_json(record: Any) -> dict[str, Any]:
    """Returns a record as JSON values."""
    line = {}
    for part in fields(record):
        value = getattr(record, part.name)
        if value is not None or part.default is MISSING:
            line[part.name] = value if _decimal(part) else _encode(value)
    return line


def _encode(value: Any) -> Any:
    if isinstance(value, float):
        return value.hex()
    if isinstance(value, list):
        return [_encode(each) for each in value]
    if isinstance(value, torch.Tensor):
        return base64.b64encode(value.cpu().contiguous().numpy().tobytes()).decode("ascii")
    return to_json(value) if is_dataclass(value) else value


def from_json(kind: type[_T], line: Any) -> _T:
    """Reads what `to_json` returned; raises TypeError, KeyError or ValueError for other JSON."""
    require(line, dict)
    hints, values = get_type_hints(kind), {}
    for part in fields(kind):  # type: ignore[arg-type]
        if part.name in line:
            read = require if _decimal(part) else _decode
            values[part.name] = read(line[part.name], hints[part.name])
        elif part.default is MISSING:
            raise KeyError(part.name)
    if unknown := sorted(line.keys() - values.keys()):
        raise ValueError(f"unknown: {', '.join(unknown)}")
    return kind(**values)


def _decode(value: Any, kind: Any) -> Any:
    if get_origin(kind) is UnionType:  # of something and None
        return None if value is None else _decode(value, get_args(kind)[0])
    if get_origin(kind) is list:
        return [_decode(each, get_args(kind)[0]) for each in require(value, list)]
    if kind is float:
        return float.fromhex(require(value, str))
    if kind is torch.Tensor:
        data = base64.b64decode(require(value, str), validate=True)
        return torch.from_numpy(np.frombuffer(data, dtype=np.float32).copy())
    return from_json(kind, value) if is_dataclass(kind) else require(value, kind)  # type: ignore[arg-type]


def require(value: Any, kind: Any) -> Any:
    """Returns the value if it is of exactly this type; else raises TypeError."""
    kind = get_origin(kind) or kind
    if type(value) is not kind:
        raise TypeError(f"{value!r} is no {kind.__name__}")
    return value


def _decimal(part: Field[Any]) -> bool:
    return "decimal" in part.metadata
