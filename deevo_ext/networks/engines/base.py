"""The interface of engines, and what several of them use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from deevo_ext.networks.graph.network_graph import Activation, Aten, Convolution, Linear

Functional = torch.nn.functional
Bindable = Convolution | Linear | Aten
"""What engines compute: layers with weights, and pools."""


@dataclass(frozen=True)
class Bound:
    """A layer in an engine's hands.

    prepare(weight, bias), of a layer with a merged shortcut prepare(weight, bias, its weight): once
    a member, into whatever form the engine likes; for a pool it is not called. run(prepared, x,
    second): the layer's output; second is the residual or the shortcut's input, None unless the
    layer has one.
    """

    prepare: Callable[..., Any]
    run: Callable[[Any, Tensor, Tensor | None], Tensor]


class Engine(Protocol):
    """A way to compute layers."""

    name: str

    def why_not(self, layer: Bindable, device: torch.device) -> str | None:
        """Returns why it cannot compute a layer on a device, in words, or None if it can."""
        ...

    def bind(self, layer: Bindable) -> Bound:
        """Makes a layer ready to run."""
        ...


def activate(activation: Activation | None) -> Callable[[Tensor], Tensor] | None:
    """Returns the activation as a function that may overwrite its argument."""
    if activation is None:
        return None
    scalars = activation.scalars
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "relu": torch.relu_,
        "silu": lambda x: Functional.silu(x, inplace=True),
        "hardswish": lambda x: Functional.hardswish(x, inplace=True),
        "sigmoid": torch.sigmoid_,
        "hardsigmoid": lambda x: Functional.hardsigmoid(x, inplace=True),
        "tanh": torch.tanh_,
        "hardtanh": lambda x: Functional.hardtanh_(x, *scalars),
        "leaky_relu": lambda x: Functional.leaky_relu_(x, *scalars),
        "gelu": lambda x: Functional.gelu(x, approximate=activation.approximate),
    }
    return functions[activation.name]
