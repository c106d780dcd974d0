"""Files beside a recipe: its statistics, its classifier, its changes by channel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import deevo_ext as deevo
from deevo_ext.errors import DeevoError
from support.recipe_runs import save_checkpoints

KINDS = ["statistics", "classifier", "channels"]


def recipe(folder: Path, kind: str, content: Any) -> Path:
    """A recipe of three members, with one file beside it."""
    save_checkpoints(folder / "m", count=3)
    torch.save(content, folder / "beside.pth")
    text = "members: [m/m0.safetensors, m/m1.safetensors, m/m2.safetensors]\n"
    text += "blocks: [{tensors: ['*'], coefficients: [1, 0, 0]}]\n"
    text += "batchnorm: recalibrate\n" * (kind == "statistics")
    (folder / "recipe.yaml").write_text(f"{text}{kind}: {{file: beside.pth}}\n")
    return folder / "recipe.yaml"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "content", [[torch.zeros(3)], {"fc.weight": 1.0}, {"state_dict": {"fc.weight": [1.0]}}, {}]
)
def test_what_holds_no_tensors_by_name_is_named(tmp_path: Path, kind: str, content: Any) -> None:
    path = recipe(tmp_path, kind, content)
    with pytest.raises(DeevoError, match=r"beside\.pth: no state dict \(names to tensors\)"):
        deevo.merge(path, tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_tensors_may_be_wrapped_as_those_of_checkpoints(tmp_path: Path) -> None:
    change = torch.arange(12.0).view(3, 4) / 8
    path = recipe(tmp_path, "classifier", {"state_dict": {"fc.weight": change}})
    made = load_file(deevo.merge(path, tmp_path / "out.safetensors").path)
    first = load_file(tmp_path / "m" / "m0.safetensors")
    expected = (first["fc.weight"].double() + change.double()).float()
    assert torch.equal(made["fc.weight"], expected)
    assert torch.equal(made["conv.weight"], first["conv.weight"])
