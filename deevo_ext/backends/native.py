"""The compiled operators of `deevo_ext._C`: `cpu` for the CPU, `cuda` for CUDA devices.

Both are called in the same way. An operator's arguments, which `ops` has checked, go to the
extension as they are, behind the place where the work is done: a number of threads, or a device and
a stream. The extension asks the tensors for their addresses, sizes, strides and dtypes
(csrc/python), so that no list of arguments is written here.

On CUDA nothing allocates, waits or reads a value off the device, so calls can be captured in a CUDA
graph; `linear_scores` is Triton's alone there. Values lie on the device and are checked by the
kernels, where a failed check is a device-side assert, as for an index in torch. `head` refuses
channels that a block's shared memory cannot hold in float32: about 25,000 on a GPU with 99 KiB.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

from deevo_ext import _extension
from deevo_ext.errors import DeevoError

OPERATORS = ("plan", "trials", "tell", "commit", "compose", "fold", "head", "loss_and_rank")
COMPILED_FOR_CPU = ("linear_scores",)


def backend(
    compiled: Callable[[], Any],
    place: Callable[[torch.Tensor], tuple[int, ...]],
    operators: tuple[str, ...] = OPERATORS,
) -> SimpleNamespace:
    """The operators of a compiled module, each with the arguments of its schema in `ops`.

    place says where the work is done, from the operator's first tensor. What the extension refuses
    by value is a DeevoError.
    """

    def operator(name: str) -> Callable[..., None]:
        launcher = functools.cache(lambda: getattr(compiled(), name))

        def call(*arguments: Any) -> None:
            try:
                launcher()(*place(arguments[0]), *arguments)
            except ValueError as error:
                raise DeevoError(f"deevo::{name}: {error}") from None

        return call

    return SimpleNamespace(**{name: operator(name) for name in operators})


def _queue(tensor: torch.Tensor) -> tuple[int, int]:
    device = tensor.device
    return device.index, torch.cuda.current_stream(device).cuda_stream


cpu = backend(
    lambda: _extension.load().cpu,
    lambda _: (torch.get_num_threads(),),
    OPERATORS + COMPILED_FOR_CPU,
)
"""On torch.get_num_threads() threads."""

cuda = backend(lambda: _extension.load().cuda, _queue)
"""On the current stream of the tensors' device."""
