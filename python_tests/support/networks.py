"""Toy networks, and members of a population of them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from deevo_ext.networks.small_resnet import SmallResNet

IMAGES = (4, 3, 6, 6)
"""Shape of a batch for ConvNet and MaskedNet."""


class Net(nn.Module):
    """A tiny convolutional network with BatchNorm, 10x10 images of one channel, 3 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, bias=False)
        self.bn = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.bn(self.conv(x))).mean(dim=(2, 3)))


def colour_net(num_classes: int = 4) -> nn.Module:
    """The same for images of three channels, as a factory that the command line finds by name."""
    net = Net()
    net.conv = nn.Conv2d(3, 4, 3, bias=False)
    net.fc = nn.Linear(4, num_classes)
    return net


class ConvNet(nn.Module):
    """Two convolutions with BatchNorm, a residual connection and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 5, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(5)
        self.conv2 = nn.Conv2d(5, 5, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(5)
        self.fc = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(x + self.bn2(self.conv2(x)))
        return self.fc(x.mean(dim=(2, 3)))


def small_resnet(num_classes: int = 10) -> nn.Module:
    """A ResNet-8 for colour images, narrow."""
    return SmallResNet(3, num_classes, width=8)


class TiedNet(nn.Module):
    """A token model whose decoder is its embedding: no BatchNorm, one tensor under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 5)
        self.mix = nn.Linear(5, 5)
        self.decoder = nn.Linear(5, 11)
        self.decoder.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.decoder(torch.tanh(self.mix(self.embed(tokens))))


class MaskedNet(nn.Module):
    """A body and a head to freeze, a constant mask of infinities, an integer and a float buffer."""

    scale: Tensor
    mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, 3)
        self.register_buffer("mask", torch.tensor([0.0, 0.0, -torch.inf]))
        self.register_buffer("scale", torch.tensor(1.5))
        self.register_buffer("steps", torch.tensor([3, 4]))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean(dim=(2, 3)) * self.scale) + self.mask


class DropNet(nn.Module):
    """Layers that draw random numbers and keep statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.3)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.drop(torch.relu(self.bn(self.conv(x))).mean((2, 3))))


def drop_net() -> DropNet:
    """The same network at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return DropNet()


class Tail(nn.Module):
    """A convolution and whatever follows it."""

    def __init__(self, *after: nn.Module, images: nn.Module | None = None) -> None:
        super().__init__()
        self.first = images or nn.Identity()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.after = nn.Sequential(*after)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.conv(self.first(x)))


def pooled(channels: int = 8) -> tuple[nn.Module, ...]:
    """A classifier of three classes, to follow `Tail`'s convolution."""
    return nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 3)


class Unexportable(nn.Module):
    """It asks for the images' values, which torch.export refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.mean((2, 3))) if float(x.abs().sum()) >= 0 else x.mean((2, 3))


class SharedNorm(nn.Module):
    """A norm layer under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.BatchNorm1d(3)
        self.second = self.first


class FrozenNorm(nn.Module):
    """Statistics in buffers of BatchNorm's names, as torchvision's FrozenBatchNorm2d has them."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(2))
        self.register_buffer("running_var", torch.ones(2))


def members(
    factory: Callable[[], nn.Module], count: int, seed: int = 0, dtype: torch.dtype = torch.float32
) -> list[dict[str, Tensor]]:
    """State dicts of networks around a common centre, with plausible BatchNorm statistics.

    Tied names keep one tensor; batches count up; other buffers are the same in all.
    """
    generator = torch.Generator().manual_seed(seed)
    model = factory()
    tensors = model.state_dict()
    weights = {n for n, _ in model.named_parameters(remove_duplicate=False)}
    first: dict[int, str] = {}
    for name, tensor in tensors.items():
        first.setdefault(tensor.data_ptr(), name)
    centre = {}
    for name in first.values():
        tensor = tensors[name]
        if tensor.is_floating_point() and bool(tensor.isfinite().all()):
            drawn = "running" not in name
            centre[name] = torch.randn(tensor.shape, generator=generator) * 0.5 if drawn else tensor
    states = []
    for i in range(count):
        state = {n: t + i if "batches" in n else t.clone() for n, t in tensors.items()}
        for name, tensor in centre.items():
            drawn = torch.randn(tensor.shape, generator=generator) * 0.2
            moved = tensor + drawn if name in weights or "running" in name else tensor
            state[name] = (moved.abs() if name.endswith("var") else moved).to(dtype)
        states.append({name: state[first[tensors[name].data_ptr()]] for name in tensors})
    return states
