"""Backend `cuda`: the compiled operators on the current stream of their tensors' device.

Nothing here allocates, waits or reads a value off the device, so calls can be captured in a CUDA
graph. Shapes and dtypes are checked in `ops`; values lie on the device and are checked by the
kernels, where a failed check is a device-side assert, as for an index in torch. `head` refuses
channels that a block's shared memory cannot hold in float32: about 25,000 on a GPU with 99 KiB.
"""

from __future__ import annotations

import functools
from typing import Any

import torch

from deevo_ext import _extension
from deevo_ext.backends.native import operator

__all__ = ["commit", "fold", "head", "loss_and_rank", "plan", "tell", "trials"]


@functools.cache
def _compiled() -> Any:
    return _extension.load().cuda


def _queue(tensor: torch.Tensor) -> tuple[int, int]:
    device = tensor.device
    return device.index, torch.cuda.current_stream(device).cuda_stream


_operator = functools.partial(operator, compiled=_compiled, place=_queue)

plan = _operator("plan")
trials = _operator("trials")
tell = _operator("tell")
commit = _operator("commit")
fold = _operator("fold")
head = _operator("head")
loss_and_rank = _operator("loss_and_rank")
