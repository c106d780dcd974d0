"""A network graph as a GPU runs it best: shortcuts merged, images with channels that can be loaded.

What a block's last convolution and the 1x1 convolution of its shortcut add up to is one layer with
two inputs: their sum is never stored before it is complete, and their biases are one. Networks are
cut into blocks by the graph as it was.
"""

from __future__ import annotations

import dataclasses
from collections import Counter

from deevo_ext.networks.graph.fuse import release
from deevo_ext.networks.graph.network_graph import (
    Convolution,
    Layer,
    NetworkGraph,
    Shortcut,
    size_of,
)


def arranged(graph: NetworkGraph) -> NetworkGraph:
    """Returns the same network with merged shortcuts and padded images; the graph stays as it is.

    Its images have `padded` channels, zeros behind their own, where ungrouped convolutions alone
    read them.
    """
    graph = dataclasses.replace(graph, layers=_merged(graph), prologue=[*graph.prologue])
    _pad_images(graph)
    release(graph)
    return graph


def padded(channels: int) -> int:
    """Returns how many channels images get: 4, or a multiple of 8, so that no load is narrow."""
    return 4 if channels <= 4 else -(-channels // 8) * 8


def _merged(graph: NetworkGraph) -> list[Layer]:
    """Copies of the layers, of which pairs of convolutions that meet in a sum are one."""
    writers = {layer.writes: layer for layer in graph.layers}
    readers = Counter([r for layer in graph.layers for r in layer.reads] + [graph.output])
    merged: dict[int, Convolution] = {}
    inside = set()
    for layer in graph.layers:
        if not isinstance(layer, Convolution) or not layer.residual:
            continue
        other = writers.get(layer.reads[1])
        if not isinstance(other, Convolution) or readers[other.writes] != 1:
            continue
        if other.residual or other.activation is not None:
            continue
        for main, shortcut in ((other, layer), (layer, other)):
            if _is_shortcut(shortcut, graph.image):
                merged[layer.writes] = _pair(main, shortcut, layer)
                inside.add(other.writes)
                break
    return [
        merged.get(layer.writes) or dataclasses.replace(layer)
        for layer in graph.layers
        if layer.writes not in inside
    ]


def _is_shortcut(layer: Convolution, image: int) -> bool:
    return (
        layer.weights.shape[2:] == (1, 1)
        and layer.padding == (0, 0)
        and layer.groups == 1
        and layer.in_shape[1] % 16 == 0
        and layer.reads[0] != image
    )


def _pair(main: Convolution, shortcut: Convolution, last: Convolution) -> Convolution:
    """Both convolutions as one layer; last: the one of them that takes the sum."""
    fused = [part for part in main.fused if part not in ("residual", str(last.activation))]
    activation = () if last.activation is None else (str(last.activation),)
    return dataclasses.replace(
        main,
        reads=(main.reads[0], shortcut.reads[0]),
        writes=last.writes,
        flops=main.flops + shortcut.flops,
        # The first one's result is neither written nor read.
        bytes=main.bytes + shortcut.bytes - 2 * size_of(last.out_shape, last.dtype),
        fused=(*fused, f"shortcut {shortcut.name}", *activation),
        residual=False,
        activation=last.activation,
        shortcut=Shortcut(shortcut.weights, shortcut.stride, shortcut.in_shape),
    )


def _pad_images(graph: NetworkGraph) -> None:
    """Gives images, and the weights of the layers that read them, more input channels."""
    reading = [layer for layer in graph.layers if graph.image in layer.reads]
    stems = [
        layer
        for layer in reading
        if isinstance(layer, Convolution)
        and layer.groups == 1
        and layer.reads.count(graph.image) == 1
        and layer.reads[0] == graph.image
    ]
    if len(stems) != len(reading):
        return
    samples, channels, *size = graph.image_shape
    graph.image_shape = (samples, padded(channels), *size)
    for layer in stems:
        layer.in_shape = graph.image_shape
        out, _, *kernel = layer.weights.shape
        shape = (out, padded(channels), *kernel)
        layer.weights = dataclasses.replace(layer.weights, shape=shape)
