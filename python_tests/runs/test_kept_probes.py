"""Probes of long rounds are kept, and a round that is begun again takes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from deevo_ext.distributed.slices import Slices
from deevo_ext.fitness import probing
from deevo_ext.runs import kept_probes, recipe_run
from deevo_ext.runs.kept_probes import KeptProbes
from support.journals import files, lines
from support.rounds import problem


@pytest.mark.parametrize("elsewhere", [False, True])
def test_long_rounds_go_on_without_the_blocks_that_were_probed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, elsewhere: bool
) -> None:
    """On another device all are probed anew: its last bits are others."""
    monkeypatch.setattr(kept_probes, "LONG_SECONDS", -1.0)
    monkeypatch.setattr(probing, "_TOGETHER", 1)  # a block at a time
    whole, folder = tmp_path / "whole", tmp_path / "run"
    chosen = problem().run(whole).run()
    assert not (whole / kept_probes.FOLDER).exists()
    run, computed = problem().run(folder), []
    keep = KeptProbes.__call__

    def interrupted(
        kept: KeptProbes, blocks: range, slices: Slices, compute: Callable[[], Tensor]
    ) -> Tensor:
        if 2 in blocks:
            raise KeyboardInterrupt
        return keep(kept, blocks, slices, compute)

    def counted(
        kept: KeptProbes, blocks: range, slices: Slices, compute: Callable[[], Tensor]
    ) -> Tensor:
        def noted() -> Tensor:
            computed.extend(blocks)
            return compute()

        return keep(kept, blocks, slices, noted)

    monkeypatch.setattr(KeptProbes, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run.run()
    assert len(list((folder / kept_probes.FOLDER).iterdir())) == 2
    monkeypatch.setattr(KeptProbes, "__call__", counted)
    if elsewhere:
        monkeypatch.setattr(recipe_run, "device_name", lambda _: "another")
    again = problem().run(folder)
    assert again.run().digest == chosen.digest
    first = [0, 1, 2] if elsewhere else [2]
    assert computed == [*first, 0, 1, 2]  # of round 1 what was not kept, then round 2
    saved = lines(whole)[2]["forward_passes"] - lines(folder)[2]["forward_passes"]
    assert saved == 200 * (3 - len(first)) * 3  # images of the model, probes of two blocks
    assert files(folder) == files(whole)


def test_only_whole_files_of_the_same_round_of_the_same_run_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_probes, "LONG_SECONDS", -1.0)
    first, second = torch.ones(3, 5, 4), torch.full((3, 5, 4), 2.0)

    def kept(check: str, some: range, new: Tensor) -> Tensor:
        return KeptProbes(tmp_path, check, 7)(some, Slices((0, 5)), lambda: new)

    assert torch.equal(kept("ab", range(1, 2), first), first)
    [path] = (tmp_path / kept_probes.FOLDER).iterdir()
    assert torch.equal(kept("ab", range(1, 2), second), first)
    assert torch.equal(kept("ab", range(2, 3), second), second)  # another block
    data = path.read_bytes()
    for broken in (data[:-1], data[:20], b"", b"\xff" * 100):
        path.write_bytes(broken)
        assert torch.equal(kept("ab", range(1, 2), second), second)
        path.write_bytes(data)
    assert torch.equal(kept("ac", range(1, 2), second), second)
    assert torch.equal(kept("ac", range(1, 2), first), second)
    kept_probes.remove_kept(tmp_path)
    kept_probes.remove_kept(tmp_path)
    monkeypatch.setattr(kept_probes, "LONG_SECONDS", 600.0)
    assert torch.equal(kept("ab", range(1, 2), first), first)
    assert list(tmp_path.iterdir()) == []  # a short round keeps nothing
