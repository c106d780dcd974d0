"""The compiled operators of `deevo_ext._C`: `cpu` for the CPU, `cuda` for CUDA devices.

Both are called in the same way. An operator's arguments, which `ops` has checked, go to the
extension as they are, behind the place where the work is done: a number of threads, or a device and
a stream. The extension asks the tensors for their addresses, sizes, strides and dtypes
(csrc/python), so that no list of arguments is written here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from deevo_ext.errors import DeevoError

OPERATORS = ("plan", "trials", "tell", "commit", "fold", "head", "loss_and_rank")


def operator(
    name: str,
    compiled: Callable[[], Any],
    place: Callable[[torch.Tensor], tuple[int, ...]],
) -> Callable[..., None]:
    """An operator of a compiled module; it takes the arguments of its schema in `ops`.

    place says where the work is done, from the operator's first tensor. What the extension refuses
    by value is a DeevoError.
    """

    def call(*arguments: Any) -> None:
        try:
            getattr(compiled(), name)(*place(arguments[0]), *arguments)
        except ValueError as error:
            raise DeevoError(f"deevo::{name}: {error}") from None

    return call
