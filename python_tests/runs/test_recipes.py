"""Networks as recipe.yaml: written, merged, edited, and written by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import deevo_ext as deevo
from deevo_ext.errors import DeevoError
from deevo_ext.population.blocks import Blocks
from deevo_ext.population.composed import ComposedNetwork
from deevo_ext.population.naming import Naming
from deevo_ext.population.population import Population
from deevo_ext.population.recipes import uniform
from deevo_ext.runs.merge import write_recipe
from support.networks import ConvNet, MaskedNet, SharedNorm, TiedNet, members
from support.populations import State, assert_equal

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
NAMES = ["a", "b", "c"]
GOOD = "members: [m/a.safetensors, m/b.safetensors, m/c.safetensors]\n"


def drawn(blocks: int, size: int = 3, seed: int = 7) -> Tensor:
    """Coefficients around 1/size, some of them 0, some negative; each block's add up to 1."""
    generator = torch.Generator().manual_seed(seed)
    recipe = torch.randn(blocks, size, generator=generator) * 0.7
    recipe[torch.rand(blocks, size, generator=generator) < 0.2] = 0.0
    recipe[:, 0] = 1.0 - recipe[:, 1:].sum(dim=1)
    return recipe


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
    blocks = blocks or Blocks.by_tensor(population.layout)
    statistics = None
    if dim := population.statistics_layout.dim:
        statistics = torch.zeros(dim)
        fresh = members(ConvNet, 1, seed=99)[0]
        population.statistics_layout.flatten(fresh, statistics)
    return ComposedNetwork(blocks, drawn(len(blocks), population.initial_size), statistics)


def expected_of(population: Population, network: ComposedNetwork) -> State:
    row = network.blocks.compose(population, network.coefficients[None])[0].float()
    views = population.layout.views(row)
    for name, change in network.classifier.items():
        views[name].copy_((views[name].double() + change.double()).float())
    state = population.state_dict_of(row, network.statistics)
    return Naming.of_population(population).named(state)


def assert_merges(recipe: Path, expected: State, **kwargs: Any) -> deevo.Merged:
    made = deevo.merge(recipe, recipe.parent / "out.safetensors", **kwargs)
    actual = load_file(made.path)
    assert_equal({name: actual[name] for name in expected}, expected)
    assert actual.keys() == expected.keys()
    return made


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


# From a run


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
    write_recipe(tmp_path / "recipe.yaml", population, network, fitted_on={}, scores={})
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
        write_recipe(folder / "recipe.yaml", population, network, fitted_on={}, scores={})
        made = assert_merges(folder / "recipe.yaml", expected_of(population, network))
        assert made.as_recorded is True
        factory().load_state_dict(load_file(made.path), strict=True)


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
    write_recipe(tmp_path / "recipe.yaml", population, network, fitted_on={}, scores={})
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
    write_recipe(tmp_path / "recipe.yaml", population, network, fitted_on={}, scores={})
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
    write_recipe(tmp_path / "recipe.yaml", population, network, fitted_on={}, scores={})
    made = assert_merges(tmp_path / "recipe.yaml", expected_of(population, network))
    merged = load_file(made.path)
    assert [int(merged[f"bn{i}.num_batches_tracked"]) for i in (1, 2)] == [12, 41]
    assert merged["bn2.num_batches_tracked"].dtype == torch.int64


def test_members_of_two_dtypes_give_the_wider_one(tmp_path: Path) -> None:
    states = members(ConvNet, 1, dtype=torch.float16) + members(ConvNet, 2, seed=1)
    population = Population.from_checkpoints(ConvNet(), save(tmp_path / "members", states))
    network = network_of(population)
    write_recipe(tmp_path / "recipe.yaml", population, network, fitted_on={}, scores={})
    made = assert_merges(tmp_path / "recipe.yaml", expected_of(population, network))
    assert load_file(made.path)["fc.weight"].dtype == torch.float32


def test_members_in_memory_get_files_beside_the_recipe(tmp_path: Path) -> None:
    population = Population.from_state_dicts(ConvNet(), members(ConvNet, 3), names=NAMES)
    network = network_of(population)
    write_recipe(tmp_path / "recipe.yaml", population, network, fitted_on={}, scores={})
    assert_merges(tmp_path / "recipe.yaml", expected_of(population, network))


def test_a_moved_run_finds_its_members_by_their_content(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    folder = save(tmp_path / "members", members(ConvNet, 3))
    population = Population.from_checkpoints(ConvNet(), folder)
    network = network_of(population)
    recipe = tmp_path / "run" / "recipe.yaml"
    write_recipe(recipe, population, network, fitted_on={}, scores={})
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
    write_recipe(recipe, population, network, unit="member", fitted_on={}, scores={})
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
        write_recipe(tmp_path / "recipe.yaml", population, network, fitted_on={}, scores={})
    assert [path.name for path in tmp_path.iterdir()] == ["members"]


def test_what_recipes_cannot_say_is_refused(tmp_path: Path) -> None:
    inherit = Population.from_state_dicts(ConvNet(), members(ConvNet, 3), batchnorm="inherit")
    evolved = Population.from_state_dicts(ConvNet(), members(ConvNet, 3))
    evolved.pristine = False
    for population, match in ((inherit, "inherit"), (evolved, "were evolved")):
        with pytest.raises(DeevoError, match=match):
            write_recipe(
                tmp_path / "r.yaml", population, network_of(population), fitted_on={}, scores={}
            )
    tied = Population.from_state_dicts(TiedNet(), members(TiedNet, 3))
    refit = {"decoder.weight": torch.zeros(11, 5)}
    blocks = Blocks.whole(tied.layout)
    with pytest.raises(DeevoError, match=r"tied to other layers \(embed\.weight, decoder\.weight"):
        ComposedNetwork(blocks, drawn(1), None, refit).state_dict(tied)
    assert not list(tmp_path.iterdir())


# Edited and written by hand: an oracle of its own, tensor by tensor in NumPy's float32


def weighed(a: np.ndarray, tensors: list[np.ndarray], nonneg: bool = False) -> np.ndarray:
    """x_0 + a_1 (x_1 - x_0) + ..., as `docs/contract.md` has it for float32 rows."""
    base = tensors[0]
    v = base.copy()
    for weight, x in zip(a[1:], tensors[1:], strict=True):
        if weight != 0:
            v = v + np.float32(weight) * (x - base)
    return np.where(v > 0, v, 0.5 * np.minimum.reduce(tensors)) if nonneg else v


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
    write_recipe(recipe, population, network, fitted_on={}, scores={"loss": 0.5})
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


# Errors come before anything is written


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
    write_recipe(recipe, population, network_of(population), fitted_on={}, scores={})
    for name in ("m/b.safetensors", "recipe.safetensors"):
        with pytest.raises(DeevoError, match=f"{name} is a part of the recipe"):
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
