"""Layers as torch computes them on every device.

cuDNN's fusion of convolution, bias and ReLU (`torch.cudnn_convolution_relu`) is no engine here: by
its documentation its ReLU does not propagate NaN, so that an overflow would get a finite loss.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deevo_ext.networks.engines.base import Bindable, Bound, activate
from deevo_ext.networks.graph.network_graph import Aten, Linear


def cast_bias(weight: Tensor, bias: Tensor | None, *shortcut: Tensor) -> tuple[Any, ...]:
    """Returns weights and bias in one dtype, as ATen's operators ask."""
    return weight, None if bias is None else bias.to(weight.dtype), *shortcut


class ATen:
    """Serves every layer on every device, with residual and activation in place."""

    name = "aten"

    def why_not(self, layer: Bindable, device: torch.device) -> str | None:
        """Returns None: it computes every layer."""
        return None

    def bind(self, layer: Bindable) -> Bound:
        """Makes the layer ready to run; weights stay as they are."""
        if isinstance(layer, Aten):
            target, options, named = layer.target, layer.args[1:], layer.kwargs
            return Bound(cast_bias, lambda prepared, x, second: target(x, *options, **named))
        act = activate(layer.activation)
        if isinstance(layer, Linear):

            def linear(prepared: Any, x: Tensor, residual: Tensor | None) -> Tensor:
                y = torch.nn.functional.linear(x, *prepared)
                return y if act is None else act(y)

            return Bound(cast_bias, linear)
        geometry: Any = (layer.stride, layer.padding, layer.dilation, layer.groups)

        shortcut = layer.shortcut

        def convolution(prepared: Any, x: Tensor, second: Tensor | None) -> Tensor:
            weight, bias, *others = prepared
            y = torch.conv2d(x, weight, bias, *geometry)
            if second is not None and shortcut is not None:
                y.add_(torch.conv2d(second, others[0], stride=shortcut.stride))
            elif second is not None:
                y.add_(second)
            return y if act is None else act(y)

        return Bound(cast_bias, convolution)
