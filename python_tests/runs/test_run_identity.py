"""A run folder goes on only with its own configuration, checkpoints, function and images."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import deevo_ext as deevo
from deevo_ext.runs import journal
from deevo_ext.runs.replay import write_candidate
from support.evolution import images, population, short_run, sphere


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 4}, "seed"),
        ({"cr_init": 0.5}, "cr_init"),
        ({"images_per_batch": 50}, "images_per_batch"),
        ({"micro_batch": 16}, "micro_batch"),
        ({"validate_every": 5}, "every"),
        ({"batchnorm": "inherit"}, "batchnorm|layout"),
    ],
)
def test_a_run_folder_of_another_configuration_is_refused(
    checkpoints: Path, tmp_path: Path, change: dict, named: str
) -> None:
    folder = tmp_path / "run"
    short_run(checkpoints, folder, generations=3)
    kept = (folder / journal.FILE_NAME).read_bytes()
    options = {"generations": 3, **change}
    with pytest.raises(deevo.DeevoError, match=f"another configuration: .*({named})"):
        short_run(checkpoints, folder, **options)
    assert (folder / journal.FILE_NAME).read_bytes() == kept


def test_a_run_folder_knows_the_state_dicts_and_the_function_it_began_with(tmp_path: Path) -> None:
    def start(seed: int, evaluate: object) -> deevo.Evolution:
        de = deevo.DifferentialEvolution(population(seed=seed), generations=3)
        return deevo.Evolution(de, evaluate, run_dir=tmp_path / "run", progress=False)  # type: ignore[arg-type]

    def other(row: torch.Tensor) -> float:
        return -sphere(row)

    chosen = start(0, sphere).run()
    evolved = (tmp_path / "run" / "evolved.safetensors").read_bytes()
    with pytest.raises(deevo.DeevoError, match=r"another configuration: checkpoints\[0\]"):
        start(1, sphere).run()
    with pytest.raises(deevo.DeevoError, match=r"another configuration: fitness\.function"):
        start(0, other).run()
    assert (tmp_path / "run" / "evolved.safetensors").read_bytes() == evolved
    assert deevo.replay(tmp_path / "run").candidate.digest == chosen.digest


def test_other_calibration_images_are_another_configuration(
    checkpoints: Path, tmp_path: Path
) -> None:
    options = {"generations": 3, "batchnorm": "recalibrate"}
    short_run(checkpoints, tmp_path / "run", calibration_images=images(40, 4), **options)
    with pytest.raises(deevo.DeevoError, match="calibration"):
        short_run(checkpoints, tmp_path / "run", calibration_images=images(40, 5), **options)


def test_an_unfinished_recalibrated_run_cannot_be_written(
    checkpoints: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    options = {"generations": 4, "batchnorm": "recalibrate", "calibration_images": images(40, 4)}
    short_run(checkpoints, folder, **options)
    path = folder / journal.FILE_NAME
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    with pytest.raises(deevo.DeevoError, match="unfinished"):
        write_candidate(deevo.replay(folder), tmp_path / "out.safetensors")


# Checkpoints


def test_other_checkpoints_are_refused_by_run_and_replay(checkpoints: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    short_run(checkpoints, folder, generations=3)
    path = checkpoints / "m3.safetensors"
    state = load_file(path)
    state["fc.bias"] = state["fc.bias"] + 1e-3
    save_file(state, path)
    with pytest.raises(deevo.DeevoError, match=r"another configuration: checkpoints\[3\]"):
        short_run(checkpoints, folder, generations=3)
    with pytest.raises(deevo.DeevoError, match=r"m3\.safetensors has SHA-256"):
        deevo.replay(folder)
    path.unlink()
    with pytest.raises(deevo.DeevoError, match=r"m3\.safetensors is missing"):
        deevo.replay(folder)


def test_moved_checkpoints_are_found_where_they_are_said_to_be(
    checkpoints: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    result = short_run(checkpoints, folder, generations=3)
    moved = checkpoints.rename(tmp_path / "elsewhere")
    assert deevo.replay(folder, moved).candidate.digest == result.candidate.digest


def test_moved_and_renamed_checkpoints_are_found_by_their_content(
    checkpoints: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    result = short_run(checkpoints, folder, generations=3)
    for i, path in enumerate(sorted(checkpoints.iterdir(), reverse=True)):
        (tmp_path / "runs" / f"run{i}").mkdir(parents=True)
        path.rename(tmp_path / "runs" / f"run{i}" / "best.safetensors")
    assert deevo.replay(folder, tmp_path / "runs").candidate.digest == result.candidate.digest
    (tmp_path / "runs" / "run3" / "best.safetensors").unlink()
    with pytest.raises(deevo.DeevoError, match="no file below"):
        deevo.replay(folder, tmp_path / "runs")
