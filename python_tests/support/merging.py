"""Members in files, recipes of them, and what merging these should give."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import deevo_ext as deevo
from deevo_ext.population.blocks import Blocks
from deevo_ext.population.composed import ComposedNetwork
from deevo_ext.population.naming import Naming
from deevo_ext.population.population import Population
from deevo_ext.runs.merge import write_recipe
from support.networks import ConvNet, members
from support.populations import State, assert_equal

GOOD = "members: [m/a.safetensors, m/b.safetensors, m/c.safetensors]\n"


def drawn(blocks: int, size: int = 3, seed: int = 7) -> Tensor:
    """Coefficients around 1/size, some of them 0, some negative; each block's add up to 1."""
    generator = torch.Generator().manual_seed(seed)
    recipe = torch.randn(blocks, size, generator=generator) * 0.7
    recipe[torch.rand(blocks, size, generator=generator) < 0.2] = 0.0
    recipe[:, 0] = 1.0 - recipe[:, 1:].sum(dim=1)
    return recipe


def save_recipe(
    path: Path, population: Population, network: ComposedNetwork, unit: str | None = None
) -> None:
    """Writes a network as a run does at its end, without what that says of images and scores."""
    naming = Naming.of_population(population)
    write_recipe(path, population, network, naming=naming, unit=unit, fitted_on={}, scores={})


def save(folder: Path, states: list[State], wrap: Callable[[State], Any] | None = None) -> Path:
    """Writes members a, b, c, ... as .safetensors, or wrapped as .pth."""
    folder.mkdir()
    for name, state in zip("abcdef", states, strict=False):
        if wrap is None:
            copies = {key: tensor.clone() for key, tensor in state.items()}
            save_file(copies, folder / f"{name}.safetensors")
        else:
            torch.save(wrap(state), folder / f"{name}.pth")
    return folder


def network_of(population: Population, blocks: Blocks | None = None) -> ComposedNetwork:
    """A recipe drawn for these blocks, of each tensor by default, with statistics of its own."""
    blocks = blocks or Blocks.by_tensor(population.layout)
    statistics = None
    if dim := population.statistics_layout.dim:
        statistics = torch.zeros(dim)
        fresh = members(ConvNet, 1, seed=99)[0]
        population.statistics_layout.flatten(fresh, statistics)
    return ComposedNetwork(blocks, drawn(len(blocks), population.initial_size), statistics)


def expected_of(population: Population, network: ComposedNetwork) -> State:
    """The tensors that the merge should write, by the names that the members' files have."""
    row = network.blocks.compose(population, network.coefficients[None])[0].float()
    views = population.layout.views(row)
    for name, change in network.classifier.items():
        views[name].copy_((views[name].double() + change.double()).float())
    state = population.state_dict_of(row, network.statistics)
    return Naming.of_population(population).named(state)


def assert_merges(recipe: Path, expected: State, **kwargs: Any) -> deevo.Merged:
    """Merges into out.safetensors beside the recipe, where exactly these tensors lie then."""
    made = deevo.merge(recipe, recipe.parent / "out.safetensors", **kwargs)
    actual = load_file(made.path)
    assert_equal({name: actual[name] for name in expected}, expected)
    assert actual.keys() == expected.keys()
    return made


def written(path: Path, text: str) -> Path:
    """The path, with this text in it."""
    path.write_text(text, encoding="utf-8")
    return path


def weighed(a: np.ndarray, tensors: list[np.ndarray], nonneg: bool = False) -> np.ndarray:
    """x_0 + a_1 (x_1 - x_0) + ..., as `docs/contract.md` has it for float32 rows."""
    base = tensors[0]
    v = base.copy()
    for weight, x in zip(a[1:], tensors[1:], strict=True):
        if weight != 0:
            v = v + np.float32(weight) * (x - base)
    return np.where(v > 0, v, 0.5 * np.minimum.reduce(tensors)) if nonneg else v
