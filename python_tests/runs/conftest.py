"""What the tests of runs share."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.evolution import save_members


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    """A folder of eight checkpoints of the tiny network."""
    return save_members(tmp_path / "checkpoints", 8)
