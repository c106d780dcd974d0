"""The operators' backends: `reference` is the specification, the others are what one uses.

Which one serves a call: the one that `use` or the environment variable DEEVO_BACKEND forces, else
`cpu` for CPU tensors, and for CUDA tensors `cuda` if the extension was built with it and it has the
operator, `triton` otherwise. A backend that cannot serve is an error, never silently another one.
`register_backend` adds one; it serves only where it is forced.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import inspect
import os
import runpy
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch

from deevo_ext import _extension
from deevo_ext.errors import DeevoError

# Devices whose tensors a backend takes, the one that it is made for first. The kernels of triton
# take the CPU's in its interpreter only; its plan and tell, which the compiled CPU backend serves,
# anywhere.
DEVICES: dict[str, tuple[str, ...]] = {
    "reference": ("cpu",),
    "cpu": ("cpu",),
    "cuda": ("cuda",),
    "triton": ("cuda", "cpu"),
}

Backend = ModuleType | SimpleNamespace
"""A backend, which has its operators as functions."""

_registered: dict[str, SimpleNamespace] = {}
_forced: list[str] = []


def register_backend(
    name: str, devices: Sequence[str] = ("cpu",), **operators: Callable[..., None]
) -> None:
    """Adds a backend: another way to compute some of the operators, by the numeric contract.

        register_backend("mine", trials=my_trials)

    name: what `use` and DEEVO_BACKEND call it; a backend that was registered by this name is
    replaced. devices: kinds of devices whose tensors it takes, "cpu" or "cuda", the one that it is
    made for first. operators: functions by the names of the operators in `torch.ops.deevo`, with
    the arguments of their schemas in order, which are checked before the call. A function writes
    what the operator writes, with the same bits as backend `reference`, and returns None.

    A file that calls this and is named by the environment variable DEEVO_BACKEND_FILE is run when
    `deevo_ext` is imported, so that tests and benchmarks take its backend among the others. Raises
    DeevoError for a built-in name, for other devices and for an operator that there is not.
    """
    if name == "auto" or (name in DEVICES and name not in _registered):
        raise DeevoError(f"register_backend: name is {name!r}, which is built in; choose another")
    if not devices or not set(devices) <= {"cpu", "cuda"}:
        raise DeevoError(f"register_backend: devices is {devices!r}; expected cpu, cuda or both")
    from deevo_ext.ops.library import argument_names

    for operator, function in operators.items():
        arguments = argument_names(operator)
        try:
            inspect.signature(function).bind(*arguments)
        except TypeError:
            raise DeevoError(
                f"register_backend: {operator} is {function!r}; expected a function of "
                f"({', '.join(arguments)})"
            ) from None
    _registered[name] = SimpleNamespace(**operators)
    _module.cache_clear()
    DEVICES[name] = tuple(devices)


def run_backend_file() -> None:
    """Runs the file that the environment variable DEEVO_BACKEND_FILE names, if it names one."""
    if not (named := os.environ.get("DEEVO_BACKEND_FILE")):
        return
    if not Path(named).is_file():
        raise DeevoError(
            f"the environment variable DEEVO_BACKEND_FILE is {named!r}, which is no file; expected "
            "a Python file that calls deevo_ext.backends.register_backend"
        )
    runpy.run_path(named)


def has_operator(name: str, operator: str) -> bool:
    """Returns whether a backend that can serve on this machine has an operator."""
    return hasattr(_module(name), operator)


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
    """Returns why a backend cannot serve on this machine, in words, or None if it can."""
    if name == "reference" or name in _registered:
        return None
    if (reason := _extension.why_missing()) is not None:
        return reason
    if name == "triton":
        return _why_no_triton()
    if name == "cuda" and not hasattr(_extension.load(), "cuda"):
        return (
            "the extension was built without CUDA kernels. Rebuild it where nvcc is found: "
            'FORCE_CUDA=1 pip install --force-reinstall --no-deps ".", in the source checkout.'
        )
    return None


@functools.cache
def _why_no_triton() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return (
            "Triton is not installed. torch's CUDA builds bring their own; for the interpreter on "
            'the CPU, "pip install triton".'
        )
    return None


def _require(name: str, source: str) -> None:
    if name not in DEVICES:
        raise DeevoError(f"{source} is {name!r}; expected one of {', '.join(DEVICES)}")
    reason = why_unavailable(name)
    if reason is not None:
        raise DeevoError(f"{source} asks for backend {name!r}, which is not available: {reason}")


def select(device: torch.device, operator: str) -> Backend:
    """Returns the backend that serves an operator on a device; raises DeevoError if none can."""
    if _forced:
        return _load(_forced[-1], device, operator, "deevo_ext.backends.use")
    if os.environ.get("DEEVO_BACKEND", "auto") != "auto":
        source = "the environment variable DEEVO_BACKEND"
        _require(os.environ["DEEVO_BACKEND"], source)
        return _load(os.environ["DEEVO_BACKEND"], device, operator, source)
    if device.type == "cpu":
        return compiled_cpu()
    reasons = []
    for name in ("cuda", "triton") if device.type == "cuda" else ():
        reason = why_unavailable(name)
        if reason is None and has_operator(name, operator):
            return _module(name)
        reasons.append(f" Backend {name}: {reason or 'it does not have this operator.'}")
    raise DeevoError(
        f"deevo::{operator}: tensors are on device {device}, for which there is no backend; move "
        f"them to the CPU.{''.join(reasons)}"
    )


def compiled_cpu() -> Backend:
    """Returns the compiled CPU backend, whatever is forced; DeevoError where it was not built."""
    if (reason := why_unavailable("cpu")) is not None:
        raise DeevoError(
            f"the compiled operators are not available: {reason} To run CPU tensors on the slow "
            "reference instead, set DEEVO_BACKEND=reference."
        )
    return _module("cpu")


@functools.cache
def _module(name: str) -> Backend:
    if name in _registered:
        return _registered[name]
    if name in ("cpu", "cuda"):
        return getattr(importlib.import_module(f"{__name__}.native"), name)
    return importlib.import_module(f"{__name__}.{name}")


def _load(name: str, device: torch.device, operator: str, source: str) -> Backend:
    if device.type not in DEVICES[name]:
        raise DeevoError(
            f"{source} asks for backend {name!r}, which takes tensors on "
            f"{' or '.join(DEVICES[name])} devices; these of deevo::{operator} are on {device}"
        )
    if not has_operator(name, operator):
        raise DeevoError(
            f"{source} asks for backend {name!r}, which does not have deevo::{operator}"
        )
    return _module(name)
