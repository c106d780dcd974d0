"""Tiny networks for the tests, with sizes that leave pads between tensors."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from deevo_ext.networks.small_resnet import SmallResNet

IMAGES = (4, 3, 6, 6)
"""Shape of a batch for ConvNet and MaskedNet."""


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
    """The demo's ResNet-8 for colour images, narrow."""
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


def members(
    factory: Callable[[], nn.Module], count: int, *, dtype: torch.dtype = torch.float32
) -> list[dict[str, Tensor]]:
    """State dicts of ``count`` networks with random weights, the same at every call."""
    generator = torch.Generator().manual_seed(7)
    states = []
    for i in range(count):
        state = {name: tensor.clone() for name, tensor in factory().state_dict().items()}
        drawn: dict[int, Tensor] = {}
        for name, tensor in factory().state_dict().items():
            if name == "mask" or not tensor.is_floating_point():
                state[name] = tensor + i if name != "mask" else tensor
                continue
            key = tensor.data_ptr() if tensor.numel() else id(tensor)
            if key not in drawn:  # tied names get one draw
                draw = torch.randn(tensor.shape, generator=generator)
                drawn[key] = draw.abs() + 0.1 if name.endswith("running_var") else draw
            state[name] = drawn[key].to(dtype)
        states.append(state)
    return states
