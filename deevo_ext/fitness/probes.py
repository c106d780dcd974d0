"""Logits of many rows on the same images, as a linear model of the population asks for them.

A network with BatchNorm is evaluated with the statistics of fixed groups of images, not with
running ones: a step of the weights moves the statistics with it, and probes that do not show this
predict what does not come (docs/contract.md, "Rounds").
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor
from torch.func import functional_call

from deevo_ext.data.labelled import LabelledImages
from deevo_ext.fitness.evaluator import Evaluator
from deevo_ext.fitness.statistics import group_size, norms_in_training
from deevo_ext.networks.execution.feed import slices
from deevo_ext.networks.execution.preprocessing import Preprocessing
from deevo_ext.networks.execution.runner import logits_of
from deevo_ext.networks.execution.workers import Modules, Workers
from deevo_ext.population.allocation import sent


class ProbeForward:
    """Puts images through rows of an evaluator's population and keeps the logits.

    Under the policy "recalibrate" norm layers use the statistics of each group of images; the
    groups are equal parts of the images, of about `statistics.group_size`. A user's function has no
    such mode: its probes have their statistics re-estimated, like networks that are scored.
    Otherwise rows are evaluated as they are, in micro-batches. forward_passes are counted by the
    evaluator.
    """

    def __init__(self, evaluator: Evaluator) -> None:
        self.evaluator = evaluator
        self._by_groups = evaluator.policy.recalibrates and not evaluator.forward.own_engine
        self._workers = Workers(evaluator.device)
        if self._by_groups:
            self._modules = Modules(evaluator.forward.module, self._workers.count)

    def __call__(self, rows: Tensor, images: LabelledImages) -> Tensor:
        """Returns logits float32 [K, N, classes] of rows [K, D], on the evaluator's device."""
        rows = sent(rows, self.evaluator.device)
        logits = self._grouped(rows, images) if self._by_groups else self._plain(rows, images)
        self.evaluator.count(len(rows) * len(images))
        return logits

    def _plain(self, rows: Tensor, images: LabelledImages) -> Tensor:
        parts: dict[tuple[int, int], Tensor] = {}

        def take(k: int, start: int, logits: Tensor) -> None:
            parts[k, start] = logits.float().clone()

        self.evaluator.settle(images)
        used = self.evaluator.used_statistics(rows, None)  # which a user's function is to have
        self.evaluator.forward.each(rows, images, used, take)
        starts = sorted({start for _, start in parts})
        return torch.stack(
            [torch.cat([parts[k, start] for start in starts]) for k in range(len(rows))]
        )

    def _grouped(self, rows: Tensor, images: LabelledImages) -> Tensor:
        count = len(images) // group_size(images, self.evaluator.micro_batch)
        edges = [len(images) * i // count for i in range(count + 1)]
        groups = list(itertools.pairwise(edges))
        device = self.evaluator.device
        preprocessing = Preprocessing(images.mean, images.std)
        parts: dict[tuple[int, int], Tensor] = {}

        def run(k: int, start: int, pixels: Tensor) -> None:
            apart = torch.zeros(self.evaluator.population.statistics_layout.dim, device=device)
            row = rows[k].float()
            tensors, norms = self.evaluator.policy.tensors_in_training(row, apart)
            with self._modules.take() as model, norms_in_training(model, norms):
                logits = logits_of(
                    lambda x: functional_call(model, tensors, (x,)), pixels, images.name
                )
                parts[k, start] = logits.float()

        placed = self.evaluator.policy.placement.of(images)
        for start, read in slices(placed, groups, device):
            pixels = preprocessing.normalise(read, device)
            tasks = [
                (lambda k=k, at=start, part=pixels: run(k, at, part)) for k in range(len(rows))
            ]
            self._workers.run(tasks)
        return torch.stack(
            [torch.cat([parts[k, start] for start, _ in groups]) for k in range(len(rows))]
        )
