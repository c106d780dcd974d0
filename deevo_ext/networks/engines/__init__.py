"""Engines: ways to compute a convolution or a linear layer of a graph.

`aten` serves everything, everywhere; `onednn` and `onednn-packed` are the CPU's, with fused
post-operations, and `positions` its matrix products for small maps; `triton` is our own kernel,
with bias, residual and ReLU in its epilogue. All carry NaN and infinity through to the logits where
the module itself does: an overflow's loss must be +inf.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from deevo_ext.networks.engines import aten, onednn, positions, triton
from deevo_ext.networks.engines.base import Bound, Engine
from deevo_ext.networks.graph.network_graph import Convolution, Linear

ENGINES: dict[str, Engine] = {
    engine.name: engine
    for engine in (
        onednn.OneDNN(packed=False),
        onednn.OneDNN(packed=True),
        positions.Positions(),
        triton.Triton(),
        aten.ATen(),
    )
}
"""By name, in the order of preference."""


def candidates(layer: Convolution | Linear, device: torch.device) -> Sequence[Engine]:
    """Returns the engines to choose from for a layer on a device, preferred ones first.

    Triton's interpreter, which makes `triton` run on the CPU, is for tests and never chosen.
    """
    usable = [e for e in ENGINES.values() if e.why_not(layer, device) is None]
    return [e for e in usable if device.type == "cuda" or e.name != "triton"]


__all__ = ["ENGINES", "Bound", "Engine", "candidates"]
