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
    recipes = {name: kernels.pop(name) for name in list(kernels) if name.startswith("compose")}
    assert len(kernels) == 2 * 3 * (2 if architecture == 90 else 1) and len(recipes) == 3
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
    for name, kernel in recipes.items():
        assert kernel["ptx_fma"] == kernel["flushing"] == kernel["narrow_loads"] == 0, name
        assert kernel["spills"] == 0 and kernel["registers"] <= 128, name
        assert (kernel["sass_fma"] > 0) == kernel["contracts"], name
        # x_0, four members and the least, in a tile of one segment and in one of several; a row
        # and thread have 8 weights.
        vectors = 2 if name.endswith("float32") else 1
        assert kernel["wide_loads"] >= 2 * 6 * vectors, name
        assert kernel["wide_stores"] == (4 + 1) * vectors, name
        # Four members of four recipes, 8 weights each; products and sums alone are 288.
        if not kernel["contracts"]:
            assert 288 < kernel["loop"] <= (470 if name.endswith("float32") else 550), name


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
