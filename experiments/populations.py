"""Populations for the experiments: independently trained, by settings, made once and kept.

A setting is an architecture and a way of fine-tuning. Everything random in a population derives
from its seed: the split of the images, the initial weights, the batches.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from deevo_ext.data import SourceSets, load
from deevo_ext.training.hyper_parameters import HyperParameters, derived_seed, variation
from deevo_ext.training.populate import populate
from deevo_ext.training.trainings import Trainings

from .networks import ARCHITECTURES

WIDTH = 8
MEMBERS = 12
SOURCE = "fashion-mnist"


@dataclass(frozen=True)
class Setting:
    """An architecture of `ARCHITECTURES`, and how far its fine-tunings are from their end.

    spread: "tight": a base trained to its end, fine-tunings annealed to theirs; "wide": a base and
    fine-tunings at constant learning rates, cut short after numbers of steps that differ.
    """

    architecture: str
    spread: str

    @property
    def name(self) -> str:
        return f"{self.architecture}-{self.spread}"


SETTINGS = {
    setting.name: setting
    for setting in (
        Setting("resnet", "wide"),
        Setting("vgg", "wide"),
        Setting("resnet", "tight"),
        Setting("vgg", "tight"),
    )
}

# Peak learning rate of the base network: without normalisation a higher one diverges. The
# members' are a quarter of it to all of it.
_RATE = {"resnet": 0.1, "vgg": 0.03}
_STEPS = {"tight": 700, "wide": 200}
# Steps of the fine-tunings: of a tight population, and of a wide one by turns.
_LONG, _SHORT = 120, (120, 60, 150, 90)


def trainings(setting: Setting, sets: SourceSets, seed: int, count: int | None = None) -> Trainings:
    """The base's hyper-parameters and the members', which vary as `deevo populate` has it.

    count: of the members; None for `MEMBERS`.
    """
    wide = setting.spread == "wide"
    peak = _RATE[setting.architecture]
    base = HyperParameters(
        seed=derived_seed(seed, 0),
        steps=_STEPS[setting.spread],
        batch_size=128,
        learning_rate=peak,
        weight_decay=5e-4,
        anneal=0.0 if wide else 0.5,
    )
    members = {}
    for index in range(count or MEMBERS):
        line, rate, decay, smoothing = variation(index)
        members[f"member_{index:02d}"] = HyperParameters(
            seed=derived_seed(seed, index + 1),
            steps=_SHORT[index % len(_SHORT)] if wide else _LONG,
            batch_size=64,
            learning_rate=peak / 4 * rate,
            weight_decay=decay,
            label_smoothing=smoothing,
            mirror=sets.mirror and line // 3 % 2 == 1,
            anneal=0.0 if wide else 1.0,
        )
    return Trainings(base, members)


def images_of(seed: int) -> SourceSets:
    """The four sets of the population `seed`: its own split of the train file, one test file."""
    return load(SOURCE, derived_seed(seed, 1_000) % 2**31)


def new_network(setting: Setting, sets: SourceSets, seed: int = 0) -> nn.Module:
    """An untrained network of the setting's architecture."""
    generator = torch.Generator().manual_seed(seed)
    factory = ARCHITECTURES[setting.architecture]
    return factory(sets.train.image_shape[0], len(sets.class_names), WIDTH, generator)


def folder_of(root: Path, setting: Setting, seed: int, count: int | None = None) -> Path:
    name = setting.name if count is None else f"{setting.name}-{count}"
    return root / name / f"{seed:02d}"


def make(
    root: Path,
    setting: Setting,
    seed: int,
    sets: SourceSets | None = None,
    count: int | None = None,
) -> list[Path]:
    """Trains what is missing of a population; the members' paths.

    sets: which hold what they learn from; those of `images_of` by default. count: of the members,
    for a larger population, in a folder of its own, whose first ones are those of the usual one.
    """
    sets = images_of(seed) if sets is None else sets
    whole = trainings(setting, sets, seed, count)
    assert whole.base is not None
    network = new_network(setting, sets, whole.base.seed)
    origin = {"setting": setting.name, "seed": seed, "data": sets.name}
    folder = folder_of(root, setting, seed, count)
    return populate(network, sets.train, whole, folder, origin=origin)
