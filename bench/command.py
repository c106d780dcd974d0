"""The command line, the table and the files."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import deevo_ext
from bench import evaluation, gpu, measure, memory, operators
from bench.job import PEERS, Job
from deevo_ext import _extension, backends

CASES = ("trials", "commit", "tell", "plan", "generation", *evaluation.CASES, "step", "memory")
FURTHER_CASES = ("plan+tell", "trials-six", "graph")  # by name alone
GPU_CASES = ("trials", "commit", "plan", "tell", *FURTHER_CASES)
SIZES = {
    "resnet8": 78_042,
    "resnet18": 11_689_512,
    "resnet50": 25_557_032,
    "vit_b": 86_567_656,
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DEFAULT_SIZE = "default"
BACKENDS = (*backends.NAMES, *PEERS)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures the product of the options; 1 if a backend gave a wrong result."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["--child"]:
        return memory.child(*arguments[1:])
    options = _parse(arguments)
    where = Path(deevo_ext.__file__).parent
    print(f"measures {where}, load average {os.getloadavg()[0]:.2f}", file=sys.stderr)
    rows: list[dict[str, Any]] = []
    try:
        for job, size, instruction_set in _jobs(options):
            print(f"{job.case} {size} {job.backend} ...", file=sys.stderr, flush=True)
            rows.append(_measure(job, size, instruction_set, options.chunk))
            _write(rows, options)  # what is measured stays, whatever comes
    except operators.WrongResult as error:
        print(f"bench: wrong result: {error}; nothing was timed", file=sys.stderr)
        return 1
    print(table(rows))
    return 0


def _write(rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    if options.markdown:
        options.markdown.write_text(table(rows, markdown=True) + "\n")


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Times deevo_ext's operators next to memcpy. Options that are given several "
        "times or as comma lists make a product of cases.",
    )

    def listed(name: str, convert: Callable[[str], Any], help_: str) -> None:
        def several(text: str) -> list[Any]:
            return [convert(part) for part in text.split(",")]

        parser.add_argument(f"--{name}", action="extend", type=several, help=help_)

    def one_of(allowed: Sequence[str]) -> Callable[[str], str]:
        def convert(text: str) -> str:
            if text not in allowed:
                raise argparse.ArgumentTypeError(f"{text!r}; expected {', '.join(allowed)}")
            return text

        return convert

    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < 1:
            raise argparse.ArgumentTypeError(f"{text!r}; expected a positive number")
        return int(text)

    listed(
        "case",
        one_of((*CASES, *FURTHER_CASES)),
        f"default {','.join(CASES)}; also plan+tell, trials-six (strategies of six rows) and graph "
        "(tell, commit and the next plan as one CUDA graph)",
    )
    listed(
        "size",
        lambda text: text if text in SIZES else str(number(text)),
        f"{', '.join(SIZES)} or a number of weights; default resnet18 (--quick: resnet8; case "
        "step: 30)",
    )
    listed("np", number, "members; default 20")
    listed("dtype", one_of(tuple(DTYPES)), f"default {','.join(DTYPES)}")
    listed(
        "backend",
        one_of(BACKENDS),
        "default cpu; those for CUDA tensors need a GPU; torch and torch.compile time trials alone",
    )
    listed("threads", number, "default: all usable cores")
    listed(
        "isa",
        one_of(("avx512", "avx2", "baseline")),
        "instruction sets of backend cpu; default: the best that this machine has",
    )
    parser.add_argument("--chunk", type=number, default=8, help="case memory: trials at a time")
    parser.add_argument("--repetitions", type=number, help="default 15 (--quick: 5); at least 5")
    parser.add_argument("--quick", action="store_true", help="small and few: does it run?")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table")
    options = parser.parse_args(arguments)
    if options.repetitions is None:
        options.repetitions = 5 if options.quick else 15
    if options.repetitions < 5:
        parser.error("--repetitions: at least 5")
    defaults: dict[str, list[Any]] = {
        "case": list(CASES),
        "size": [DEFAULT_SIZE],
        "np": [20],
        "dtype": list(DTYPES),
        "backend": ["cpu"],
        "threads": [len(os.sched_getaffinity(0))],
        "isa": [""],
    }
    for name, default in defaults.items():
        given = getattr(options, name)
        setattr(options, name, default if given is None else list(dict.fromkeys(given)))
    return options


def _jobs(options: argparse.Namespace) -> list[tuple[Job, str, str]]:
    """The product; plan and tell have no weights, so there they are not varied."""
    jobs: dict[tuple[Job, str, str], None] = {}
    for case, size, members, dtype, backend, threads, isa in itertools.product(
        options.case,
        options.size,
        options.np,
        options.dtype,
        options.backend,
        options.threads,
        options.isa,
    ):
        repetitions = options.repetitions
        if not _can_time(case, backend):
            continue
        if case in operators.TABLE_CASES:
            size, dtype, threads, isa, repetitions = "-", None, 1, "", 20 * repetitions
        if size == DEFAULT_SIZE:
            size = "30" if case == "step" else "resnet8" if options.quick else "resnet18"
        if case == "step":
            repetitions *= 20
        if case == "head":
            size, members = "-", 1
        if case == "memory":
            repetitions = 1 if options.quick else 7
        weights = 0 if size == "-" else SIZES.get(size) or int(size)
        kind = torch.float64 if dtype is None else DTYPES[dtype]
        instruction_set = isa if backend == "cpu" else ""
        job = Job(case, backend, kind, members, weights, threads, repetitions)
        jobs[job, size, instruction_set] = None
    return list(jobs)


def _can_time(case: str, backend: str) -> bool:
    """Whether a backend has the case: GPUs have the operators', their graph and peers in torch."""
    if backend in PEERS:
        return case.startswith("trials")
    if backends.DEVICES[backend][0] == "cuda":
        return case in GPU_CASES
    return case != "graph"


def _measure(job: Job, size: str, instruction_set: str, chunk: int) -> dict[str, Any]:
    facts = measure.environment()
    used = "torch" if job.device == "cpu" else ""
    if job.backend == "cpu":
        extension = _extension.load()
        if not extension.use_instruction_set(instruction_set):
            raise SystemExit(f"bench: this machine has no {instruction_set}")
        used = extension.instruction_set()
    if job.case == "memory":
        measured = memory.run_job(job, chunk)
    else:
        measured = (evaluation if job.case in evaluation.CASES else operators).run_job(job)
    return {
        "case": job.case,
        "backend": job.backend,
        "device": job.device,
        "dtype": str(job.dtype).removeprefix("torch."),
        "size": size,
        "np": job.members,
        "d": job.weights,
        "threads": job.threads,
        "instruction_set": used,
        **measured,
        **facts,
        **(gpu.environment() if job.device == "cuda" else {}),
    }


def table(rows: list[dict[str, Any]], markdown: bool = False) -> str:
    """Aligned text, or the same as Markdown."""
    header = ("case", "backend", "isa", "dtype", "size", "NP", "threads")
    columns = (*header, "median", "p20", "p80", "traffic", "limit", "ratio", "note")
    lines = [columns, *map(_cells, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    if markdown:
        lines.insert(1, tuple("-" * width for width in widths))
    edge, gap = ("| ", " | ") if markdown else ("", "  ")
    text = [
        edge + gap.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    ]
    return "\n".join(line + " |" if markdown else line.rstrip() for line in text)


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    names = ("case", "backend", "instruction_set", "dtype", "size", "np", "threads")
    start = tuple(str(row[name]) for name in names)
    if row["case"] == "memory":
        peak, floor, limit = (
            f"{row[name] / 2**20:.0f} MiB" for name in ("peak_bytes", "floor_bytes", "limit_bytes")
        )
        return (*start, peak, "", "", floor, limit, f"{row['ratio']:.2f}", row["note"])
    times = tuple(_seconds(row[name]) for name in ("median_s", "p20_s", "p80_s"))
    limit = _seconds(row["limit_s"])
    return (*start, *times, _bytes(row["bytes"]), limit, f"{row['ratio']:.2f}", row["note"])


def _seconds(value: float) -> str:
    return f"{value * 1e3:.2f} ms" if value >= 1e-3 else f"{value * 1e6:.1f} us"


def _bytes(value: int) -> str:
    return f"{value / 1e9:.2f} GB" if value >= 1e7 else f"{value / 1e3:.1f} kB"
