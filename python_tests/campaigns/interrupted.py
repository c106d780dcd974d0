"""Runs that are killed, or find a call failing, at each call that changes a file of their folder.

    LD_PRELOAD=failing_files.so python -m campaigns.interrupted SEARCH FOLDER

The file layer counts the calls of a straight run below it, so that none is left out: writes of
libraries and of Python's buffers too. Each case is a child, forked when everything is imported.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import deevo_ext as deevo
from campaigns.outcomes import FULL, Outcomes, some
from support.evolution import population, sphere
from support.recipe_runs import PlainNet, recipe_run, save_checkpoints

PASS, KILL, KILL_HALF, FAIL, FAIL_HALF, DISK_FULL = range(6)
ERRORS = (errno.ENOSPC, errno.EIO, errno.EDQUOT)
WRITES = ("write", "pwrite", "pwrite64")
SECONDS = 120  # after which a child hangs
_TIMES = ("seconds", "check")  # of the journal's lines, which differ from run to run


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


SEARCHES = {"weights": weights, "coefficients": coefficients}


class Layer:
    """The file layer that is loaded into this process."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(None)
        self._library.failing_names.restype = ctypes.c_char_p

    def watch(self, folder: Path, mode: int = PASS, at: int = 0, code: int = 0) -> None:
        """Begins to count the calls below a folder; `mode` is what becomes of call `at`."""
        at_call, error = ctypes.c_long(at), ctypes.c_int(code)
        self._library.failing_files(os.fsencode(folder), mode, at_call, error)

    def calls(self) -> list[str]:
        """The names of the calls so far."""
        return self._library.failing_names().decode().split()


def contents(folder: Path) -> tuple[list[tuple[str, str]], list[dict[str, Any]]]:
    """Files with their SHA-256, and the journal's lines without what differs from run to run."""
    files = []
    for path in sorted(folder.rglob("*")):
        timed = path.name in ("journal.jsonl", "metrics.csv")
        known = path.is_file() and not timed
        digest = hashlib.sha256(path.read_bytes()).hexdigest() if known else ""
        files.append((str(path.relative_to(folder)), digest))
    lines = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    return files, [{k: v for k, v in line.items() if k not in _TIMES} for line in lines[1:]]


def in_child(run: Callable[[], object], told: Path) -> int:
    """How a forked child ended that called `run`: 0, 3 by a DeevoError, 1 otherwise, -signal.

    What it died of is written to the file `told`.
    """
    child = os.fork()
    if not child:
        signal.alarm(SECONDS)
        status = 1
        with contextlib.suppress(BaseException):
            try:
                run()
                status = 0
            except deevo.DeevoError:
                status = 3
            except BaseException as error:
                told.write_text(f"{type(error).__name__}: {error}")
        os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def cases_of(calls: list[str]) -> list[tuple[int, int, int]]:
    """(mode, place, error) of all cases."""
    places = range(1, len(calls) + 1)
    writes = [at for at in places if calls[at - 1] in WRITES]
    return [
        *((KILL, at, 0) for at in places),
        *((KILL_HALF, at, 0) for at in writes),
        *((FAIL, at, code) for code in ERRORS for at in places),
        *((FAIL_HALF, at, errno.ENOSPC) for at in writes),
        *((DISK_FULL, at, errno.ENOSPC) for at in places),
    ]


def campaign(name: str, folder: Path) -> None:
    """All cases of a search, or some of them; raises AssertionError where one went wrong."""
    torch.set_num_threads(1)  # processes are forked
    layer, search = Layer(), SEARCHES[name]
    checkpoints = save_checkpoints(folder / "checkpoints", PlainNet)
    search(checkpoints, folder / "warm")
    layer.watch(folder / "straight")
    expected = search(checkpoints, folder / "straight")
    calls, right = layer.calls(), contents(folder / "straight")
    kills, failures = Outcomes(f"kills of {name}"), Outcomes(f"failing calls of {name}")
    cases = cases_of(calls)
    killed = [case for case in cases if case[0] in (KILL, KILL_HALF)]
    for mode, at, code in some(killed, 9) + some([c for c in cases if c not in killed], 9):
        case = folder / f"run-{mode}-{at}-{code}"
        outcomes = kills if mode in (KILL, KILL_HALF) else failures
        kind = ("", "killed at", "killed half way through", "failed:", "failed half way:", "full:")
        what = f"{kind[mode]} {errno.errorcode.get(code, '')} call {at}, {calls[at - 1]}"

        def run(m: int = mode, k: int = at, e: int = code, there: Path = case) -> None:
            layer.watch(there, m, k, e)
            search(checkpoints, there)

        ended = in_child(run, folder / "told")
        if ended != (-signal.SIGKILL if outcomes is kills else 3):
            told = (folder / "told").read_text() if ended == 1 else ""
            outcomes.fail(f"{what}: the child ended with {ended} {told}"[:300])
            continue
        try:
            layer.watch(folder / "nothing")
            same = search(checkpoints, case) == expected and contents(case) == right
        except Exception as error:
            outcomes.fail(f"{what}, then: {error!r}"[:300])
            continue
        if same:
            outcomes.counts["same end"] += 1
        else:
            outcomes.fail(f"{what}: another end: {contents(case)[0]}"[:400])
        shutil.rmtree(case)
    print(f"{len(calls)} calls of a run of {name}" if FULL else "")
    kills.check()
    failures.check()


if __name__ == "__main__":
    campaign(sys.argv[1], Path(sys.argv[2]))
