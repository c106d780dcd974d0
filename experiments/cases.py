"""A population with its images, and what all its runs have in common."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from deevo_ext.data import SourceSets
from deevo_ext.data.images import ImageSet

from . import populations
from .populations import Setting, folder_of, images_of, make, new_network

# Common to all variants that search weights: what a run costs, and how its result is chosen.
GENERATIONS = 30
IMAGES_PER_BATCH = 2000
GENERATIONS_PER_BATCH = 3
VALIDATE_EVERY = 15
# Common to all.
VALIDATION = 4000
MICRO_BATCH = 500


@dataclass(frozen=True)
class Case:
    """A population and what it is evaluated with; network: its architecture, untrained."""

    folder: Path
    seed: int
    paths: list[Path]
    sets: SourceSets
    validation: ImageSet
    network: nn.Module


def case_of(
    root: Path,
    setting: Setting,
    seed: int,
    sets: SourceSets | None = None,
    members: int | None = None,
) -> Case:
    """Loads a population and its images; trains the members that are missing.

    sets: as in `make`. members: how many, the first ones; None for those that a population has.
    """
    sets = images_of(seed) if sets is None else sets
    count = members if members is not None and members > populations.MEMBERS else None
    paths = make(root, setting, seed, sets, count)[:members]
    validation = sets.validation.subset(range(min(VALIDATION, len(sets.validation))))
    folder = folder_of(root, setting, seed, count)
    return Case(folder, seed, paths, sets, validation, new_network(setting, sets))
