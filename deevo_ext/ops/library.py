"""Registration with torch.library: `torch.ops.deevo.<op>`.

`Library.define` rather than `torch.library.custom_op`, which costs several times more per call.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from deevo_ext import backends
from deevo_ext.errors import DeevoError
from deevo_ext.ops.checks import Checker

# Kept for the process's lifetime: the operators vanish with it.
LIBRARY = torch.library.Library("deevo", "DEF")


@dataclass(frozen=True)
class _Operator:
    name: str
    check_each: Callable[..., None]
    arguments: tuple[str, ...]  # in the schema's order
    tensors: tuple[tuple[str, int], ...]  # those that are tensors, and their positions
    mutated: tuple[int, ...]  # positions of the arguments that are written to

    def check(self, arguments: Sequence[Any]) -> None:
        """Raises DeevoError for arguments that are wrong, or that share memory."""
        self.check_each(*arguments)
        tensors = [(name, arguments[i]) for name, i in self.tensors]
        Checker(self.name, arguments[0].device).disjoint(tensors)

    def run(self, arguments: Sequence[Any]) -> None:
        """Calls the backend that serves the arguments' device, and counts the writes.

        The version counters of tensors are bumped, which `Library.impl` does not do by itself.
        """
        getattr(backends.select(arguments[0].device, self.name), self.name)(*arguments)
        torch.autograd.graph.increment_version([arguments[i] for i in self.mutated])


_operators: dict[str, _Operator] = {}


def register(name: str, check: Callable[..., None], mutated: tuple[str, ...]) -> None:
    """Defines an operator: checked arguments, then the backend that serves their device.

    check: has the operator's arguments for its own, with their types, and raises DeevoError before
    anything is written. mutated: names of the tensors that are written to.
    """
    # Seeds reach up to 2^63 - 1, which a SymInt does not.
    schema = torch.library.infer_schema(check, mutates_args=mutated).replace("SymInt", "int")
    LIBRARY.define(name + schema)
    annotations = inspect.get_annotations(check, eval_str=True)
    arguments = tuple(inspect.signature(check).parameters)
    tensors = tuple((a, i) for i, a in enumerate(arguments) if annotations[a] is torch.Tensor)
    operator = _Operator(name, check, arguments, tensors, tuple(map(arguments.index, mutated)))
    _operators[name] = operator

    def run(*values: Any) -> None:
        operator.check(values)
        operator.run(values)

    LIBRARY.impl(name, run, "CPU")
    LIBRARY.impl(name, run, "CUDA")

    def fake(*values: Any) -> None:
        device = next(value.device for value in values if isinstance(value, torch.Tensor))
        for argument, value in zip(arguments, values, strict=True):
            if isinstance(value, torch.Tensor) and value.device != device:
                Checker(name, device).fail(
                    argument, f"on {value.device}", f"device {device}, as the others"
                )

    # A single tensor on the meta device is enough for torch to call this and nothing else.
    torch.library.register_fake(f"deevo::{name}", fake, lib=LIBRARY)


def argument_names(operator: str) -> tuple[str, ...]:
    """Returns the names of an operator's arguments in order; DeevoError where there is none."""
    if operator not in _operators:
        raise DeevoError(
            f"there is no operator deevo::{operator}; expected one of {', '.join(_operators)}"
        )
    return _operators[operator].arguments


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
        self._operator = _operators[operator]
        bound = inspect.signature(self._operator.check_each).bind(**arguments)
        self._arguments = list(bound.args)
        self._operator.check(self._arguments)
        self._positions = {name: i for i, name in enumerate(self._operator.arguments)}

    def release(self, *names: str) -> BoundOperator:
        """Lets go of arguments that every call will replace, and returns the operator."""
        for name in names:
            self._arguments[self._positions[name]] = None
        return self

    def __call__(self, **replacements: Any) -> None:
        """Runs the operator on the backend in force, with replacements for some of its arguments.

        The owner answers for them too: dtype, shape, contiguity, memory that nothing else shares.
        """
        arguments = self._arguments.copy()
        for name, value in replacements.items():
            arguments[self._positions[name]] = value
        self._operator.run(arguments)
