"""Both searches refuse a precision whose rounding is as large as what tells members apart."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import deevo_ext as deevo
from deevo_ext.runs.records import SEARCHES
from support.evolution import images
from support.networks import Net, members


@pytest.mark.parametrize("search", SEARCHES)
def test_members_that_16_bits_cannot_tell_apart_are_refused(search: str, tmp_path: Path) -> None:
    (state,) = members(Net, 1)
    generator = torch.Generator().manual_seed(0)
    for i in range(5):
        weight = state["conv.weight"]
        near = weight * (1 + 1e-5 * torch.randn(weight.shape, generator=generator))
        save_file(state | {"conv.weight": near}, tmp_path / f"m{i}.safetensors")
    with pytest.raises(deevo.DeevoError, match="decided by rounding: bfloat16"):
        deevo.evolve(
            *(Net(), tmp_path, images(200, 1), images(60, 2)),
            search=search,
            precision="bfloat16",
            basin="ignore",
            progress=False,
            run_dir=tmp_path / "run",
        )
    assert not (tmp_path / "run" / "journal.jsonl").exists()
