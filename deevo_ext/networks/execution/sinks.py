"""Sinks, to which a runner gives the logits of each member's micro-batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from deevo_ext.errors import DeevoError
from deevo_ext.networks.execution.feed import MicroBatch
from deevo_ext.population.allocation import sent

TakeLogits = Callable[[int, int, Tensor], None]
"""function(member, first image, logits [n, classes])."""


class Sink(Protocol):
    """Takes the results of a runner."""

    def take(self, member: int, batch: MicroBatch, logits: Tensor) -> None:
        """Takes a member's logits [batch.size, classes], in any floating dtype.

        Calls come from several threads, and the logits are valid during the call only.
        """
        ...


class LossSink:
    """Keeps losses float32 [K, N] in nats, and ranks int32 [K, N] of the true class.

    labels: int64 [N]. A runner whose head gives losses without storing logits writes them here
    itself.
    """

    def __init__(
        self, labels: Tensor, members: int, label_smoothing: float, device: torch.device
    ) -> None:
        self.labels = sent(labels, device).contiguous()
        self.label_smoothing = label_smoothing
        self.losses = torch.empty(members, labels.numel(), device=device)
        self.ranks = torch.empty(members, labels.numel(), dtype=torch.int32, device=device)
        self._highest = int(labels.max())

    def check_classes(self, classes: int, name: str) -> None:
        """Raises DeevoError where the images called `name` have labels beyond the classes."""
        if self._highest >= classes:
            raise DeevoError(
                f"{name} have label {self._highest}, but the model has {classes} classes; expected "
                f"labels 0..{classes - 1}"
            )

    def take(self, member: int, batch: MicroBatch, logits: Tensor) -> None:
        """Forms losses and ranks by the operator."""
        self.check_classes(logits.shape[1], batch.name)
        torch.ops.deevo.loss_and_rank(
            logits[None],
            self.labels[batch.places],
            self.label_smoothing,
            self.losses[member : member + 1, batch.places],
            self.ranks[member : member + 1, batch.places],
        )


class LogitsSink:
    """Keeps the logits of one member."""

    def __init__(self) -> None:
        self._parts: dict[int, Tensor] = {}

    def take(self, member: int, batch: MicroBatch, logits: Tensor) -> None:
        """Copies the logits."""
        self._parts[batch.start] = logits.float().clone()

    def logits(self) -> Tensor:
        """Logits float32 [N, classes] of all images."""
        return torch.cat([self._parts[start] for start in sorted(self._parts)])


class FunctionSink:
    """Gives logits to a function."""

    def __init__(self, function: TakeLogits) -> None:
        self._function = function

    def take(self, member: int, batch: MicroBatch, logits: Tensor) -> None:
        """Calls the function with the logits."""
        self._function(member, batch.start, logits)
