"""A run's metrics for TensorBoard."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from deevo_ext.extras import import_extra


class TensorBoard:
    """A callback of `evolve` that writes the metrics of a generation or round as scalars.

    NaN is left out. folder: where the file of events goes. A resumed run writes its past once more,
    into a further file. The package tensorboard is needed.
    """

    def __init__(self, folder: Path) -> None:
        import_extra("tensorboard", "tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder))

    def __call__(self, metrics: dict[str, float]) -> None:
        """Writes the metrics of one generation or round."""
        step = "round" if "round" in metrics else "generation"
        for name, value in metrics.items():
            if name != step and not math.isnan(value):
                self._writer.add_scalar(name, value, int(metrics[step]))
        self._writer.flush()

    def close(self) -> None:
        """Closes the file."""
        self._writer.close()
