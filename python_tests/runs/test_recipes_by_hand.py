"""Recipes edited and written by hand, against an oracle tensor by tensor in NumPy's float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import deevo_ext as deevo
from deevo_ext.errors import DeevoError
from deevo_ext.population.blocks import Blocks
from deevo_ext.population.composed import ComposedNetwork
from deevo_ext.population.population import Population
from deevo_ext.population.recipes import uniform
from support.merging import GOOD, assert_merges, expected_of, save, save_recipe, weighed, written
from support.networks import ConvNet, MaskedNet, members


def check_by_hand(folder: Path, made: deevo.Merged, rows: dict[str, list[float]]) -> None:
    """Compares with the oracle; rows: the coefficients by prefix, the first that fits."""
    states = [load_file(path) for path in sorted(folder.iterdir())]
    merged = load_file(made.path)
    assert merged.keys() == states[0].keys()
    for name, tensor in merged.items():
        if not tensor.is_floating_point():
            assert torch.equal(tensor, states[0][name]), name
            continue
        a = next(row for prefix, row in rows.items() if name.startswith(prefix))
        given = [state[name].numpy() for state in states]
        expected = weighed(np.float32(a), given, nonneg=name.endswith("running_var"))
        np.testing.assert_array_equal(tensor.numpy(), expected, err_msg=name)


def test_recipes_written_by_hand(tmp_path: Path) -> None:
    folder = save(tmp_path / "m", members(ConvNet, 3))
    out = tmp_path / "out.safetensors"
    third = [1 - 2 * float(np.float32(1 / 3)), 1 / 3, 1 / 3]
    cases: list[tuple[str, dict[str, list[float]]]] = [
        ("coefficients: [1, 1, 1]\nnormalise: true\n", {"": third}),
        ("coefficients: {c: 0.25, a: .5, b: 2.5e-1}\n", {"": [0.5, 0.25, 0.25]}),
        ("coefficients: [1, -1e-05, 1e-5]\n", {"": [1, -1e-5, 1e-5]}),
        # One layer of another member; what is left by the coefficients outside of the blocks.
        (
            "blocks: [{tensors: 'fc.*', coefficients: {a: 0, b: 1, c: 0}}]\n"
            "coefficients: [1, 0, 0]\n",
            {"fc.": [0, 1, 0], "": [1, 0, 0]},
        ),
        (
            "blocks:\n"
            "- {name: norms, tensors: ['bn?.*'], coefficients: [2, 2, 0]}\n"
            "- {tensors: [conv1.weight, fc.bias], coefficients: [0, 1, 3]}\n"
            "- {name: others, tensors: '*', coefficients: [4, 1, -1]}\n"
            "normalise: true\n",
            {
                "bn": [0.5, 0.5, 0],
                "conv1": [0, 0.25, 0.75],
                "fc.bias": [0, 0.25, 0.75],
                "": [1, 0.25, -0.25],
            },
        ),
    ]
    for text, rows in cases:
        made = deevo.merge(written(tmp_path / "r.yaml", GOOD + text), out)
        assert made.as_recorded is None and made.statistics == "evolved"
        check_by_hand(folder, made, rows)


def test_the_average_by_hand_is_that_of_the_state_rule(tmp_path: Path) -> None:
    folder = save(tmp_path / "m", members(ConvNet, 3))
    text = GOOD + "coefficients: [1, 1, 1]\nnormalise: true\n"
    population = Population.from_checkpoints(ConvNet(), folder)
    network = ComposedNetwork(Blocks.whole(population.layout), uniform(1, 3, [0, 1, 2]), None)
    assert_merges(written(tmp_path / "r.yaml", text), expected_of(population, network))


def test_an_edited_coefficient_changes_its_block_alone(tmp_path: Path) -> None:
    folder = save(tmp_path / "m", members(ConvNet, 3))
    population = Population.from_checkpoints(ConvNet(), folder)
    blocks = Blocks.by_patterns(population.layout, ["fc.*", "*"])
    network = ComposedNetwork(blocks, torch.tensor([[0.5, 0.25, 0.25], [0.25, 0.75, 0.0]]), None)
    recipe = tmp_path / "recipe.yaml"
    save_recipe(recipe, population, network)
    text = recipe.read_text()
    assert "{a: 0.5, b: 0.25, c: 0.25}" in text
    edited = text.replace("{a: 0.5, b: 0.25, c: 0.25}", "{a: 1, b: -3e-1, c: 0.3}")
    made = deevo.merge(written(recipe, edited), tmp_path / "out.safetensors")
    assert made.as_recorded is False
    check_by_hand(folder, made, {"fc.": [1, -0.3, 0.3], "": [0.25, 0.75, 0.0]})


def test_statistics_that_a_recipe_holds_apart_and_does_not_give(tmp_path: Path) -> None:
    """They are weighed in the block that names them, or else as their layer's weight is."""
    folder = save(tmp_path / "m", members(ConvNet, 3))
    text = GOOD + (
        "batchnorm: recalibrate\n"
        "blocks:\n"
        "- {tensors: [bn1.*], coefficients: [-0.5, 1.5, 0]}\n"
        "- {tensors: [bn2.weight, bn2.running_mean], coefficients: [0, 0, 1]}\n"
        "- {tensors: [bn2.bias], coefficients: [0, 1, 0]}\n"
        "- {tensors: [conv1.weight, conv2.weight, conv2.bias, fc.weight, fc.bias],\n"
        "   coefficients: [1, 0, 0]}\n"
    )
    made = deevo.merge(written(tmp_path / "r.yaml", text), tmp_path / "out.safetensors")
    assert made.statistics == "combined"
    rows = {"bn1.": [-0.5, 1.5, 0], "bn2.bias": [0, 1, 0], "bn2.": [0, 0, 1], "": [1, 0, 0]}
    check_by_hand(folder, made, rows)
    # Without a layer's weight and bias there is nothing to go by.
    text = text.replace("[bn2.weight, bn2.running_mean]", "[bn2.weight, bn2.bias]")
    text = text.replace("- {tensors: [bn2.bias], coefficients: [0, 1, 0]}\n", "")
    text = "frozen: [bn2.weight, bn2.bias]\n" + text.replace("[bn2.weight, bn2.bias], c", "fc.*, c")
    text = text.replace(", fc.weight, fc.bias", "")
    with pytest.raises(DeevoError, match=r"'bn2\.running_mean' is in no block, nor are 1 more"):
        deevo.merge(written(tmp_path / "r.yaml", text), tmp_path / "out.safetensors")


def test_tensors_kept_from_the_first_member_are_named(tmp_path: Path) -> None:
    folder = save(tmp_path / "m", members(MaskedNet, 3))
    text = GOOD + "frozen: [mask, head.*]\ncoefficients: [0.5, 0.5, 0]\n"
    with pytest.warns(UserWarning, match="fixed tensors differ"):
        made = deevo.merge(written(tmp_path / "r.yaml", text), tmp_path / "out.safetensors")
    assert made.statistics == "fixed"
    check_by_hand(folder, made, {"mask": [1, 0, 0], "head": [1, 0, 0], "": [0.5, 0.5, 0]})
