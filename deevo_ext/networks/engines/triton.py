"""The engine that computes convolutions with our own Triton kernel.

The kernel is an implicit GEMM on channels-last activations, with the residual and ReLU in its
epilogue. It takes several members at once; here a member is alone. On the CPU it runs in Triton's
interpreter, for tests (TRITON_INTERPRET=1); no GPU has run it through a graph yet.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from deevo_ext.networks.engines.base import Bound
from deevo_ext.networks.graph.network_graph import Activation, Convolution, Layer, Linear


def padded(channels: int) -> int:
    """Returns how many input channels the kernel wants: 4 for a stem, else a multiple of 8."""
    return 4 if channels <= 4 else -(-channels // 8) * 8


class Triton:
    """Serves ungrouped convolutions without an activation or with ReLU."""

    name = "triton"

    def why_not(self, layer: Convolution | Linear, device: torch.device) -> str | None:
        """Returns why it cannot compute the layer on the device, or None if it can."""
        if not isinstance(layer, Convolution):
            return "the Triton engine serves convolutions"
        if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
            return "Triton kernels run on CUDA (or, slowly, with TRITON_INTERPRET=1)"
        if layer.activation not in (None, Activation("relu")):
            return f"its epilogue has ReLU, not {layer.activation}"
        if layer.groups != 1:
            return f"it has no groups, the layer has {layer.groups}"
        return None

    def bind(self, layer: Convolution | Linear) -> Bound:
        """Makes the layer ready to run; a stem's input channels are padded."""
        from deevo_ext.backends.triton.convolution import (  # imports Triton
            Operands,
            Operation,
            conv2d,
        )

        assert isinstance(layer, Convolution)
        more = padded(layer.in_shape[1]) - layer.in_shape[1]
        geometry = (layer.stride, layer.padding, layer.dilation)
        activation = "none" if layer.activation is None else "relu"

        def prepare(weight: Tensor, bias: Tensor | None) -> Any:
            nhwc = functional.pad(weight.permute(0, 2, 3, 1), (0, more)).contiguous()
            if bias is None:
                bias = torch.zeros(weight.shape[0], device=weight.device)
            return nhwc[None], bias[None]

        def run(prepared: Any, x: Tensor, residual: Tensor | None) -> Tensor:
            weight, bias = prepared
            images = _channels_last(x)
            n, channels, height, width = layer.out_shape
            out = torch.empty((1, n, height, width, channels), dtype=x.dtype, device=x.device)
            operands = Operands(
                functional.pad(images, (0, more)) if more else images,
                weight,
                bias,
                out,
                None if residual is None else _channels_last(residual),
            )
            precision = precision_of(layer, x.device)
            conv2d(operands, Operation(*geometry, activation, precision))
            return out[0].permute(0, 3, 1, 2)

        return Bound(prepare, run)


def precision_of(layer: Layer, device: torch.device) -> str:
    """Returns how products of float32 are formed: torch's switch says what the graph wants."""
    if device.type != "cuda" or layer.dtype != torch.float32:
        return "ieee"
    return "tf32" if torch.backends.cudnn.allow_tf32 else "ieee"


def _channels_last(x: Tensor) -> Tensor:
    """Returns [N, C, H, W] as a contiguous [1, N, H, W, C], a view where it is channels-last."""
    return x.permute(0, 2, 3, 1).contiguous()[None]
