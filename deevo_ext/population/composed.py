"""A network that a recipe makes of a population's members."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from deevo_ext.errors import DeevoError
from deevo_ext.population.blocks import Blocks
from deevo_ext.population.genes import Genes
from deevo_ext.population.population import Population
from deevo_ext.population.recipes import check_recipe


@dataclass(frozen=True)
class ComposedNetwork:
    """A recipe, and what was made for its network alone.

    blocks, coefficients: the recipe, float32 [blocks, members] of the members that were read.
    statistics: BatchNorm's, float32 [S], where the population holds them apart; None where not.
    classifier: what a refit of the last layer adds to its tensors, float32 by name; and where rows
    hold BatchNorm's statistics, what re-estimation adds to those. changes: float32 [genes,
    members], what differences add to the coefficients, gene by gene (`Genes`).
    """

    blocks: Blocks
    coefficients: Tensor
    statistics: Tensor | None = None
    classifier: Mapping[str, Tensor] = field(default_factory=dict)
    changes: Tensor | None = None

    def check(self, population: Population) -> None:
        """Raises DeevoError for what does not fit the population, naming it."""
        if population.batchnorm == "inherit":
            raise DeevoError(
                'a recipe\'s network has no parent to inherit statistics from: batchnorm="inherit" '
                'is for search="weights"; expected "evolve" or "recalibrate"'
            )
        if not population.pristine:
            raise DeevoError(
                "a recipe's members are those that were read, but this population's rows were "
                "evolved: read it again"
            )
        expected = [len(self.blocks), population.initial_size]
        if list(self.coefficients.shape) != expected:
            raise DeevoError(
                f"coefficients have shape {list(self.coefficients.shape)}; expected [blocks, "
                f"members], {expected}"
            )
        check_recipe(self.coefficients, self.blocks.names)
        self.blocks.segments(population.layout)
        if self.changes is not None:
            genes = [len(Genes.of(population.layout, self.blocks)), population.initial_size]
            if list(self.changes.shape) != genes:
                raise DeevoError(
                    f"changes have shape {list(self.changes.shape)}; expected [genes, members], "
                    f"{genes}"
                )
        if self.statistics is not None:
            population.statistics_layout.check_values(self.statistics, source="statistics")
        entries = {name: entry for entry in population.layout.entries for name in entry.names}
        for name in self.classifier:
            if name in entries and entries[name].aliases:
                raise DeevoError(
                    f"classifier: {name!r} is tied to other layers "
                    f"({', '.join(entries[name].names)}), which its refit would change too; leave "
                    "it as the recipe makes it"
                )

    def row(self, population: Population) -> Tensor:
        """Returns the network's row float32 [D]: as composed in the rows' dtype, then changed."""
        self.check(population)
        if self.changes is None:
            composed = self.blocks.compose(population, self.coefficients[None])[0]
        else:
            genes = Genes.of(population.layout, self.blocks)
            composed = genes.compose(population, self.coefficients[None], self.changes[None])[0]
        row = changed(population, composed.float(), self.classifier)
        population.layout.check_values(row, source="the recipe's network")
        return row

    def state_dict(self, population: Population) -> dict[str, Tensor]:
        """Returns the whole network as `Population.state_dict_of` does, on the rows' device."""
        return population.state_dict_of(self.row(population), self.statistics)


def changed(population: Population, row: Tensor, changes: Mapping[str, Tensor]) -> Tensor:
    """Returns a copy of row [D] with changes (by tensors' names) added in its dtype.

    The sum is taken in float32 and rounded once, so it has the same bits everywhere. Raises
    DeevoError for a name or shape that the row has not.
    """
    result = row[: population.dim].clone()
    views = population.layout.views(result)
    for name, change in changes.items():
        if name not in views or views[name].shape != change.shape:
            shape = list(views[name].shape) if name in views else "no such tensor"
            raise DeevoError(
                f"the change of {name!r} has shape {list(change.shape)}; the network's has {shape}"
            )
        views[name].copy_(views[name].float() + change.to(row.device, torch.float32))
    return result


def network_digest(state: Mapping[str, Tensor]) -> str:
    """Returns the SHA-256 (hex) of a state dict: names in order, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
