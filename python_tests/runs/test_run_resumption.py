"""Runs of a search of weights go on where they ended: cut, killed, without disk, finished."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

import deevo_ext as deevo
from deevo_ext.runs import journal
from deevo_ext.runs.folder import TENSORS
from deevo_ext.runs.recording import read_journal
from support.evolution import population, same_weights, short_run, sphere, sphere_until
from support.journals import lines
from support.killed import run_killed
from support.paths import child_environment


def test_every_prefix_of_the_journal_resumes_to_the_same_run(
    checkpoints: Path, tmp_path: Path
) -> None:
    whole = tmp_path / "whole"
    options = {"generations": 5, "validate_every": 2, "generations_per_batch": 2, "engine": "auto"}
    result = short_run(checkpoints, whole, **options)
    text = (whole / journal.FILE_NAME).read_bytes()
    parts = text.splitlines(keepends=True)
    for kept in range(len(parts) + 1):
        folder = tmp_path / f"cut{kept}"
        folder.mkdir()
        torn = parts[kept][: len(parts[kept]) // 2] if kept < len(parts) else b""
        (folder / journal.FILE_NAME).write_bytes(b"".join(parts[:kept]) + torn)
        shutil.copy(whole / TENSORS, folder)
        again = short_run(checkpoints, folder, **options)
        assert same_weights(again.state_dict, result.state_dict)
        assert lines(folder)[1:] == lines(whole)[1:]
        assert again.run.forward_passes == result.run.forward_passes
        assert again.comparison is not None and result.comparison is not None
        assert [r.loss for r in again.comparison.networks] == [
            r.loss for r in result.comparison.networks
        ]


KILLED = """
    import os, signal
    from pathlib import Path
    from support.evolution import population, sphere_until
    import deevo_ext as deevo
    de = deevo.DifferentialEvolution(population(), generations=20, seed=1)
    def kill():
        os.kill(os.getpid(), signal.SIGKILL)
    evaluate = sphere_until({after}, kill)
    deevo.Evolution(de, evaluate, run_dir={folder!r}, progress=False).run()
"""


def test_kill_minus_nine_at_any_moment_loses_at_most_the_generation_in_flight(
    tmp_path: Path,
) -> None:
    def evolve(name: str) -> None:
        de = deevo.DifferentialEvolution(population(), generations=20, seed=1)
        never = sphere_until(10**9, lambda: None)
        deevo.Evolution(de, never, run_dir=tmp_path / name, progress=False).run()

    evolve("straight")
    whole = 0
    for after in (5, 30, 77):
        folder = str(tmp_path / "killed")
        program = KILLED.format(folder=folder, after=after)
        run_killed(program, tmp_path)
        # 8 evaluations of the parents at first, then 8 a generation, all but the last finished.
        before, whole = whole, len(lines(tmp_path / "killed"))
        first = 8 if before <= 2 else 0
        assert whole == max(before, 2) + max(0, after - 1 - first) // 8
    evolve("killed")
    straight, killed = deevo.replay(tmp_path / "straight"), deevo.replay(tmp_path / "killed")
    assert killed.candidate.digest == straight.candidate.digest
    rows = straight.state.de.population.rows
    assert torch.equal(killed.state.de.population.rows, rows)
    evolved = [tmp_path / name / "evolved.safetensors" for name in ("straight", "killed")]
    assert evolved[0].read_bytes() == evolved[1].read_bytes()
    first_lines, other_lines = (lines(tmp_path / name)[1:] for name in ("straight", "killed"))
    assert first_lines == other_lines


def test_a_full_disk_is_one_error_and_the_run_goes_on_later(tmp_path: Path) -> None:
    straight = deevo.DifferentialEvolution(population(), generations=20, seed=1)
    expected = deevo.Evolution(straight, sphere, run_dir=tmp_path / "a", progress=False).run()
    size = (tmp_path / "a" / journal.FILE_NAME).stat().st_size
    initial = max(path.stat().st_size for path in (tmp_path / "a" / "initial").iterdir())
    limit = max(initial, size // 2) + 100
    assert limit < size
    folder = tmp_path / "b"
    de = deevo.DifferentialEvolution(population(), generations=20, seed=1)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then writes fail, as on a full disk
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, old[1]))
        with pytest.raises(deevo.DeevoError, match=r"cannot write .*free some space"):
            deevo.Evolution(de, sphere, run_dir=folder, progress=False).run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    recording = read_journal(folder / journal.FILE_NAME)
    assert recording.whole == (folder / journal.FILE_NAME).stat().st_size
    assert len(recording.generations) > 1
    de = deevo.DifferentialEvolution(population(), generations=20, seed=1)
    assert deevo.Evolution(de, sphere, run_dir=folder, progress=False).run().digest == (
        expected.digest
    )


def test_resuming_a_finished_run_evaluates_nothing_again(tmp_path: Path) -> None:
    calls: list[float] = []

    def counted(row: torch.Tensor) -> float:
        calls.append(time.time())
        return sphere(row)

    for expected in (8 * 6, 0):
        calls.clear()
        de = deevo.DifferentialEvolution(population(), generations=5, seed=1)
        deevo.Evolution(de, counted, run_dir=tmp_path / "run", progress=False).run()
        assert len(calls) == expected
    assert os.path.getsize(tmp_path / "run" / "evolved.safetensors") > 0


def test_two_processes_cannot_share_a_run_folder(tmp_path: Path) -> None:
    program = f"""
        import time
        from support.evolution import population, sphere
        import deevo_ext as deevo
        def slow(row):
            print("in", flush=True)
            time.sleep(60)
        de = deevo.DifferentialEvolution(population(), generations=5)
        deevo.Evolution(de, slow, run_dir={str(tmp_path / "run")!r}, progress=False).run()
    """
    first = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)],
        stdout=subprocess.PIPE,
        cwd=tmp_path,
        env=child_environment(),
    )
    try:
        assert first.stdout is not None and first.stdout.readline() == b"in\n"
        de = deevo.DifferentialEvolution(population(), generations=5)
        with pytest.raises(deevo.DeevoError, match="in use by another process"):
            deevo.Evolution(de, sphere, run_dir=tmp_path / "run", progress=False).run()
    finally:
        first.kill()
        first.wait()
