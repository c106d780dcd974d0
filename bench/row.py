"""A measured row held against the machine's limits, and against its neighbours."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from bench import limits, measure
from bench.job import Job

Row = dict[str, Any]
# Rows that differ in nothing but these are alternatives to one another.
ALTERNATIVES = ("backend", "instruction_set")
IDENTITY = (
    "case", "backend", "device", "gpu", "cpu", "dtype", "size", "np", "threads",
    "instruction_set", "batch",
)  # fmt: skip
_ALIKE = tuple(name for name in IDENTITY if name not in ALTERNATIVES)


def against_copy(times: tuple[list[float], list[float]], traffic: int, copied: int) -> Row:
    """limit_s: the time for `traffic` at the speed of the copies timed in turn with the runs.

    A copy reads and writes each of its bytes.
    """
    seconds, copies = times
    limit = measure.summary(copies)["median_s"] * traffic / (2 * copied)
    return {**measure.summary(seconds), "bytes": traffic, "limit_s": limit}


def finish(job: Job, row: Row) -> Row:
    """Adds what follows from times, bytes and FLOP.

    limit_s: `bytes` at the copy bandwidth, the run's where the row has none of its own; ratio:
    median_s / limit_s; flop_limit_s: `flops` at the device's highest rate; of_limit: the slower
    of the two as a share of median_s, 1 being what the machine can do; bound: which one that is.
    """
    if "median_s" not in row:
        return row
    median = row["median_s"]
    if "limit_s" not in row:
        if job.case == "copy":
            row["limit_s"] = median
        else:
            row["limit_s"] = row["bytes"] / limits.copy_rate(job.device, job.threads)
    row["ratio"] = median / row["limit_s"]
    row["bytes_per_s"] = row["bytes"] / median
    row["copy_bytes_per_s"] = row["bytes"] / row["limit_s"]
    if job.weights and not row.get("flops"):
        row["bytes_per_weight"] = row["bytes"] / (job.members * job.weights)
    bound, slower = "memory", row["limit_s"]
    if row.get("flops"):
        row["flops_per_s"] = row["flops"] / median
        if job.case == "peak" or (job.case, job.device) == ("matmul", "cuda"):
            rate = row["flops_per_s"]
        else:
            # CPUs compute float16 in float32, and torch's own float16 product there is a slow one.
            halves = job.device == "cpu" and job.dtype_name == "float16"
            dtype = "float32" if halves else job.dtype_name
            rate = limits.product_rate(job.device, dtype, job.threads, job.quick)
        row["flop_limit_s"] = row["flops"] / rate
        if row["flop_limit_s"] > slower:
            bound, slower = "compute", row["flop_limit_s"]
    row["of_limit"], row["bound"] = slower / median, bound
    return row


def spread(row: Row) -> float:
    """(p80 - p20) / median."""
    return (row["p80_s"] - row["p20_s"]) / row["median_s"]


def mark_ties(rows: list[Row]) -> None:
    """Names, in each row's `ties`, the alternatives that its variation does not tell it from.

    Alternatives are sorted by median; two neighbours are a tie where their ranges from p20 to p80
    overlap.
    """
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        row.pop("ties", None)
        if "median_s" in row:
            groups.setdefault(tuple(row.get(name) for name in _ALIKE), []).append(row)
    for group in groups.values():
        group.sort(key=lambda row: row["median_s"])
        for a, b in pairwise(group):
            if b["p20_s"] <= a["p80_s"]:
                a.setdefault("ties", []).append(_name(b))
                b.setdefault("ties", []).append(_name(a))


def identity(row: Row) -> tuple[Any, ...]:
    """What a row of another run must share to be the same measurement."""
    return tuple(row.get(name) for name in IDENTITY)


def _name(row: Row) -> str:
    return " ".join(filter(None, (row["backend"], row["instruction_set"])))
