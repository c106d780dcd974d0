"""Engines that fail on a machine: others serve, and the caller is told."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import deevo_ext as deevo
from deevo_ext.networks.engines import ENGINES, aten
from deevo_ext.networks.engines.choose import device_seconds
from deevo_ext.networks.forward import PopulationForward
from support.evolution import images, population
from support.networks import Net


class Failing(aten.ATen):
    """As a library does that has no algorithm for a shape."""

    def bind(self, layer: Any) -> Any:
        def run(prepared: Any, x: torch.Tensor, residual: Any) -> torch.Tensor:
            raise RuntimeError("no engine was able to run this")

        return aten.Bound(aten.cast_bias, run)


def engines(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Makes these the only engines, in this order; `failing` among them."""
    every = {**ENGINES, "failing": Failing()}
    every["failing"].name = "failing"
    for name in list(ENGINES):
        monkeypatch.delitem(ENGINES, name)
    for name in names:
        monkeypatch.setitem(ENGINES, name, every[name])


@pytest.mark.parametrize("engine", ["auto", "fused"])
@pytest.mark.parametrize("order", [("failing", "aten"), ("aten", "failing")])
def test_an_engine_that_fails_is_not_chosen(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, engine: str, order: tuple[str, str]
) -> None:
    monkeypatch.setenv("DEEVO_CACHE_DIR", str(tmp_path))  # nothing is known of these engines
    pop, data = population(2), images(20)
    expected = PopulationForward(Net(), pop, micro_batch=10, engine="eager")
    engines(monkeypatch, *order)
    forward = PopulationForward(Net(), pop, micro_batch=10, engine=engine)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        losses = forward(pop.rows, data.images, data.labels).losses
    assert torch.allclose(losses, expected(pop.rows, data.images, data.labels).losses, atol=1e-5)
    assert {layer.engine for layer in forward.graph((1, 10, 10)).layers} == {"aten"}
    if engine == "auto" or order[0] == "failing":
        assert any("engine failing fails on layer conv" in str(w.message) for w in told)


def test_layers_that_no_engine_computes_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DEEVO_CACHE_DIR", str(tmp_path))
    pop, data = population(2), images(20)
    engines(monkeypatch, "failing", "aten")
    monkeypatch.setitem(ENGINES, "aten", ENGINES["failing"])
    forward = PopulationForward(Net(), pop, micro_batch=10)
    with (
        pytest.warns(UserWarning, match="is not used"),
        pytest.raises(deevo.DeevoError, match="no engine computes layer conv: failing, failing"),
    ):
        forward(pop.rows, data.images, data.labels)


def test_a_layer_on_a_device_is_timed_without_its_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    """By events about several calls that are queued while the device sleeps."""
    queue: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            self.place = 0

        def record(self) -> None:
            self.place = len(queue)

        def synchronize(self) -> None:
            queue.append("waited")

        def elapsed_time(self, other: Event) -> float:
            assert set(queue[self.place : other.place]) == {"layer"}
            return 3.0 * (other.place - self.place)  # milliseconds

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: queue.append("slept"))
    assert device_seconds(lambda: queue.append("layer")) == pytest.approx(0.003)
    assert queue[0] == "slept" and queue.count("layer") >= 5 and queue[-1] == "waited"
