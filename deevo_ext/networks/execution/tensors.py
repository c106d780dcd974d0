"""Where a network's tensors lie."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from deevo_ext.population.layout import Layout


@dataclass(frozen=True)
class Tensors:
    """Where a network's tensors are: in rows, in statistics held apart, or fixed for all."""

    layout: Layout
    statistics_layout: Layout | None
    fixed: Mapping[str, Tensor]

    def views(self, row: Tensor, statistics: Tensor | None) -> dict[str, Tensor]:
        """All of them by name, zero-copy."""
        tensors = {**self.fixed, **self.layout.views(row)}
        if self.statistics_layout is not None and statistics is not None:
            tensors.update(self.statistics_layout.views(statistics))
        return tensors
