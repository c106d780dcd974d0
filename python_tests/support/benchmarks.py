"""The benchmark suite run in this process, and its rows."""

import json
from pathlib import Path

from support.paths import import_from_checkout

import_from_checkout("bench")

# The fields of every row, and those of rows that hold times.
COMMON = {
    "case", "backend", "device", "dtype", "size", "np", "d", "threads", "instruction_set", "seed",
    "command", "cpu", "cores", "cpu_mhz", "omp_num_threads", "python", "torch", "deevo_ext",
    "commit", "date", "load_average",
}  # fmt: skip
TIMES = {
    "median_s", "p20_s", "p80_s", "repetitions", "bytes", "limit_s", "ratio", "bytes_per_s",
    "copy_bytes_per_s", "of_limit", "bound", "clock", "cold", "note",
}  # fmt: skip


def bench(*arguments: object) -> int:
    """The exit status of `python -m bench` with these arguments, here."""
    from bench.command import main

    return main([str(argument) for argument in arguments])


def rows_of(tmp_path: Path, *arguments: object) -> list[dict]:
    """The rows that these arguments give, measured quickly."""
    assert bench("--quick", "--seed", 7, *arguments, "--json", tmp_path / "rows.json") == 0
    return json.loads((tmp_path / "rows.json").read_text())


def some_row(**fields: object) -> dict:
    """A row as the suite writes it, for what reads rows."""
    row = {name: None for name in (*COMMON, *TIMES)} | {
        "case": "trials", "backend": "cpu", "device": "cpu", "dtype": "float32", "size": "resnet18",
        "np": 20, "d": 11_689_512, "threads": 2, "instruction_set": "avx512", "median_s": 0.050,
        "p20_s": 0.049, "p80_s": 0.051, "limit_s": 0.048, "ratio": 0.050 / 0.048, "bytes": 10**9,
        "bytes_per_s": 2e10, "copy_bytes_per_s": 2.1e10, "of_limit": 0.96, "bound": "memory",
        "cores": 2, "cpu": "Some CPU", "load_average": 0.5, "date": "2030-01-01T00:00:00+00:00",
        "note": "",
    }  # fmt: skip
    return row | fields
