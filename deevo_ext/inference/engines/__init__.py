"""Engines: ways to compute a convolution or a linear layer of a plan.

`aten` serves everything, everywhere; `onednn` and `onednn-packed` are the CPU's, with fused
post-operations; `cudnn` is CUDA's, with bias, residual and ReLU inside the convolution.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from deevo_ext.inference.engines import aten, cudnn, onednn
from deevo_ext.inference.engines.base import Bound, Engine
from deevo_ext.inference.plan import Convolution, Linear

ENGINES: dict[str, Engine] = {
    engine.name: engine
    for engine in (
        onednn.OneDNN(packed=False),
        onednn.OneDNN(packed=True),
        cudnn.CuDNN(),
        aten.ATen(),
    )
}
"""By name, in the order of preference."""


def candidates(layer: Convolution | Linear, device: torch.device) -> Sequence[Engine]:
    """The engines that can compute a layer on a device, preferred ones first."""
    return [e for e in ENGINES.values() if e.why_not(layer, device) is None]


__all__ = ["ENGINES", "Bound", "Engine", "candidates"]
