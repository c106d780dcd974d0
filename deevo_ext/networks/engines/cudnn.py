"""cuDNN's fused convolution + bias [+ residual] + ReLU, as torch ships it. No GPU has run this yet.

Beware: for 7x7 stems in channels-last `cudnn_convolution_relu` was 17 times slower than convolution
and ReLU apart (pytorch issue 68506), so kernels above 5x5 are left to ATen.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deevo_ext.networks.engines.aten import cast_bias
from deevo_ext.networks.engines.base import Bound
from deevo_ext.networks.graph.network_graph import Activation, Convolution, Linear


class CuDNN:
    """Convolutions with ReLU, with or without a residual, on CUDA."""

    name = "cudnn"

    def why_not(self, layer: Convolution | Linear, device: torch.device) -> str | None:
        """It fuses ReLU alone, and big kernels badly."""
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
        """Weights as they are."""
        assert isinstance(layer, Convolution)
        geometry = (layer.stride, layer.padding, layer.dilation, layer.groups)

        def convolution(prepared: Any, x: Tensor, residual: Tensor | None) -> Tensor:
            weight, bias = prepared
            if residual is None:
                return torch.cudnn_convolution_relu(x, weight, bias, *geometry)
            return torch.cudnn_convolution_add_relu(x, weight, residual, 1.0, bias, *geometry)

        return Bound(cast_bias, convolution)
