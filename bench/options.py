"""The command line: options and the jobs that they stand for."""

from __future__ import annotations

import argparse
import itertools
import os
import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from bench.cases import ALL, BACKENDS, BY_NAME, CASES, CPU_ALONE, NETWORKS, SIZES, standard
from bench.job import Job
from bench.measure import LEAST_REPETITIONS
from deevo_ext.backends import DEVICES

_DTYPES = ("float32", "bfloat16", "float16", "tf32", "float64")


def _one_of(*allowed: str) -> Callable[[str], str]:
    def convert(text: str) -> str:
        if text not in allowed:
            raise argparse.ArgumentTypeError(f"{text!r}; expected {', '.join(allowed)}")
        return text

    return convert


def _number(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}; expected a positive number")
    return int(text)


def _size(text: str) -> str:
    return text if text.partition("/")[0] in SIZES else str(_number(text))


AXES: dict[str, tuple[Callable[[str], Any], str]] = {
    "size": (_size, f"{', '.join(SIZES)} or a number of weights"),
    "np": (_number, "the number of members"),
    "dtype": (_one_of(*_DTYPES), "the dtype of the rows or, for networks, of the computation"),
    "backend": (_one_of(*BACKENDS), ", ".join(BACKENDS)),
    "threads": (_number, "the number of threads, by default all usable cores"),
    "isa": (_one_of("avx512", "avx2", "baseline"), "the instruction set of backend cpu"),
}
"""What cases can be varied in: how an option's words are read, and its help."""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Reads and checks the options; the jobs that they stand for are `jobs`."""
    cases = "\n".join(
        f"  {name:12} {case.what}{' (by name alone)' if name in BY_NAME else ''}"
        for name, case in CASES.items()
    )
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Measures deevo_ext beside the machine's limits and beside what else one could "
        "use.\nWithout options: everything. Options that are given several times or as comma "
        "lists make\na product; what they leave open is the case's own.",
        epilog=f"cases:\n{cases}\n\nexit status: 1 after a wrong result, 2 after a wrong option\n\n"
        "two versions in turn: python -m bench compare --help",
    )
    add = parser.add_argument
    for name, (convert, help_) in {"case": (_one_of(*CASES), "see below"), **AXES}.items():
        several = partial(_several, convert)
        add(f"--{name}", action="extend", type=several, help=help_)
    device = "where networks and peers run; operators run on their backend's device"
    add("--batch", type=_number, help="the number of images, where networks are run")
    add("--device", choices=("cpu", "cuda"), default="cpu", help=device)
    add("--repetitions", type=_number, help=f"repetitions of a row, at least {LEAST_REPETITIONS}")
    add("--budget", type=float, help="the seconds for a row's repetitions, by default 6")
    add("--limit", type=float, metavar="MINUTES", help="rows not begun by then are skipped")
    add("--seed", type=int, help="the seed of all inputs, by default a new one")
    add("--quick", action="store_true", help="measure small cases, to see whether they run")
    add("--json", type=Path, metavar="FILE", help="write the rows")
    add("--markdown", type=Path, metavar="FILE", help="write the table")
    options = parser.parse_args(arguments)
    if options.repetitions is not None and options.repetitions < LEAST_REPETITIONS:
        parser.error(f"--repetitions: at least {LEAST_REPETITIONS}")
    if options.seed is None:
        options.seed = secrets.randbelow(2**31)
    options.jobs = jobs(options)
    if not options.jobs:
        names = options.case or ("trials",)
        each = (f"case {name} has backends {', '.join(CASES[name].backends)}" for name in names)
        parser.error(f"nothing to measure: {'; '.join(each)}")
    return options


def _several(convert: Callable[[str], Any], text: str) -> list[Any]:
    return [convert(part) for part in text.split(",")]


def jobs(options: argparse.Namespace) -> list[Job]:
    """The rows to be, each once."""
    result: dict[Job, None] = {}
    for name in dict.fromkeys(options.case or standard()):
        case = CASES[name]
        fixed: dict[str, Any] = {
            axis: tuple(dict.fromkeys(value))
            for axis in case.axes
            if (value := getattr(options, axis)) is not None
        }
        groups = case.quick if options.quick else case.standard
        if options.backend is not None and "backend" not in case.axes:
            fixed["backend"] = tuple(b for b in options.backend if b in case.backends)
        for axes in groups[:1] if fixed else groups:
            for values in itertools.product(*(getattr(replace(axes, **fixed), a) for a in AXES)):
                job = _job(options, name, axes.repetitions, dict(zip(AXES, values, strict=True)))
                if job is not None:
                    result[job] = None
    return list(result)


def _job(
    options: argparse.Namespace, name: str, repetitions: int, chosen: dict[str, Any]
) -> Job | None:
    """The job of a case with one value for each axis; None where they do not go together."""
    case, size, backend = CASES[name], chosen["size"], chosen["backend"]
    device = DEVICES.get(backend, (options.device,))[0]
    if name in ("copy", "matmul") and options.device == "cuda":
        backend = device = "cuda"
    runs_networks = case.module in ("layers", "forward", "evolve", "probes") or name == "feed"
    if (
        backend not in case.backends
        or (device == "cuda" and name in CPU_ALONE)
        or (device == "cpu" and name == "graph")
        or (runs_networks and size.partition("/")[0] not in NETWORKS)
    ):
        return None
    in_tables = case.module == "operators" and "size" not in case.axes
    threads = 1 if in_tables else chosen["threads"]
    return Job(
        case=name,
        backend=backend,
        device=device,
        dtype_name=chosen["dtype"],
        size=size,
        members=chosen["np"],
        weights=0 if size == "-" or "/" in size else SIZES.get(size) or int(size),
        threads=threads if threads != ALL else len(os.sched_getaffinity(0)),
        isa=chosen["isa"] if backend == "cpu" else "",
        repetitions=options.repetitions or repetitions,
        budget_s=options.budget or (1.0 if options.quick else 6.0),
        seed=options.seed,
        batch=(options.batch or 0) if runs_networks else 0,
        quick=options.quick,
    )
