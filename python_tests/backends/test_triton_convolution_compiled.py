"""The convolution kernel compiled ahead for ResNet-18's and ResNet-50's layers: no GPU is needed.

Tensor cores, 16-byte asynchronous loads, nothing spilled.
"""

from __future__ import annotations

import pytest

from support.ahead import TRITONS, compiled

FEW = ("stem", "stage 1 first 3x3", "stage 1 first basic out", "stage 1 later 1x1 out")


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
    ],
)
def test_resnet_layers(
    architecture: int, dtype: str, layers: tuple[str, ...], version: str
) -> None:
    records = compiled("compile_convolutions", version, architecture, dtype, *layers)
    kernels = {r["layer"]: r for r in records}
    assert set(FEW) <= set(kernels) and len(kernels) >= (4 if layers else 9)
    for name, kernel in kernels.items():
        assert kernel["mma"] > 0, name
        assert kernel["spills"] == kernel["narrow_loads"] == 0, name
        # Four 16-bit channels of an image are 8 bytes.
        if name != "stem" or dtype == "float32":
            assert kernel["wide_loads"] > 0, name
