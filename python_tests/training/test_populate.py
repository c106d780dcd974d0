"""Making populations: what a kill leaves, which folders are refused, and the command itself."""

from __future__ import annotations

import csv
import errno
import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import deevo_ext as deevo
from deevo_ext.cli import main
from deevo_ext.data import Transform, locked, open_cache
from deevo_ext.errors import DeevoError
from deevo_ext.training.hyper_parameters import Choices
from deevo_ext.training.populate import RECORD, TABLE, Progress, populate
from deevo_ext.training.trainings import PopulationOptions, Trainings, trainings_of
from support.networks import drop_net, small_resnet
from support.paths import child_environment
from support.training import MEAN, STD, noise, same, write_squares

ORIGIN = {"arch": "DropNet"}


def _trainings(members: int = 3, **options: Any) -> Trainings:
    values = {"epochs": 2.0, "batch_size": 8, "learning_rate": 0.01, "shift": 1, **options}
    return trainings_of(40, PopulationOptions(members=members, **values))


def _populate(trainings: Trainings, folder: Path, **options: Any) -> list[Path]:
    return populate(drop_net(), noise(), trainings, folder, origin=ORIGIN, **options)


@pytest.mark.parametrize("snapshots", [False, True])
def test_an_interrupted_population_is_that_of_an_uninterrupted_run(
    snapshots: bool, tmp_path: Path
) -> None:
    trainings = _trainings(
        3, snapshots=snapshots, base_epochs=1.0, epochs=2.0 if snapshots else 1.0
    )
    paths = _populate(trainings, tmp_path / "a")
    expected = [load_file(path) for path in paths]
    assert len(expected) == 3 and not same(expected[0], expected[1])
    assert not list((tmp_path / "a").glob("*.state"))

    class Killed(Exception):
        pass

    totals = set()

    def killer(stop: int) -> Progress:
        def kill(what: str, done: int, total: int) -> None:
            totals.add(total)
            if done == stop:
                raise Killed

        return kill

    # In the base, then in the first member and the second, or before and between snapshots.
    for stop in (3, 9, 12, 13, 1000):
        try:
            again = _populate(trainings, tmp_path / "b", save_every=0, progress=killer(stop))
        except Killed:
            continue
    assert stop == 1000 and totals == {5 + 10 if snapshots else 5 + 15}
    assert all(same(a, load_file(path)) for a, path in zip(expected, again, strict=True))
    with (tmp_path / "b" / "hyper_parameters.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["member"] for row in rows] == ["member_00", "member_01", "member_02"]
    assert len({row["seed"] for row in rows}) == (1 if snapshots else 3)
    if snapshots:
        assert [int(row["taken_at_step"]) for row in rows] == [7, 8, 10]


def test_what_is_whole_is_kept_and_what_is_damaged_or_missing_is_trained(tmp_path: Path) -> None:
    plain = Choices.parse("none")
    paths = _populate(_trainings(2, augmentations=plain, epochs=0.4), tmp_path)
    first, whole = paths[0].stat().st_mtime_ns, paths[1].read_bytes()
    paths[1].write_bytes(whole[:-1])
    more = _populate(_trainings(3, augmentations=plain, epochs=0.4), tmp_path)
    assert len(more) == 3 and paths[1].read_bytes() == whole
    assert paths[0].stat().st_mtime_ns == first
    with pytest.raises(DeevoError, match=r"members is 2, but .* holds member_02 already"):
        _populate(_trainings(2, augmentations=plain, epochs=0.4), tmp_path)


def test_a_folder_of_another_population_is_refused(tmp_path: Path) -> None:
    trainings = _trainings(2, augmentations=Choices.parse("none"), epochs=0.2, base_epochs=0.2)
    _populate(trainings, tmp_path)
    with pytest.raises(DeevoError, match=r"another population \(base is"):
        _populate(_trainings(2, epochs=0.2, base_epochs=0.4), tmp_path)
    table = (tmp_path / TABLE).read_bytes()
    for missing in ("none", "member_00.safetensors"):  # which would be trained before the second
        (tmp_path / missing).unlink(missing_ok=True)
        with pytest.raises(DeevoError, match="other hyper-parameters"):
            _populate(_trainings(2, epochs=0.2, base_epochs=0.2, anneal=0.5), tmp_path)
        assert (tmp_path / TABLE).read_bytes() == table
    record = tmp_path / RECORD
    content = json.loads(record.read_text())
    for damaged in ("{", "[1]", "{}", json.dumps({**content, "files": {"base": {}}})):
        record.write_text(damaged)
        with pytest.raises(DeevoError, match=RECORD):
            _populate(trainings, tmp_path)
    record.write_text(json.dumps({**content, "format": 2}))  # an earlier release's
    with pytest.raises(DeevoError, match=r"another population \(format is 2, not 3\)"):
        _populate(trainings, tmp_path)
    record.unlink()
    with pytest.raises(DeevoError, match="choose another folder"):
        _populate(trainings, tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(DeevoError, match="file"):
        _populate(trainings, tmp_path / "file")


@pytest.mark.parametrize("snapshots", [False, True])
def test_a_training_in_progress_does_not_go_on_with_other_hyper_parameters(
    snapshots: bool, tmp_path: Path
) -> None:
    class Killed(Exception):
        pass

    def kill(what: str, done: int, total: int) -> None:
        if done == 3:
            raise Killed

    trainings = _trainings(2, snapshots=snapshots)
    with pytest.raises(Killed):
        _populate(trainings, tmp_path, save_every=0, progress=kill)
    table = (tmp_path / TABLE).read_bytes()
    others = [_trainings(2, snapshots=snapshots, learning_rate=0.5)]
    if snapshots:  # of which the first could lie before the saved step
        others.append(_trainings(3, snapshots=True))
    for other in others:
        with pytest.raises(DeevoError, match=r"\.state: .* is .*, not .*; give .* or delete it"):
            _populate(other, tmp_path)
        assert (tmp_path / TABLE).read_bytes() == table
    resumed = _populate(trainings, tmp_path)
    whole = _populate(trainings, tmp_path / "whole")
    for a, b in zip(resumed, whole, strict=True):
        assert same(load_file(a), load_file(b))


def test_a_folder_is_written_by_one_process_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = threading.Event()
    monkeypatch.setattr(locked.log, "info", lambda *_: waits.set())
    trainings = _trainings(2, augmentations=Choices.parse("none"), epochs=0.4)
    second: list[threading.Thread] = []
    found: list[Path] = []

    def begin(what: str, done: int, total: int) -> None:
        if not second:  # a second process waits, as another open file does
            second.append(
                threading.Thread(target=lambda: found.extend(_populate(trainings, tmp_path)))
            )
            second[0].start()
            assert waits.wait(60)

    made = _populate(trainings, tmp_path, progress=begin)
    stamps = [path.stat().st_mtime_ns for path in made]
    second[0].join(60)
    assert found == made and [path.stat().st_mtime_ns for path in made] == stamps
    assert len(json.loads((tmp_path / RECORD).read_text())["files"]) == 2
    assert not (tmp_path / ".lock").exists()

    def without(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locked.fcntl, "flock", without)
    with pytest.raises(DeevoError, match=r"cannot lock .*\.lock: No locks available; choose"):
        _populate(trainings, tmp_path)


def test_a_rate_that_is_too_high_is_said(tmp_path: Path) -> None:
    with pytest.raises(DeevoError, match="--learning-rate"):
        _populate(_trainings(2, learning_rate=1e30), tmp_path)
    assert not list(tmp_path.glob("*.safetensors"))


class Tied(nn.Module):
    """Two layers of the same weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 3, 3, padding=1)
        self.second = self.first
        self.fc = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.second(self.first(x).relu()).mean((2, 3)))


def test_tied_weights_are_written_under_both_names(tmp_path: Path) -> None:
    trainings = _trainings(2, epochs=1.0)
    for path in populate(Tied(), noise(), trainings, tmp_path, origin=ORIGIN, workers=0):
        member = load_file(path)
        assert torch.equal(member["first.weight"], member["second.weight"])
        Tied().load_state_dict(member)


def _deevo(*arguments: object) -> str:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return str(ended.value.code)


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of pictures of ten classes, the transform beside it."""
    root = tmp_path_factory.mktemp("squares")
    write_squares(root / "tree", 320, 200)
    values = {"resize": 20, "crop": 20, "mean": MEAN, "std": STD}
    (root / "transform.json").write_text(json.dumps(values))
    cache = root / "cache.safetensors"
    options = ("--transform", root / "transform.json", "--workers", 0)
    assert _deevo("cache", root / "tree", "--out", cache, *options) == "0"
    return cache


@pytest.mark.slow
def test_the_command_survives_kill_9_and_makes_a_population_that_knows(
    squares: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-P", "-m", "deevo_ext", "populate"]
    command += ["--arch", "support.networks:small_resnet", "--data", str(squares)]
    command += ["--transform", str(squares.with_name("transform.json"))]
    command += ["--base-epochs", "6", "--members", "3", "--epochs", "1", "--batch-size", "32"]
    command += ["--learning-rate", "0.01", "--shift", "1", "--save-every", "0"]
    command += ["--augment", "none", "--out"]  # a process of its own may lack torchvision
    environment = child_environment(OMP_NUM_THREADS="1")

    def run(folder: Path, until: str | None = None) -> None:
        """Runs the command; kills it once a file appears."""
        process = subprocess.Popen([*command, str(folder)], env=environment, stdout=-3, stderr=-3)
        end = time.monotonic() + 300
        while until is not None and not (folder / until).exists():
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.002)
        if until is not None:
            process.send_signal(signal.SIGKILL)
        assert process.wait(300) == (0 if until is None else -signal.SIGKILL)

    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the processes: sums depend on the number of threads
    try:
        assert _deevo(*command[4:], tmp_path / "whole") == "0"
    finally:
        torch.set_num_threads(before)
    run(tmp_path / "killed", "member_01.state")
    first = (tmp_path / "killed" / "member_00.safetensors").stat().st_mtime_ns
    run(tmp_path / "killed")
    assert (tmp_path / "killed" / "member_00.safetensors").stat().st_mtime_ns == first
    names = ["base.safetensors", *(f"member_0{i}.safetensors" for i in range(3))]
    for name in names:
        a, b = load_file(tmp_path / "whole" / name), load_file(tmp_path / "killed" / name)
        assert same(a, b)
    model = small_resnet()
    pop = deevo.Population.from_checkpoints(model, f"{tmp_path}/killed/member_*.safetensors")
    val = open_cache(squares).images("val", Transform(20, (20, 20), "bilinear", MEAN, STD))
    scores = deevo.Evaluator(model, pop, engine="fused").scores(
        pop.rows, val, pop.statistics if pop.statistics_layout.dim else None
    )
    # Ten classes: chance is 0.1, and three standard errors of 200 images are 0.06.
    assert pop.size == 3 and all(score.top1 > 0.3 for score in scores)


def test_a_checkpoint_of_other_classes_gets_a_new_classifier_or_is_refused(
    squares: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ("populate", "--arch", "support.networks:small_resnet", "--data", squares)
    common += ("--transform", squares.with_name("transform.json"), "--members", 2)  # type: ignore[assignment]
    common += ("--epochs", 0.05, "--augment", "none", "--out", tmp_path / "out")  # type: ignore[assignment]
    assert _deevo(*common) == "1"
    assert "no --checkpoint to start from" in capsys.readouterr().err
    for device in ("foo", "cuda:99"):  # before anything is asked that costs time
        assert _deevo(*common, "--device", device) == "1"
        assert f"device is '{device}', which torch cannot use" in capsys.readouterr().err
    (tmp_path / "folder").mkdir()
    seven, ten = tmp_path / "folder/seven.safetensors", tmp_path / "ten.safetensors"
    pretrained = small_resnet(7).state_dict()
    save_file(pretrained, seven)
    save_file(small_resnet(10).state_dict(), ten)
    assert _deevo(*common, "--checkpoint", seven) == "1"
    assert "the data needs [10, 32]; give --base-epochs" in capsys.readouterr().err
    save_file({"other.weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    assert _deevo(*common, "--checkpoint", tmp_path / "other.safetensors") == "1"
    assert "lacks conv1.weight" in capsys.readouterr().err
    # A rate of next to nothing shows what training begins with.
    slow = ("--base-epochs", 0.05, "--base-learning-rate", 1e-12, "--learning-rate", 1e-12)
    assert _deevo(*common, "--checkpoint", seven.parent, *slow) == "0"  # which holds it alone
    member = load_file(tmp_path / "out" / "member_00.safetensors")
    torch.testing.assert_close(member["conv1.weight"], pretrained["conv1.weight"])
    assert member["fc.weight"].shape == (10, 32)
    assert _deevo(*common, "--checkpoint", ten) == "1"
    assert "another population" in capsys.readouterr().err
    printed = (tmp_path / "out" / "hyper_parameters.csv").read_text()
    assert printed.startswith("member,seed,steps,batch_size,learning_rate")
