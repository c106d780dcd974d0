"""Populations for the experiments: independently trained, by settings, made once and kept.

A setting is an architecture and a way of fine-tuning. Everything random in a population derives
from its seed: the split of the images, the initial weights, the batches.
"""

from __future__ import annotations

import copy
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import nn

from deevo_ext.data import load
from deevo_ext.data.images import FourSets
from deevo_ext.demo.recipes import Recipe, demo_plan, derived_seed
from deevo_ext.demo.sgd import train
from deevo_ext.files import write_whole

from .networks import ARCHITECTURES

WIDTH = 8
MEMBERS = 12
SOURCE = "fashion-mnist"
RECORD = "population.json"


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

# Peak learning rate of the base network: without normalisation a higher one diverges.
_RATE = {"resnet": 0.1, "vgg": 0.03}
_STEPS = {"tight": 700, "wide": 200}
# Steps of the fine-tunings of a wide population, by turns.
_SHORT = (120, 60, 150, 90)


def recipes(setting: Setting, sets: FourSets, seed: int) -> tuple[Recipe, list[Recipe]]:
    """The base's recipe and the members', which vary as the demo's table has it."""
    wide = setting.spread == "wide"
    plan = demo_plan(sets, MEMBERS, seed)
    peak = _RATE[setting.architecture]
    scale = peak / plan.base.learning_rate
    base = replace(
        plan.base,
        steps=_STEPS[setting.spread],
        learning_rate=peak,
        mirror=False,
        anneal=0.0 if wide else 0.5,
    )
    members = [
        replace(
            recipe,
            batch_size=64,
            learning_rate=recipe.learning_rate * scale,
            steps=_SHORT[i % len(_SHORT)] if wide else recipe.steps,
            anneal=0.0 if wide else 1.0,
        )
        for i, recipe in enumerate(plan.members)
    ]
    return base, members


def images_of(seed: int) -> FourSets:
    """The four sets of the population `seed`: its own split of the train file, one test file."""
    return load(SOURCE, derived_seed(seed, 1_000) % 2**31)


def new_network(setting: Setting, sets: FourSets, seed: int = 0) -> nn.Module:
    """An untrained network of the setting's architecture."""
    generator = torch.Generator().manual_seed(seed)
    factory = ARCHITECTURES[setting.architecture]
    return factory(sets.train.images.shape[1], sets.num_classes, WIDTH, generator)


def folder_of(root: Path, setting: Setting, seed: int) -> Path:
    return root / setting.name / f"{seed:02d}"


def make(root: Path, setting: Setting, seed: int) -> list[Path]:
    """Trains what is missing of a population, a file at a time; the members' paths."""
    folder = folder_of(root, setting, seed)
    paths = [folder / f"member_{i:02d}.safetensors" for i in range(MEMBERS)]
    if (folder / RECORD).exists() and all(path.exists() for path in paths):
        return paths
    folder.mkdir(parents=True, exist_ok=True)
    sets = images_of(seed)
    base_recipe, member_recipes = recipes(setting, sets, seed)
    network = new_network(setting, sets, base_recipe.seed)
    base = folder / "base.safetensors"
    if base.exists():
        network.load_state_dict(load_file(base))
    else:
        train(network, sets.train, base_recipe)
        _write(base, network)
    for path, recipe in zip(paths, member_recipes, strict=True):
        if not path.exists():
            member = copy.deepcopy(network)
            train(member, sets.train, recipe)
            _write(path, member)
    record = {
        "setting": setting.name,
        "seed": seed,
        "source": SOURCE,
        "train_sha256": sets.train.digest(),
        "torch": torch.__version__,
        "base": asdict(base_recipe),
        "members": [asdict(recipe) for recipe in member_recipes],
    }
    write_whole(folder / RECORD, (json.dumps(record, indent=1) + "\n").encode())
    return paths


def _write(path: Path, network: nn.Module) -> None:
    tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    write_whole(path, save(tensors, {"format": "pt"}))
