"""Backend `cpu`: the compiled operators on torch.get_num_threads() threads."""

from __future__ import annotations

import functools
from typing import Any

import torch

from deevo_ext import _extension
from deevo_ext.backends.native import operator

__all__ = [
    "commit",
    "compose",
    "fold",
    "head",
    "linear_scores",
    "loss_and_rank",
    "plan",
    "tell",
    "trials",
]


@functools.cache
def _compiled() -> Any:
    return _extension.load().cpu


def _threads(_: torch.Tensor) -> tuple[int]:
    return (torch.get_num_threads(),)


_operator = functools.partial(operator, compiled=_compiled, place=_threads)

plan = _operator("plan")
trials = _operator("trials")
tell = _operator("tell")
commit = _operator("commit")
fold = _operator("fold")
head = _operator("head")
loss_and_rank = _operator("loss_and_rank")
compose = _operator("compose")
linear_scores = _operator("linear_scores")
