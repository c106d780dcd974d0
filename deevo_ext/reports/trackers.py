"""A run's metrics for wandb, trackio, TensorBoard and whatever else logs as these do."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Protocol

from deevo_ext.errors import DeevoError
from deevo_ext.extras import import_extra


class Logger(Protocol):
    """What is logged with: the modules wandb and trackio are this, and so is `TensorBoard`."""

    def init(self, **settings: Any) -> Any:
        """Begins a run."""

    def log(self, data: dict[str, float], *, step: int) -> Any:
        """Logs the metrics of a step by name."""

    def finish(self) -> Any:
        """Ends the run, which then is written whole."""


class Tracker:
    """A callback of `evolve` or `Evolution` that logs the metrics of each generation or round.

        import wandb

        with deevo.Tracker(wandb, project="evolution", config={"seed": 0}) as tracker:
            deevo.evolve(model, "runs/*.pth", *image_sets, callbacks=[tracker])

    The step is the generation's or round's number, and NaN is left out. `init` is called with the
    first metrics, when the run has its folder for itself. A resumed run logs its past once more,
    into a further run.

    logger: the module wandb or trackio, or an object with `init`, `log` and `finish` as they have.
    settings: the arguments of its `init`.
    """

    def __init__(self, logger: Logger, **settings: Any) -> None:
        for name in ("init", "log", "finish"):
            if not callable(getattr(logger, name, None)):
                raise DeevoError(
                    f"logger is {logger!r}, which has no function {name}(); expected what logs as "
                    "wandb does, such as the modules wandb and trackio"
                )
        self._logger, self._settings = logger, settings
        self._begun = False

    def __call__(self, metrics: dict[str, float]) -> None:
        """Logs the metrics of one generation or round."""
        if not self._begun:
            self._logger.init(**self._settings)
            self._begun = True
        step = "round" if "round" in metrics else "generation"
        values = {name: v for name, v in metrics.items() if name != step and not math.isnan(v)}
        self._logger.log(values, step=int(metrics[step]))

    def close(self) -> None:
        """Ends what was begun."""
        if self._begun:
            self._begun = False
            self._logger.finish()

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class TensorBoard:
    """A logger that writes scalars for TensorBoard, whose package is needed.

    folder: where a file of events goes.
    """

    def __init__(self, folder: Path) -> None:
        import_extra("tensorboard", "tensorboard")
        self._folder = folder
        self._writer: Any = None

    def init(self, **_: Any) -> None:
        """Makes the file."""
        from torch.utils.tensorboard import SummaryWriter

        try:
            self._writer = SummaryWriter(str(self._folder))
        except OSError as error:
            raise DeevoError(
                f"cannot write events into {self._folder}: {error.strerror or error}; mend that, "
                "or leave out --tensorboard"
            ) from error

    def log(self, data: dict[str, float], *, step: int) -> None:
        """Writes the metrics of a step."""
        for name, value in data.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def finish(self) -> None:
        """Closes the file."""
        self._writer.close()
