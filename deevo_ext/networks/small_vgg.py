"""A small plain convolutional network: the demo's, and one of the experiments'."""

import torch
from torch import nn


class SmallVGG(nn.Module):
    """Six 3x3 convolutions with biases and no normalisation; widths w, 2w, 4w, then a classifier.

    Source: Simonyan & Zisserman, Very Deep Convolutional Networks (ICLR 2015), two convolutions and
    a 2x2 max pool a stage, the last pool a mean.

    in_channels, num_classes, width, generator: as in `SmallResNet`.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        width: int = 16,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        with torch.random.fork_rng(devices=[]):
            for stage in range(3):
                channels = width << stage
                for _ in range(2):
                    layers += [nn.Conv2d(in_channels, channels, 3, padding=1), nn.ReLU()]
                    in_channels = channels
                layers.append(nn.AdaptiveAvgPool2d(1) if stage == 2 else nn.MaxPool2d(2))
            self.features = nn.Sequential(*layers)
            self.fc = nn.Linear(in_channels, num_classes)
        for module in self.features:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, generator=generator)
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.fc.weight, std=0.01, generator=generator)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images [N, in_channels, H, W] to logits [N, num_classes]."""
        return self.fc(torch.flatten(self.features(x), 1))
