"""Architectures of torchvision and timm, and weights for which every fused step matters.

An untrained network's BatchNorm is the identity and its logits hardly depend on the image: a plan
that dropped a norm would pass. `randomised` gives affine parameters and statistics that matter, and
`pictures` differ enough for logits to differ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from deevo_ext.extras import import_extra
from deevo_ext.population.layout import Layout


def torchvision() -> Any:
    """torchvision, beside any torch; what imports it later, as timm does, finds it."""
    return import_extra("torchvision")


def torchvision_model(name: str) -> nn.Module:
    """An untrained classifier of 1,000 classes."""
    return getattr(torchvision().models, name)()


def timm_model(name: str) -> nn.Module:
    """An untrained classifier of 1,000 classes."""
    torchvision()
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
    return small_densenet(torchvision().models.DenseNet)


def timm_densenet() -> nn.Module:
    """timm's, with few layers."""
    torchvision()
    from timm.models.densenet import DenseNet

    return small_densenet(DenseNet)


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
