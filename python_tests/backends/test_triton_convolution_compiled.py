"""The convolution kernels compiled ahead for ResNet-18's and ResNet-50's layers: no GPU is needed.

Tensor cores, 16-byte asynchronous loads, nothing spilled.
"""

from __future__ import annotations

import pytest

from support.ahead import TRITONS, compiled

FEW = ("stem", "stage 1 first 3x3", "stage 1 first basic out", "stage 1 later 1x1 out")
# Those that `pointwise` takes: with a shortcut, and each number of channels that it keeps.
WALKED = (
    *("stage 1 first 1x1 out", "stage 1 later 1x1", "stage 1 later 1x1 out"),
    *("stage 2 later 1x1 out", "stage 3 later 1x1 out"),
)
SHARED = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}  # that a program may have


@pytest.mark.slow
@pytest.mark.parametrize("version", TRITONS)
@pytest.mark.parametrize(
    ("architecture", "dtype", "layers"),
    [
        (80, "float16", ()),
        (90, "float16", ()),
        (90, "float32", ()),
        # Tiles and loads as above; other instructions of the tensor cores.
        (90, "bfloat16", FEW),
        (80, "float32", FEW),
        (100, "float16", WALKED),
    ],
)
def test_resnet_layers(
    architecture: int, dtype: str, layers: tuple[str, ...], version: str
) -> None:
    records = compiled("compile_convolutions", version, architecture, dtype, *layers)
    kernels = {(r["engine"], r["layer"]): r for r in records}
    assert set(layers or FEW) <= {name for _, name in kernels}
    if not layers:
        assert len(kernels) >= 9
    if dtype == "float16":
        assert {("pointwise", name) for name in WALKED} <= set(kernels)
    for (engine, name), kernel in kernels.items():
        assert kernel["mma"] > 0, name
        assert kernel["shared"] <= SHARED[architecture], (engine, name)
        assert kernel["spills"] == kernel["narrow_loads"] == 0, name
        # Four 16-bit channels of an image are 8 bytes.
        if name != "stem" or dtype == "float32":
            assert kernel["wide_loads"] > 0, name
