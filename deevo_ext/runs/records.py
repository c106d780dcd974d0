"""What a journal records: dataclasses, and their way to JSON and back without the loss of a bit.

A JSON object has its dataclass' fields, without those that are None by default. Floats are hex text
but for fields marked DECIMAL, float32 tensors base64 text; dictionaries are JSON values already.
"""

from __future__ import annotations

import base64
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import numpy as np
import torch

from deevo_ext.fitness.scoring import Race

DECIMAL = {"decimal": True}
_T = TypeVar("_T")


@dataclass(frozen=True)
class Header:
    """Everything that decides a run; the dictionaries come from the `describe` of its parts.

    checkpoints: [path, SHA-256] of each initial checkpoint; paths inside the run folder are
    relative to it. validation: None for a run without validation.
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


@dataclass(frozen=True)
class CandidateRecord:
    """A candidate of one validation: the members that it is the average of, and its score."""

    members: list[int]
    score: float


@dataclass(frozen=True)
class ValidationRecord:
    """One validation: its candidate of each kind, and the scores of all members."""

    member: CandidateRecord
    mean: CandidateRecord
    soup: CandidateRecord
    scores: list[float]

    @property
    def candidates(self) -> dict[str, CandidateRecord]:
        """The candidates by kind."""
        return {"member": self.member, "mean": self.mean, "soup": self.soup}


@dataclass(frozen=True, kw_only=True)
class GenerationRecord:
    """One generation; 0 is the initial population.

    batch: the number of the batch of images; parents: the members' fitness, where it was taken
    anew; trials: the trials' fitness; racing: the outcome of the trials' race; validation: the
    scores, where a validation was due; forward_passes, seconds: what the generation cost.
    """

    generation: int
    batch: int | None = None
    parents: list[float] | None = None
    trials: list[float] | None = None
    racing: Race | None = None
    validation: ValidationRecord | None = None
    forward_passes: int
    seconds: float = field(metadata=DECIMAL)


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
        return float.fromhex(value)
    if kind is torch.Tensor:
        return torch.from_numpy(np.frombuffer(base64.b64decode(value), dtype=np.float32).copy())
    return from_json(kind, value) if is_dataclass(kind) else require(value, kind)  # type: ignore[arg-type]


def require(value: Any, kind: Any) -> Any:
    """Returns the value if it is of exactly this type; else raises TypeError."""
    kind = get_origin(kind) or kind
    if type(value) is not kind:
        raise TypeError(f"{value!r} is no {kind.__name__}")
    return value


def _decimal(part: Field[Any]) -> bool:
    return "decimal" in part.metadata
