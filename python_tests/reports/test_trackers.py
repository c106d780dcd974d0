"""Loggers in the shape of wandb's get what a run's metrics are, and are asked for nothing else."""

from __future__ import annotations

import math
import sys
from typing import Any

import pytest

import deevo_ext as deevo
from deevo_ext.errors import DeevoError
from support.evolution import population, sphere


class Recorded:
    """A logger that notes its calls, whose signatures are those of wandb and trackio."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def init(self, project: str, name: str | None = None, **more: Any) -> None:
        self.calls.append(("init", project, name))

    def log(self, data: dict[str, float], step: int | None = None) -> None:
        self.calls.append(("log", step, data))

    def finish(self) -> None:
        self.calls.append(("finish",))


def test_a_logger_gets_every_generation_once() -> None:
    logger = Recorded()
    with deevo.Tracker(logger, project="p", name="n") as tracker:
        assert logger.calls == []
        de = deevo.DifferentialEvolution(population(), generations=3, seed=1)
        run = deevo.Evolution(de, sphere, progress=False, callbacks=[tracker])
        run.run()
    assert logger.calls[0] == ("init", "p", "n") and logger.calls[-1] == ("finish",)
    logged = logger.calls[1:-1]
    assert [call[1] for call in logged] == [1, 2, 3]
    for (_, _, data), metrics in zip(logged, run.history, strict=True):
        known = {name: value for name, value in metrics.items() if not math.isnan(value)}
        assert {"generation": metrics["generation"], **data} == known
        assert any(math.isnan(value) for value in metrics.values())
    tracker.close()
    assert logger.calls.count(("finish",)) == 1
    assert "wandb" not in sys.modules and "trackio" not in sys.modules


def test_what_cannot_log_is_refused_before_a_run() -> None:
    with pytest.raises(DeevoError, match=r"has no function init\(\); expected what logs as wandb"):
        deevo.Tracker(print)  # type: ignore[arg-type]
