"""Arguments of public functions, compared with their type hints before anything is done."""

from __future__ import annotations

import collections.abc
import functools
import math
import os
import reprlib
import types
import typing
from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deevo_ext.errors import DeevoError

_LARGEST = 2**63 - 1
_LONGEST_NAME = 255  # bytes that file systems take
_SHOWN = (int, float, str, bytes, list, tuple, dict, set, types.NoneType)
_WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "True or False",
    types.NoneType: "None",
    os.PathLike: "a path",
}


def check_arguments(function: Callable[..., Any], values: Mapping[str, Any]) -> None:
    """Raises DeevoError for the first argument that is not of its type.

    function: has the hints; a dataclass stands for its fields. values: arguments by name, such as
    locals() in the function's first line. NaN is no number, an integer has up to 64 bits, and a
    text holds no NUL byte.
    """
    for name, hint in _hints(function).items():
        if name in values and name != "return" and not _fits(values[name], hint):
            value = values[name]
            shown = f"{reprlib.repr(value)}, " if isinstance(value, _SHOWN) else ""
            kind = type(value).__qualname__
            plain = isinstance(value, np.generic) and _fits(value.item(), hint)
            mend = f": give {name}.item()" if plain else ""
            raise DeevoError(f"{name} is {shown}of type {kind}; expected {_text(hint)}{mend}")


def usable_device(device: torch.device | str) -> torch.device:
    """Returns the device with its index; raises DeevoError where torch cannot use it here."""
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        raise DeevoError(f"device is {device!r}, which torch cannot use: {error}") from None


@functools.cache
def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    return typing.get_type_hints(function)


def _fits(value: Any, hint: Any) -> bool:
    if hint is Any:
        return True
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if isinstance(value, (str, torch.device)) and torch.device in parts:
            return _is_device(value)
        if isinstance(value, str) and any(map(_is_path, parts)):
            value = Path(value)
        return any(_fits(value, part) for part in parts)
    if origin is typing.Literal:
        return any(type(value) is type(part) and value == part for part in parts)
    if hint in (int, float):
        return _is_number(value, hint)
    if hint is str:
        return isinstance(value, str) and _is_text(value)
    if hint is None:
        return value is None
    kind: Any = origin or hint
    if isinstance(kind, typing.TypeVar):
        kind = kind.__bound__
    if kind is collections.abc.Callable:
        return callable(value)
    if not isinstance(kind, type):
        return True
    if getattr(kind, "_is_protocol", False) and not getattr(kind, "_is_runtime_protocol", False):
        return True
    if not isinstance(value, kind):
        return False
    value = typing.cast(Any, value)
    if _is_path(kind):
        name = os.fspath(value)
        parts = name.split("/" if isinstance(name, str) else b"/")
        return _is_text(name) and all(len(os.fsencode(part)) <= _LONGEST_NAME for part in parts)
    if kind is tuple and parts:
        if len(parts) == 2 and parts[1] is ...:
            return all(_fits(item, parts[0]) for item in value)
        return len(value) == len(parts) and all(
            _fits(item, part) for item, part in zip(value, parts, strict=True)
        )
    if issubclass(kind, (Sequence, Set)) and parts:
        if isinstance(value, (str, bytes)):
            return False  # a text is a sequence of texts, but hardly meant as one
        return all(_fits(item, parts[0]) for item in value)
    if issubclass(kind, Mapping) and parts:
        return all(_fits(k, parts[0]) and _fits(v, parts[1]) for k, v in value.items())
    return True


def _is_path(hint: Any) -> bool:
    kind = typing.get_origin(hint) or hint
    return isinstance(kind, type) and issubclass(kind, os.PathLike)


def _is_text(value: str | bytes) -> bool:
    """Whether a file's name could be like that: bytes that are no UTF-8 may be, NUL may not."""
    try:
        return b"\0" not in os.fsencode(value)
    except UnicodeEncodeError:
        return False


def _is_device(value: str | torch.device) -> bool:
    try:
        return torch.device(value).type != "meta"  # which keeps no values
    except RuntimeError:
        return False


def _is_number(value: Any, hint: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, hint)):
        return False
    if isinstance(value, int):
        return -_LARGEST <= value <= _LARGEST
    return not math.isnan(value)


def _text(hint: Any) -> str:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(_text(part) for part in parts))
    if origin is typing.Literal:
        return " or ".join(map(repr, parts))
    if hint is torch.device:
        return 'a device such as "cuda:0"'
    kind: Any = getattr(hint, "__bound__", None) or origin or hint
    if kind in _WORDS:
        return _WORDS[kind]
    if kind is collections.abc.Callable:
        return "a function"
    if _is_path(kind):
        return _WORDS[os.PathLike]
    if isinstance(kind, type) and parts and issubclass(kind, Sequence):
        inside = ", ".join("..." if part is ... else _text(part) for part in parts)
        return f"a {'tuple' if kind is tuple else 'list'} ({inside})"
    return f"a {getattr(kind, '__name__', kind)}"
