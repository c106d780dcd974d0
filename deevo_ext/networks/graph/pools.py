"""Pools of a graph: the windows that an ATen call slides over images."""

from __future__ import annotations

from typing import Any, TypeGuard

import torch

from deevo_ext.backends.windows import Window
from deevo_ext.networks.graph.network_graph import Aten, Layer, two

aten = torch.ops.aten
_MAXIMUM, _MEAN = aten.max_pool2d.default, aten.avg_pool2d.default


def is_pool(layer: Layer) -> TypeGuard[Aten]:
    """Says whether it is max_pool2d or avg_pool2d of [N, C, H, W]."""
    pools = isinstance(layer, Aten) and layer.target in (_MAXIMUM, _MEAN)
    return pools and len(layer.in_shape) == 4


def window_of(layer: Layer) -> Window | str:
    """Returns a layer's windows, or why our kernel has none that are like them."""
    if not is_pool(layer):
        return "we have no kernel for it"
    options = arguments(layer)
    if two(options.get("dilation", 1)) != (1, 1):
        return "our pool has no dilation"
    if options.get("divisor_override") is not None:
        return "our pool divides by the size of the window"
    if options.get("ceil_mode", False):
        return "our pool has no ceil_mode"
    kernel = two(options["kernel_size"])
    return Window(
        layer.target is _MAXIMUM,
        kernel,
        two(options["stride"]) if options.get("stride") else kernel,
        two(options.get("padding", 0)),
        bool(options.get("count_include_pad", True)),
    )


def arguments(layer: Aten) -> dict[str, Any]:
    """Returns arguments by their names in the operator's schema."""
    schema: Any = getattr(layer.target, "_schema", None)
    if schema is None:
        return dict(layer.kwargs)
    names = [argument.name for argument in schema.arguments]
    return {**dict(zip(names, layer.args, strict=False)), **layer.kwargs}
