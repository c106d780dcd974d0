"""The Triton operators compiled ahead for three architectures: no GPU is needed.

16-byte loads and stores, one Philox call for the weights of a block that a thread holds, nothing
contracted, flushed, approximated or spilled.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from support.paths import child_environment

PROGRAM = "support.compile_operators"
ROUNDS, PRODUCTS = 7, 2  # of a Philox call for masks


@pytest.mark.parametrize("architecture", [80, 90, 100])
def test_operators(architecture: int) -> None:
    result = subprocess.run(
        [sys.executable, "-P", "-m", PROGRAM, str(architecture)],
        env=child_environment(TRITON_INTERPRET="0"),
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert result.returncode == 0, result.stderr
    kernels = {r["kernel"]: r for r in map(json.loads, result.stdout.splitlines())}
    assert len(kernels) == 2 * 3 * (2 if architecture == 90 else 1)
    for name, kernel in kernels.items():
        assert kernel["ptx_fma"] == kernel["flushing"] == 0, name
        assert kernel["sass_fma"] == kernel["spills"] == 0, name
        # Parent, base and five terms, each from the population or else the archive.
        rows = 1 + 6 * (2 if name.endswith("everything") else 1)
        assert kernel["wide_loads"] >= rows, name
        assert kernel["narrow_loads"] == 0, name
        assert kernel["wide_stores"] >= (2 if name.startswith("commit") else 1), name
        # Two programs of 256 threads fit on a multiprocessor.
        assert kernel["registers"] <= 128, name
        if not name.endswith("everything"):
            assert 0 < kernel["philox_products"] <= ROUNDS * PRODUCTS, name
        if name.startswith("commit"):
            assert kernel["barriers"] >= 2, name
