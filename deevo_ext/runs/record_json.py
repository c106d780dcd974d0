"""Dataclasses as JSON objects and back, without the loss of a bit.

An object has its dataclass' fields, without those that are None by default. Floats are hex text but
for fields marked DECIMAL, float32 tensors base64 text; dictionaries are plain values already.
"""

from __future__ import annotations

import base64
from dataclasses import MISSING, Field, fields, is_dataclass
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import numpy as np
import torch

DECIMAL = {"decimal": True}
_T = TypeVar("_T")


def to_json(record: Any) -> dict[str, Any]:
    """A record as plain JSON values."""
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
    """The inverse of `to_json`; raises TypeError, KeyError or ValueError for anything else."""
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
    """The value, if it is of just this type; else raises TypeError."""
    kind = get_origin(kind) or kind
    if type(value) is not kind:
        raise TypeError(f"{value!r} is no {kind.__name__}")
    return value


def _decimal(part: Field[Any]) -> bool:
    return "decimal" in part.metadata
