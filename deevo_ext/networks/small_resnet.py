"""A small residual network, in the names and shapes of torchvision's."""

import torch
from torch import nn

from deevo_ext.errors import DeevoError


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, the first with stride s.

    Source: He et al., Deep Residual Learning (CVPR 2016), with batch normalisation after each
    convolution. The shortcut is a strided 1x1 convolution where the shape changes.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Computes x [N, in, H, W] -> [N, out, ceil(H/s), ceil(W/s)]."""
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(out)) + shortcut)


class SmallResNet(nn.Module):
    """ResNet-8: a 3x3 stem and three stages of one block, at widths w, 2w and 4w.

    It has 77,754 parameters for one input channel, ten classes and width 16. Sub-modules are called
    as in torchvision (conv1, bn1, layer1.0.conv1, ..., layer3.0.downsample.0, fc). width: channels
    of the first stage. generator: draws the initial weights, torch's global one by default. Raises
    DeevoError for numbers below 1.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        width: int = 16,
        generator: torch.Generator | None = None,
    ) -> None:
        if min(in_channels, num_classes, width) < 1:
            raise DeevoError(
                "in_channels, num_classes and width must be positive, "
                f"got {in_channels}, {num_classes}, {width}"
            )
        super().__init__()
        # torch's constructors draw from the global generator, and their draws are replaced below.
        with torch.random.fork_rng(devices=[]):
            self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
            self.bn1 = nn.BatchNorm2d(width)
            self.relu = nn.ReLU(inplace=True)
            self.layer1 = nn.Sequential(BasicBlock(width, width, 1))
            self.layer2 = nn.Sequential(BasicBlock(width, 2 * width, 2))
            self.layer3 = nn.Sequential(BasicBlock(2 * width, 4 * width, 2))
            self.avgpool = nn.AdaptiveAvgPool2d(1)
            self.fc = nn.Linear(4 * width, num_classes)
        self._initialise(generator)

    def _initialise(self, generator: torch.Generator | None) -> None:
        """Kaiming-normal convolutions (fan-out), a small classifier, neutral normalisation."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", generator=generator)
        nn.init.normal_(self.fc.weight, std=0.01, generator=generator)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images [N, in_channels, H, W] to logits [N, num_classes]."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(torch.flatten(self.avgpool(x), 1))
