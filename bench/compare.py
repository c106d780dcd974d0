"""Two versions of deevo_ext measured in turn: `python -m bench compare A B`.

Each pair of runs measures one version and then the other, in alternating order, with the same
inputs and by this checkout's suite. What counts is a row's time in units of the copy that was timed
at the same moment, so neither drift of the machine nor a slower hour decides.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from bench import ROOT
from bench.row import IDENTITY, Row, identity
from deevo_ext.text import text_table

LEAST = 0.05
MOST_OF_OTHERS = 0.1
RULE = f"changed by more than {LEAST:.0%} in the median, and to the same side in every pair"
_SHOWN = ("case", "backend", "instruction_set", "dtype", "size", "np", "threads", "batch")
_EMPTY = (None, "", "-")

Times = dict[tuple[Any, ...], float]
"""The times of a run's rows, in units of the copy."""


def main(arguments: Sequence[str]) -> int:
    """Measures two versions in turn; returns 3 where the second one is slower in something."""
    parser = argparse.ArgumentParser(
        prog="python -m bench compare",
        description="Measures two versions of deevo_ext in turn, by this checkout's suite and with "
        "the same inputs. What counts is the time in units of the copy that was timed at the same "
        f"moment. Slower or faster is what {RULE}.",
        epilog="Other options go to `python -m bench`, as --case trials,commit --threads 1.",
    )
    what = "a commit, which is built, or a folder that has deevo_ext with its compiled extension"
    parser.add_argument("a", metavar="A", help=f"the first version: {what}")
    parser.add_argument("b", metavar="B", help="the second version")
    parser.add_argument("--pairs", type=int, default=6, help="how often each runs, by default 6")
    options, others = parser.parse_known_args(arguments)
    if options.pairs < 3:
        parser.error("--pairs: at least 3")
    for word in others:
        if (name := word.partition("=")[0]) in ("--seed", "--json", "--markdown"):
            parser.error(f"{name}: each pair has its own seed, and its table is all that is kept")
    refuse_company()
    trees = [tree_of(version) for version in (options.a, options.b)]
    pairs = []
    for pair in range(options.pairs):
        refuse_company()
        order = (0, 1) if pair % 2 == 0 else (1, 0)
        times = {which: _measure(trees[which], others, pair) for which in order}
        pairs.append((times[0], times[1]))
        print(f"pair {pair + 1} of {options.pairs}", file=sys.stderr)
    text, slower = report(pairs)
    print(text)
    return 3 if slower else 0


def tree_of(version: str) -> Path:
    """The folder with a version's `deevo_ext`; that of a commit is made and built once."""
    folder = Path(version).resolve()
    if (folder / "deevo_ext").is_dir():
        if not any((folder / "deevo_ext").glob("_C*.so")):
            raise SystemExit(
                f"bench compare: {folder / 'deevo_ext'} has no compiled extension; build it there "
                "by `python setup.py build_ext --inplace`"
            )
        return folder
    asked = ("rev-parse", "--verify", "--quiet", f"{version}^{{commit}}")
    found = subprocess.run(["git", *asked], cwd=ROOT, capture_output=True, text=True)
    if found.returncode:
        raise SystemExit(
            f"bench compare: {version!r} is neither a commit of {ROOT} nor a folder with deevo_ext"
        )
    commit = found.stdout.strip()
    tree = ROOT / "build" / "compare" / commit
    if not (tree / "built").exists():
        print(f"builds {commit[:12]}", file=sys.stderr)
        tree.mkdir(parents=True, exist_ok=True)
        archive = subprocess.run(
            ["git", "archive", commit], cwd=ROOT, capture_output=True, check=True
        )
        subprocess.run(["tar", "-x"], cwd=tree, input=archive.stdout, check=True)
        _build(tree, commit)
        (tree / "built").touch()
    return tree


def _build(tree: Path, commit: str) -> None:
    """Compiles a version, with CUDA kernels only where there is a GPU to run them."""
    environment = {"FORCE_CUDA": str(int(torch.cuda.is_available())), **os.environ}
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"bench compare: {commit} does not build:\n{done.stderr[-2000:]}")


def refuse_company(share: Callable[[], float] | None = None) -> None:
    """Raises SystemExit where other processes use more than a tenth of the machine.

    share: what says how much they use; by default a second of the kernel's counters.
    """
    used = (share or used_share)()
    if used > MOST_OF_OTHERS:
        cores = os.cpu_count() or 1
        raise SystemExit(
            f"bench compare: other processes keep {used * cores:.1f} of {cores} cores busy; "
            "end them first, for what would be measured is them"
        )


def used_share(seconds: float = 1.0) -> float:
    """The share of all cores' time that is used while this process sleeps."""
    before = _counters()
    time.sleep(seconds)
    idle, every = (b - a for a, b in zip(before, _counters(), strict=True))
    return 1 - idle / max(1, every)


def _counters() -> tuple[int, int]:
    """Idle and all time of all cores so far; waiting for a disk is idle."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    numbers = [int(field) for field in fields]
    return numbers[3] + numbers[4], sum(numbers)


def _measure(tree: Path, options: Sequence[str], seed: int) -> Times:
    """Runs this checkout's suite on a version; the times of its rows in units of the copy."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.json"
        seeded = ["--seed", str(seed), "--json", str(file)]
        command = [sys.executable, "-m", "bench", *options, *seeded]
        paths = os.pathsep.join([str(tree), str(ROOT)])
        environment = {**os.environ, "PYTHONPATH": paths, "PYTHONSAFEPATH": "1"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"bench compare: {tree} is not measured:\n{done.stderr[-2000:]}")
        return times_of(json.loads(file.read_text()))


def times_of(rows: list[Row]) -> Times:
    """Of rows that were timed, the median in units of the copy's."""
    return {identity(row): row["ratio"] for row in rows if "median_s" in row}


def report(pairs: Sequence[tuple[Times, Times]]) -> tuple[str, int]:
    """The table of B's times in units of A's, and how many rows became slower."""
    rows, slower = [], 0
    common = set.intersection(*(set(times) for pair in pairs for times in pair))
    for key in (key for key in pairs[0][0] if key in common):
        changes = [b[key] / a[key] for a, b in pairs]
        median = statistics.median(changes)
        agree = all(change > 1 for change in changes) or all(change < 1 for change in changes)
        word = ""
        if agree and abs(median - 1) > LEAST:
            word = "SLOWER" if median > 1 else "faster"
            slower += median > 1
        named = zip(IDENTITY, key, strict=True)
        what = " ".join(str(part) for name, part in named if name in _SHOWN and part not in _EMPTY)
        rows.append((what, f"{median:.3f}", f"{min(changes):.3f} to {max(changes):.3f}", word))
    header = ("row", "B / A, in units of the copy", f"{len(pairs)} pairs", "")
    return f"{text_table(header, rows)}\nslower or faster: {RULE}", slower
