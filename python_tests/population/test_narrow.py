"""Weights that the checkpoints' dtype is too narrow for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import deevo_ext as deevo
from deevo_ext.errors import DeevoError
from support.networks import Net, members


def narrow(dtype: torch.dtype, batchnorm: str = "evolve") -> deevo.Population:
    states = [
        {name: t.to(dtype) if t.is_floating_point() else t for name, t in state.items()}
        for state in members(Net, 3)
    ]
    return deevo.Population.from_state_dicts(Net(), states, batchnorm=batchnorm)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_an_overflow_is_refused_by_name(dtype: torch.dtype) -> None:
    population = narrow(dtype)
    largest = torch.finfo(dtype).max
    row = population.rows[0].clone()
    conv, fc = (population.layout.views(row)[name] for name in ("conv.weight", "fc.weight"))
    conv[0, 0, 0, :2] = torch.tensor([-largest, largest * 1.0001])  # which is rounded down
    kept = population.state_dict_of(row)["conv.weight"][0, 0, 0, :2]
    assert kept.tolist() == [-largest, largest]
    fc[0, :2] = 2 * largest
    with pytest.raises(DeevoError, match=r"tensor 'fc\.weight' has 2 of 12 values beyond .*save"):
        population.state_dict_of(row)
    fc[0, :2] = torch.inf  # is not the dtype's fault
    population.state_dict_of(row)


def test_statistics_overflow_too_and_wide_dtypes_hold_all() -> None:
    population = narrow(torch.float16, "recalibrate")
    with pytest.raises(DeevoError, match=r"'bn\.running_mean' has 4 of 4 values beyond 65504"):
        population.state_dict_of(population.rows[0], population.statistics[0] + 1e6)
    for dtype in (torch.bfloat16, torch.float32):
        wide = narrow(dtype)
        state = wide.state_dict_of(wide.rows[0].sign() * 1e30)
        assert all(bool(tensor.isfinite().all()) for tensor in state.values())


def test_a_population_is_saved_whole_all_the_same(tmp_path: Path) -> None:
    """Its files are as wide as its rows."""
    population = narrow(torch.float16)
    population.rows[1] *= 1e6
    [_, file, _] = population.save(tmp_path / "members")
    found = load_file(file)
    for name, tensor in population.layout.views(population.rows[1]).items():
        assert torch.equal(found[name], tensor), name
