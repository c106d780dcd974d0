"""What the examples begin with: eight small networks, trained on clothes or, without these, digits.

They are the demo's: fine-tunings of one network by distinct hyper-parameters, in a quarter of a
minute on one core, kept for the next time.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import NamedTuple

from torch import nn

from deevo_ext.cli.demo import members, noisy, setting_of
from deevo_ext.data import ImageSet, SourceSets, load
from deevo_ext.data.sources import DEBIAN_FASHION_MNIST


class SmallPopulation(NamedTuple):
    """Image sets, a module of the architecture, and the members' files."""

    sets: SourceSets
    model: nn.Module
    paths: list[Path]


def small_population(folder: Path | None = None) -> SmallPopulation:
    """Trains the members, unless the folder holds them; Fashion-MNIST is Debian's package.

    folder: by default one for all examples, in the folder of temporary files.
    """
    folder = folder or Path(tempfile.gettempdir()) / "deevo-examples"
    sets = load("fashion-mnist" if DEBIAN_FASHION_MNIST.is_dir() else "digits")
    model, paths = members(sets, setting_of(sets, 0), folder / sets.name, 0)
    return SmallPopulation(sets, model, paths)


def noisy_images(sets: SourceSets, count: int = 400) -> tuple[ImageSet, ImageSet]:
    """Returns some labelled images with noise, which nobody was trained on, and others to test."""
    test = sets.test.slice(0, min(2000, len(sets.test)))
    labelled = noisy(sets.fitness.slice(0, count), sets.train, 0.4, 0, 1)
    return labelled, noisy(test, sets.train, 0.4, 0, 2)
