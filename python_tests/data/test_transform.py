"""Transforms that are refused, and pictures of more than 8 bits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deevo_ext import DeevoError
from deevo_ext.data import Transform

GREY = Transform(None, None, "bilinear", (0.5,), (0.5,))
COLOUR = Transform(None, None, "bilinear", (0.5,) * 3, (0.5,) * 3)
PLAIN: dict[str, Any] = {"resize": 8, "crop": 8, "mean": [0.5], "std": [0.5]}
NAN = float("nan")


@pytest.mark.parametrize(
    "change",
    [
        {"mean": [NAN]},
        {"mean": ["0.5"]},
        {"mean": "5"},
        {"mean": [True]},
        {"mean": [float("inf")]},
        {"mean": 0.5},
        {"std": [NAN]},
        {"std": ["1"]},
        {"std": [float("inf")]},
        {"std": [None]},
        {"resize": "8"},
        {"resize": True},
        {"resize": NAN},
        {"resize": [8.5, 8]},
        {"resize": ["8", 8]},
        {"crop": [8.0, 8]},
        {"crop": True},
        {"crop": "ab"},
        {"fill": [NAN]},
        {"fill": ["0"]},
        {"fill": [True]},
        {"fill": 3},
        {"interpolation": 2},
        {"interpolation": ["bilinear"]},
        {"fit": None},
    ],
    ids=str,
)
def test_files_with_other_values_are_refused_by_name(
    change: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "t.json"
    path.write_text(json.dumps(PLAIN))
    Transform.from_file(path)
    path.write_text(json.dumps(PLAIN | change))
    with pytest.raises(DeevoError, match=r"t\.json: .*expected resize"):
        Transform.from_file(path)


@pytest.mark.parametrize("transform", [GREY, COLOUR])
def test_16_bits_are_scaled_to_8(transform: Transform, tmp_path: Path) -> None:
    """To the nearest of 255 steps; 65535 is white and 257 times a byte is that byte."""
    values = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
    values[-1, -1] = 65535
    expected = np.rint(values / 65535 * 255).astype(np.uint8)
    Image.fromarray(values).save(tmp_path / "x.png")
    Image.fromarray(values).save(tmp_path / "x.tiff")
    pictures: list[Any] = [values, values.astype(">u2")]
    for name in ("x.png", "x.tiff"):
        with Image.open(tmp_path / name) as image:
            image.load()
            pictures.append(image)
    for picture in pictures:
        found = transform.apply(picture)
        assert (found == expected[:, :, None]).all()


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_numbers_of_no_certain_range_are_refused(dtype: type, tmp_path: Path) -> None:
    Image.fromarray(np.ones((8, 8), dtype)).save(tmp_path / "x.tiff")
    with Image.open(tmp_path / "x.tiff") as image, pytest.raises(ValueError, match="its mode is"):
        GREY.apply(image)
