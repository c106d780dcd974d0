"""Whole runs on a GPU: the population lies there, and the journal gives the same network here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import deevo_ext as deevo
from support.evolution import images, population, save_members
from support.networks import Net

pytestmark = pytest.mark.gpu
DEVICE = "cuda"


@pytest.mark.parametrize(
    "options",
    [
        {"search": "coefficients", "rounds": 1},
        {"search": "coefficients", "rounds": 1, "batchnorm": "evolve"},
        {"search": "weights", "generations": 4, "images_per_batch": 200},
        {"search": "weights", "generations": 4, "batchnorm": "recalibrate", "racing": 0.1},
    ],
)
def test_runs(tmp_path: Path, options: dict[str, Any]) -> None:
    said: list[str] = []
    result = deevo.evolve(
        Net(),
        save_members(tmp_path / "members", 6),
        images(400, 1),
        images(300, 2),
        images(300, 3),
        run_dir=tmp_path / "run",
        device=DEVICE,
        micro_batch=50,
        chunk=4,
        force_precision=True,
        progress=False,
        basin="ignore",
        preliminaries=lambda known: said.append(str(known)),
        **options,
    )
    place = result.run.population.rows.device
    assert place.type == DEVICE and f"The population lies on {place}, where networks" in said[0]
    assert {tensor.device.type for tensor in result.state_dict.values()} == {"cpu"}
    assert result.comparison is not None
    assert all(0 <= row.top1 <= 1 for row in result.comparison.networks)
    replayed = deevo.replay(tmp_path / "run")
    assert replayed.candidate.digest == result.candidate.digest


def test_scoring_begins_without_waiting() -> None:
    pop = population(4, device=DEVICE)
    evaluator = deevo.Evaluator(
        Net(), pop, micro_batch=50, device=DEVICE, precision="float16", force_precision=True
    )
    fitness = deevo.ClassificationFitness(evaluator, images(200, 1))
    members = torch.arange(4)
    expected = fitness(pop.rows, members, 0)  # chooses engines, captures graphs
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        wait = fitness.begin(pop.rows, members, 0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert list(wait()) == list(expected)
