"""What is said before a run: members, middle, passes, memory, and time as generations."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import deevo_ext as deevo
from deevo_ext.runs import journal
from deevo_ext.runs.preflight import (
    DeviceBytes,
    Passes,
    Preflight,
    duration_text,
)
from support.evolution import images
from support.networks import Net

SHORT: dict = {
    "images_per_batch": 96,
    "validate_every": 3,
    "micro_batch": 32,
    "inject_soups": False,
}


class Stop(Exception):
    pass


def look(checkpoints: Path, run_dir: Path | None = None, **options: object) -> Preflight:
    shown: list[Preflight] = []

    def show(preflight: Preflight) -> None:
        shown.append(preflight)
        raise Stop

    values: dict = {**SHORT, **options}
    with pytest.raises(Stop):
        deevo.evolve(
            Net(),
            checkpoints,
            images(1500, 1),
            images(90, 2),
            search="weights",
            run_dir=run_dir,
            progress=False,
            engine="eager",
            preliminaries=show,
            **values,
        )
    return shown[0]


def test_members_are_scored_on_a_thousand_images(checkpoints: Path) -> None:
    found = look(checkpoints)
    data = images(1500, 1)
    assert found.members.images == 1000 and found.members.names == tuple(f"m{i}" for i in range(8))
    pop = deevo.Population.from_checkpoints(Net(), checkpoints)
    evaluator = deevo.Evaluator(Net(), pop)
    for i, score in enumerate(found.members.scores):
        # A sample of 1,000 of 1,500 images: its mean differs by 4 standard errors at most.
        whole = evaluator.losses(pop.rows[i], data).losses.double()
        error = float(whole.std()) * (1 / 1000 - 1 / 1500) ** 0.5
        assert abs(score.loss - float(whole.mean())) < 4 * error
        assert f"m{i}  top-1 {score.top1:.3f}" in str(found)
    assert "Members on 1,000 fitness images:" in str(found)
    again = str(look(checkpoints, batchnorm="recalibrate"))
    assert "Members on 1,000 fitness images, BatchNorm statistics re-estimated:" in again
    assert found.basin is not None and str(found.basin) in str(found)
    assert found.device_bytes["host"].needed > pop.rows.numel() * 4
    with pytest.raises(
        deevo.DeevoError, match=r"cuda memory: about 2\.00 GiB are needed and 1\.00"
    ):
        short = {"cuda": DeviceBytes(2 << 30, 1 << 30)}
        dataclasses.replace(found, device_bytes=short).require_bytes()


@pytest.mark.parametrize("search", ["weights", "coefficients"])
def test_members_are_scored_by_the_users_metric_too(checkpoints: Path, search: str) -> None:
    data = images(800, 1)  # all of them are looked at
    shown: list = []

    def show(preliminaries: object) -> None:
        shown.append(preliminaries)
        raise Stop

    with pytest.raises(Stop):
        deevo.evolve(
            Net(),
            checkpoints,
            data,
            images(90, 2) if search == "weights" else None,
            search=search,
            metric="worst-class",
            batchnorm="evolve",
            progress=False,
            engine="eager",
            preliminaries=show,
        )
    found = shown[0].members
    model, pixels = Net(), data.pixels(0, 800)
    for i, value in enumerate(found.own):
        model.load_state_dict(load_file(checkpoints / f"m{i}.safetensors"))
        with torch.no_grad():
            right = model.eval()(pixels).argmax(dim=1) == data.labels
        worst = min(float(right[data.labels == k].double().mean()) for k in data.labels.unique())
        assert value == pytest.approx(worst, abs=1e-6)  # of counts, but for the last bits
        assert f"m{i}  worst class {value:.4f}  top-1 " in str(shown[0])
    assert len(found.own) == 8


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"images_per_batch": None},
        {"batchnorm": "recalibrate", "calibration_images": images(64, 5)},
        {"inject_soups": True},
    ],
)
def test_passes_are_those_that_the_run_makes(
    checkpoints: Path, tmp_path: Path, options: dict
) -> None:
    found = look(checkpoints, **options)
    values = {**SHORT, **options}
    result = deevo.evolve(
        Net(),
        checkpoints,
        images(1500, 1),
        images(90, 2),
        search="weights",
        run_dir=tmp_path / "run",
        generations=6,
        progress=False,
        engine="eager",
        **values,
    )
    spent = result.run.forward_passes
    promised = found.passes.initial + 6 * found.passes.generation
    # Where a greedy soup is no new member there is one injected member less than was counted.
    # Candidates that validation does not keep need no statistics of their own.
    slack = {"inject_soups": 0.12, "batchnorm": 0.04}.get(next(iter(options), ""), 1e-9)
    assert promised * (1 - slack) <= spent <= promised * (1 + 1e-9)


def test_time_becomes_a_number_of_generations_that_the_journal_keeps(
    checkpoints: Path, tmp_path: Path
) -> None:
    found = look(checkpoints, seconds=100.0)
    expected = found.passes.generations_in(100.0, found.seconds_per_pass)
    assert found.generations == expected
    assert found.seconds <= 100.0 < found.seconds + found.seconds_per_generation

    def run(seconds: float) -> deevo.Result:
        return deevo.evolve(
            Net(),
            checkpoints,
            images(300, 1),
            images(90, 2),
            search="weights",
            run_dir=tmp_path / "run",
            images_per_batch=96,
            seconds=seconds,
            progress=False,
            engine="eager",
        )

    first = run(1e-3)
    header = json.loads((tmp_path / "run" / journal.FILE_NAME).read_text().splitlines()[0])
    assert header["configuration"]["generations"] == len(first.history) == 1
    again = run(1e6)  # resumed: calibrated once
    assert again.candidate.digest == first.candidate.digest and len(again.history) == 1


def test_generations_fit_into_the_time() -> None:
    passes = Passes(trials=100, parents=30.0, validation=20.0, initial=500)
    assert passes.generation == 150
    assert passes.generations_in(20.0, 0.01) == 10
    assert passes.generations_in(1.0, 0.01) == 1


def test_durations() -> None:
    assert duration_text(5400) == "1 h 30 min" and duration_text(12.34) == "12.3 s"
    assert duration_text(200000) == "2 d 7 h"
