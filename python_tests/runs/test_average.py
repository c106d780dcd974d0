"""Averages of checkpoints, against timm's own script's arithmetic and choice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from deevo_ext.errors import DeevoError
from deevo_ext.runs.average import average
from support.networks import ConvNet, members

STATES = members(ConvNet, 6)
METRICS = [70.0, 73.5, 71.0, None, 72.0, 69.0]


def write(folder: Path, ema: bool = True, metrics: Any = METRICS) -> Path:
    """Files as timm's training leaves them."""
    for i, (state, metric) in enumerate(zip(STATES, metrics, strict=True)):
        content: dict[str, Any] = {"epoch": i, "arch": "convnet", "state_dict": state}
        if ema:
            content["state_dict_ema"] = {name: t + 1 for name, t in state.items()}
        if metric is not None:
            content["metric"] = metric
        torch.save(content, folder / f"checkpoint-{i}.pth.tar")
    return folder


def expected(which: list[int], shift: float = 0.0) -> dict[str, torch.Tensor]:
    """In float64, as avg_checkpoints.py does it."""
    names = [name for name, t in STATES[0].items() if t.is_floating_point()]
    return {
        name: (sum(STATES[i][name].double() + shift for i in which) / len(which)).float()  # type: ignore[union-attr]
        for name in names
    }


def check(path: Path, wanted: dict[str, torch.Tensor]) -> None:
    found = load_file(path) if path.suffix == ".safetensors" else torch.load(path)
    if path.suffix == ".pth":
        [found] = found.values()
    assert found.keys() == STATES[0].keys()
    for name, tensor in wanted.items():
        # A sum of up to 6 float32 values of at most 8 loses less than 6 half-ulps of 48.
        assert torch.allclose(found[name], tensor, rtol=0, atol=6 * 48 * 2**-24), name


@pytest.mark.filterwarnings("ignore:checkpoints hold weights as")
def test_the_best_by_metric_and_their_moving_averages(tmp_path: Path) -> None:
    write(tmp_path)
    made = average(tmp_path, tmp_path / "out.safetensors", count=3)
    assert made.metrics == (71.0, 72.0, 73.5) and made.checkpoint_key == "state_dict_ema"
    assert [file.name[11] for file in made.files] == ["2", "4", "1"]
    check(made.path, expected([2, 4, 1], 1.0))
    made = average(tmp_path, tmp_path / "raw.pth", count=3, use_ema=False)
    assert made.checkpoint_key is None
    check(made.path, expected([2, 4, 1]))
    assert list(torch.load(made.path)) == ["state_dict"]
    made = average(tmp_path / "*.tar", tmp_path / "all.safetensors", count=None)
    assert made.metrics == () and len(made.files) == 6
    check(made.path, expected(list(range(6)), 1.0))
    # Files without a metric are not among the best, however many are wanted.
    assert len(average(tmp_path / "*.tar", tmp_path / "five.pth", count=10).files) == 5


def test_files_without_metric_or_moving_average(tmp_path: Path) -> None:
    write(tmp_path, ema=False, metrics=[None] * 6)
    made = average(tmp_path, tmp_path / "out.safetensors")
    assert made.metrics == () and made.checkpoint_key is None
    check(made.path, expected(list(range(6))))
    with pytest.raises(DeevoError, match=r"none of 6 checkpoints holds a metric that.*--no-sort"):
        average(tmp_path / "*.tar", tmp_path / "few.pth", count=3)


def test_metrics_that_are_no_plain_numbers(tmp_path: Path) -> None:
    """NaN and True say nothing; a number is one in whatever it was kept."""
    kept = [0.9, torch.nan, np.float32(0.5), torch.tensor(0.75), torch.tensor([0.25]), True]
    write(tmp_path, ema=False, metrics=kept)
    made = average(tmp_path, tmp_path / "two.safetensors", count=2)
    assert made.metrics == (0.75, 0.9) and [file.name[11] for file in made.files] == ["3", "0"]
    check(made.path, expected([3, 0]))
    made = average(tmp_path / "*.tar", tmp_path / "four.pth", count=6)
    assert made.metrics == (0.25, 0.5, 0.75, 0.9)
    (tmp_path / "nan").mkdir()
    write(tmp_path / "nan", ema=False, metrics=[torch.nan] * 6)
    with pytest.raises(DeevoError, match="none of 6 checkpoints holds a metric that is a number"):
        average(tmp_path / "nan", tmp_path / "few.pth", count=3)


def test_what_cannot_be_averaged(tmp_path: Path) -> None:
    write(tmp_path, ema=False)
    (tmp_path / "there.pth").touch()
    with pytest.raises(DeevoError, match=r"there\.pth is there already"):
        average(f"{tmp_path}/*.tar", tmp_path / "there.pth")
    with pytest.raises(DeevoError, match=r"ends in \.safetensors or \.pth"):
        average(f"{tmp_path}/*.tar", tmp_path / "out.tar")
    with pytest.raises(DeevoError, match="count is 1"):
        average(f"{tmp_path}/*.tar", tmp_path / "out.pth", count=1)
    torch.save({"state_dict": {"w": torch.ones(3)}, "metric": 99}, tmp_path / "x.tar")
    with pytest.raises(DeevoError, match=r"does not fit the model; missing: "):
        average(f"{tmp_path}/*.tar", tmp_path / "out.pth")
