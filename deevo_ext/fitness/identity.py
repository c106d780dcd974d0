"""Which function a function is: its name, and a hash of what it computes.

The hash covers the bytecode with its constants, defaults, what a closure holds, and what the body
reads from its module: numbers, texts, tensors, and functions of the same package, these likewise.
It does not see what else a function may depend on, such as files; and another version of Python has
another bytecode.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

_LENGTH = 16  # hex digits that are kept


def full_name(function: Callable[..., Any]) -> str:
    """Returns the module and name of a function, or of the type of a callable object."""
    kind = function if hasattr(function, "__qualname__") else type(function)
    return f"{kind.__module__}.{kind.__qualname__}"


def code_of(function: Callable[..., Any]) -> str:
    """Returns a hash (hex) of what a function or a callable object computes."""
    package = full_name(function).partition(".")[0]
    return hashlib.sha256(_text(function, package, ()).encode()).hexdigest()[:_LENGTH]


def _text(value: Any, package: str, above: tuple[int, ...]) -> str:
    """Returns a text that equal values share, of functions that of their code.

    package: whose functions are looked into. above: what is being looked at, which may refer to
    itself.
    """
    if id(value) in above:
        return "itself"
    above = (*above, id(value))

    def inside(part: Any) -> str:
        return _text(part, package, above)

    if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        return repr(value)
    if isinstance(value, CodeType):
        parts = (value.co_code.hex(), value.co_names, value.co_varnames, value.co_freevars)
        return f"code {parts} {inside(value.co_consts)}"
    if isinstance(value, (tuple, list)):
        return f"{type(value).__name__}({', '.join(map(inside, value))})"
    if isinstance(value, (set, frozenset)):
        return f"set({', '.join(sorted(map(inside, value)))})"
    if isinstance(value, dict):
        return f"dict({', '.join(f'{inside(k)}: {inside(v)}' for k, v in value.items())})"
    if isinstance(value, Tensor):
        # Through the bytes: not every dtype has one in NumPy.
        array = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        return f"{value.dtype} {list(value.shape)} {hashlib.sha256(array.data).hexdigest()}"
    if isinstance(value, np.ndarray):
        digest = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
        return f"{value.dtype} {value.shape} {digest}"
    if isinstance(value, functools.partial):
        return f"partial {inside((value.func, value.args, value.keywords))}"
    if isinstance(value, MethodType):
        return f"method {inside((value.__func__, value.__self__))}"
    if isinstance(value, FunctionType):
        if value.__module__.partition(".")[0] != package:
            return full_name(value)
        read = {n: value.__globals__[n] for n in _names(value.__code__) if n in value.__globals__}
        cells = [_content(cell) for cell in value.__closure__ or ()]
        return inside((value.__code__, value.__defaults__, value.__kwdefaults__, cells, read))
    if isinstance(value, (type, ModuleType, BuiltinFunctionType)) or not callable(value):
        return full_name(value) if callable(value) else getattr(value, "__name__", full_name(value))
    call = type(value).__call__
    own = inside((call, vars(value))) if isinstance(call, FunctionType) else ""
    return f"{full_name(value)} {own}"


def _names(code: CodeType) -> list[str]:
    """Returns the names that a code and those inside it may read from their module."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names.update(_names(constant))
    return sorted(names)


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None
