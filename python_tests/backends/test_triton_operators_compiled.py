"""The Triton operators compiled ahead for three architectures: no GPU is needed.

16-byte loads and stores, one Philox call for the weights of a block that a thread holds, nothing
contracted, flushed, approximated or spilled.
"""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
import triton

from deevo_ext.backends.triton.launch import require_rounding
from deevo_ext.errors import DeevoError
from support.ahead import TRITONS, compiled

ROUNDS, PRODUCTS = 7, 2  # of a Philox call for masks


@pytest.mark.parametrize("version", TRITONS)
@pytest.mark.parametrize("architecture", [80, 90, 100])
def test_operators(architecture: int, version: str) -> None:
    kernels = {r["kernel"]: r for r in compiled("compile_operators", version, architecture)}
    assert len(kernels) == 2 * 3 * (2 if architecture == 90 else 1)
    for name, kernel in kernels.items():
        assert kernel["ptx_fma"] == kernel["flushing"] == 0, name
        assert kernel["spills"] == 0, name
        # Where the assembler fuses all the same, the operators refuse to run.
        assert (kernel["sass_fma"] > 0) == kernel["contracts"], name
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


def test_operators_refuse_what_would_be_contracted(monkeypatch: pytest.MonkeyPatch) -> None:
    b200 = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA B200")
    for version, capability, refused in (
        ("3.6.0", (10, 0), True),
        ("3.6.0", (9, 0), False),
        ("3.7.1", (10, 0), False),
    ):
        monkeypatch.setattr(triton, "__version__", version)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, c=capability: c)
        context = pytest.raises(DeevoError, match="newer: update it") if refused else nullcontext()
        with context:
            require_rounding("trials", b200)
