"""Images that the network cannot take, or labels that it has not, are found before a run begins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import deevo_ext as deevo
from support.evolution import images, save_members
from support.networks import Net


class Began(Exception):
    pass


@pytest.mark.parametrize("search", ["weights", "coefficients"])
def test_every_set_is_looked_at_before_the_run(tmp_path: Path, search: str) -> None:
    def began(_: object) -> None:
        raise Began

    def evolve(**sets: Any) -> None:
        good = {"fitness_images": images(60, 1), "validation_images": images(30, 2)}
        deevo.evolve(
            Net(),
            checkpoints,
            **{**good, **sets},
            search=search,
            batchnorm="recalibrate",
            engine="eager",
            progress=False,
            preliminaries=began,
        )

    checkpoints = save_members(tmp_path / "c", 6)
    with pytest.raises(Began):
        evolve(test_images=images(30, 3))
    pixels, labels = images(30, 3).images, images(30, 3).labels
    for name in ("fitness", "validation", "test", "calibration"):
        with pytest.raises(deevo.DeevoError, match=rf"model failed on {name} images of shape \(3,"):
            evolve(**{f"{name}_images": (pixels.repeat(1, 3, 1, 1), labels)})
        if name != "calibration":  # whose labels nothing reads
            with pytest.raises(
                deevo.DeevoError, match=f"labels of the {name} images go up to 3, .* 3 "
            ):
                evolve(**{f"{name}_images": (pixels, torch.full_like(labels, 3))})
