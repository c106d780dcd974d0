"""Runs of both searches killed, or failed, at each of their writes: what was done is not lost."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from campaigns.interrupted import SEARCHES
from support.paths import child_environment


@pytest.fixture(scope="module")
def file_layer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled file layer."""
    source = Path(__file__).with_name("failing_files.c")
    library = tmp_path_factory.mktemp("layer") / "failing_files.so"
    compiler = shutil.which(os.environ.get("CC", "cc")) or "gcc"
    command = [compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"]
    subprocess.run([*command, str(library), str(source), "-ldl"], check=True)
    return library


@pytest.mark.parametrize("search", SEARCHES)
def test_a_run_stopped_at_any_call_goes_on_to_the_same_end(
    search: str, file_layer: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "campaigns.interrupted", search, str(tmp_path)]
    environment = child_environment(LD_PRELOAD=str(file_layer))
    done = subprocess.run(  # elsewhere than in a checkout, whose sources hide what is installed
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
