"""What recipes cannot say and what does not fit them is refused before anything is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import deevo_ext as deevo
from deevo_ext.errors import DeevoError
from deevo_ext.population.blocks import Blocks
from deevo_ext.population.composed import ComposedNetwork
from deevo_ext.population.population import Population
from support.merging import GOOD, drawn, network_of, save, save_recipe, written
from support.networks import ConvNet, TiedNet, members

# Written


@pytest.mark.parametrize(
    "change, match",
    [
        ({"statistics": None}, "statistics are missing"),
        ({"statistics": torch.full((32,), -1.0)}, "negative values, expected variances"),
        ({"classifier": {"fc.wieght": torch.zeros(3, 5)}}, r"'fc\.wieght' .* no such tensor"),
        ({"classifier": {"bn1.running_mean": torch.zeros(5)}}, "no such tensor"),
        (
            {"classifier": {"fc.bias": torch.zeros(4)}},
            r"'fc\.bias' has shape \[4\]; the network's has \[3\]",
        ),
        (
            {"classifier": {"fc.bias": torch.full((3,), torch.nan)}},
            "3 of 3 values that are not finite",
        ),
        ({"coefficients": torch.full((1, 3), 0.5)}, "add up to 1.5; expected 1.*normalise"),
        ({"coefficients": torch.full((1, 2), 0.5)}, r"shape \[1, 2\]; expected .*\[1, 3\]"),
    ],
)
def test_a_network_that_does_not_fit_is_not_written(
    tmp_path: Path, change: dict[str, Any], match: str
) -> None:
    folder = save(tmp_path / "members", members(ConvNet, 3))
    population = Population.from_checkpoints(ConvNet(), folder, batchnorm="recalibrate")
    good = network_of(population, Blocks.whole(population.layout))
    network = ComposedNetwork(**{**vars(good), **change})
    with pytest.raises(DeevoError, match=match):
        save_recipe(tmp_path / "recipe.yaml", population, network)
    assert [path.name for path in tmp_path.iterdir()] == ["members"]


def test_what_recipes_cannot_say_is_refused(tmp_path: Path) -> None:
    inherit = Population.from_state_dicts(ConvNet(), members(ConvNet, 3), batchnorm="inherit")
    evolved = Population.from_state_dicts(ConvNet(), members(ConvNet, 3))
    evolved.pristine = False
    for population, match in ((inherit, "inherit"), (evolved, "were evolved")):
        with pytest.raises(DeevoError, match=match):
            save_recipe(tmp_path / "r.yaml", population, network_of(population))
    tied = Population.from_state_dicts(TiedNet(), members(TiedNet, 3))
    refit = {"decoder.weight": torch.zeros(11, 5)}
    blocks = Blocks.whole(tied.layout)
    with pytest.raises(DeevoError, match=r"tied to other layers \(embed\.weight, decoder\.weight"):
        ComposedNetwork(blocks, drawn(1), None, refit).state_dict(tied)
    assert not list(tmp_path.iterdir())


# Merged


@pytest.mark.parametrize(
    "text, match",
    [
        ("coefficients: [.5, .5, .5]\n", "'network': its coefficients add up to 1.5.*normalise"),
        ("blocks: [{tensors: fc.*, coefficients: [1, 0, 0]}]\n", r"'bn1\.bias' is in no block"),
        (
            "blocks: [{tensors: fc9.*, coefficients: [1, 0, 0]}]\ncoefficients: [1, 0, 0]\n",
            r"block 'fc9\.\*': 'fc9\.\*' matches no tensor .* nearest is 'fc\.bias'",
        ),
        (
            "blocks: [{tensors: '*', coefficients: [1, 0, 0]}]\ncoefficients: [1, 0, 0]\n",
            r"block 'the rest': all that '\*' matches is in block '\*' already",
        ),
        (
            "blocks: [{tensors: bn1.num_batches_tracked, coefficients: [1, 0, 0]}]\n",
            "matches no tensor of the members that evolves",
        ),
        ("frozen: fc\ncoefficients: [1, 0, 0]\n", r"frozen pattern 'fc' .* write 'fc\.\*'"),
        ("frozen: '*'\ncoefficients: [1, 0, 0]\n", "no floating-point tensor that evolves"),
        (
            "frozen: '*.running_*'\nbatchnorm: recalibrate\ncoefficients: [1, 0, 0]\n"
            "statistics: {file: m/e.safetensors}\n",
            "statistics are given, but the members have none",
        ),
        ("tied: {x: y}\ncoefficients: [1, 0, 0]\n", "tied: .* has neither 'y' nor 'x'"),
        ("counters: {x: 3}\ncoefficients: [1, 0, 0]\n", "missing: 'x'"),
        ("checkpoint_key: ema\ncoefficients: [1, 0, 0]\n", "checkpoint_key 'ema' is absent"),
        ("classifier: {file: none.safetensors}\ncoefficients: [1, 0, 0]\n", "none.safetensors"),
        (
            "batchnorm: recalibrate\nclassifier: {file: m/e.safetensors}\n"
            "coefficients: [1, 0, 0]\n",
            "no change of a class",
        ),
        (
            "classifier: {file: m/a.safetensors}\ncoefficients: [1, 0, 0]\n",
            "has shape .*; the network's has no such tensor",
        ),
        (
            "classifier: {file: m/a.safetensors, sha256: " + "0" * 64 + "}\n"
            "coefficients: [1, 0, 0]\n",
            r"a\.safetensors has SHA-256 .*, the recipe expects 0000",
        ),
        (
            "batchnorm: recalibrate\nstatistics: {file: m/d.safetensors}\n"
            "coefficients: [1, 0, 0]\n",
            r"m/d\.safetensors: tensor 'bn1\.running_mean' of shape \[5\] is missing",
        ),
    ],
)
def test_recipes_that_do_not_fit(tmp_path: Path, text: str, match: str) -> None:
    states = members(ConvNet, 3)
    save(tmp_path / "m", states)
    save_file({"fc.bias": torch.zeros(3)}, tmp_path / "m" / "d.safetensors")
    save_file({"bn1.running_mean": torch.zeros(5)}, tmp_path / "m" / "e.safetensors")
    with pytest.raises(DeevoError, match=match):
        deevo.merge(written(tmp_path / "r.yaml", GOOD + text), tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_members_that_changed_or_differ(tmp_path: Path) -> None:
    states = members(ConvNet, 3)
    folder = save(tmp_path / "m", states)
    population = Population.from_checkpoints(ConvNet(), folder, batchnorm="recalibrate")
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "out.safetensors"
    save_recipe(recipe, population, network_of(population))
    for name in ("m/b.safetensors", "recipe.safetensors"):
        with pytest.raises(DeevoError, match=f"{name} is a part of what it is made"):
            deevo.merge(recipe, tmp_path / name)
    with pytest.raises(DeevoError, match=r"ends in \.safetensors or \.pth"):
        deevo.merge(recipe, tmp_path / "out.onnx")
    with pytest.raises(DeevoError, match="there is no folder"):
        deevo.merge(recipe, tmp_path / "none" / "out.pth")
    with pytest.raises(DeevoError, match=r"recipe\.yaml: it cannot be read: No such file"):
        deevo.merge(tmp_path / "none" / "recipe.yaml", out)
    beside = (tmp_path / "recipe.safetensors").read_bytes()
    (tmp_path / "recipe.safetensors").write_bytes(beside[:-1] + b"x")
    with pytest.raises(DeevoError, match=r"recipe\.safetensors has SHA-256 .*, the recipe expects"):
        deevo.merge(recipe, out)
    (tmp_path / "recipe.safetensors").unlink()
    with pytest.raises(DeevoError, match=r"recipe\.safetensors is missing: restore it"):
        deevo.merge(recipe, out)
    (tmp_path / "recipe.safetensors").write_bytes(beside)
    save_file(states[0], folder / "c.safetensors")
    with pytest.raises(DeevoError, match=r"c\.safetensors has SHA-256 .*, the recipe expects"):
        deevo.merge(recipe, out)
    # By hand no SHA-256 is asked for, but then there is nothing to find moved files by.
    text = GOOD + "coefficients: [1, 0, 0]\n"
    with pytest.raises(DeevoError, match="member 'a' has no sha256"):
        deevo.merge(written(recipe, text), out, folder)
    save_file({**states[1], "fc.bias": torch.zeros(4)}, folder / "b.safetensors")
    with pytest.raises(DeevoError, match=r"b\.safetensors: .* another shape: 'fc\.bias' \[4\]"):
        deevo.merge(recipe, out)
    save_file({n: t for n, t in states[1].items() if n != "fc.bias"}, folder / "b.safetensors")
    with pytest.raises(DeevoError, match=r"b\.safetensors: does not fit .* missing: 'fc\.bias'"):
        deevo.merge(recipe, out)
    (folder / "b.safetensors").unlink()
    with pytest.raises(DeevoError, match=r"member .*b\.safetensors does not exist"):
        deevo.merge(recipe, out)
    assert not out.exists()
