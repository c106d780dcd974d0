"""What the examples begin with: eight small networks, trained on clothes or, without these, digits.

They are the demo's: fine-tunings of one network by distinct hyper-parameters, in a quarter of a
minute on one core, kept for the next time.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from torch import nn

from deevo_ext.cli.demo import members, setting_of
from deevo_ext.data import ImageSets, load
from deevo_ext.data.sources import DEBIAN_FASHION_MNIST


class SmallPopulation(NamedTuple):
    """Image sets, a module of the architecture, and the members' files."""

    sets: ImageSets
    model: nn.Module
    paths: list[Path]


def small_population(folder: Path) -> SmallPopulation:
    """Trains the members, unless the folder holds them; Fashion-MNIST is Debian's package."""
    sets = load("fashion-mnist" if DEBIAN_FASHION_MNIST.is_dir() else "digits")
    model, paths = members(sets, setting_of(sets, 0), folder / sets.name, 0)
    return SmallPopulation(sets, model, paths)
