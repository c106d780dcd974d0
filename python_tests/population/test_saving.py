"""A population that was evolved, as files, and read again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, load_file, safe_open

import deevo_ext as deevo
from deevo_ext.errors import DeevoError
from deevo_ext.population.saving import serialise
from support.evolution import sphere
from support.networks import Net, members


@pytest.mark.parametrize("batchnorm", ["evolve", "inherit"])
@pytest.mark.parametrize(
    "rows, files",
    [
        (torch.float32, torch.float32),
        (torch.float32, torch.float16),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.bfloat16),
    ],
)
def test_an_evolved_population_is_read_again(
    rows: torch.dtype, files: torch.dtype, batchnorm: str, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"dtype": rows, "batchnorm": batchnorm, "frozen": "fc.bias"}
    states = [
        {n: t.to(files) if t.is_floating_point() else t for n, t in state.items()}
        for state in members(Net, 6)
    ]
    population = deevo.Population.from_state_dicts(Net(), states, **options)
    de = deevo.DifferentialEvolution(population, generations=3, seed=1)
    deevo.Evolution(de, sphere, progress=False).run()
    paths = population.save(tmp_path / "new" / "members")
    assert [path.name for path in paths] == [f"member_{i:03d}.safetensors" for i in range(6)]
    again = deevo.Population.from_checkpoints(Net(), tmp_path / "new" / "members", **options)
    assert torch.equal(again.rows, population.rows)
    assert torch.equal(again.statistics, population.statistics)
    assert again.fixed.keys() == population.fixed.keys()
    for name, tensor in population.fixed.items():
        assert torch.equal(again.fixed[name], tensor)
    Net().load_state_dict(load_file(paths[0]))
    with safe_open(paths[3], "pt") as file:
        assert file.metadata() == {"deevo": '{"member": "member3"}'}


def test_files_are_never_mixed_with_others(tmp_path: Path) -> None:
    population = deevo.Population.from_state_dicts(Net(), members(Net, 4))
    (tmp_path / "other.pth").write_bytes(b"")
    with pytest.raises(DeevoError, match=r"holds other\.pth already; choose a folder that is new"):
        population.save(tmp_path)
    with pytest.raises(DeevoError, match="cannot be a folder"):
        population.save(tmp_path / "other.pth")
    assert [path.name for path in tmp_path.iterdir()] == ["other.pth"]


def test_tensors_that_share_memory_are_written_one_by_one() -> None:
    table = torch.arange(12.0).view(3, 4)
    parts = {"embed": table, "head": table, "turned": table.T, "row": table[1], "none": table[:0]}
    found = load(serialise(parts, {}))
    assert found.keys() == parts.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in parts.items())


@pytest.mark.parametrize(
    "tensor", [torch.zeros(3, dtype=torch.complex128), torch.eye(3).to_sparse()]
)
def test_what_the_format_does_not_hold_is_named(tensor: torch.Tensor) -> None:
    with pytest.raises(DeevoError, match=r"tensor 'b' \(.*\) cannot be written as \.safetensors"):
        serialise({"a": torch.zeros(1), "b": tensor}, {})
