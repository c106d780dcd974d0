"""A run's metrics for TensorBoard."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from deevo_ext.errors import DeevoError
from deevo_ext.extras import import_extra


class TensorBoard:
    """A callback of `evolve` that writes the metrics of a generation or round as scalars.

    NaN is left out. folder: where the file of events goes, made with the first metrics, when the
    run has its folder for itself. A resumed run writes its past once more, into a further file. The
    package tensorboard is needed.
    """

    def __init__(self, folder: Path) -> None:
        import_extra("tensorboard", "tensorboard")
        self._folder = folder
        self._writer: Any = None

    def __call__(self, metrics: dict[str, float]) -> None:
        """Writes the metrics of one generation or round."""
        if self._writer is None:
            self._writer = _writer(self._folder)
        step = "round" if "round" in metrics else "generation"
        for name, value in metrics.items():
            if name != step and not math.isnan(value):
                self._writer.add_scalar(name, value, int(metrics[step]))
        self._writer.flush()

    def close(self) -> None:
        """Closes the file, where there is one."""
        if self._writer is not None:
            self._writer.close()


def _writer(folder: Path) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    try:
        return SummaryWriter(str(folder))
    except OSError as error:
        raise DeevoError(
            f"cannot write events into {folder}: {error.strerror or error}; mend that, or leave "
            "out --tensorboard"
        ) from error
