"""Checkpoints that are found by their SHA-256, among whatever else lies there."""

from __future__ import annotations

from pathlib import Path

import pytest

from deevo_ext.errors import DeevoError
from deevo_ext.population.finding import sha256
from deevo_ext.runs.folder import locate_checkpoints
from support.recipe_runs import save_checkpoints


def test_files_that_cannot_be_read_hide_no_member(tmp_path: Path) -> None:
    members = sorted(save_checkpoints(tmp_path / "members", count=3).iterdir())
    sources = [(path.name, sha256(path)) for path in members]
    (tmp_path / "other.index.json").write_text('{"articles": []}')
    (tmp_path / "part.index.json").write_text('{"weight_map": {"fc.weight": "gone.bin"}}')
    (tmp_path / "folder.pth").mkdir()
    (tmp_path / "moved.pth").symlink_to(tmp_path / "nothing")
    assert locate_checkpoints(sources, tmp_path, tmp_path, "the recipe") == members
    members[1].unlink()
    with pytest.raises(DeevoError) as caught:
        locate_checkpoints(sources, tmp_path, tmp_path, "the recipe")
    message = str(caught.value)
    assert f"{sources[1][1]} that the recipe expects of checkpoint m1" in message
    assert "not looked at: " in message and "other.index.json: no index of shards" in message
