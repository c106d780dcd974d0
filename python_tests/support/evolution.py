"""Small populations and runs for the tests of deevo_ext.evolution."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from deevo_ext import Population
from deevo_ext.data.images import ImageSet


class Net(nn.Module):
    """A tiny convolutional network with BatchNorm, 10x10 images of one channel, 3 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, bias=False)
        self.bn = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.relu(self.bn(self.conv(x))).mean(dim=(2, 3)))


def colour_net(num_classes: int = 4) -> nn.Module:
    """The same for images of three channels, as a factory that the command line finds by name."""
    net = Net()
    net.conv = nn.Conv2d(3, 4, 3, bias=False)
    net.fc = nn.Linear(4, num_classes)
    return net


def members(
    count: int, seed: int = 0, factory: Callable[[], nn.Module] = Net
) -> list[dict[str, torch.Tensor]]:
    """State dicts of networks around a common centre, with plausible BatchNorm statistics."""
    generator = torch.Generator().manual_seed(seed)
    centre = {name: tensor.clone() for name, tensor in factory().state_dict().items()}
    for name, tensor in centre.items():
        if tensor.is_floating_point() and "running" not in name:
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.5)
    states = []
    for _ in range(count):
        state = {}
        for name, tensor in centre.items():
            if not tensor.is_floating_point():
                state[name] = tensor.clone()
                continue
            noise = torch.randn(tensor.shape, generator=generator) * 0.2
            state[name] = (tensor + noise).abs() if name.endswith("var") else tensor + noise
        states.append(state)
    return states


def save_members(folder: Path, count: int) -> Path:
    """A new folder, which is returned, with `members(count)` as m0.safetensors, ... in it."""
    folder.mkdir()
    for i, state in enumerate(members(count)):
        save_file(state, folder / f"m{i}.safetensors")
    return folder


def population(count: int = 8, seed: int = 0, **options: object) -> Population:
    """A population of tiny networks."""
    return Population.from_state_dicts(Net(), members(count, seed), **options)


def images(count: int, seed: int = 0, name: str = "images") -> ImageSet:
    """Noise images whose class is a fixed function of their content."""
    generator = torch.Generator().manual_seed(seed)
    data = torch.randn(count, 1, 10, 10, generator=generator)
    labels = (data.mean(dim=(1, 2, 3)) * 30).round().long() % 3
    return ImageSet(data, labels, name)


def sphere(row: torch.Tensor) -> float:
    """Mean square distance to 0.3."""
    return float((row.double() - 0.3).square().mean())


def sphere_until(count: int, then: Callable[[], None]) -> Callable[[torch.Tensor], float]:
    """`sphere`, whose call number `count` does something else first."""
    calls = 0

    def evaluate(row: torch.Tensor) -> float:
        nonlocal calls
        calls += 1
        if calls == count:
            then()
        return sphere(row)

    return evaluate
