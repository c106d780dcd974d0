"""Options of a command that contradict each other, or of which one would be ignored."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from support.commands import run, write_place

_NET = "support.networks:colour_net"
_EVOLVE = ("evolve", "--arch", _NET, "--checkpoints", "c", "--transform", "t.json")
_EVOLVE_TREE = (*_EVOLVE, "--data", "tree")
_AVERAGE = ("average", "c", "--output", "made.pth")
_CACHE = ("cache", "tree", "--out", "made.safetensors")
_POPULATE = ("populate", "--arch", _NET, "--data", "tree", "--out", "p")
_OF_WEIGHTS = ("--search", "weights", "--run-dir", "new")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to work in: a tree of pictures, checkpoints, the options of a run that began."""
    folder = write_place(tmp_path_factory.mktemp("together"), 12, 2)
    (folder / "pictures.safetensors").touch()  # it is not opened
    (folder / "run").mkdir()
    said = {"arch": _NET, "checkpoints": "c", "data": "tree", "metric": "top1"}
    (folder / "run" / "run.yaml").write_text(yaml.safe_dump(said))
    return folder


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            (*_EVOLVE_TREE, *_OF_WEIGHTS, "--seconds", "9", "--generations", "9"),
            "generations is 9 and seconds is 9.0, but a search of weights that begins takes",
        ),
        ((*_EVOLVE_TREE, "--generations", "9"), "generations belongs to search='weights'"),
        (
            (*_EVOLVE_TREE, *_OF_WEIGHTS, "--racing-first", ".5"),
            "racing_first is 0.5, which nothing",
        ),
        (
            (*_EVOLVE_TREE, *_OF_WEIGHTS, "--images-per-batch=all", "--generations-per-batch=9"),
            "generations_per_batch is 9, which nothing uses without",
        ),
        (
            (*_EVOLVE_TREE, "--batchnorm", "evolve", "--calibration", "9"),
            'calibration_images are given, but batchnorm is "evolve"',
        ),
        (
            ("evolve", "--resume", "run", "--run-dir", "new"),
            "resume is run, but run_dir is new: a run goes on in its own folder",
        ),
        ((*_EVOLVE, "--adapt", "tree", "--data", "tree"), "other images, tree, are given too"),
        (
            (*_EVOLVE, "--adapt", "tree", "--train-images", "9"),
            "other images, 9 train images, are given too",
        ),
        (
            (*_EVOLVE, "--data", "pictures.safetensors", "--cache", "made.safetensors"),
            "cache is made.safetensors, but pictures.safetensors is a cache itself",
        ),
        (
            (*_EVOLVE, "--data", "pictures.safetensors", "--train-images", "9"),
            "train_images is 9, but pictures.safetensors is a cache",
        ),
        (
            (*_EVOLVE, *(f"--{n}=tree" for n in ("fitness", "validation", "test")), "--cache=x"),
            "cache is x, but there is no data to go with",
        ),
        ((*_AVERAGE, "--no-sort", "--count", "3"), "count is 3, but --no-sort averages all"),
        ((*_AVERAGE, "--rounds", "3"), "rounds is 3, which is of the evolution on images"),
        ((*_AVERAGE, "--run-dir", "new"), "run_dir is new, which is of the evolution on images"),
        ((*_AVERAGE, "--data", "tree"), "--data and --arch go together"),
        ((*_CACHE, "--model-arg", "a=1"), "model_arg is a=1, but there is no network"),
        ((*_CACHE, "--seed", "1"), "seed is 1, but all train images are taken"),
        ((*_CACHE, "--size", "9", "--transform", "t.json"), "--size goes without"),
        (
            (*_POPULATE, "--base-epochs", "1", "--snapshots", "--augment", "crop:0.5"),
            "augment is crop:0.5, but --snapshots takes all members from one training",
        ),
        (
            (*_POPULATE, "--checkpoint", "c/m0.safetensors", "--base-learning-rate", ".3"),
            "base_learning_rate is 0.3, but there are no base epochs",
        ),
        (_POPULATE, "no --checkpoint to start from"),
    ],
)
def test_an_option_that_nothing_would_use_is_refused_before_anything_is_made(
    place: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    argv: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(place)
    before = sorted(path for path in place.rglob("*") if path.name != "__pycache__")
    code, _, err = run(capsys, *argv)
    assert code == 1 and message in err and len(err.splitlines()) == 1, err
    assert sorted(path for path in place.rglob("*") if path.name != "__pycache__") == before


@pytest.mark.parametrize("config_first", [False, True])
def test_a_file_of_options_goes_before_those_of_the_run(
    place: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    config_first: bool,
) -> None:
    monkeypatch.chdir(place)
    (place / "more.yaml").write_text("metric: another\n")
    files = [("--resume", "run"), ("--config", "more.yaml")]
    argv = [word for pair in files[:: -1 if config_first else 1] for word in pair]
    code, _, err = run(capsys, "evolve", *argv)
    assert code == 1 and "metric is 'another'; expected one of" in err  # and not the run's
