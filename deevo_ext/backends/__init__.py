"""The operators' backends: `reference` is the specification, the others are what one uses.

Which one serves a call: the one that `use` or the environment variable DEEVO_BACKEND forces, else
`cpu` for CPU tensors and `triton` for CUDA tensors. A backend that cannot serve is an error, never
silently another one.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import os
from collections.abc import Iterator
from types import ModuleType

import torch

from deevo_ext import _extension
from deevo_ext.errors import DeevoError

# Devices whose tensors a backend takes (triton takes the CPU's in its interpreter only).
DEVICES = {"reference": ("cpu",), "cpu": ("cpu",), "triton": ("cuda", "cpu")}
NAMES = tuple(DEVICES)

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
    """Why a backend cannot serve on this machine, in words; None if it can."""
    if name == "triton":
        return _why_no_triton()
    return _extension.why_missing() if name == "cpu" else None


@functools.cache
def _why_no_triton() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return (
            "Triton is not installed. torch's CUDA builds bring their own; for the interpreter on "
            'the CPU, "pip install triton".'
        )
    return None


def _require(name: str, source: str) -> None:
    if name not in NAMES:
        raise DeevoError(f"{source} is {name!r}; expected one of {', '.join(NAMES)}")
    reason = why_unavailable(name)
    if reason is not None:
        raise DeevoError(f"{source} asks for backend {name!r}, which is not available: {reason}")


def select(device: torch.device) -> ModuleType:
    """The backend module that serves tensors on a device; raises DeevoError if none can."""
    if _forced:
        return _load(_forced[-1], device, "deevo_ext.backends.use")
    if (name := os.environ.get("DEEVO_BACKEND", "auto")) != "auto":
        _require(name, "the environment variable DEEVO_BACKEND")
        return _load(name, device, "the environment variable DEEVO_BACKEND")
    if device.type == "cpu":
        if (reason := why_unavailable("cpu")) is not None:
            raise DeevoError(
                f"the compiled operators are not available: {reason} To run on the slow reference "
                "instead, set DEEVO_BACKEND=reference."
            )
        return _load("cpu", device, "")
    if device.type == "cuda":
        if (reason := why_unavailable("triton")) is not None:
            raise DeevoError(
                f"tensors are on device {device}, and no backend for it is available. triton: "
                f"{reason} Or move the population to the CPU (the evaluation may stay where it is)."
            )
        return _load("triton", device, "")
    raise DeevoError(
        f"tensors are on device {device}; there are operators for CPU and CUDA tensors: move the "
        "population to one of these (the evaluation may stay where it is)"
    )


def _load(name: str, device: torch.device, source: str) -> ModuleType:
    if device.type not in DEVICES[name]:
        raise DeevoError(
            f"{source} asks for backend {name!r}, which takes tensors on "
            f"{' or '.join(DEVICES[name])} devices; these are on {device}"
        )
    return _module(name)


@functools.cache
def _module(name: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{name}")
