"""Names in files against the model's: prefixes that are found, and what carries none."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deevo_ext.errors import DeevoError
from deevo_ext.population.matching import Match, NameOptions, match
from deevo_ext.population.population import Population
from support.networks import ConvNet, members
from support.populations import assert_equal

STATES = members(ConvNet, 2)
STATE = STATES[0]
PREFIXES = [
    *("module.", "_orig_mod.", "model.", "net.", "backbone.", "student.", "my_very.own.name."),
    *("module.module.", "module._orig_mod.", "model.net.module."),
]


def found(state: Mapping[str, Tensor], expected: Any = STATE, **options: Any) -> Match:
    return match(state, expected, NameOptions.of(**options), "file")


def prefixed(prefix: str, state: Mapping[str, Tensor] = STATE) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


@pytest.mark.parametrize("prefix", PREFIXES)
def test_any_prefix_is_found(prefix: str) -> None:
    result = found({**prefixed(prefix), "criterion.weight": torch.ones(3)})
    assert dict(result.names) == {name: prefix + name for name in STATE}
    assert result.left_out == ("criterion.weight",) and not result.rivals
    assert result.prefix in (prefix, "")  # "" where torch's wrappers alone make it up
    assert_equal(result.renamed(prefixed(prefix)), STATE)


def test_the_models_own_names_stay() -> None:
    own = prefixed("module.")
    for name, tensors in (
        ("", own),
        ("module.", prefixed("module.", own)),
        ("m.", prefixed("m.", own)),
    ):
        result = found(tensors, own)
        assert list(result.names) == list(own) and result.prefix == name


def test_what_torch_puts_inside_names_or_before_some() -> None:
    some = {f"module.{n}" if n.startswith("bn") else n: t for n, t in STATE.items()}
    inner = {n.replace("bn1.", "bn1._orig_mod."): t for n, t in STATE.items()}
    both = {f"model.{n}": t for n, t in inner.items()}
    for state in (some, inner, both):
        assert_equal(found(state).renamed(state), STATE)
    colliding = {"module.w": torch.zeros(1), "w": torch.ones(1), "module.v": torch.zeros(1)}
    assert found(colliding, ["w", "v"]).renamed(colliding)["w"] == 0  # not one of each


def test_averaged_model_loses_its_counter() -> None:
    averaged = torch.optim.swa_utils.AveragedModel(ConvNet()).state_dict()
    result = found(averaged)
    assert list(result.names) == list(STATE)
    assert not result.left_out and not result.ignored


def test_which_of_two_networks_is_taken_is_said(tmp_path: Path) -> None:
    for i, state in enumerate(STATES):
        twice = {**prefixed("student.", state), **prefixed("teacher.", STATES[1 - i])}
        torch.save(twice, tmp_path / f"{i}.pth")
    with pytest.warns(UserWarning) as caught:
        population = Population.from_checkpoints(ConvNet(), tmp_path)
    said = " ".join(str(warning.message) for warning in caught)
    assert "'student.' in all members" in said and "left out: 'teacher." in said
    assert_equal(population.state_dict(0), STATES[0])
    with pytest.warns(UserWarning, match="left out: 'student."):
        other = Population.from_checkpoints(ConvNet(), tmp_path, prefix="teacher.")
    assert_equal(other.state_dict(0), STATES[1])
    with pytest.raises(DeevoError, match=r"0\.pth: no tensor's name begins with prefix 'ema.'"):
        Population.from_checkpoints(ConvNet(), tmp_path, prefix="ema.")


def test_key_map_and_ignore() -> None:
    state = {f"net.{n.replace('fc.', 'head.')}": t for n, t in STATE.items()}
    state["net.conv1.total"] = torch.ones(1)
    result = found(state, key_map={"head.weight": "fc.weight", "head.": "fc."}, ignore="*.total")
    assert_equal(result.renamed(state), STATE)
    assert result.ignored == ("net.conv1.total",) and not result.left_out
    assert result.describe() == "'net.' is taken off the names; left out: 'net.conv1.total'"
    with pytest.raises(DeevoError, match=r"are both called 'fc\.bias'"):
        found({**STATE, "head.bias": torch.ones(3)}, key_map={"head.bias": "fc.bias"})
    with pytest.raises(DeevoError, match=r"key_map has 'head\.': 'fc'; expected"):
        found(state, key_map={"head.": "fc"})


def test_buffers_without_weights_are_left_out() -> None:
    """What FLOP counters leave behind, and index tables that a model no longer saves."""
    more = {
        "total_ops": torch.zeros(1, dtype=torch.float64),
        "conv1.total_params": torch.tensor([224.0]),
        "fc.relative_position_index": torch.arange(4),
    }
    result = found({**STATE, **more})
    assert result.ignored == tuple(more) and list(result.names) == list(STATE)
    assert list(found({**STATE, "fc.gamma": torch.ones(1)}).names) == [*STATE, "fc.gamma"]


def test_a_recipes_patterns_find_a_prefix() -> None:
    state = prefixed("model.")

    def names(wanted: list[str], state: Mapping[str, Tensor] = state) -> list[str]:
        return list(match(state, wanted, NameOptions(), "file", patterns=True).names)

    assert names(["fc.*", "*"]) == names(["conv1.weight"]) == list(STATE)
    assert names(["*"]) == list(state)  # nothing tells it
    assert names(["*"], nn.DataParallel(ConvNet()).state_dict()) == list(STATE)
    assert names(["module.fc.bias"], prefixed("module.")) == list(prefixed("module."))


def ddp(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return prefixed("module.", state)


FRAMEWORKS: dict[str, Any] = {
    "torchvision references": lambda s: {
        "model": s,
        "optimizer": {"state": {}, "param_groups": []},
        "args": argparse.Namespace(model="resnet50", output_dir=Path("runs")),
        "epoch": 9,
    },
    "timm": lambda s: {"state_dict": s, "arch": "resnet50", "metric": 81.2, "version": 2},
    "ImageNet example": lambda s: {"state_dict": ddp(s), "best_acc1": torch.tensor(76.0)},
    "Lightning": lambda s: {
        "state_dict": {**prefixed("model.", s), "loss.weight": torch.ones(3)},
        "hyper_parameters": {"lr": 0.1},
        "callbacks": {"ModelCheckpoint": {"dirpath": Path("runs")}},
        "loops": {},
    },
    "Lightning, compiled": lambda s: {"state_dict": prefixed("model._orig_mod.", s)},
    "kuangliu's CIFAR": lambda s: {"net": ddp(s), "acc": 95.1, "epoch": 199},
    "fastai": lambda s: {"model": s, "opt": {"state": [], "hypers": []}},
    "DeepSpeed": lambda s: {"module": s, "ds_config": {}, "dp_world_size": 1},
    "OpenCLIP": lambda s: {
        "epoch": 32,
        "name": "ViT-B-32",
        "state_dict": ddp({**prefixed("visual.", s), "transformer.w": torch.ones(9, 9)}),
    },
    "DINO": lambda s: {"student": prefixed("module.backbone.", s), "epoch": 3},
    "MMPretrain": lambda s: {"meta": {"epoch": 3}, "state_dict": prefixed("backbone.", s)},
    "ModelEmaV3": lambda s: {"state_dict_ema": prefixed("module.", s), "epoch": 3},
}


@pytest.mark.filterwarnings("ignore:tensors outside of the model")
@pytest.mark.parametrize("name", FRAMEWORKS)
def test_files_of_frameworks_are_read_as_they_are(name: str, tmp_path: Path) -> None:
    for i, state in enumerate(STATES):
        torch.save(FRAMEWORKS[name](state), tmp_path / f"{i}.ckpt")
    population = Population.from_checkpoints(ConvNet(), tmp_path)
    assert_equal(population.state_dict(0), STATES[0])
    assert torch.equal(population.rows, Population.from_state_dicts(ConvNet(), STATES).rows)
