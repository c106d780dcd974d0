"""From probes to a linear model: what every block and member does to the logits near a network.

A direction is x_m - w on one block, for the present network w and a member x_m; a probe goes a
share eps of it. Of a block's M directions one follows from the others, because w itself is a
combination of the members: sum over m of A[b, m] (x_m - w) = 0 there. So M - 1 probes a block give
all slopes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deevo_ext.data.labelled import LabelledImages
from deevo_ext.errors import DeevoError
from deevo_ext.fitness.probes import ProbeForward
from deevo_ext.population.blocks import Blocks
from deevo_ext.population.population import Population
from deevo_ext.population.recipes import after
from deevo_ext.search.linear_model import LinearModel

# A direction whose slopes are so many times the median's is probed the other way, too, and left out
# where the two disagree by more than this share of their size: the network has a kink between.
_LARGE, _DISAGREEMENT = 3.0, 0.5

# What rounding to 16 bits may take from the slopes of some images: 8 bits of mantissa lose 0.2 %.
_LOST, _CHECKED = 0.01, 256

KeepLogits = Callable[[int, Callable[[], Tensor]], Tensor]
"""function(block, compute) -> logits: those of compute(), or what was kept of an earlier start."""


@dataclass(frozen=True)
class Probing:
    """What probes are made of.

    forward: evaluates them. blocks: of the recipes. eps: the share of a direction that a probe
    goes. chunk: rows that are made at a time. dtype: of the slopes.
    """

    forward: ProbeForward
    blocks: Blocks
    eps: float
    chunk: int
    dtype: torch.dtype = torch.float32

    @property
    def population(self) -> Population:
        """The members."""
        return self.forward.evaluator.population

    def model(
        self, recipe: Tensor, images: LabelledImages, keep: KeepLogits | None = None
    ) -> tuple[LinearModel, list[int]]:
        """Returns the linear model at a recipe [blocks, members], and the directions left out.

        Direction b * members + m is member m on block b. keep: keeps the logits of a block's
        probes, where a round takes long. Raises DeevoError where no probe gives finite logits.
        """
        blocks, members = recipe.shape
        z0 = self.logits([recipe], images)[0]
        if not bool(torch.isfinite(z0).all()):
            raise DeevoError(
                "the present network gives logits that are not finite on the fitness images: check "
                "images and preprocessing against the model"
            )
        slopes = torch.zeros(blocks * members, *z0.shape, dtype=self.dtype, device=z0.device)
        lost = 0.0
        dependent = recipe.abs().argmax(dim=1).tolist()
        for b in range(blocks):
            others = [m for m in range(members) if m != dependent[b]]

            def probes(b: int = b, others: list[int] = others) -> Tensor:
                return self.logits([self._probe(recipe, b, m, self.eps) for m in others], images)

            logits = probes() if keep is None else keep(b, probes)
            of_block = slopes[b * members : (b + 1) * members]
            for m, probe in zip(others, logits, strict=True):
                slope = (probe - z0) / self.eps
                of_block[m] = slope
                lost = max(lost, _lost(slope, of_block[m]))
            weights = recipe[b] / -recipe[b, dependent[b]]
            weights[dependent[b]] = 0.0
            of_block[dependent[b]] = torch.einsum("m,mnc->nc", weights.to(z0), of_block.float())
        if not bool(torch.isfinite(slopes).flatten(1).all(dim=1).any()):
            raise DeevoError("no probe gives finite logits: the members cannot be mixed")
        if lost > _LOST:
            raise DeevoError(
                f"slopes lose {lost:.1%} of themselves in {self.dtype}: give memory= for float32, "
                f"{slopes.numel() * 4:,} bytes, or fewer images_per_round"
            )
        model = LinearModel(z0, slopes, images.labels)
        return model, self._leave_out_kinks(model, recipe, images, dependent)

    def _leave_out_kinks(
        self, model: LinearModel, recipe: Tensor, images: LabelledImages, dependent: list[int]
    ) -> list[int]:
        members = recipe.shape[1]
        used = model.scale[model.scale > 0]
        if not len(used):
            return list(range(model.directions))
        large = (model.scale > _LARGE * used.median()).nonzero().flatten().tolist()
        for k in large:
            b, m = divmod(k, members)
            if m == dependent[b]:
                continue
            back = self.logits([self._probe(recipe, b, m, -self.eps)], images)[0]
            slope = (model.z0 - back) / (self.eps * float(model.scale[k]))
            missed = (slope - model.slopes[k].float()).square().mean().sqrt()
            if not float(missed) <= _DISAGREEMENT:  # the slopes have a root mean square of 1
                model.leave_out(k)
        return (model.scale == 0).nonzero().flatten().tolist()

    @staticmethod
    def _probe(recipe: Tensor, block: int, member: int, eps: float) -> Tensor:
        step = torch.zeros_like(recipe)
        step[block, member] = 1.0
        return after(recipe, step, eps)

    def logits(self, recipes: Sequence[Tensor] | Tensor, images: LabelledImages) -> Tensor:
        """Returns logits float32 [K, n, classes] of recipes [K, blocks, members], as probes do."""
        parts = [
            self.forward(self.blocks.compose(self.population, torch.stack(list(some))), images)
            for some in _chunks(recipes, self.chunk)
        ]
        return torch.cat(parts)


def _lost(exact: Tensor, kept: Tensor) -> float:
    """The share of the first images' slopes that their dtype loses, in the root mean square."""
    if kept.dtype == torch.float32:
        return 0.0
    exact, kept = exact[:_CHECKED], kept[:_CHECKED].float()
    if not bool(torch.isfinite(exact).all()):
        return 0.0  # the direction is left out
    size = float(exact.square().mean().sqrt())
    return float((kept - exact).square().mean().sqrt()) / max(size, 1e-30)


def _chunks(recipes: Sequence[Tensor] | Tensor, size: int) -> Iterator[Sequence[Tensor] | Tensor]:
    for start in range(0, len(recipes), size):
        yield recipes[start : start + size]
