"""Networks that runs write as recipe.yaml: every bit comes back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

import deevo_ext as deevo
from deevo_ext.errors import DeevoError
from deevo_ext.population.blocks import Blocks
from deevo_ext.population.composed import ComposedNetwork
from deevo_ext.population.population import Population
from support.merging import (
    assert_merges,
    expected_of,
    network_of,
    save,
    save_recipe,
    weighed,
    written,
)
from support.networks import ConvNet, MaskedNet, SharedNorm, TiedNet, members
from support.populations import State, assert_equal

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
NAMES = ["a", "b", "c"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("policy", ["evolve", "recalibrate"])
@pytest.mark.parametrize("frozen", [(), ("bn1.*", "conv2.bias")])
def test_merge_makes_every_bit_again(
    tmp_path: Path, dtype: torch.dtype, policy: str, frozen: tuple[str, ...]
) -> None:
    folder = save(tmp_path / "members", members(ConvNet, 3))
    population = Population.from_checkpoints(
        ConvNet(), folder, dtype=dtype, frozen=frozen, batchnorm=policy
    )
    network = network_of(population)
    save_recipe(tmp_path / "recipe.yaml", population, network)
    made = assert_merges(tmp_path / "recipe.yaml", expected_of(population, network))
    assert made.as_recorded is True
    assert made.statistics == ("evolved" if policy == "evolve" else "given")
    # The first checkpoint's own dtypes and integers, whatever the rows are.
    first = load_file(folder / "a.safetensors")
    merged = load_file(made.path)
    for name, tensor in first.items():
        assert merged[name].dtype == tensor.dtype
        if name.startswith(tuple(pattern.rstrip("*") for pattern in frozen)):
            assert torch.equal(merged[name], tensor)
    assert torch.equal(merged["bn2.num_batches_tracked"], first["bn2.num_batches_tracked"])


@pytest.mark.parametrize("dtype", DTYPES)
def test_tied_masked_and_shared_tensors_come_back(tmp_path: Path, dtype: torch.dtype) -> None:
    for factory, frozen in ((TiedNet, []), (MaskedNet, ["mask", "head.*"]), (SharedNorm, [])):
        folder = tmp_path / factory.__name__
        folder.mkdir()
        states = members(factory, 3)
        for state in states[:1]:  # a file may keep one of a tied tensor's names only
            state.pop("embed.weight", None)
        save(folder / "members", states)
        population = Population.from_checkpoints(
            factory(), folder / "members", dtype=dtype, frozen=frozen
        )
        network = network_of(population)
        save_recipe(folder / "recipe.yaml", population, network)
        made = assert_merges(folder / "recipe.yaml", expected_of(population, network))
        assert made.as_recorded is True
        factory().load_state_dict(load_file(made.path), strict=True)


# What files look like


def parallel(state: State) -> Any:
    return {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}


def averaged(state: State) -> Any:
    renamed = {f"module.{k}": v for k, v in state.items()}
    return {"model_ema": {"n_averaged": torch.tensor(7), **renamed}, "model": {"x": "none"}}


def compiled_inside(state: State) -> Any:
    return {f"{k.split('.')[0]}._orig_mod.{k.split('.', 1)[1]}": v for k, v in state.items()}


def lightning(state: State) -> Any:
    """With a loss's own weights, and what a FLOP counter left behind."""
    counted = {**state, "fc.total_ops": torch.ones(1), "fc.kept": torch.arange(3)}
    named = {f"model.net.{k}": v for k, v in counted.items()}
    return {"epoch": 3, "state_dict": {**named, "criterion.weight": torch.ones(3)}}


@pytest.mark.parametrize("wrap", [parallel, averaged, compiled_inside, lightning])
def test_pth_comes_back_as_it_was_wrapped(tmp_path: Path, wrap: Callable[[State], Any]) -> None:
    folder = save(tmp_path / "members", members(ConvNet, 3), wrap)
    key = "model_ema" if wrap is averaged else None
    population = Population.from_checkpoints(ConvNet(), folder, checkpoint_key=key)
    network = network_of(population)
    save_recipe(tmp_path / "recipe.yaml", population, network)
    assert deevo.merge(tmp_path / "recipe.yaml", tmp_path / "out.pth").as_recorded
    loaded, first = (torch.load(p) for p in (tmp_path / "out.pth", folder / "a.pth"))
    for wrapper in {
        parallel: ["state_dict"],
        averaged: ["model_ema"],
        lightning: ["state_dict"],
    }.get(wrap, []):
        loaded, first = loaded[wrapper], first[wrapper]
    assert set(loaded) == set(first)
    expected = expected_of(population, network)
    assert_equal({name: loaded[name] for name in expected}, expected)
    text = (tmp_path / "recipe.yaml").read_text()
    assert ("ignore:" in text) == (wrap is lightning)


def test_a_models_own_prefix_stays(tmp_path: Path) -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = ConvNet()

    states = [{f"module.{k}": v for k, v in s.items()} for s in members(ConvNet, 3)]
    population = Population.from_checkpoints(Outer(), save(tmp_path / "members", states))
    network = network_of(population)
    save_recipe(tmp_path / "recipe.yaml", population, network)
    assert "module.fc.weight" in (tmp_path / "recipe.yaml").read_text()
    assert assert_merges(tmp_path / "recipe.yaml", expected_of(population, network)).as_recorded


def test_counters_that_files_lack_or_hold_as_floats(tmp_path: Path) -> None:
    states = members(ConvNet, 3)
    del states[0]["bn1.num_batches_tracked"]
    states[0]["bn2.num_batches_tracked"] = torch.tensor(41.0)
    model = ConvNet()
    model.bn1.num_batches_tracked.fill_(12)
    population = Population.from_checkpoints(model, save(tmp_path / "members", states))
    network = network_of(population)
    save_recipe(tmp_path / "recipe.yaml", population, network)
    made = assert_merges(tmp_path / "recipe.yaml", expected_of(population, network))
    merged = load_file(made.path)
    assert [int(merged[f"bn{i}.num_batches_tracked"]) for i in (1, 2)] == [12, 41]
    assert merged["bn2.num_batches_tracked"].dtype == torch.int64


def test_members_of_two_dtypes_give_the_wider_one(tmp_path: Path) -> None:
    states = members(ConvNet, 1, dtype=torch.float16) + members(ConvNet, 2, seed=1)
    population = Population.from_checkpoints(ConvNet(), save(tmp_path / "members", states))
    network = network_of(population)
    save_recipe(tmp_path / "recipe.yaml", population, network)
    made = assert_merges(tmp_path / "recipe.yaml", expected_of(population, network))
    assert load_file(made.path)["fc.weight"].dtype == torch.float32


# Where files lie


def test_members_in_memory_get_files_beside_the_recipe(tmp_path: Path) -> None:
    population = Population.from_state_dicts(ConvNet(), members(ConvNet, 3), names=NAMES)
    network = network_of(population)
    save_recipe(tmp_path / "recipe.yaml", population, network)
    assert_merges(tmp_path / "recipe.yaml", expected_of(population, network))


def test_a_moved_run_finds_its_members_by_their_content(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    folder = save(tmp_path / "members", members(ConvNet, 3))
    population = Population.from_checkpoints(ConvNet(), folder)
    network = network_of(population)
    recipe = tmp_path / "run" / "recipe.yaml"
    save_recipe(recipe, population, network)
    moved = tmp_path / "moved"
    folder.rename(moved)
    for i, name in enumerate("cab"):
        (moved / f"{name}.safetensors").rename(moved / f"other{i}.safetensors")
    with pytest.raises(DeevoError, match=r"a\.safetensors is missing.*--checkpoints"):
        deevo.merge(recipe, tmp_path / "out.safetensors")
    with pytest.raises(DeevoError, match=r"no file below .* that the recipe expects of checkpoint"):
        deevo.merge(recipe, tmp_path / "out.safetensors", tmp_path / "run")
    made = deevo.merge(recipe, tmp_path / "out.safetensors", moved)
    assert made.as_recorded
    row = network.blocks.compose(population, network.coefficients[None])[0]
    merged = load_file(made.path)
    ordered = {name: merged[name] for name in population.inventory.order}
    assert_equal(ordered, population.state_dict_of(row))


@pytest.mark.parametrize("dtype", DTYPES)
def test_statistics_and_classifier_lie_beside_the_recipe(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    folder = save(tmp_path / "members", members(ConvNet, 3, dtype=torch.float16))
    population = Population.from_checkpoints(
        ConvNet(), folder, dtype=dtype, batchnorm="recalibrate"
    )
    plain = network_of(population, Blocks.whole(population.layout))
    refit = {"fc.weight": torch.randn(3, 5), "fc.bias": torch.randn(3)}
    network = ComposedNetwork(plain.blocks, plain.coefficients, plain.statistics, refit)
    recipe = tmp_path / "recipe.yaml"
    save_recipe(recipe, population, network, unit="member")
    assert assert_merges(recipe, expected_of(population, network)).as_recorded
    beside = load_file(tmp_path / "recipe.safetensors")
    assert torch.equal(beside["fc.weight"], refit["fc.weight"])
    with safe_open(tmp_path / "out.safetensors", "pt") as file:
        assert json.loads(file.metadata()["deevo"])["recipe"] == "recipe.yaml"

    # Each is an entry of its own: without the refit the recipe's last layer comes back.
    lines = recipe.read_text().splitlines(keepends=True)
    written(recipe, "".join(line for line in lines if not line.startswith("classifier:")))
    made = assert_merges(recipe, expected_of(population, plain))
    assert made.as_recorded is False and made.statistics == "given"
    # Without the statistics the members' are combined: one block, so all by its coefficients.
    written(recipe, "".join(line for line in lines if not line.startswith("statistics:")))
    made = deevo.merge(recipe, tmp_path / "out.safetensors")
    assert made.as_recorded is False and made.statistics == "combined"
    a = plain.coefficients[0].numpy()
    merged = load_file(made.path)
    for name in population.statistics_layout.names:
        given = [load_file(f)[name].float().numpy() for f in sorted(folder.iterdir())]
        expected = weighed(a, given, nonneg=name.endswith("var"))
        np.testing.assert_array_equal(merged[name].numpy(), expected.astype(np.float16))
