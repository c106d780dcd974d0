"""The operators' backends: `reference` is the specification, `cpu` the compiled one.

Which one serves a call: the one that `use` or the environment variable DEEVO_BACKEND forces, else
`cpu` for CPU tensors. A backend that cannot serve is an error, never silently another one.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
from collections.abc import Iterator
from types import ModuleType

import torch

from deevo_ext import _extension
from deevo_ext.errors import DeevoError

NAMES = ("reference", "cpu")

_forced: list[str] = []


@contextlib.contextmanager
def use(name: str) -> Iterator[None]:
    """Forces a backend for the calls inside the with-block (all threads)."""
    _require(name, "the argument of deevo_ext.backends.use")
    _forced.append(name)
    try:
        yield
    finally:
        _forced.pop()


def why_unavailable(name: str) -> str | None:
    """Why a backend cannot serve here, in words; None if it can."""
    return _extension.why_missing() if name == "cpu" else None


def _require(name: str, source: str) -> None:
    if name not in NAMES:
        raise DeevoError(f"{source} is {name!r}; expected one of {', '.join(NAMES)}")
    reason = why_unavailable(name)
    if reason is not None:
        raise DeevoError(f"{source} asks for backend {name!r}, which is not available: {reason}")


def select(device: torch.device) -> ModuleType:
    """The backend module that serves tensors on a device; raises DeevoError if none can."""
    if device.type != "cpu":
        raise DeevoError(
            f"tensors are on device {device}; this version has operators for the CPU only: move "
            "the population to the CPU (the evaluation may stay where it is)"
        )
    if _forced:
        name = _forced[-1]
    elif (name := os.environ.get("DEEVO_BACKEND", "auto")) != "auto":
        _require(name, "the environment variable DEEVO_BACKEND")
    else:
        name = "cpu"
        if (reason := why_unavailable(name)) is not None:
            raise DeevoError(
                f"the compiled operators are not available: {reason} To run on the slow reference "
                "instead, set DEEVO_BACKEND=reference."
            )
    return _module(name)


@functools.cache
def _module(name: str) -> ModuleType:
    return importlib.import_module(f"deevo_ext.backends.{name}")
