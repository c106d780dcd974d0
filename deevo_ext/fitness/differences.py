"""Differences of members as directions of a linear model, for when coordinates give no more.

Each direction moves every channel of the present network along the difference of two members that
were drawn for it. It goes through the whole network: a probe is a full forward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deevo_ext.data.labelled import LabelledImages
from deevo_ext.errors import DeevoError
from deevo_ext.fitness.probes import ALL, Wanted
from deevo_ext.fitness.probing import ROUNDING, KeepColumns, Probing, agree_on_sizes, chunks
from deevo_ext.population.genes import Drawn, Genes
from deevo_ext.search.linear_model import LinearModel

DIRECTIONS = 48
"""Differences of a round."""


@dataclass(frozen=True)
class Differences:
    """The directions of one round, for what `Probing` is for coordinates.

    probing: how probes are evaluated. genes: what moves. recipe: float32 [blocks, members], to
    which there are changes: where `Probing` has recipes, there are changes [G, members] here.
    drawn: the directions.
    """

    probing: Probing
    genes: Genes
    recipe: Tensor
    drawn: Drawn

    @classmethod
    def of(
        cls, probing: Probing, genes: Genes, recipe: Tensor, number: int, seed: int
    ) -> Differences:
        """Draws the directions of round `number`."""
        members = recipe.shape[1]
        return cls(probing, genes, recipe, Drawn.of(number, DIRECTIONS, len(genes), members, seed))

    def model(
        self, changes: Tensor, images: LabelledImages, keep: KeepColumns | None = None
    ) -> tuple[LinearModel, list[int]]:
        """Returns the linear model at a recipe with changes, and the directions left out.

        keep: keeps the columns of each chunk of probes, where a round takes long. Raises DeevoError
        where no probe gives finite logits.
        """
        z0 = self.logits([changes], images)[0]
        model = self.probing.empty(z0, images.labels, len(self.drawn))
        least = ROUNDING * float(z0.square().mean().sqrt())
        each = torch.eye(len(self.drawn))
        finite = False
        for start in range(0, len(self.drawn), self.probing.chunk):
            some = range(start, min(start + self.probing.chunk, len(self.drawn)))

            def probes(some: range = some) -> Tensor:
                near = [self.after(changes, each[k], 1.0) for k in some]
                return self.logits(near, images, Wanted(model.slices, model.columns))

            columns = probes() if keep is None else keep(some, model.slices, probes)
            columns = columns.to(model.present)
            slopes = {k: one - model.present for k, one in zip(some, columns, strict=True)}
            finite = model.put(slopes, least) or finite
        if not finite:
            raise DeevoError("no probe gives finite logits: the members cannot be mixed")
        agree_on_sizes(model)
        return model, (model.scale == 0).nonzero().flatten().tolist()

    def after(self, changes: Tensor, step: Tensor, length: float) -> Tensor:
        """Returns the changes after a step [K] of some length, rounded to float32 first."""
        return self.drawn.after(changes, step.float(), length)

    def compose(self, changes: Tensor) -> Tensor:
        """Returns the rows [n, D] of changes [n, G, members] to the recipe."""
        recipes = self.recipe.expand(len(changes), -1, -1)
        return self.genes.compose(self.probing.population, recipes, changes)

    def logits(
        self, changes: Sequence[Tensor], images: LabelledImages, wanted: Wanted = ALL
    ) -> Tensor:
        """Returns what is wanted of logits float32 [n, images, classes] of n changes."""
        parts = [
            self.probing.forward(self.compose(torch.stack(list(some))), images, wanted)
            for some in chunks(changes, self.probing.chunk)
        ]
        return torch.cat(parts)
