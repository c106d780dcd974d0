"""Our own Triton convolution: implicit GEMM, channels-last, residual and ReLU in its epilogue.

It takes a member axis; here a member is alone on it. On the CPU Triton's interpreter runs it, for
tests (TRITON_INTERPRET=1); no GPU has run it through a graph yet.
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
    """Input channels as the kernel wants them: a stem's 4, else a multiple of 8."""
    return 4 if channels <= 4 else -(-channels // 8) * 8


class Triton:
    """Ungrouped convolutions without an activation or with ReLU, float32, float16 or bfloat16."""

    name = "triton"

    def why_not(self, layer: Convolution | Linear, device: torch.device) -> str | None:
        """It is a convolution's, on CUDA or in the interpreter."""
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
        """Weights as they are, a stem's padded."""
        from deevo_ext.inference.triton.convolution import conv2d  # imports Triton

        assert isinstance(layer, Convolution)
        more = padded(layer.in_shape[1]) - layer.in_shape[1]
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
            conv2d(
                functional.pad(images, (0, more)) if more else images,
                weight,
                bias,
                None if residual is None else _channels_last(residual),
                out=out,
                stride=layer.stride,
                padding=layer.padding,
                dilation=layer.dilation,
                activation=activation,
                precision=precision_of(layer, x.device),
            )
            return out[0].permute(0, 3, 1, 2)

        return Bound(prepare, run)


def precision_of(layer: Layer, device: torch.device) -> str:
    """How products of float32 are formed: as the graph's precision says, by torch's switch."""
    if device.type != "cuda" or layer.dtype != torch.float32:
        return "ieee"
    return "tf32" if torch.backends.cudnn.allow_tf32 else "ieee"


def _channels_last(x: Tensor) -> Tensor:
    """[N, C, H, W] as a contiguous [1, N, H, W, C], without copying where it is channels-last."""
    return x.permute(0, 2, 3, 1).contiguous()[None]
