"""Modules that take contiguous images alone, as torch's tutorials write them, wherever one is run.

Most modules are handed channels-last images, in which convolutions are faster. A module that calls
`view` on what a convolution gives fails on them.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from deevo_ext import Population
from deevo_ext.data import CachedImages, ImageSet, LabelledImages
from deevo_ext.fitness.classifier import Classifier, features, find_classifier
from deevo_ext.fitness.evaluator import Evaluator
from deevo_ext.networks.execution.modules import memory_format_of
from deevo_ext.networks.forward import PopulationForward
from deevo_ext.training.few_labels import logits_of
from deevo_ext.training.fine_tune import fine_tune
from deevo_ext.training.hyper_parameters import HyperParameters


class Tutorial(nn.Module):
    """The network of PyTorch's first tutorials, smaller, with a norm; `reshape` fits any format."""

    def __init__(self, channels: int, flatten: Callable[[Tensor, int, int], Tensor]) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, 6, 3), nn.BatchNorm2d(6)
        self.fc, self.flatten = nn.Linear(6 * 9, 3), flatten

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(torch.relu(self.norm(self.conv(x))), 2)
        return self.fc(self.flatten(x, x.size(0), -1))


def networks(channels: int) -> list[Tutorial]:
    """Two of the same weights, one for contiguous images alone, one for any."""
    torch.manual_seed(0)
    pair = [Tutorial(channels, flatten).eval() for flatten in (Tensor.view, Tensor.reshape)]
    pair[1].load_state_dict(pair[0].state_dict())
    return pair


def data(kind: str, channels: int) -> LabelledImages:
    """Images 8x8; cached ones are channels-last."""
    generator, labels = torch.Generator().manual_seed(1), torch.arange(24) % 3
    if kind == "memory":
        return ImageSet(torch.randn(24, channels, 8, 8, generator=generator), labels, kind)
    store = torch.randint(0, 256, (24, 8, 8, channels), generator=generator, dtype=torch.uint8)
    return CachedImages(store, labels, (0.5,) * channels, (0.3,) * channels, kind)


def contiguous(images: LabelledImages) -> Tensor:
    pixels = images.pixels(0, len(images)).float()
    if images.mean is not None:
        pixels = (pixels / 255 - 0.5) / 0.3
    return pixels.clone(memory_format=torch.contiguous_format)


def population_of(network: nn.Module, **options: str) -> Population:
    states = [{k: v.clone() for k, v in network.state_dict().items()} for _ in "12"]
    states[1]["conv.weight"].mul_(1.5)
    return Population.from_state_dicts(network, states, **options)


cases = pytest.mark.parametrize(
    ("kind", "channels"), [(kind, c) for kind in ("memory", "cached") for c in (1, 3)]
)


@cases
@pytest.mark.parametrize("engine", ["fused", "eager"])
def test_such_a_module_is_evaluated(
    engine: str, kind: str, channels: int, recwarn: pytest.WarningsRecorder
) -> None:
    network, images = networks(channels)[0], data(kind, channels)
    population = population_of(network)
    forward = PopulationForward(network, population, engine=engine, micro_batch=5)
    with torch.no_grad():
        expected = network(contiguous(images))
    # Logits of order 1 from sums of some 50 float32 products.
    assert torch.allclose(forward.logits(population.rows[0], images), expected, atol=1e-5)
    assert torch.allclose(logits_of(network, images), expected, atol=1e-5)
    assert not recwarn.list


@cases
def test_such_a_module_is_trained(kind: str, channels: int) -> None:
    found, expected = networks(channels)
    for network in (found, expected):
        fine_tune(network, data(kind, channels), HyperParameters(1, 5, 8, 0.05), workers=0)
    for name, tensor in expected.state_dict().items():
        # Five steps of rounding; a step changes weights by some 1e-2.
        assert torch.allclose(found.state_dict()[name].double(), tensor.double(), atol=1e-5), name


@cases
def test_statistics_and_features_of_such_a_module_are_found(kind: str, channels: int) -> None:
    images, found = data(kind, channels), []
    for network in networks(channels):
        population = population_of(network, batchnorm="recalibrate")
        evaluator = Evaluator(network, population, calibration=images, micro_batch=8)
        used = evaluator.used_statistics(population.rows[0], None)
        classifier = find_classifier(evaluator, population.rows[0], images, used)
        assert isinstance(classifier, Classifier) and used is not None
        found.append((used, *features(evaluator, classifier, population.rows[0], images, used)))
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


class AsItLies(nn.Module):
    """Reads the memory of features as if they were contiguous."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 6, 3), nn.Linear(6 * 36, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).as_strided((len(x), 6 * 36), (6 * 36, 1)))


def test_the_format_is_channels_last_where_it_gives_the_same_logits() -> None:
    view, reshape = networks(3)
    images = contiguous(data("memory", 3))
    assert memory_format_of(reshape, images) is torch.channels_last
    for network in (view, AsItLies()):
        assert memory_format_of(network, images) is torch.contiguous_format
