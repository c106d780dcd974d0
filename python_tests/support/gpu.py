"""What the tests on a GPU share: tensors moved to it, and a watch for waits and allocations."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any, TypeVar

import torch

from support.operators import Evolution
from support.weights import Weights

Tensors = TypeVar("Tensors", Evolution, Weights)


def moved(of: Tensors, device: str) -> Tensors:
    """A copy with its tensors on a device."""
    tensors = {k: v.to(device, copy=True) for k, v in vars(of).items() if torch.is_tensor(v)}
    return dataclasses.replace(of, **tensors)


def to_cuda(value: Any) -> Any:
    """The same with its tensors on the GPU, inside of containers, too."""
    if isinstance(value, torch.Tensor):
        return value.cuda()
    if isinstance(value, dict):
        return {k: to_cuda(v) for k, v in value.items()}
    return type(value)(map(to_cuda, value)) if isinstance(value, (tuple, list)) else value


@contextlib.contextmanager
def no_synchronisation() -> Iterator[None]:
    """Raises where the host waits for the device, and where memory is allocated."""
    allocations = torch.cuda.memory_stats()["allocation.all.allocated"]
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == allocations
