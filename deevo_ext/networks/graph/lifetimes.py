"""How long registers of a network graph live, and which layers may write into their inputs."""

from __future__ import annotations

from typing import Any

import torch

from deevo_ext.networks.graph.network_graph import Aten, NetworkGraph, Register

aten = torch.ops.aten

# Operators that give new memory; of any other the result may show its inputs' memory.
_FRESH = frozenset(
    {"add", "sub", "mul", "div", "cat", "relu", "silu", "gelu", "sigmoid", "hardswish", "tanh"}
    | {"hardsigmoid", "layer_norm", "group_norm", "max_pool2d", "avg_pool2d", "mean", "matmul"}
    | {"_native_batch_norm_legit_no_training", "native_batch_norm", "batch_norm"}
)
_IN_PLACE = ("relu", "silu", "hardswish", "sigmoid", "hardsigmoid", "add", "mul", "gelu")


def release(graph: NetworkGraph) -> None:
    """Says after which layer each register is no longer needed; prologue's are kept."""
    members = {layer.writes for layer in graph.prologue}
    fresh: set[int] = set()
    shown: set[int] = {graph.image, *members}  # registers whose memory another one may show
    for layer in graph.layers:
        getitem = layer.operation == "getitem"  # of a norm's outputs, or of a split's views
        fused = not isinstance(layer, Aten)
        if fused or layer.operation in _FRESH or (getitem and layer.reads[0] in fresh):
            fresh.add(layer.writes)
        else:
            shown.update(layer.reads)
    seen = {graph.output}
    for layer in reversed(graph.layers):
        layer.frees = tuple(r for r in layer.reads if r not in seen and r not in members)
        seen.update(layer.reads)
        if isinstance(layer, Aten):
            layer.in_place = _in_place(layer, fresh - shown)


def _in_place(layer: Aten, owned: set[int]) -> Any:
    """The in-place form of a pointwise operator whose first input is its own and dies here."""
    first = layer.args[0] if layer.args else None
    if not isinstance(first, Register) or first.number not in layer.frees:
        return None
    if first.number not in owned or layer.in_shape != layer.out_shape:
        return None
    packet = getattr(layer.target, "overloadpacket", None)
    written = getattr(aten, layer.operation + "_", None) if packet is not None else None
    if layer.operation not in _IN_PLACE or written is None:
        return None
    overload = getattr(layer.target, "_overloadname", "")
    return getattr(written, overload) if overload in written.overloads() else None
