"""oneDNN on the CPU, through the operators that torch.compile uses too.

Bias, residual and most activations are post-operations (no pass over memory of their own). The
weight is put into oneDNN's blocked layout inside each call, or once a member ("packed"), which pays
where weights are large beside the images and a member sees many micro-batches.

Activations that oneDNN forms by a maximum or a minimum (ReLU, hardtanh, hardsigmoid, hardswish) are
computed apart, in place: its vector maximum of NaN and 0 is 0, so that a network that overflowed
would get a finite loss. Over a ResNet-18's convolutions that costs 0 to 2 % (one AMD EPYC thread).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from deevo_ext.networks.engines.aten import cast_bias
from deevo_ext.networks.engines.base import Bindable, Bound, activate
from deevo_ext.networks.graph.network_graph import Activation, Aten, Convolution, Linear

# Post-operations that keep NaN and infinity, by oneDNN's names.
_FUSED = {
    "silu": "swish",
    "gelu": "gelu",
    "sigmoid": "sigmoid",
    "tanh": "tanh",
    "leaky_relu": "leaky_relu",
}


def post_operation(activation: Activation | None) -> tuple[str, list[float], str]:
    """Returns attr, scalars and algorithm as the operators take them; "none" for what is apart."""
    if activation is None or activation.name not in _FUSED:
        return "none", [], ""
    algorithm = activation.approximate if activation.name == "gelu" else ""
    return _FUSED[activation.name], list(activation.scalars), algorithm


class OneDNN:
    """CPU tensors in float32, bfloat16 where the CPU has it, and float16 likewise."""

    def __init__(self, packed: bool) -> None:
        self.name = "onednn-packed" if packed else "onednn"
        self._packed = packed

    def why_not(self, layer: Bindable, device: torch.device) -> str | None:
        """Returns why it cannot compute the layer on the device, or None if it can."""
        if device.type != "cpu":
            return "oneDNN serves CPU tensors"
        if isinstance(layer, Aten):
            return "it computes convolutions and linear layers"
        if isinstance(layer, Convolution) and layer.shortcut is not None:
            return "it merges no shortcuts"
        if not torch.backends.mkldnn.is_available():
            return "this torch was built without oneDNN"
        supported: dict[torch.dtype, Callable[[], bool]] = {
            torch.float32: lambda: True,
            torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported,
            torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported,
        }
        if layer.dtype not in supported or not supported[layer.dtype]():
            return f"this CPU has no instructions for {layer.dtype}"
        return None

    def bind(self, layer: Bindable) -> Bound:
        """Makes the layer ready to run, in one call a micro-batch."""
        assert not isinstance(layer, Aten)
        attr, scalars, algorithm = post_operation(layer.activation)
        act = activate(layer.activation) if attr == "none" else None
        ops, packed = torch.ops.mkldnn, self._packed
        if isinstance(layer, Linear):
            rows = torch.Size(layer.in_shape[:-1]).numel()

            def pack_linear(weight: Tensor, bias: Tensor | None) -> Any:
                return ops._reorder_linear_weight(weight, rows) if packed else weight, bias

            call_linear = ops._linear_pointwise.default

            def linear(prepared: Any, x: Tensor, residual: Tensor | None) -> Tensor:
                weight, bias = prepared
                y = call_linear(x, weight, bias, attr, scalars, algorithm)
                return y if act is None else act(y)

            return Bound(pack_linear, linear)
        geometry = (layer.padding, layer.stride, layer.dilation, layer.groups)
        shape = list(layer.in_shape)

        def pack(weight: Tensor, bias: Tensor | None) -> Any:
            weight, bias = cast_bias(weight, bias)
            if packed:
                weight = ops._reorder_convolution_weight(weight, *geometry, shape)
            return weight, bias

        unary = ops._convolution_pointwise.default
        binary = ops._convolution_pointwise.binary

        def convolution(prepared: Any, x: Tensor, residual: Tensor | None) -> Tensor:
            weight, bias = prepared
            if residual is None:
                y = unary(x, weight, bias, *geometry, attr, scalars, algorithm)
            else:
                assert attr == "none"  # the fuser puts a ReLU or nothing behind a sum
                y = binary(x, residual, weight, bias, *geometry, "add", 1.0, None, [], "")
            return y if act is None else act(y)

        return Bound(pack, convolution)
