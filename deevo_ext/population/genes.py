"""Genes: channels of tensors, which differences of members move one by one.

A channel is a slice of a tensor along its first dimension. What moves it is kept as *changes* to a
recipe: for each gene and member, what is added to the coefficient of the gene's block. A gene's
changes add up to 0, so its coefficients add up to 1 as its block's do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deevo_ext.errors import DeevoError
from deevo_ext.ops.philox import ROUNDS, key_of, philox4x32
from deevo_ext.ops.tables import Purpose
from deevo_ext.population.blocks import Blocks, compose_segments
from deevo_ext.population.layout import Layout
from deevo_ext.population.population import Population
from deevo_ext.population.recipes import closed


@dataclass(frozen=True)
class Genes:
    """The genes of a population's rows.

    starts: the column where each begins, int64 [G], ascending. block_of: the block of each, int64
    [G]. channels: how many each tensor has, by the tensor's name, in the order of the row.
    """

    starts: Tensor
    block_of: Tensor
    channels: Mapping[str, int]

    @classmethod
    def of(cls, layout: Layout, blocks: Blocks) -> Genes:
        """Makes a gene of every channel; raises DeevoError for blocks of another network."""
        first, index = blocks.segments(layout)
        starts = layout.genes("channel")
        channels = {e.name: e.shape[0] if e.shape else 1 for e in layout.entries if e.numel}
        tensor = torch.searchsorted(first, starts, right=True) - 1
        return cls(starts, index.long()[tensor], channels)

    def __len__(self) -> int:
        return len(self.starts)

    def compose(self, population: Population, recipes: Tensor, changes: Tensor) -> Tensor:
        """Returns the rows [K, D] of recipes [K, blocks, members] with changes [K, G, members].

        A gene's coefficients are its block's plus its changes, in float64, rounded once to float32;
        then that of the first member is 1 minus the others. Source: `docs/contract.md`.
        """
        whole = [
            closed(recipe.double()[self.block_of] + change.double())
            for recipe, change in zip(recipes, changes, strict=True)
        ]
        members = population.rows[: population.initial_size]
        index = torch.arange(len(self), dtype=torch.int32)
        return compose_segments(population.layout, members, self.starts, index, torch.stack(whole))

    def by_tensor(self, changes: Tensor) -> dict[str, Tensor]:
        """Returns changes [G, members] as [channels, members] of each tensor, by its name."""
        parts = changes.split(list(self.channels.values()))
        return dict(zip(self.channels, parts, strict=True))

    def from_tensors(self, tensors: Mapping[str, Tensor], members: int, source: str) -> Tensor:
        """Returns the changes float32 [G, members] of what `by_tensor` gave; 0 for what is missing.

        Raises DeevoError that names `source` for other tensors.
        """
        changes = torch.zeros(len(self), members)
        for name, part in self.by_tensor(changes).items():
            if name in tensors:
                given = tensors[name]
                if given.shape != part.shape or not bool(torch.isfinite(given).all()):
                    raise DeevoError(
                        f"{source}: the changes of {name!r} have shape {list(given.shape)}; "
                        f"expected finite numbers, [channels, members], {list(part.shape)}; a "
                        "recipe without its entry of channels goes without them"
                    )
                part.copy_(given)
        if unknown := sorted(tensors.keys() - self.channels.keys()):
            raise DeevoError(f"{source} has changes of {unknown[0]!r}, which no member evolves")
        return changes


@dataclass(frozen=True)
class Drawn:
    """Directions of a round: along each, every gene moves by a difference of two members.

    Gene g of direction k moves by factor[k, g] (x_r1 - x_r2), with members r1[k, g] and r2[k, g]
    that differ, all [K, G].
    """

    r1: NDArray[np.int64]
    r2: NDArray[np.int64]
    factor: NDArray[np.float64]

    @classmethod
    def of(cls, number: int, count: int, genes: int, members: int, seed: int) -> Drawn:
        """Draws `count` directions of round `number` (Philox, purpose 12: `docs/contract.md`).

        A factor is the sum of a word's four bytes less its mean, over 512: nearly normal, with a
        standard deviation of 0.289, and exact.
        """
        counter = np.arange(count)[:, None], np.arange(genes)[None]
        w0, w1, w2, _ = philox4x32((int(Purpose.DIRECTION), number, *counter), key_of(seed), ROUNDS)
        high, byte = np.uint64(32), np.uint64(0xFF)
        r1 = ((w0 * np.uint64(members)) >> high).astype(np.int64)
        r2 = ((w1 * np.uint64(members - 1)) >> high).astype(np.int64)
        total = sum((w2 >> np.uint64(8 * i)) & byte for i in range(4))
        return cls(r1, r2 + (r2 >= r1), (np.asarray(total, dtype=np.float64) - 510.0) / 512.0)

    def __len__(self) -> int:
        return len(self.r1)

    def after(self, changes: Tensor, step: Tensor, length: float) -> Tensor:
        """Returns changes float32 [G, members] after a step float32 [K] of some length.

        The moves are added up in float64, direction by direction, then added to the changes and
        rounded once.
        """
        total = np.zeros(tuple(changes.shape))
        gene = np.arange(len(total))
        for k, share in enumerate((length * step.double()).tolist()):
            if share != 0.0:
                move = share * self.factor[k]
                total[gene, self.r1[k]] += move
                total[gene, self.r2[k]] -= move
        return (changes.double() + torch.from_numpy(total)).float()
