"""Which layers our kernels take, on [K, N, H, W, C]: pools, slices and pads, and the head.

The head is taken together: global mean and classifier.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deevo_ext.backends.windows import Window
from deevo_ext.errors import DeevoError
from deevo_ext.networks.graph.network_graph import Aten, Layer, Linear, NetworkGraph
from deevo_ext.networks.graph.pools import arguments, window_of

aten = torch.ops.aten

_PLACE = (1, 4, 2, 3)  # of N, C, H and W among K, N, H, W, C


class NotServed(Exception):
    """Why our kernels do not take a layer (None: the one that was asked about)."""

    def __init__(self, reason: str, layer: Layer | None = None) -> None:
        super().__init__(reason)
        self.layer = layer


def served(layer: Layer, ask: Callable[[], Any]) -> Any:
    """Returns what `ask` does; raises DeevoError in place of its NotServed."""
    try:
        return ask()
    except NotServed as error:
        raise refusal(error.layer or layer, str(error)) from None


def refusal(layer: Layer, reason: str) -> DeevoError:
    """Returns the error that names a layer which no kernel of ours takes."""
    return DeevoError(
        f'engine="triton" cannot compute layer {layer.name} ({layer.operation}): {reason}; use '
        'engine="auto", which takes another engine there'
    )


def pool(layer: Aten) -> Window:
    """Returns the windows of a pool; raises NotServed for other layers."""
    window = window_of(layer)
    if isinstance(window, str):
        raise NotServed(window)
    return window


def movement(layer: Aten) -> Callable[[Tensor], Tensor] | None:
    """Returns a slice or a pad of zeros, as parameterless shortcuts have; None for other layers."""
    options = arguments(layer)
    if layer.target is aten.slice.Tensor:
        place = _PLACE[options.get("dim", 0) % 4]
        if place == 1:
            raise NotServed("it slices the batch")
        cut: list[slice] = [slice(None)] * 5
        cut[place] = slice(options.get("start"), options.get("end"), options.get("step", 1))
        return lambda x: x[tuple(cut)].contiguous()
    if layer.target in (aten.pad.default, aten.constant_pad_nd.default):
        zeros = options.get("mode", "constant") == "constant" and not options.get("value")
        width: list[int] = [*options["pad"], *[0] * 8][:8]  # of W, H, C, N
        if not zeros or width[6:] != [0, 0]:
            raise NotServed("of pads it takes zeros around positions and channels")
        amounts = [*width[4:6], *width[:4]]  # of C, W, H
        return lambda x: torch.nn.functional.pad(x, amounts).contiguous()
    return None


def is_global_mean(layer: Aten) -> bool:
    """Says whether it is the mean over all positions of [N, C, H, W]."""
    if len(layer.in_shape) != 4:
        return False
    options, whole = arguments(layer), tuple(layer.in_shape[2:])
    if layer.target is aten.adaptive_avg_pool2d.default:
        return tuple(layer.out_shape[2:]) == (1, 1)
    if layer.target is aten.mean.dim:
        return {d % 4 for d in options.get("dim") or ()} == {2, 3}
    if layer.target is aten.avg_pool2d.default:
        window = window_of(layer)
        return not isinstance(window, str) and window.kernel == whole and window.padding == (0, 0)
    return False


def is_flattening(layer: Aten) -> bool:
    """Says whether it gives [N, C, 1, 1] or [N, C] another shape, or nothing new."""
    if layer.target is aten.dropout.default:
        return not arguments(layer).get("train", True)
    reshapes = (aten.reshape.default, aten.view.default, aten.flatten.using_ints)
    more = (aten.squeeze.dim, aten.squeeze.dims)
    return layer.target in reshapes + more and set(layer.in_shape[2:]) <= {1}


@dataclass(frozen=True)
class Tail:
    """Global mean and classifier: the register they read, and the layers that are in them."""

    features: int
    classifier: int
    inside: frozenset[int]


def tail_of(graph: NetworkGraph) -> Tail:
    """Returns the pool and linear layer that a graph ends with; NotServed where it does not."""
    writers = _writers(graph)
    readers = _readers(graph)
    index = writers.get(graph.output)
    last = graph.layers[index] if index is not None else graph.layers[-1]
    if index is None or not isinstance(last, Linear) or last.activation is not None:
        raise NotServed("logits are a linear layer's here, without an activation", last)
    inside = []
    register, before = last.reads[0], writers.get(last.reads[0])
    shape = last.in_shape
    while before is not None:
        layer = graph.layers[before]
        shape = layer.out_shape
        if not isinstance(layer, Aten) or not (is_global_mean(layer) or is_flattening(layer)):
            break
        if readers[layer.writes] != 1:
            raise NotServed("others than the classifier read it", layer)
        inside.append(before)
        register, shape = layer.reads[0], layer.in_shape
        before = writers.get(register)
    pooled = any(_pools(graph.layers[i]) for i in inside)
    positions = shape[2] * shape[3] if len(shape) == 4 else 0
    if register == graph.image or not positions or (positions > 1 and not pooled):
        reason = "it reads something else than channels' means of [N, C, H, W], or those at 1x1"
        raise NotServed(reason, last)
    return Tail(register, index, frozenset(inside))


def _pools(layer: Layer) -> bool:
    return isinstance(layer, Aten) and is_global_mean(layer)


def _writers(graph: NetworkGraph) -> dict[int, int]:
    return {layer.writes: index for index, layer in enumerate(graph.layers)}


def _readers(graph: NetworkGraph) -> Counter[int]:
    """How often each register is read, as the graph's output too."""
    return Counter([r for layer in graph.layers for r in layer.reads] + [graph.output])
