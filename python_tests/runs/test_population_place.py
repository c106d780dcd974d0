"""Where a population lies by default."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch

import deevo_ext as deevo
from deevo_ext.errors import DeevoError
from deevo_ext.runs import population_place
from deevo_ext.runs.population_place import default_place, place_line
from support.evolution import images, population, save_members
from support.networks import Net

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")
GIB = 1 << 30


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """A GPU with 8 GiB that can be had, whose operators are all served."""
    has = {"bytes": 8 * GIB}
    monkeypatch.setattr(population_place, "available_bytes", lambda device: has["bytes"])
    monkeypatch.setattr(population_place.backends, "select", lambda device, operator: None)
    return has


def test_a_population_lies_with_the_networks_where_it_fits(gpu: dict[str, int]) -> None:
    layout = population().layout
    size = layout.stride * 4

    def place(rows: int, search: str, memory: int | None = None) -> torch.device:
        return default_place(layout, torch.float32, rows, GPU, search, memory)

    # A quarter is for activations; one more, or `memory`, for the linear model.
    for search, memory, rest in (
        ("weights", None, 6 * GIB),
        ("coefficients", None, 4 * GIB),
        ("coefficients", 3 * GIB, 3 * GIB),
    ):
        candidates = 13 * size  # some rows more than the given ones are allowed for
        assert place((rest - candidates) // size, search, memory) == GPU
        assert place(rest // size + 1, search, memory) == CPU
    gpu["bytes"] = 0
    assert place(1, "weights") == CPU


def test_a_population_stays_on_the_cpu_where_no_backend_serves_it(
    gpu: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def select(device: torch.device, operator: str) -> None:
        if operator == "compose":
            raise DeevoError("no backend")

    monkeypatch.setattr(population_place.backends, "select", select)
    layout = population().layout
    assert default_place(layout, torch.float32, 9, GPU, "coefficients") == CPU
    assert default_place(layout, torch.float32, 9, GPU, "weights") == GPU
    assert default_place(layout, torch.float32, 9, CPU, "weights") == CPU


def test_evolve_asks_for_all_rows_that_there_are_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("deevo_ext.runs.evolve")

    asked: list[tuple[object, ...]] = []

    def place(*arguments: object) -> torch.device:
        asked.append(arguments)
        raise InterruptedError

    monkeypatch.setattr(module, "default_place", place)
    folder = save_members(tmp_path / "members", 5)
    options: dict = {"chunk": 3, "dtype": torch.float16, "memory": None}
    for search, more in (("coefficients", 3 + 3), ("weights", 2 + 3)):
        with pytest.raises(InterruptedError):
            deevo.evolve(Net(), folder, images(60, 1), images(60, 2), search=search, **options)
        layout, dtype, rows, device, said, memory = asked.pop()
        assert (dtype, rows, device) == (torch.float16, 5 + more, CPU)
        assert (said, memory) == (search, None)
        apart = "recalibrate" if search == "coefficients" else "evolve"
        assert layout.hash == population(batchnorm=apart).layout.hash  # type: ignore[attr-defined]


def test_the_preliminaries_say_where_it_lies() -> None:
    assert place_line(GPU, GPU) == "The population lies on cuda:0, where networks run"
    assert place_line(CPU, GPU) == "The population lies on cpu; rows go to cuda:0 by chunks"
