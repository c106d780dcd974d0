"""The engines that compute convolutions and pools with our own Triton kernels.

`triton` is an implicit GEMM on channels-last activations, with the residual or the shortcut and
ReLU in its epilogue. It takes several members at once; here a member is alone. `pointwise` is
another kernel for 1x1 convolutions. On the CPU they run in Triton's interpreter, for tests
(TRITON_INTERPRET=1); no GPU has run them through a graph yet.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from deevo_ext.networks.engines.base import Bindable, Bound
from deevo_ext.networks.graph.network_graph import Activation, Aten, Convolution, Layer
from deevo_ext.networks.graph.pools import window_of


class Triton:
    """Serves ungrouped convolutions without an activation or with ReLU, and pools."""

    name = "triton"

    def why_not(self, layer: Bindable, device: torch.device) -> str | None:
        """Returns why it cannot compute the layer on the device, or None if it can."""
        if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
            return "Triton kernels run on CUDA (or, slowly, with TRITON_INTERPRET=1)"
        if isinstance(layer, Aten):
            window = window_of(layer)
            return window if isinstance(window, str) else None
        if not isinstance(layer, Convolution):
            return "the Triton engine serves convolutions and pools"
        if layer.activation not in (None, Activation("relu")):
            return f"its epilogue has ReLU, not {layer.activation}"
        if layer.groups != 1:
            return f"it has no groups, the layer has {layer.groups}"
        return None

    def bind(self, layer: Bindable) -> Bound:
        """Makes the layer ready to run."""
        from deevo_ext.backends.triton.convolution import (  # imports Triton
            Operation,
            conv2d,
        )

        if isinstance(layer, Aten):
            return _bind_pool(layer)
        assert isinstance(layer, Convolution)
        geometry = (layer.stride, layer.padding, layer.dilation)
        activation = "none" if layer.activation is None else "relu"

        def run(prepared: Any, x: Tensor, second: Tensor | None) -> Tensor:
            operation = Operation(*geometry, activation, precision_of(layer, x.device))
            out = conv2d(operands_of(layer, prepared, x, second), operation)
            return out[0].permute(0, 3, 1, 2)

        return Bound(prepare, run)


class Pointwise:
    """Serves 1x1 convolutions of few channels, whose weights stay in shared memory."""

    name = "pointwise"

    def why_not(self, layer: Bindable, device: torch.device) -> str | None:
        """Returns why it cannot compute the layer on the device, or None if it can."""
        if not isinstance(layer, Convolution):
            return "it computes convolutions"
        plain = layer.weights.shape[2:] == (1, 1) and layer.padding == (0, 0)
        if not plain or layer.stride != (1, 1):
            return "it computes 1x1 convolutions with neither padding nor stride"
        reason = Triton().why_not(layer, device)
        if reason is not None:
            return reason
        from deevo_ext.backends.triton.launch import power_of_two  # imports Triton
        from deevo_ext.backends.triton.pointwise import walk_of

        channels = [layer.in_shape[1]]
        if layer.shortcut is not None:
            channels.append(layer.shortcut.in_shape[1])
        if any(count % 16 for count in channels):
            return "its inputs have multiples of 16 channels"
        terms = sum(map(power_of_two, channels))
        if walk_of(terms, layer.weights.shape[0], layer.dtype.itemsize) is None:
            return "the weights do not fit in shared memory"
        return None

    def bind(self, layer: Bindable) -> Bound:
        """Makes the layer ready to run."""
        from deevo_ext.backends.triton.convolution import Operation  # imports Triton
        from deevo_ext.backends.triton.pointwise import pointwise

        assert isinstance(layer, Convolution)
        activation = "none" if layer.activation is None else "relu"

        def run(prepared: Any, x: Tensor, second: Tensor | None) -> Tensor:
            operation = Operation(activation=activation, precision=precision_of(layer, x.device))
            out = pointwise(operands_of(layer, prepared, x, second), operation)
            return out[0].permute(0, 3, 1, 2)

        return Bound(prepare, run)


def prepare(weight: Tensor, bias: Tensor | None, *shortcut: Tensor) -> tuple[Tensor, ...]:
    """Returns weight, bias and the shortcut's weight of one member, as our kernels take them."""
    if bias is None:
        bias = torch.zeros(weight.shape[0], device=weight.device)
    return channels_last(weight), bias[None], *map(channels_last, shortcut)


def operands_of(layer: Convolution, prepared: Any, x: Tensor, second: Tensor | None) -> Any:
    """The operands of a convolution of one member; the output is new memory."""
    from deevo_ext.backends.triton.convolution import Operands

    weight, bias, *others = prepared
    n, channels, height, width = layer.out_shape
    out = torch.empty((1, n, height, width, channels), dtype=x.dtype, device=x.device)
    added = None if second is None else channels_last(second)
    if added is None or layer.shortcut is None:
        return Operands(channels_last(x), weight, bias, out, added)
    downsample = (added, others[0], layer.shortcut.stride)
    return Operands(channels_last(x), weight, bias, out, None, downsample)


def _bind_pool(layer: Aten) -> Bound:
    from deevo_ext.backends.triton.pooling import pool2d

    window = window_of(layer)
    assert not isinstance(window, str)
    n, channels, height, width = layer.out_shape

    def run(prepared: Any, x: Tensor, second: Tensor | None) -> Tensor:
        out = torch.empty((n, height, width, channels), dtype=x.dtype, device=x.device)
        return pool2d(channels_last(x)[0], window, out).permute(0, 3, 1, 2)

    return Bound(prepare, run)


def precision_of(layer: Layer, device: torch.device) -> str:
    """Returns how products of float32 are formed: torch's switch says what the graph wants."""
    if device.type != "cuda" or layer.dtype != torch.float32:
        return "ieee"
    backends: Any = torch.backends  # mypy does not see all of them
    return backends.cudnn.conv.fp32_precision


def channels_last(x: Tensor) -> Tensor:
    """Returns [N, C, H, W] as a contiguous [1, N, H, W, C], a view where it is channels-last."""
    return x.permute(0, 2, 3, 1).contiguous()[None]
