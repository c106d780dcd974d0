"""From probes to a linear model: what every block and member does to the logits near a network.

A direction is x_m - w on one block, for the present network w and a member x_m; a probe goes a
share eps of it. Of a block's M directions one follows from the others, because w itself is a
combination of the members: sum over m of A[b, m] (x_m - w) = 0 there. So M - 1 probes a block give
all slopes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from deevo_ext.data.labelled import LabelledImages
from deevo_ext.distributed.ranks import ranks
from deevo_ext.distributed.slices import Slices
from deevo_ext.errors import DeevoError
from deevo_ext.fitness.probes import ALL, Moved, ProbeForward, Wanted
from deevo_ext.population.blocks import Blocks, columns_of
from deevo_ext.population.genes import Genes
from deevo_ext.population.layout import Layout
from deevo_ext.population.population import Population
from deevo_ext.population.recipes import after
from deevo_ext.search.likeliest import LikeliestModel
from deevo_ext.search.linear_model import LinearModel

# A direction whose slopes are so many times the median's is probed the other way, too, and left out
# where the two disagree by more than this share of their size: the network has a kink between.
_LARGE, _DISAGREEMENT = 3.0, 0.5
# A probe that moves the logits by less than this share of their size shows float32's rounding.
# Scaled up, such a direction would ask for steps that no network follows.
ROUNDING = 2.0**-17

T = TypeVar("T")
# Networks that share what lies before their blocks, at most: it is computed once for so many, and
# costs a pass or less; and bytes of logits that they give before these become slopes.
_TOGETHER, _LOGITS_BYTES = 64, 256 << 20

KeepColumns = Callable[[range, Slices, Callable[[], Tensor]], Tensor]
"""function(parts, slices, compute) -> columns: compute()'s, or what was kept of an earlier start.

parts: the blocks, or the directions, whose probes they are. slices: tell of which images each rank
has the columns.
"""


@dataclass(frozen=True)
class Probing:
    """What probes are made of.

    forward: evaluates them. blocks: of the recipes. eps: the share of a direction that a probe
    goes. chunk: rows that are made at a time. dtype: of the slopes. likeliest: how many classes
    besides the true one an image keeps in the model, None for all. genes, changes: what rows have
    beside their recipes, float32 [genes, members], if anything (`Genes`).
    """

    forward: ProbeForward
    blocks: Blocks
    eps: float
    chunk: int
    dtype: torch.dtype = torch.float32
    likeliest: int | None = None
    genes: Genes | None = None
    changes: Tensor | None = None

    @property
    def population(self) -> Population:
        """The members."""
        return self.forward.evaluator.population

    def model(
        self, recipe: Tensor, images: LabelledImages, keep: KeepColumns | None = None
    ) -> tuple[LinearModel, list[int]]:
        """Returns the linear model at a recipe [blocks, members], and the directions left out.

        Direction b * members + m is member m on block b. keep: keeps the columns of some blocks'
        probes [blocks * (members - 1), n, columns], where a round takes long. Raises DeevoError
        where no probe gives finite logits.
        """
        blocks, members = recipe.shape
        z0 = self.logits([recipe], images)[0]
        if not bool(torch.isfinite(z0).all()):
            raise DeevoError(
                "the present network gives logits that are not finite on the fitness images: check "
                "images and preprocessing against the model"
            )
        model = self.empty(z0, images.labels, blocks * members)
        least = ROUNDING * float(z0.square().mean().sqrt()) / self.eps
        present = model.present
        dependent = recipe.abs().argmax(dim=1).tolist()
        others = [[m for m in range(members) if m != d] for d in dependent]
        finite = False
        for b, columns in self._of_blocks(model, recipe, others, images, keep):
            weights = recipe[b] / -recipe[b, dependent[b]]
            combined, slopes = torch.zeros_like(present), dict[int, Tensor]()
            for m, probe in zip(others[b], columns.to(present), strict=True):
                slope = slopes[b * members + m] = (probe - present) / self.eps
                if float(weights[m]) != 0.0:
                    combined += float(weights[m]) * slope
            finite = model.put(slopes, least) or finite
            model.put({b * members + dependent[b]: combined}, least)
        if not finite:
            raise DeevoError("no probe gives finite logits: the members cannot be mixed")
        agree_on_sizes(model)
        self._leave_out_kinks(model, recipe, images, dependent)
        return model, (model.scale == 0).nonzero().flatten().tolist()

    def passes(self, members: int, images: LabelledImages, classes: int) -> int:
        """Returns the forward passes of a linear model's probes and of the present network.

        images: as many, and of the shape, as those of the model. What second probes cost comes to
        them, where there are any.
        """
        parts = self._groups(members, images, classes)
        counts = [dict.fromkeys(part, members - 1) for part in parts]
        return len(images) + sum(self.forward.passes(self.blocks, n, images) for n in counts)

    def _of_blocks(
        self,
        model: LinearModel,
        recipe: Tensor,
        others: list[list[int]],
        images: LabelledImages,
        keep: KeepColumns | None,
    ) -> Iterator[tuple[int, Tensor]]:
        """Yields each block with the columns [members - 1, n, columns] of its probes."""
        for part in self._groups(recipe.shape[1], images, model.classes):

            def probes(part: range = part) -> Tensor:
                moved = {b: [self._probe(recipe, b, m, self.eps) for m in others[b]] for b in part}
                return self._moved(model, recipe, moved, images)

            columns = probes() if keep is None else keep(part, model.slices, probes)
            yield from zip(part, columns.split(recipe.shape[1] - 1), strict=True)

    def _groups(self, members: int, images: LabelledImages, classes: int) -> list[range]:
        """Blocks whose probes are evaluated together."""
        count = len(self.blocks)
        size = max(1, self._together(images, classes) // (members - 1))
        return [range(b, min(b + size, count)) for b in range(0, count, size)]

    def _together(self, images: LabelledImages, classes: int) -> int:
        """How many probes are evaluated together, one at least."""
        return max(1, min(_TOGETHER, _LOGITS_BYTES // (4 * len(images) * classes)))

    def _moved(
        self, model: LinearModel, recipe: Tensor, moved: Moved, images: LabelledImages
    ) -> Tensor:
        """The model's columns of networks that differ from a recipe's in a block each."""
        wanted = Wanted(model.slices, model.columns)
        if self.forward.shares(images):
            return self.forward.by_blocks(self.blocks, self.compose, recipe, moved, images, wanted)
        recipes = [*itertools.chain.from_iterable(moved.values())]
        return self.logits(recipes, images, wanted)

    def _leave_out_kinks(
        self, model: LinearModel, recipe: Tensor, images: LabelledImages, dependent: list[int]
    ) -> None:
        """Leaves out directions whose second probe disagrees: large ones, and what they are in.

        A block's dependent direction has had no probe: its second one is along it, not against it.
        """
        members = recipe.shape[1]
        used = model.scale[model.scale > 0]
        if not len(used):
            return
        large = model.scale > _LARGE * used.median()
        first = [
            k for k in large.nonzero().flatten().tolist() if k % members != dependent[k // members]
        ]
        kinks = self._disagreeing(model, recipe, images, [(k, -self.eps) for k in first])
        affected = {k // members for k in kinks if float(recipe[k // members, k % members]) != 0.0}
        then = [b * members + m for b, m in enumerate(dependent)]
        then = [k for k in then if large[k] or (k // members in affected and model.scale[k] > 0)]
        kinks += self._disagreeing(model, recipe, images, [(k, self.eps) for k in then])
        for k in kinks:
            model.leave_out(k)

    def _disagreeing(
        self,
        model: LinearModel,
        recipe: Tensor,
        images: LabelledImages,
        probes: Sequence[tuple[int, float]],
    ) -> list[int]:
        """Returns the directions whose probes of some eps contradict their slopes."""
        found, members = list[int](), recipe.shape[1]
        present = model.present
        for some in chunks(probes, self._together(images, model.classes)):
            moved: dict[int, list[Tensor]] = {}
            for k, eps in some:  # in the order of blocks
                b, m = divmod(k, members)
                moved.setdefault(b, []).append(self._probe(recipe, b, m, eps))
            missed = []
            for (k, eps), one in zip(some, self._moved(model, recipe, moved, images), strict=True):
                slope = (one - present) / (eps * float(model.scale[k]))
                missed.append(slope - model.slope(k))
            # The slopes have a root mean square of 1; rank 0 says how much they are missed by.
            sizes = _led(model.sizes_of(missed))
            found += [k for (k, _), n in zip(some, sizes, strict=True) if not n <= _DISAGREEMENT]
        return found

    @staticmethod
    def _probe(recipe: Tensor, block: int, member: int, eps: float) -> Tensor:
        step = torch.zeros_like(recipe)
        step[block, member] = 1.0
        return after(recipe, step, eps)

    def logits(
        self, recipes: Sequence[Tensor], images: LabelledImages, wanted: Wanted = ALL
    ) -> Tensor:
        """Returns what is wanted of logits float32 [K, n, classes] of recipes [blocks, members].

        They are those that probes have.
        """
        parts = [
            self.forward(self.compose(torch.stack(list(some))), images, wanted)
            for some in chunks(recipes, self.chunk)
        ]
        return torch.cat(parts)

    def empty(self, z0: Tensor, labels: Tensor, directions: int) -> LinearModel:
        """Returns a linear model of logits z0 [n, classes] that has no slopes yet."""
        if self.likeliest is None:
            return LinearModel(z0, labels, directions, self.dtype)
        return LikeliestModel(z0, labels, directions, self.likeliest, self.dtype)

    def compose(self, recipes: Tensor, part: Layout | None = None) -> Tensor:
        """Returns the rows [K, D] of recipes [K, blocks, members], with the changes.

        part: of the population's layout, for rows of that part alone, with the same bits.
        """
        if self.genes is None or self.changes is None:
            if part is None:
                return self.blocks.compose(self.population, recipes)
            return self.blocks.compose_part(self.population, part, recipes)
        changes = self.changes.expand(len(recipes), -1, -1)
        rows = self.genes.compose(self.population, recipes, changes)
        return rows if part is None else columns_of(self.population.layout, part, rows)

    def after(self, recipe: Tensor, step: Tensor, length: float) -> Tensor:
        """Returns the recipe after a step float64 [d] of some length, rounded to float32 first."""
        return after(recipe, step.reshape(recipe.shape).float(), length)


def agree_on_sizes(model: LinearModel) -> None:
    """Gives all ranks rank 0's sizes of slopes, by which steps are made of coordinates."""
    scale = ranks().lead(lambda: model.scale)
    for k in ((scale == 0) & (model.scale != 0)).nonzero().flatten().tolist():
        model.leave_out(k)
    model.scale = scale


def _led(sizes: list[float]) -> list[float]:
    return ranks().lead(lambda: sizes)


def chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
