"""A member as it was read, whatever has become of the rows and the files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import deevo_ext as deevo
from deevo_ext.errors import DeevoError
from deevo_ext.population import checkpoints
from support.evolution import save_members, sphere
from support.networks import Net


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_member_is_returned_as_it_was_read(tmp_path: Path, dtype: torch.dtype) -> None:
    files = save_members(tmp_path / "members", 5)
    population = deevo.Population.from_checkpoints(Net(), files, dtype=dtype, batchnorm="inherit")
    before = [(population.rows[i].clone(), population.statistics[i].clone()) for i in range(5)]
    de = deevo.DifferentialEvolution(population, generations=5, seed=1)
    deevo.Evolution(de, sphere, progress=False).run()
    assert not torch.equal(population.rows, torch.stack([row for row, _ in before]))
    for i, expected in enumerate(before):
        for found, wanted in zip(population.reread(i), expected, strict=True):
            assert torch.equal(found, wanted) and found.dtype == wanted.dtype


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_file_that_changes_while_it_is_read_is_refused(
    when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights would be of one file, and what vouches for them of another."""
    files = save_members(tmp_path / "members", 4)
    other = (files / "m1.safetensors").read_bytes()
    load = checkpoints.load_matched

    def changing(path: Path, *rest: Any, **options: Any) -> Any:
        def change() -> None:
            if path.stem == "m0":
                path.write_bytes(other)

        if when == "before":
            change()
        read = load(path, *rest, **options)
        if when == "after":
            change()
        return read

    monkeypatch.setattr(checkpoints, "load_matched", changing)
    with pytest.raises(DeevoError, match=r"m0\.safetensors was changed while it was read; copy"):
        deevo.Population.from_checkpoints(Net(), files)


def test_a_file_that_was_changed_is_not_taken_for_the_member(tmp_path: Path) -> None:
    """As last.pth of a training that is still running."""
    files = save_members(tmp_path / "members", 4)
    population = deevo.Population.from_checkpoints(Net(), files)
    read = population.rows.clone()
    (files / "m0.safetensors").write_bytes((files / "m1.safetensors").read_bytes())
    row, _ = population.reread(0)
    assert torch.equal(row, read[0])
    row.zero_()  # a copy
    assert torch.equal(population.rows, read)
    population.pristine = False
    with pytest.raises(DeevoError, match=r"m0\.safetensors has SHA-256 .* it was changed since"):
        population.reread(0)
    assert torch.equal(population.reread(1)[0], read[1])
    (files / "m0.safetensors").unlink()
    with pytest.raises(DeevoError, match=r"m0\.safetensors does not exist"):
        population.reread(0)
