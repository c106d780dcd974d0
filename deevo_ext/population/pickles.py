"""Pickled objects beside the weights: read without importing or calling what a file names.

`torch.load(weights_only=True)` makes tensors and plain values, and refuses every other name in the
file. Training scripts keep more beside the weights: arguments, paths, configurations, metrics.
NumPy's numbers and arrays, and argparse's Namespaces, are read as they are. In place of anything
else stands a `StandIn`, which does nothing: no module is imported, no class of the file's choice is
made, no function called.
"""

from __future__ import annotations

import argparse
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch


class StandIn:
    """Stands for a pickled object; `kind` is the name of its class or function in the file."""

    kind = ""

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, _: Any) -> None: ...


def _stand_in(name: str) -> type:
    """Makes what stands for the class or function of this name.

    Torch fills nothing but plain mappings and lists, so a class that is called one gets one.
    """
    if name.lower().endswith("dict"):
        return _Mapping
    if name.lower().endswith(("list", "deque")):
        return _Sequence
    module, _, own = name.rpartition(".")
    return type(own, (StandIn,), {"kind": name, "__module__": module})


class _Mapping:
    def __new__(cls, *_: Any) -> Any:
        return OrderedDict()


class _Sequence:
    def __new__(cls, *_: Any) -> Any:
        return []


def _real() -> dict[str, Any]:
    """What is made as it is, by its name in files; NumPy 1 and 2 give theirs other ones."""
    multiarray: Any = (getattr(np, "_core", None) or np.core).multiarray
    functions = {"scalar": multiarray.scalar, "_reconstruct": multiarray._reconstruct}
    names: dict[str, Any] = {
        f"{module}.{name}": function
        for module in ("numpy.core.multiarray", "numpy._core.multiarray")
        for name, function in functions.items()
    }
    names |= {"numpy.ndarray": np.ndarray, "numpy.dtype": np.dtype, "_codecs.encode": _encode}
    names["argparse.Namespace"] = argparse.Namespace
    kinds = [kind for kind in vars(np.dtypes).values() if isinstance(kind, type)]
    return names | {f"numpy.dtypes.{kind.__name__}": kind for kind in kinds}


def _encode(text: str, encoding: str) -> bytes:
    """Makes bytes of text, as pickles of protocol 2 ask for: by latin1 and nothing else."""
    if encoding != "latin1":
        raise ValueError(f"bytes in encoding {encoding!r}")
    return text.encode("latin1")


_REAL = _real()
_USUAL = (
    *("pathlib.PosixPath", "pathlib._local.PosixPath"),
    *("collections.defaultdict", "builtins.list", "builtins.dict", "builtins.int"),
)
"""What files of the format before zip, whose names torch does not list, may hold besides."""


def load(path: Path, *, mapped: bool = False) -> Any:
    """Reads what `torch.save` wrote; whatever it holds, only tensors and plain values are made.

    mapped: leaves the weights in the file, where its format allows that.
    """
    names: tuple[str, ...] = _USUAL
    whole = zipfile.is_zipfile(path)
    if whole:
        names = tuple(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    if parts := [name for name in names if name.endswith(".DTensor")]:
        raise TypeError(f"{parts[0]} is a part of a tensor")
    stand_ins = {name: _stand_in(name) for name in names}
    allowed: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
        (kind, name) for name, kind in (stand_ins | _REAL).items()
    ]
    with torch.serialization.safe_globals(allowed):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=whole and mapped)
