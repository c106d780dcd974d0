"""Registration with torch.library: `torch.ops.deevo.<op>`.

`Library.define` rather than `torch.library.custom_op`, which costs several times more per call.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from deevo_ext import backends
from deevo_ext.ops.checks import Checker

# Kept for the process's lifetime: the operators vanish with it.
LIBRARY = torch.library.Library("deevo", "DEF")


@dataclass(frozen=True)
class _Operator:
    check: Callable[..., None]
    names: tuple[str, ...]  # of the arguments, in the schema's order
    mutated: tuple[int, ...]  # positions of the arguments that are written to


_operators: dict[str, _Operator] = {}


def register(schema: str, check: Callable[..., None], mutated: tuple[int, ...]) -> None:
    """Defines an operator: checked arguments, then the backend that serves their device.

    check raises DeevoError before anything is written. mutated: positions of the mutated tensors,
    whose version counters are bumped, which `Library.impl` does not do by itself.
    """
    name = schema.partition("(")[0]
    LIBRARY.define(schema)
    _operators[name] = _Operator(check, tuple(inspect.signature(check).parameters), mutated)

    def run(*arguments: Any) -> None:
        check(*arguments)
        getattr(backends.select(arguments[0].device, name), name)(*arguments)
        torch.autograd.graph.increment_version([arguments[i] for i in mutated])

    LIBRARY.impl(name, run, "CPU")
    LIBRARY.impl(name, run, "CUDA")

    def fake(*arguments: Any) -> None:
        device = next(a.device for a in arguments if isinstance(a, torch.Tensor))
        for argument, value in zip(_operators[name].names, arguments, strict=True):
            if isinstance(value, torch.Tensor) and value.device != device:
                Checker(name, device).fail(
                    argument, f"on {value.device}", f"device {device}, as the others"
                )

    # A single tensor on the meta device is enough for torch to call this and nothing else.
    torch.library.register_fake(f"deevo::{name}", fake, lib=LIBRARY)


class BoundOperator:
    """An operator bound to arguments that their owner keeps as they are, values apart.

        plan = BoundOperator("plan", settings=settings, strategies=strategies, ...)
        plan()
        trials = BoundOperator("trials", population=rows, members=members, out=out, ...)
        trials(members=others, out=another)

    The arguments are checked once, here; a call is then free of checks and of torch's dispatcher,
    which together take some 40 microseconds, more than a small generation's arithmetic. For owners
    that give no one else the means to resize the tensors; others call `torch.ops.deevo`.
    """

    def __init__(self, operator: str, /, **arguments: Any) -> None:
        """Checks and binds all of the operator's arguments, by the names in its schema.

        Raises DeevoError for a wrong argument, TypeError for one that is missing or unknown.
        """
        registered = _operators[operator]
        registered.check(**arguments)
        self._operator = operator
        self._arguments = [arguments[name] for name in registered.names]
        self._positions = {name: i for i, name in enumerate(registered.names)}
        self._mutated = registered.mutated

    def __call__(self, **replacements: Any) -> None:
        """Runs the operator on the backend in force, with replacements for some of its arguments.

        The owner answers for them too: dtype, shape, contiguity, memory that nothing else shares.
        """
        arguments = self._arguments.copy()
        for name, value in replacements.items():
            arguments[self._positions[name]] = value
        getattr(backends.select(arguments[0].device, self._operator), self._operator)(*arguments)
        torch.autograd.graph.increment_version([arguments[i] for i in self._mutated])
