"""Engines: ways to compute a convolution, a linear layer or a pool of a graph.

`aten` serves everything, everywhere; `onednn` and `onednn-packed` are the CPU's, with fused
post-operations, and `positions` its matrix products for small maps; `triton` are our own kernels,
with bias, residual or shortcut and ReLU in the epilogue, and `pointwise` one for 1x1 convolutions
that are bound by memory. All carry NaN and infinity through to the logits where the module itself
does: an overflow's loss must be +inf.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from deevo_ext.networks.engines import aten, onednn, positions, triton
from deevo_ext.networks.engines.base import Bindable, Bound, Engine

ENGINES: dict[str, Engine] = {
    engine.name: engine
    for engine in (
        onednn.OneDNN(packed=False),
        onednn.OneDNN(packed=True),
        positions.Positions(),
        triton.Triton(),
        triton.Pointwise(),
        aten.ATen(),
    )
}
"""By name, in the order of preference."""


def candidates(layer: Bindable, device: torch.device) -> Sequence[Engine]:
    """Returns the engines to choose from for a layer on a device, preferred ones first.

    Triton's interpreter, which makes our kernels run on the CPU, is for tests and never chosen.
    """
    usable = [e for e in ENGINES.values() if e.why_not(layer, device) is None]
    interpreted = ("triton", "pointwise")
    return [e for e in usable if device.type == "cuda" or e.name not in interpreted]


__all__ = ["ENGINES", "Bindable", "Bound", "Engine", "candidates"]
