"""plan and tell of the Triton backend: computed by the compiled CPU backend.

Both move a few kilobytes, whatever the size of the networks, which is too little to keep Triton
kernels for. Tensors on a CUDA device are copied to the CPU, where the compiled operator runs, and
what it changed is copied back in place. Tensors on the CPU are used where they are.

The host waits for the device in every call: unlike those of the backend `cuda`, these calls cannot
be captured in a CUDA graph.
"""

from __future__ import annotations

from typing import Any

import torch

from deevo_ext import backends

# How many of an operator's last arguments are tensors that it changes.
CHANGED_BY_PLAN, CHANGED_BY_TELL = 4, 6


def plan(*arguments: Any) -> None:
    """Does what `deevo_ext.backends.reference.plan` does, with the same arguments."""
    _run_on_cpu("plan", arguments, CHANGED_BY_PLAN)


def tell(*arguments: Any) -> None:
    """Does what `deevo_ext.backends.reference.tell` does, with the same arguments."""
    _run_on_cpu("tell", arguments, CHANGED_BY_TELL)


def _run_on_cpu(operator: str, arguments: tuple[Any, ...], changed: int) -> None:
    on_cpu = [a.cpu() if isinstance(a, torch.Tensor) else a for a in arguments]
    getattr(backends.compiled_cpu(), operator)(*on_cpu)
    for tensor, result in zip(arguments[-changed:], on_cpu[-changed:], strict=True):
        if result is not tensor:
            tensor.data.copy_(result)  # .data: the caller counts the tensor's versions
