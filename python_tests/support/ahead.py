"""Kernels compiled ahead, by the installed Triton and by the oldest supported: no GPU is needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from support.paths import child_environment

TRITONS = ("installed", "oldest")
"""The oldest is looked for in the folder DEEVO_OLDEST_TRITON, where .ci/run installs 3.6.0: the one
that torch 2.11 brings to a GPU. It compiles the same sources to other machine code."""


def compiled(program: str, triton: str, *arguments: object) -> list[dict[str, Any]]:
    """What a program of support prints of its kernels, one record each."""
    environment = child_environment(TRITON_INTERPRET="0")
    if triton == "oldest":
        folder = os.environ.get("DEEVO_OLDEST_TRITON")
        if folder is None:
            pytest.skip("DEEVO_OLDEST_TRITON names no folder with the oldest Triton")
        environment["PYTHONPATH"] = os.pathsep.join([folder, environment["PYTHONPATH"]])
    command = [sys.executable, "-P", "-m", f"support.{program}", *map(str, arguments)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr
    version, *records = map(json.loads, result.stdout.splitlines())
    assert triton == "installed" or version["triton"].startswith("3.6."), version
    return records
