"""Toy convolutional networks for the network graph and its engines: chains and ResNets."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Body(nn.Module):
    """A convolution with a norm, and something behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(8, affine=False)
        self.fc = nn.Linear(8, 5)

    def tail(self, x: Tensor) -> Tensor:
        return self.fc(x.mean(dim=(2, 3)))


class Residual(Body):
    """A block whose shortcut is the identity."""

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn(self.conv(x)))
        return self.tail(torch.relu(x + self.bn2(self.conv2(x))))


class ActivationBeforeSum(Body):
    """Activations that no convolution can take in together with the sum."""

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.silu(self.bn(self.conv(x)))
        return self.tail(x + nn.functional.silu(self.bn2(self.conv2(x))))


class SumOfBoth(Body):
    """Two convolutions meet in a sum; one of them must take the other as its residual."""

    def __init__(self) -> None:
        super().__init__()
        self.conv3 = nn.Conv2d(3, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(torch.relu(self.bn(self.conv(x)) + self.conv3(x)))


class ReadTwice(Body):
    """The norm's input is read elsewhere too, so the norm cannot be folded away."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.tail(torch.relu(self.bn(y)) * y)


class Padded(Body):
    """Images padded apart: by zeros evenly, which a convolution does itself, and by all else."""

    def __init__(self) -> None:
        super().__init__()
        self.conv4 = nn.Conv2d(8, 8, (3, 5), stride=2)

    def forward(self, x: Tensor) -> Tensor:
        pad = nn.functional.pad
        x = torch.relu(self.bn(self.conv(pad(x, (3, 3, 1, 1)))))  # beside its own
        x = self.conv4(pad(x, (2, 2, 1, 1)))
        y = pad(x, (1, 1, 1, 1))  # read twice
        z = self.conv2(y) + y[:, :, :1, :1]
        for amounts, value in (((0, 1, 0, 1), 0.0), ((1, 1, 1, 1), 0.5), ((-1, -1, -1, -1), 0.0)):
            z = self.conv2(pad(z, amounts, value=value))
        return self.tail(self.conv2(pad(z, (1, 1, 1, 1), mode="replicate")))


class NormFirst(Body):
    """A norm before a convolution stays; ReLU behind it may write in place, but not into y."""

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.conv(x))
        z = self.conv2(torch.relu(self.bn(y)))
        return self.tail(z + y.flatten(1).view_as(y))


class Standardised(Body):
    """A weight that is computed from the weights: done once a member."""

    def forward(self, x: Tensor) -> Tensor:
        w = self.conv.weight
        w = (w - w.mean(dim=(1, 2, 3), keepdim=True)) / w.std(dim=(1, 2, 3), keepdim=True)
        return self.tail(nn.functional.conv2d(x, w, None, 1, 1))


class Perceptron(nn.Module):
    """Linear layers with a norm between them, and a buffer that is not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.flat = nn.Flatten()
        self.fc1 = nn.Linear(3 * 12 * 12, 16)
        self.bn = nn.BatchNorm1d(16)
        self.fc2 = nn.Linear(16, 5)
        self.register_buffer("scale", torch.tensor(2.0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.gelu(self.bn(self.fc1(self.flat(x))))
        return self.fc2(x) * self.scale


class Viewed(Body):
    """In-place operators on what others still see."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        half = y[:, :4]
        z = y.relu()
        return self.tail(torch.cat([half.sigmoid(), z[:, 4:].add(1.0)], dim=1) + y.tanh())


class PaddedBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is padded where the shape changes (option A)."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.stride, self.more = stride, outside - inside

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.stride > 1 or self.more:
            x = x[:, :, :: self.stride, :: self.stride]
            x = nn.functional.pad(x, (0, 0, 0, 0, self.more // 2, self.more - self.more // 2))
        return torch.relu(y + x)


class CifarResNet(nn.Module):
    """He et al.'s ResNet-(6n+2) for 32x32 images: 16, 32 and 64 channels (arXiv 1512.03385)."""

    def __init__(self, n: int = 3, classes: int = 10) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        blocks = []
        for inside, outside, stride in ((16, 16, 1), (16, 32, 2), (32, 64, 2)):
            blocks.append(PaddedBlock(inside, outside, stride))
            blocks.extend(PaddedBlock(outside, outside, 1) for _ in range(n - 1))
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(torch.relu(self.bn(self.conv(x))))
        return self.fc(x.mean(dim=(2, 3)))


def convolution(channels: int, out: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """A convolution and its norm."""
    conv = nn.Conv2d(channels, out, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out))


class Block(nn.Module):
    """Two 3x3, or 1x1, 3x3 and 1x1, beside a shortcut that has weights where shapes change."""

    def __init__(self, channels: int, width: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        out = 4 * width if bottleneck else width
        if bottleneck:
            layers = [(channels, width, 1), (width, width, 3, stride), (width, out, 1)]
        else:
            layers = [(channels, width, 3, stride), (width, width, 3)]
        self.layers = nn.ModuleList(convolution(*layer) for layer in layers)
        plain = stride == 1 and channels == out
        self.shortcut = None if plain else convolution(channels, out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for layer in self.layers[:-1]:
            y = torch.relu(layer(y))
        return torch.relu(self.layers[-1](y) + (x if self.shortcut is None else self.shortcut(x)))


class ResNet(nn.Module):
    """torchvision's ResNet with narrow stages. BatchNorm is not the identity."""

    def __init__(
        self,
        bottleneck: bool = False,
        widths: tuple[int, ...] = (16, 32),
        depths: tuple[int, ...] = (2, 1),
        classes: int = 7,
    ) -> None:
        super().__init__()
        self.stem = convolution(3, widths[0], 7, 2)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.blocks = nn.ModuleList()
        channels = widths[0]
        for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            for i in range(depth):
                stride = 2 if stage and not i else 1
                self.blocks.append(Block(channels, width, stride, bottleneck))
                channels = width * (4 if bottleneck else 1)
        self.mean = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, classes)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0.0, 0.3)
                nn.init.normal_(module.running_mean, 0.0, 0.3)
                nn.init.uniform_(module.running_var, 0.5, 2.0)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        y = self.pool(self.relu(self.stem(x)))
        for block in self.blocks:
            y = block(y)
        return self.classifier(self.mean(y).flatten(1))
