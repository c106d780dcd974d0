"""Architectures of torchvision and timm with weights for which every fused step matters.

An untrained network's BatchNorm is the identity and its logits hardly depend on the image: a plan
that dropped a norm would pass. `randomised` gives affine parameters and statistics that matter, and
`pictures` differ enough for logits to differ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from deevo_ext.population.layout import Layout


def _torchvision() -> Any:
    """torchvision beside a CPU-only torch, whose wheel lacks two operators that it registers for.

    They are declared, not implemented; no classifier calls them.
    """
    if not hasattr(torch.ops.torchvision, "nms"):
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _libraries.append(library)
    import torchvision

    return torchvision


_libraries: list[Any] = []  # a library's operators go with it


def torchvision_model(name: str) -> nn.Module:
    """An untrained classifier of 1,000 classes."""
    return getattr(_torchvision().models, name)()


def timm_model(name: str) -> nn.Module:
    """An untrained classifier of 1,000 classes."""
    _torchvision()
    import timm

    return timm.create_model(name)


def shallow(model: nn.Module) -> nn.Module:
    """The model without repeated blocks: the same patterns, and less to trace.

    Of layers in a Sequential, from the third on, those are dropped whose tensors have the shapes of
    the one before.
    """
    for module in model.modules():
        if isinstance(module, nn.Sequential):
            for i in reversed(range(2, len(module))):
                shapes = _shapes(module[i])
                if shapes and shapes == _shapes(module[i - 1]):
                    del module[i]
    return model


def _shapes(module: nn.Module) -> list[tuple[str, torch.Size]]:
    return [(name, tensor.shape) for name, tensor in module.state_dict().items()]


def small_densenet(make: Callable[..., nn.Module]) -> nn.Module:
    """A DenseNet with few layers in its blocks, which grow, so that `shallow` leaves them."""
    return make(growth_rate=32, block_config=(2, 3, 2, 2))


def torchvision_densenet() -> nn.Module:
    """torchvision's, with few layers."""
    return small_densenet(_torchvision().models.DenseNet)


def timm_densenet() -> nn.Module:
    """timm's, with few layers."""
    _torchvision()
    from timm.models.densenet import DenseNet

    return small_densenet(DenseNet)


class Block(nn.Module):
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
            blocks.append(Block(inside, outside, stride))
            blocks.extend(Block(outside, outside, 1) for _ in range(n - 1))
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(torch.relu(self.bn(self.conv(x))))
        return self.fc(x.mean(dim=(2, 3)))


@torch.no_grad()
def randomised(make: Callable[[], nn.Module], size: int, seed: int = 0) -> nn.Module:
    """A model in eval mode with weights that matter; size: of its images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make()
        norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        for module in norms:
            module.momentum = None
            if module.affine:
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.3)
        for parameter in model.parameters():
            constant = bool((parameter == parameter.flatten()[0]).all()) and parameter.numel() > 1
            if constant and abs(float(parameter.flatten()[0])) < 1e-3:  # zeros, tiny layer scales
                parameter.normal_(0, 0.3 if parameter.dim() < 2 else 0.02)
        model.train()
        for module in model.modules():
            if isinstance(module, nn.Dropout) or type(module).__name__ in (
                "StochasticDepth",
                "DropPath",
            ):
                module.eval()
        if norms:  # statistics of real activations; far from them, random networks explode
            model(torch.cat([pictures(2, size), pictures(2, size, seed + 1)]))
    return model.eval()


def pictures(count: int, size: int, seed: int = 0) -> Tensor:
    """Images float32 [N, 3, size, size] of different texture, colour and contrast."""
    generator = torch.Generator().manual_seed(seed)
    images = []
    for i in range(count):
        coarse = torch.randn(1, 3, 4 + 3 * i, 4 + 3 * i, generator=generator)
        smooth = nn.functional.interpolate(coarse, size, mode="bilinear")
        noise = torch.randn(1, 3, size, size, generator=generator)
        colour = torch.randn(1, 3, 1, 1, generator=generator)
        images.append((1 + i) * smooth / 2 + 0.3 * noise + colour)
    return torch.cat(images)


def as_row(model: nn.Module) -> tuple[Layout, Tensor]:
    """The layout of a model's floating tensors and its row [stride]."""
    state: Mapping[str, Tensor] = {
        name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()
    }
    layout = Layout.build(state, nonneg=[name for name in state if name.endswith("running_var")])
    return layout, layout.flatten(state, torch.zeros(layout.stride))


class _Tiny(nn.Module):
    """torchvision's ResNet of basic blocks, two a stage, with its modules' names, but narrow."""

    def __init__(self, widths: tuple[int, ...], classes: int) -> None:
        super().__init__()
        basic = _torchvision().models.resnet.BasicBlock
        self.conv1 = nn.Conv2d(3, widths[0], 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        inside, stages = widths[0], []
        for i, width in enumerate(widths):
            stride, shortcut = 1 + (i > 0), None
            if i:
                conv = nn.Conv2d(inside, width, 1, stride, bias=False)
                shortcut = nn.Sequential(conv, nn.BatchNorm2d(width))
            first = basic(inside, width, stride, shortcut)
            stages.append(nn.Sequential(first, basic(width, width)))
            inside = width
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(inside, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


def tiny_resnet18(classes: int = 7) -> nn.Module:
    """ResNet-18 with 16, 16, 16 and 48 channels."""
    return _Tiny((16, 16, 16, 48), classes)
