"""Runs of both searches killed, or failed, at each of their writes: what was done is not lost.

Every call that changes a file is counted, so that none is left out: a killed process and a call
that fails stand at the same places.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import deevo_ext as deevo
from campaigns.outcomes import Outcomes, some
from support.evolution import population, sphere
from support.recipe_runs import PlainNet, recipe_run, save_checkpoints

CALLS = ("open", "pwrite", "fsync", "replace", "ftruncate", "unlink", "mkdir", "chmod")
ERRORS = (errno.ENOSPC, errno.EIO, errno.EDQUOT)


@contextlib.contextmanager
def at_calls(then: Callable[[int, str, tuple[Any, ...]], None]) -> Iterator[None]:
    """Calls `then(number, name, arguments)` before each of `CALLS`, which are functions of os."""
    real = {name: getattr(os, name) for name in CALLS}
    count = 0

    def patched(name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            then(count, name, arguments)
            return real[name](*arguments, **options)

        return call

    for name in CALLS:
        setattr(os, name, patched(name))
    try:
        yield
    finally:
        for name, function in real.items():
            setattr(os, name, function)


def weights(checkpoints: Path, folder: Path) -> str:
    """A short search of weights; returns the SHA-256 of what it came to."""
    de = deevo.DifferentialEvolution(population(), generations=3, seed=1)
    return deevo.Evolution(de, sphere, run_dir=folder, progress=False).run().digest


def coefficients(checkpoints: Path, folder: Path) -> str:
    """A short search of coefficients; returns the SHA-256 of what it came to."""
    run = recipe_run(checkpoints, folder, PlainNet, batchnorm="evolve", rounds=1, count=120)
    run.run()
    assert run.chosen is not None
    return run.chosen.digest


def contents(folder: Path) -> tuple[list[str], list[dict[str, Any]]]:
    """The names in a run folder, and the journal without what differs from run to run."""
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
    lines = (folder / "journal.jsonl").read_text().splitlines()
    kept = [json.loads(line) for line in lines]
    return names, [
        {k: v for k, v in line.items() if k not in ("seconds", "check")} for line in kept[1:]
    ]


@pytest.fixture(params=[weights, coefficients])
def search(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[Path], str]]:
    checkpoints = save_checkpoints(tmp_path / "checkpoints", PlainNet)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # processes are forked
    yield lambda folder: request.param(checkpoints, folder)
    torch.set_num_threads(threads)


def enumerated(search: Callable[[Path], str], folder: Path) -> list[str]:
    """The calls of a straight run, in their order, when everything has been imported."""
    search(folder.with_name("warm"))
    calls: list[str] = []
    with at_calls(lambda number, name, arguments: calls.append(name)):
        search(folder)
    return calls


def killed(search: Callable[[Path], str], folder: Path, at: int, half: bool) -> bool:
    """Runs in a child that is killed at a call; half: when a write has done half of its work."""
    real = os.pwrite

    def then(number: int, name: str, arguments: tuple[Any, ...]) -> None:
        if number != at:
            return
        if half:
            file, data, offset = arguments
            real(file, data[: len(data) // 2], offset)
        os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException), at_calls(then):
            search(folder)
        os._exit(1)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def test_a_run_killed_at_any_write_goes_on_to_the_same_end(
    search: Callable[[Path], str], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    calls = enumerated(search, tmp_path / "straight")
    expected, right = search(tmp_path / "straight"), contents(tmp_path / "straight")
    outcomes = Outcomes(f"kills of {request.node.callspec.id}")
    for half in (False, True):
        places = [n for n, name in enumerate(calls, 1) if not half or name == "pwrite"]
        for at in some(places, 6):
            folder = tmp_path / f"run-{at}-{half}"
            what = f"killed at call {at}, {calls[at - 1]}{' half done' * half}"
            if not killed(search, folder, at, half):
                outcomes.fail(f"{what}: the child was not killed")
                continue
            try:
                same = search(folder) == expected and contents(folder) == right
            except Exception as error:
                outcomes.fail(f"{what}: {error!r}"[:300])
                continue
            if same:
                outcomes.counts["same end"] += 1
            else:
                outcomes.fail(f"{what}: another end: {contents(folder)[0]}")
            shutil.rmtree(folder)
    outcomes.check()


def test_a_call_that_fails_is_one_error_and_loses_nothing(
    search: Callable[[Path], str], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    calls = enumerated(search, tmp_path / "straight")
    expected, right = search(tmp_path / "straight"), contents(tmp_path / "straight")
    outcomes = Outcomes(f"failing calls of {request.node.callspec.id}")
    cases = [(at, code) for code in ERRORS for at in range(1, len(calls) + 1)]
    for at, code in some(cases, 10):
        folder = tmp_path / f"run-{at}-{code}"
        what = f"{errno.errorcode[code]} of call {at}, {calls[at - 1]}"

        def then(
            number: int, name: str, arguments: tuple[Any, ...], k: int = at, e: int = code
        ) -> None:
            if number == k:
                raise OSError(e, os.strerror(e))

        with at_calls(then):
            outcome = outcomes.of(what, lambda f=folder: search(f))
        if outcome == "failures":
            continue
        try:
            if search(folder) != expected or contents(folder) != right:
                outcomes.fail(f"{what}: another end")
        except Exception as error:
            outcomes.fail(f"{what}, then: {error!r}"[:300])
        shutil.rmtree(folder, ignore_errors=True)
    outcomes.check()
