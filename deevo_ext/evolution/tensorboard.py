"""A run's metrics for TensorBoard."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from typing import Any

from deevo_ext.errors import DeevoError


class TensorBoard:
    """A callback of `evolve` that writes each generation's metrics, but NaN, as scalars.

    folder: of the event file. A resumed run writes its past once more, into a file of its own.
    Needs the package tensorboard.
    """

    def __init__(self, folder: Path) -> None:
        try:
            module: Any = importlib.import_module("torch.utils.tensorboard")
        except ImportError as error:
            raise DeevoError(
                f'TensorBoard needs the package tensorboard: pip install "deevo_ext[tensorboard]" '
                f"({error})"
            ) from None
        self._writer: Any = module.SummaryWriter(str(folder))

    def __call__(self, metrics: dict[str, float]) -> None:
        """One generation."""
        for name, value in metrics.items():
            if name != "generation" and not math.isnan(value):
                self._writer.add_scalar(name, value, int(metrics["generation"]))
        self._writer.flush()

    def close(self) -> None:
        """Closes the file."""
        self._writer.close()
