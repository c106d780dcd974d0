"""What tells a user's function from another one, so that no run goes on with one that changed."""

from __future__ import annotations

import collections
import enum
import functools
import hashlib
import os
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

_TEXTS = (enum.Enum, torch.dtype, torch.device, os.PathLike, np.generic)
_NUMBERS = (types.NoneType, types.EllipsisType, bool, int, float, complex, range)


def full_name(function: Callable[..., Any]) -> str:
    """Returns the module and name of a function, or of the type of a callable object."""
    if isinstance(function, functools.partial):
        return full_name(function.func)
    kind = function if hasattr(function, "__qualname__") else type(function)
    return f"{kind.__module__}.{kind.__qualname__}"


def function_identity(function: Callable[..., Any]) -> dict[str, str]:
    """Returns what tells a function from others, as JSON values for a journal.

    "function" is its module and name; a lambda's ends in `<lambda>`. "sha256" is of its bytecode,
    defaults and closure, of a callable object's attributes, and of what these look up in their
    modules: functions and classes of the same package likewise, tensors and arrays by their
    content, networks by their structure, other objects by their type alone. Where the function has
    an attribute `version`, a text or a number, this stands in place of the hash: its author says
    what is the same. The hash differs between versions of Python, whose bytecode does.
    """
    name, version = full_name(function), getattr(function, "version", None)
    if isinstance(version, (str, int, float)):
        return {"function": name, "version": str(version)}
    digest = hashlib.sha256()
    for part in _Parts(name.partition(".")[0]).of(function):
        digest.update(len(part).to_bytes(8, "little") + part)
    return {"function": name, "sha256": digest.hexdigest()}


class _Parts:
    """The bytes that a function's hash is made of.

    package: the first word of the function's module; what others define counts by its name.
    """

    def __init__(self, package: str) -> None:
        self._package = package
        # An installed library such as torch is large, and holds what differs between processes.
        file = getattr(sys.modules.get(package), "__file__", None) or ""
        self._installed = not {"site-packages", "dist-packages"}.isdisjoint(Path(file).parts)
        self._seen: dict[int, Any] = {}  # kept, lest an address be used again
        self._definitions: list[types.FunctionType | type] = []

    def of(self, function: Callable[..., Any]) -> Iterator[bytes]:
        """Yields the function's parts, then those of all that it is made of."""
        yield from self._value(function)
        if not isinstance(function, (types.FunctionType, types.BuiltinFunctionType, type)):
            yield from self._value(attributes_of(function))
        for definition in self._definitions:  # which become more on the way
            if isinstance(definition, type):
                yield from self._value({k: v for k, v in vars(definition).items() if k[:2] != "__"})
                yield from self._value([vars(definition).get(k) for k in ("__init__", "__call__")])
                if not self._installed:
                    yield from self._items(definition.__bases__)
            else:
                yield from self._function(definition)

    def _value(self, value: Any) -> Iterator[bytes]:
        kind = type(value)
        yield f"{kind.__module__}.{kind.__qualname__}".encode()
        if isinstance(value, _NUMBERS):
            yield repr(value).encode()
        elif isinstance(value, (str, bytes)):
            yield value if isinstance(value, bytes) else value.encode(errors="surrogatepass")
        elif isinstance(value, _TEXTS):
            yield str(value).encode()
        elif isinstance(value, types.CodeType):
            yield from self._code(value)
        elif isinstance(value, tuple):
            yield from self._items(value)
        elif isinstance(value, (set, frozenset)):  # whose order differs between processes
            yield from sorted(b"\0".join(self._value(item)) for item in value)
        elif id(value) in self._seen:
            yield str(list(self._seen).index(id(value))).encode()
        else:
            self._seen[id(value)] = value
            yield from self._object(value)

    def _items(self, values: Any) -> Iterator[bytes]:
        yield str(len(values)).encode()
        for value in values:
            yield from self._value(value)

    def _object(self, value: Any) -> Iterator[bytes]:
        if isinstance(value, types.ModuleType):
            yield value.__name__.encode()
        elif isinstance(value, (types.FunctionType, types.BuiltinFunctionType, type)):
            yield from self._defined(value)
        elif isinstance(value, torch.nn.Module):
            yield repr(value).encode()
            yield from self._defined(type(value))
        elif isinstance(value, (torch.Tensor, np.ndarray)):
            yield from _array(value)
        elif isinstance(value, types.MethodType):
            yield from self._items((value.__func__, value.__self__, attributes_of(value.__self__)))
        elif isinstance(value, functools.partial):
            yield from self._items((value.func, value.args, value.keywords))
        elif isinstance(value, (classmethod, staticmethod)):
            yield from self._value(value.__func__)
        elif isinstance(value, property):
            yield from self._value(value.fget)
        elif isinstance(value, Mapping):
            yield from self._items([part for item in value.items() for part in item])
        elif isinstance(value, (list, collections.deque)):
            yield from self._items(value)
        else:
            yield from self._defined(type(value))
            wrapped = getattr(value, "__dict__", {}).get("__wrapped__")
            if wrapped is not None and not self._installed:  # by functools.lru_cache, say
                yield from self._value(wrapped)

    def _defined(self, value: Any) -> Iterator[bytes]:
        """Yields a definition's name; what it holds follows if it is of the package."""
        module = str(value.__module__)
        yield f"{module}.{value.__qualname__}".encode()
        if not self._owns(module) or value in self._definitions:
            return
        if isinstance(value, (types.FunctionType, type)):
            self._definitions.append(value)

    def _owns(self, module: str) -> bool:
        return module.partition(".")[0] == self._package

    def _follows(self, module: str) -> bool:
        return self._owns(module) and not self._installed

    def _function(self, function: types.FunctionType) -> Iterator[bytes]:
        yield from self._value(function.__code__)
        yield from self._value((function.__defaults__, function.__kwdefaults__))
        for cell in function.__closure__ or ():
            try:
                content = cell.cell_contents
            except ValueError:  # of a name that has no value yet
                continue
            yield from self._value(content)
        names = _names(function.__code__)
        for name in sorted(names & function.__globals__.keys()):
            value = function.__globals__[name]
            yield name.encode()
            yield from self._value(value)
            if isinstance(value, types.ModuleType) and self._follows(value.__name__):
                for attribute in sorted(names & vars(value).keys()):
                    yield attribute.encode()
                    yield from self._value(vars(value)[attribute])

    def _code(self, code: types.CodeType) -> Iterator[bytes]:
        yield code.co_code
        yield from self._value((code.co_names, code.co_varnames, code.co_freevars))
        yield from self._value((code.co_argcount, code.co_kwonlyargcount, code.co_flags))
        yield from self._value(code.co_consts)


def attributes_of(value: object) -> dict[str, Any]:
    """Returns what an object holds, in its `__dict__` and in slots."""
    slots = [vars(kind).get("__slots__", ()) for kind in type(value).__mro__]
    names = [name for some in slots for name in ([some] if isinstance(some, str) else some)]
    held = {
        name: getattr(value, name) for name in names if name[:2] != "__" and hasattr(value, name)
    }
    return held | getattr(value, "__dict__", {})


def _names(code: types.CodeType) -> set[str]:
    """Returns the names that code and the functions inside it look up."""
    inner = [const for const in code.co_consts if isinstance(const, types.CodeType)]
    return set(code.co_names).union(*map(_names, inner))


def _array(value: torch.Tensor | np.ndarray) -> Iterator[bytes]:
    if isinstance(value, torch.Tensor):
        yield f"{value.dtype} {tuple(value.shape)}".encode()
        yield value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    else:
        yield f"{value.dtype} {value.shape}".encode()
        yield repr(value.tolist()).encode() if value.dtype.hasobject else value.tobytes()
