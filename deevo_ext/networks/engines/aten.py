"""Layers as torch computes them on every device, and convolutions as cuDNN fuses them on CUDA.

No GPU has run the latter yet. Beware: for 7x7 stems in channels-last `cudnn_convolution_relu` was
17 times slower than convolution and ReLU apart (pytorch issue 68506), so kernels above 5x5 are left
to ATen.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deevo_ext.networks.engines.base import Bound, activate
from deevo_ext.networks.graph.network_graph import Activation, Convolution, Linear


def cast_bias(weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Returns weight and bias in one dtype, as ATen's operators ask."""
    return weight, None if bias is None else bias.to(weight.dtype)


class ATen:
    """Serves every layer on every device, with residual and activation in place."""

    name = "aten"

    def why_not(self, layer: Convolution | Linear, device: torch.device) -> str | None:
        """Returns None: it computes every layer."""
        return None

    def bind(self, layer: Convolution | Linear) -> Bound:
        """Makes the layer ready to run; weights stay as they are."""
        act = activate(layer.activation)
        if isinstance(layer, Linear):

            def linear(prepared: Any, x: Tensor, residual: Tensor | None) -> Tensor:
                y = torch.nn.functional.linear(x, *prepared)
                return y if act is None else act(y)

            return Bound(cast_bias, linear)
        geometry: Any = (layer.stride, layer.padding, layer.dilation, layer.groups)

        def convolution(prepared: Any, x: Tensor, residual: Tensor | None) -> Tensor:
            y = torch.conv2d(x, *prepared, *geometry)
            if residual is not None:
                y.add_(residual)
            return y if act is None else act(y)

        return Bound(cast_bias, convolution)


class CuDNN:
    """Serves convolutions with bias, ReLU and perhaps a residual on CUDA, in one call."""

    name = "cudnn"

    def why_not(self, layer: Convolution | Linear, device: torch.device) -> str | None:
        """Returns why it cannot compute the layer on the device, or None if it can."""
        if device.type != "cuda":
            return "cuDNN serves CUDA tensors"
        if not isinstance(layer, Convolution):
            return "cuDNN serves convolutions"
        if layer.activation != Activation("relu"):
            return "torch ships cuDNN's fusion with ReLU only"
        if max(layer.weights.shape[2:]) > 5:
            return "cuDNN's fused convolution is slow for kernels above 5x5"
        return None

    def bind(self, layer: Convolution | Linear) -> Bound:
        """Makes the layer ready to run; weights stay as they are."""
        assert isinstance(layer, Convolution)
        geometry = (layer.stride, layer.padding, layer.dilation, layer.groups)

        def convolution(prepared: Any, x: Tensor, residual: Tensor | None) -> Tensor:
            weight, bias = prepared
            if residual is None:
                return torch.cudnn_convolution_relu(x, weight, bias, *geometry)
            return torch.cudnn_convolution_add_relu(x, weight, residual, 1.0, bias, *geometry)

        return Bound(cast_bias, convolution)
