"""A network that a recipe makes of a population's members."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from deevo_ext.errors import DeevoError
from deevo_ext.population.blocks import Blocks
from deevo_ext.population.population import Population
from deevo_ext.population.recipes import check_recipe
from deevo_ext.population.tensors import check_finite, pick


@dataclass(frozen=True)
class ComposedNetwork:
    """A recipe, and what was made for its network alone.

    blocks, coefficients: the recipe, float32 [blocks, members] of the members that were read.
    statistics: BatchNorm's, float32 [S], where the population holds them apart; None where not.
    classifier: tensors by name that replace those which the recipe makes, as a refit of the last
        layer gives them.
    """

    blocks: Blocks
    coefficients: Tensor
    statistics: Tensor | None = None
    classifier: Mapping[str, Tensor] = field(default_factory=dict)

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
        if self.statistics is not None:
            population.statistics_layout.check_values(self.statistics, source="statistics")
        known = {name: t for t in population.inventory.tensors for name in t.names}
        for name, tensor in self.classifier.items():
            if name not in known or known[name].statistic:
                raise DeevoError(f"classifier: the network has no weight or bias {name!r}")
            if known[name].aliases:
                raise DeevoError(
                    f"classifier: {name!r} is tied to other layers ({', '.join(known[name].names)})"
                    ", which its refit would change too; leave it as the recipe makes it"
                )
            pick(self.classifier, [name], known[name].shape, "classifier")
            check_finite(tensor, name, "classifier")

    def state_dict(self, population: Population) -> dict[str, Tensor]:
        """Returns the whole network as `Population.state_dict_of` does, on the rows' device."""
        self.check(population)
        row = self.blocks.compose(population, self.coefficients[None])[0]
        state = population.state_dict_of(row, self.statistics)
        for name, tensor in self.classifier.items():
            state[name] = tensor.detach().to(state[name], copy=True)
        return state


def network_digest(state: Mapping[str, Tensor]) -> str:
    """Returns the SHA-256 (hex) of a state dict: names in order, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
