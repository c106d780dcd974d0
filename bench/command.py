"""Runs the jobs and writes what they gave, as it comes."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

import deevo_ext
from bench import ROOT, compare, machine, options
from bench.cases import CASES
from bench.fits import fits
from bench.job import Job, Skipped, WrongResult
from bench.row import Row, finish, mark_ties
from bench.table import table
from deevo_ext import _extension
from deevo_ext.errors import DeevoError
from deevo_ext.files import write_whole
from deevo_ext.text import markdown_table


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures; returns 1 after a wrong result, and of `compare` 3 where something is slower."""
    words = sys.argv[1:] if arguments is None else arguments
    if words[:1] == ["compare"]:
        return compare.main(words[1:])
    chosen = options.parse(words)
    _refuse_changes(chosen.json)
    where = Path(deevo_ext.__file__).parent
    print(f"measures {where}, load average {os.getloadavg()[0]:.2f}", file=sys.stderr)
    with _engines_anew():
        return _measure_all(chosen)


def _refuse_changes(json: Path | None) -> None:
    """Raises SystemExit for rows that would be kept and are of no commit."""
    results = ROOT / "bench" / "results"
    if json is None or results not in json.resolve().parents:
        return
    commit = machine.environment("cpu")["commit"]
    if commit is None or commit.endswith("-dirty"):
        raise SystemExit(
            f"bench: --json {json}: rows that are kept are of one commit, but the code is "
            f"{commit or 'of none'}; commit first, or write elsewhere"
        )


def _measure_all(chosen: argparse.Namespace) -> int:
    rows: list[Row] = []
    started = time.perf_counter()
    for number, job in enumerate(chosen.jobs, start=1):
        spent = time.perf_counter() - started
        print(f"[{number}/{len(chosen.jobs)}, {spent:.0f} s] {job.command}", file=sys.stderr)
        try:
            late = chosen.limit is not None and spent > 60 * chosen.limit
            rows.extend(measure_job(job, f"--limit {chosen.limit:g} was over" if late else ""))
        except WrongResult as error:
            print(f"bench: wrong result: {error}; it was not timed", file=sys.stderr)
            return 1
        except DeevoError as error:
            print(f"bench: {error}", file=sys.stderr)
            return 1
        mark_ties(rows)
        _write(rows, chosen.json, chosen.markdown)  # what is measured stays, whatever comes
    print(table(rows))
    for line in fits(rows):
        print(line)
    return 0


@contextlib.contextmanager
def _engines_anew() -> Iterator[None]:
    """Networks choose their engines in this run, not by what a busy machine once found."""
    name = "DEEVO_CACHE_DIR"
    before = os.environ.get(name)
    with tempfile.TemporaryDirectory() as folder:
        os.environ[name] = before or folder
        try:
            yield
        finally:
            if before is None:
                del os.environ[name]


def measure_job(job: Job, skip: str = "") -> list[Row]:
    """The rows of one job, with what all rows have; skip: why it is not measured."""
    instruction_set = "torch" if job.backend == "reference" else ""
    torch.set_num_threads(job.threads)
    if job.backend == "cpu" and CASES[job.case].module != "limits":
        extension = _extension.load()
        if not extension.use_instruction_set(job.isa):
            raise DeevoError(f"this machine has no {job.isa}; leave --isa out")
        instruction_set = extension.instruction_set()
    common = {
        "case": job.case,
        "backend": job.backend,
        "device": job.device,
        "dtype": job.dtype_name,
        "size": job.size,
        "np": job.members,
        "d": job.weights,
        "threads": job.threads,
        "instruction_set": instruction_set,
    }
    try:
        measured = {"skipped": skip} if skip else CASES[job.case].run(job)
    except Skipped as reason:
        measured = {"skipped": str(reason)}
    rows = measured if isinstance(measured, list) else [measured]
    rest = {"seed": job.seed, "command": job.command, **machine.environment(job.device)}
    return [finish(job, {**common, **row, **rest}) for row in rows]


def _write(rows: list[Row], to_json: Path | None, to_markdown: Path | None) -> None:
    texts = {to_json: json.dumps(rows, indent=1), to_markdown: table(rows, markdown_table)}
    for path, text in texts.items():
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, (text + "\n").encode())
