"""A run's folder: what is kept there, what may happen to it under way, what is never touched."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import deevo_ext as deevo
from deevo_ext.errors import DeevoError
from deevo_ext.files import read_regular, write_whole
from deevo_ext.networks.engines.choose import device_cache
from deevo_ext.runs import journal
from deevo_ext.runs.journal import Journal
from deevo_ext.runs.records import SEARCHES
from deevo_ext.runs.replay import write_trials
from deevo_ext.runs.switches import torch_switches
from support.evolution import images, population, save_members, sphere, sphere_until
from support.networks import Net
from support.paths import child_environment


def run(
    folder: Path,
    evaluate: Callable[[torch.Tensor], float] = sphere,
    members: deevo.Population | None = None,
) -> str:
    """A short run; returns what it came to."""
    de = deevo.DifferentialEvolution(members or population(), generations=4, seed=1)
    return deevo.Evolution(de, evaluate, run_dir=folder, progress=False).run().digest


def full_run(checkpoints: Path, folder: Path, **options: object) -> deevo.Result:
    """The same with images and engines that are chosen."""
    values: dict = {"generations": 4, "validate_every": 2, "progress": False, **options}
    fitness, validation = images(60, 1), images(40, 2)
    return deevo.evolve(
        Net(), checkpoints, fitness, validation, search="weights", run_dir=folder, **values
    )


def moved(folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))


def replaced(folder: Path) -> None:
    path = folder / journal.FILE_NAME
    shutil.copy(path, path.with_name("copy"))
    path.with_name("copy").replace(path)


def deleted(folder: Path) -> None:
    (folder / journal.FILE_NAME).unlink()


@pytest.mark.parametrize("happens", [moved, replaced, deleted, shutil.rmtree])
def test_a_journal_that_vanishes_under_way_ends_the_run(
    tmp_path: Path, happens: Callable[[Path], None]
) -> None:
    folder = tmp_path / "run"
    last = 8 * 5  # within the last generation
    with pytest.raises(deevo.DeevoError, match=r"journal\.jsonl was moved, replaced or deleted"):
        run(folder, sphere_until(last, lambda: happens(folder)))
    assert not (folder / "evolved.safetensors").exists()
    if happens is moved:
        (tmp_path / "elsewhere").rename(folder)
        never = sphere_until(10**9, lambda: None)
        assert run(folder, never) == run(tmp_path / "straight")


@pytest.mark.parametrize("name", ["metrics.csv", "initial", journal.FILE_NAME])
def test_something_else_in_a_files_place_is_one_clear_error(tmp_path: Path, name: str) -> None:
    if name == "initial":
        (tmp_path / name).write_text("kept")
    else:
        (tmp_path / name / "kept").mkdir(parents=True)
    with pytest.raises(deevo.DeevoError, match=rf"{tmp_path}.*choose another"):
        run(tmp_path)
    assert (tmp_path / name).exists()


def test_a_folder_that_cannot_be_written_is_one_clear_error() -> None:
    with pytest.raises(deevo.DeevoError, match=r"run_dir /proc/.* choose another"):
        run(Path("/proc/deevo/run"))


def test_links_in_a_run_folder_are_not_written_through(tmp_path: Path) -> None:
    folder, other = tmp_path / "run", tmp_path / "precious"
    folder.mkdir()
    other.write_text("kept")
    for name in ("metrics.csv", "evolved.safetensors"):
        (folder / name).symlink_to(other)
    run(folder)
    assert other.read_text() == "kept"


def test_what_a_kill_left_of_a_file_is_gone_after_the_next_start(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    program = f"""
        import os, signal
        from pathlib import Path
        from test_run_folder import run
        os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        run(Path({str(folder)!r}))
    """
    environment = child_environment()
    environment["PYTHONPATH"] += os.pathsep + str(Path(__file__).parent)
    command = [sys.executable, "-c", textwrap.dedent(program)]
    for _ in range(2):
        code = subprocess.run(command, check=False, cwd=tmp_path, env=environment).returncode
        assert code == -signal.SIGKILL
        assert len(list(folder.rglob(".*"))) == 1  # that of the first killed start is gone
    expected = run(tmp_path / "straight")
    assert run(folder) == expected and not list(folder.rglob(".*"))
    names = {path.relative_to(folder) for path in folder.rglob("*")}
    straight = tmp_path / "straight"
    assert names == {path.relative_to(straight) for path in straight.rglob("*")}


def test_a_full_disk_leaves_no_part_of_a_table(tmp_path: Path) -> None:
    run(tmp_path / "run")
    replayed, path = deevo.replay(tmp_path / "run"), tmp_path / "trials.csv"
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then writes fail, as on a full disk
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, old[1]))
        with pytest.raises(deevo.DeevoError, match=r"cannot write .*trials\.csv"):
            write_trials(replayed, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    assert [child.name for child in tmp_path.iterdir()] == ["run"]


def test_switches_that_were_turned_and_put_back_are_the_same() -> None:
    before = torch_switches()
    kept = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = not kept
    assert torch_switches() != before
    torch.backends.cuda.matmul.allow_tf32 = kept
    assert torch_switches() == before


@pytest.mark.parametrize(
    ("turn", "back", "named"),
    [
        (
            lambda: torch.set_default_dtype(torch.float64),
            lambda: torch.set_default_dtype(torch.float32),
            "default_dtype is 'torch.float32' in the journal, 'torch.float64' now",
        ),
        (
            lambda: setattr(torch.backends.mkldnn.matmul, "fp32_precision", "bf16"),
            lambda: setattr(torch.backends.mkldnn.matmul, "fp32_precision", "ieee"),
            "float32.mkldnn is 'ieee' in the journal, 'bf16' now",
        ),
        (
            lambda: torch.set_float32_matmul_precision("medium"),
            lambda: torch.set_float32_matmul_precision("highest"),
            "float32.cuda is 'ieee' in the journal, 'tf32' now",
        ),
        (
            lambda: torch.use_deterministic_algorithms(True),
            lambda: torch.use_deterministic_algorithms(False),
            "deterministic_algorithms is False in the journal, True now",
        ),
        (
            lambda: torch.set_autocast_enabled("cpu", True),
            lambda: torch.set_autocast_enabled("cpu", False),
            "autocast.cpu is only in the present run",
        ),
        (
            lambda: torch.backends.mkldnn.set_flags(False),
            lambda: torch.backends.mkldnn.set_flags(True),
            "mkldnn is True in the journal, False now",
        ),
    ],
)
def test_a_run_goes_on_only_under_the_switches_it_began_with(
    tmp_path: Path, turn: Callable[[], object], back: Callable[[], object], named: str
) -> None:
    digest, members = run(tmp_path / "run"), population()
    turn()
    try:
        with pytest.raises(deevo.DeevoError, match=f"another configuration: switches.{named}"):
            run(tmp_path / "run", members=members)
    finally:
        back()
    assert run(tmp_path / "run") == digest


def test_the_engines_of_a_run_are_in_its_journal_and_used_again(tmp_path: Path) -> None:
    checkpoints = save_members(tmp_path / "checkpoints", 6)
    cache = device_cache(torch.device("cpu"))
    found = []
    for name in ("aten", "onednn"):
        cache.engines = dict.fromkeys(_signatures(checkpoints, tmp_path), name)
        cache.save()
        result = full_run(checkpoints, tmp_path / name)
        found.append(result.candidate.digest)
        lines = (tmp_path / name / journal.FILE_NAME).read_text().splitlines(keepends=True)
        (first,) = json.loads(lines[1])["engines"]
        assert set(first["engines"].values()) == {name} and first["precision"] == "float32"
        assert not any("engines" in json.loads(line) for line in lines[2:])
    assert not (tmp_path / "aten" / "engines.json").exists()
    # The cache says oneDNN by now, and the run goes on as it began.
    for kept in range(2, len(lines)):
        path = tmp_path / "aten" / journal.FILE_NAME
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:kept]))
        assert full_run(checkpoints, tmp_path / "aten").candidate.digest == found[0]


def _signatures(checkpoints: Path, place: Path) -> list[str]:
    """The layers that have a choice of engines."""
    result = full_run(checkpoints, place / "signatures", generations=1)
    assert result.run.evaluator is not None
    return list(result.run.evaluator.engines()["engines"])


def test_a_folder_in_use_is_refused_before_anything_is_spent(tmp_path: Path) -> None:
    checkpoints = save_members(tmp_path / "checkpoints", 6)
    shown: list[object] = []
    with (
        Journal(tmp_path / "run"),
        pytest.raises(deevo.DeevoError, match="in use by another process"),
    ):
        full_run(checkpoints, tmp_path / "run", preliminaries=shown.append)
    assert not shown and not (tmp_path / "run").exists()


def test_only_files_are_read_whole(tmp_path: Path) -> None:
    write_whole(tmp_path / "file", b"content")
    assert read_regular(tmp_path / "file") == b"content"
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "nothing", "."):
        with pytest.raises(deevo.DeevoError, match=r"cannot read .* expected a readable file"):
            read_regular(tmp_path / name)
    with pytest.raises(deevo.DeevoError, match="it is no file"):
        read_regular(Path("/dev/zero"))


@pytest.mark.parametrize("search", SEARCHES)
def test_a_folder_in_which_members_lie_is_refused(tmp_path: Path, search: str) -> None:
    folder = save_members(tmp_path / "c", 5)
    before = sorted(folder.iterdir())
    with pytest.raises(DeevoError, match=r"where m0\.safetensors and other checkpoints lie"):
        deevo.evolve(
            Net(), folder, images(60, 1), images(30, 2), search=search, run_dir=tmp_path / "x/../c"
        )
    assert sorted(folder.iterdir()) == before
