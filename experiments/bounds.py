"""What any recombination could reach: coefficients of the members fitted by gradient descent.

L-BFGS on the fitness images, from the greedy soup: one coefficient a member (the affine hull of the
population, which whole-vector mutations move in), or one a member and tensor (what exchanging whole
tensors adds). Coefficients of a tensor add up to 1. The gradients are only a measuring rod here:
evolution sees losses alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from deevo_ext.data.images import ImageSet
from deevo_ext.training.fine_tune import fine_tune
from deevo_ext.training.hyper_parameters import HyperParameters

# Images at a time, and steps of L-BFGS; each costs about one pass forward and backward.
_BATCH = 2500
_STEPS = 15
# Of the gradient descent on the fitness images, which keeps BatchNorm's statistics.
TUNING = HyperParameters(
    seed=0, steps=300, batch_size=500, learning_rate=3e-4, anneal=1.0, optimizer="adamw"
)
# BatchNorm variances stay positive whatever the coefficients.
_LEAST_VARIANCE = 1e-4


class _Normalise(nn.Module):
    """BatchNorm in eval mode, differentiable in its statistics too."""

    running_mean: torch.Tensor
    running_var: torch.Tensor

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps
        self.register_buffer("running_mean", norm.running_mean)
        self.register_buffer("running_var", norm.running_var)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = self.weight * torch.rsqrt(self.running_var + self.eps)
        shift = self.bias - self.running_mean * scale
        return x * scale[:, None, None] + shift[:, None, None]


def differentiable(network: nn.Module) -> nn.Module:
    """Puts BatchNorm that keeps its statistics into a network; returns the network."""
    for name, child in network.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(network, name, _Normalise(child))
        else:
            differentiable(child)
    return network


def learned_soup(
    network: nn.Module,
    members: Sequence[dict[str, torch.Tensor]],
    start: Sequence[int],
    images: ImageSet,
    by_tensor: bool,
) -> dict[str, torch.Tensor]:
    """The state dict (floating tensors) whose coefficients have the least mean loss on `images`.

    network: gives the forward pass; consumed. start: the members whose average it begins from.
    """
    model = differentiable(network).eval().requires_grad_(False)
    names = [name for name, tensor in members[0].items() if tensor.is_floating_point()]
    stacks = {name: torch.stack([member[name] for member in members]) for name in names}
    count = len(members)
    coefficients = torch.zeros(len(names) if by_tensor else 1, count)
    coefficients[:, list(start)] = 1 / len(start)
    coefficients.requires_grad_(True)

    def built() -> dict[str, torch.Tensor]:
        result = {}
        for i, name in enumerate(names):
            of_members = coefficients[i if by_tensor else 0]
            of_members = of_members + (1 - of_members.sum()) / count
            value = torch.tensordot(of_members, stacks[name], 1)
            result[name] = value.clamp_min(_LEAST_VARIANCE) if "running_var" in name else value
        return result

    optimizer = torch.optim.LBFGS(
        [coefficients], max_iter=_STEPS, history_size=10, line_search_fn="strong_wolfe"
    )

    def closure() -> float:
        optimizer.zero_grad()
        total = 0.0
        for start in range(0, len(images), _BATCH):
            labels = images.labels[start : start + _BATCH]
            logits = functional_call(model, built(), (images.images[start : start + _BATCH],))
            loss = F.cross_entropy(logits, labels, reduction="sum") / len(images)
            loss.backward()
            total += loss.item()
        return total

    optimizer.step(closure)
    return {name: tensor.detach() for name, tensor in built().items()}


def tuned_soup(
    network: nn.Module,
    members: Sequence[dict[str, torch.Tensor]],
    start: Sequence[int],
    images: ImageSet,
) -> dict[str, torch.Tensor]:
    """The average of members `start` after training on `images`; arguments as above."""
    model = differentiable(network)
    average = {
        name: torch.stack([members[i][name] for i in start]).mean(0)
        for name, tensor in members[0].items()
        if tensor.is_floating_point()
    }
    model.load_state_dict(average)
    fine_tune(model, images, TUNING)
    return model.state_dict()
