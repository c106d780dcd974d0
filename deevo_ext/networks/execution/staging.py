"""Memory into which members' weights are folded, used again for the members that follow."""

from __future__ import annotations

import queue
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from deevo_ext.networks.graph.network_graph import Parameter

Buffers = tuple[Tensor, Tensor]
"""Staged weights and vectors."""


@dataclass
class Staged:
    """One member's weights.

    layers: (weight, bias) of each convolution and linear layer by its index in the graph; weight
    [out, in, kh, kw] with channels-last strides or [out, in], in the graph's dtype; bias float32 or
    None. parameters: what ATen calls read.
    """

    layers: dict[int, tuple[Tensor, Tensor | None]]
    parameters: dict[Parameter, Tensor]
    lease: Lease | None = None


class Lease:
    """Staging memory that goes back to its pool when nobody holds the lease any more.

    Fresh memory of a network's size costs more in page faults than folding into it does.
    """

    def __init__(self, pool: queue.SimpleQueue[Buffers], make: Callable[[], Buffers]) -> None:
        self._pool = pool
        try:
            self.buffers = pool.get_nowait()
        except queue.Empty:
            self.buffers = make()

    def __del__(self) -> None:
        if hasattr(self, "buffers"):
            self._pool.put(self.buffers)
