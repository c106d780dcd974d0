"""Networks that a user's function evaluates, in place of the engines here, and its check.

Whatever gives logits from weights may be one: a runtime of another maker, a quantised copy. Nothing
is asked of it but numbers; what must not be wrong in silence is checked once, when it is first
called: their shape, that they are finite, the same for the same input, of the image alone, and of
the weights that it was given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deevo_ext.errors import DeevoError
from deevo_ext.identity import full_name
from deevo_ext.networks.execution.feed import MicroBatch
from deevo_ext.networks.execution.runner import Execution, Runner
from deevo_ext.networks.execution.sinks import Sink
from deevo_ext.networks.execution.weight_table import Tensors

EngineFunction = Callable[[dict[str, Tensor], Tensor], Any]
"""function(state dict, images float32 [n, C, H, W]) -> logits [n, classes], a tensor or an array.

state dict: the network's, under the model's names, on the CPU, floating tensors in float32. images:
normalised, on the CPU, `micro_batch` of them, the last ones filled up with copies of one that do
not count. All calls for a network come one after the other and with the same dict, so that what is
made of it can be kept until another one comes (keep the dict and compare it by `is`). Writing to
either changes nothing elsewhere.
"""
# Largest deviation of an image's logits between two batches, relative to the largest logit.
_BATCHES = 1e-3


class FunctionRunner(Runner):
    """Runs a user's function on one network after the other, in the thread that calls.

    names: the state dict's, of `tensors`.
    """

    def __init__(
        self,
        function: EngineFunction,
        names: Sequence[str],
        tensors: Tensors,
        execution: Execution,
    ) -> None:
        super().__init__(execution)
        self.function, self.name = function, full_name(function)
        self._names, self._tensors = names, tensors
        self._classes: int | None = None

    @torch.no_grad()
    def run(
        self,
        rows: Tensor,
        statistics: Tensor | None,
        batches: Iterable[Sequence[MicroBatch]],
        sink: Sink,
    ) -> None:
        """Runs each row on all images before the next one."""
        for k, row in enumerate(rows):
            state = self.state(row, None if statistics is None else statistics[k])
            for micro_batches in batches:
                for batch in micro_batches:
                    logits = self.logits(state, batch.images)[: batch.size]
                    sink.take(k, batch, logits.to(self.execution.device))
                del micro_batches  # before the next ones are prepared

    def state(self, row: Tensor, statistics: Tensor | None) -> dict[str, Tensor]:
        """Returns copies of a network's tensors by name."""
        apart = None if statistics is None else statistics.float().cpu()
        views = self._tensors.views(row.float().cpu(), apart)
        return {name: views[name].detach().cpu().clone() for name in self._names}

    def logits(self, state: dict[str, Tensor], images: Tensor) -> Tensor:
        """Returns logits float32 [n, classes] on the CPU; DeevoError for anything else."""
        shape = tuple(images.shape)
        own = images.cpu().clone(memory_format=torch.contiguous_format)
        try:
            result = self.function(state, own)
        except Exception as error:
            raise DeevoError(f"engine {self.name} failed on images {shape}: {error}") from error
        what = list(result.shape) if hasattr(result, "shape") else type(result).__name__
        if isinstance(result, np.ndarray) and result.dtype.kind == "f":
            result = torch.from_numpy(np.ascontiguousarray(result, dtype=np.float32))
        classes = self._classes
        if (
            not isinstance(result, Tensor)
            or not result.is_floating_point()
            or result.dim() != 2
            or len(result) != len(images)
            or classes not in (None, result.shape[1])
        ):
            expected = "classes" if classes is None else classes
            raise DeevoError(
                f"engine {self.name} gave {what} for images {shape}; expected floating logits "
                f"[{len(images)}, {expected}], a tensor or an array"
            )
        self._classes = result.shape[1]
        return result.detach().float().cpu()

    @torch.no_grad()
    def check(self, row: Tensor, statistics: Tensor | None, images: Tensor) -> None:
        """Raises DeevoError where the function's logits are none to score a network by.

        images: a micro-batch of distinct ones. It is called four times.
        """
        state = self.state(row, statistics)
        logits = self.logits(state, images)
        broken = int((~torch.isfinite(logits)).any(dim=1).sum())
        if broken:
            raise DeevoError(
                f"engine {self.name} gave logits that are not finite for {broken} of {len(images)} "
                "images (with noise on them): check its precision, and images and preprocessing "
                "against the model"
            )
        if why := _why_no_logits(logits):
            raise DeevoError(
                f"engine {self.name} gave {why}; expected logits, whose softmax is the probability "
                "of each class: the loss, and fits by it, need them"
            )
        again = self.logits(state, images)
        if not torch.equal(again, logits):
            raise DeevoError(
                f"engine {self.name} gave other logits for the same weights and images the second "
                f"time (by up to {float((again - logits).abs().max()):.3g}), so that a score would "
                "depend on chance: switch off dropout, random numbers and algorithms that are not "
                "deterministic"
            )
        half = len(images) // 2
        if half:
            others = torch.cat([images[:half], 3.0 * images[half:].flip(0)])
            apart = float((self.logits(state, others)[:half] - logits[:half]).abs().max())
            if not apart <= _BATCHES * float(logits.abs().max()):
                raise DeevoError(
                    f"engine {self.name} gives an image other logits beside other images (by "
                    f"{apart:.3g}), as where ranges or statistics are those of the batch; a score "
                    "must depend on weights and image alone: give it fixed ranges and running "
                    "statistics, or evaluate images one by one with micro_batch=1"
                )
        generator = torch.Generator().manual_seed(0)
        other = row.float().cpu() * (0.5 + torch.rand(row.shape, generator=generator))
        if torch.equal(self.logits(self.state(other, statistics), images), logits):
            raise DeevoError(
                f"engine {self.name} gives the same logits whatever the weights are: it must "
                "compute with the state dict that it is called with, and keep what it makes of one "
                "no longer than the same dict comes"
            )


def _why_no_logits(values: Tensor) -> str:
    """Says what values [n, classes] are that are no logits; empty where they may be."""
    classes = values.shape[1]
    if classes > 1 and torch.equal(values.sort(dim=1).values.unique(dim=0), _ranks(classes)):
        return "ranks of the classes"
    ones = float((values.sum(dim=1) - 1.0).abs().max()) < 1e-3
    if classes > 1 and ones and bool((values >= 0).all()):
        return "probabilities (of each image they add up to 1), whose logarithms are logits"
    return ""


def _ranks(classes: int) -> Tensor:
    return torch.arange(classes, dtype=torch.float32)[None]
