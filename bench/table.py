"""Rows as a table, for people."""

from __future__ import annotations

from collections.abc import Callable

from bench.row import Row
from deevo_ext.text import text_table

HEADER = ("case", "backend", "isa", "dtype", "size", "NP", "thr", "median", "p20-p80", "traffic",
          "GB/s", "TFLOP/s", "B/weight", "limit", "x limit", "of limit", "note")  # fmt: skip


def table(rows: list[Row], write: Callable[..., str] = text_table) -> str:
    """The rows as aligned text, or as `write` writes tables."""
    return write(HEADER, [cells(row) for row in rows], "<")


def cells(row: Row) -> tuple[str, ...]:
    """A line of the table."""
    names = ("case", "backend", "instruction_set", "dtype", "size", "np", "threads")
    start = tuple(str(row[name]) for name in names)
    empty = ("",) * 9
    if "skipped" in row:
        return (*start, *empty, f"skipped: {row['skipped']}")
    if "median_s" not in row:
        peak, floor, limit = (
            f"{row[name] / 2**20:.0f} MiB" for name in ("peak_bytes", "floor_bytes", "limit_bytes")
        )
        ratio = f"{row['ratio']:.2f}"
        return (*start, peak, "", floor, "", "", "", limit, ratio, "", row["note"])
    flops = row.get("flops_per_s")
    per_weight = row.get("bytes_per_weight")
    return (
        *start,
        seconds(row["median_s"]),
        f"{seconds(row['p20_s'])}-{seconds(row['p80_s'])}",
        size_of(row["bytes"]),
        f"{row['bytes_per_s'] / 1e9:.3g}",
        f"{flops / 1e12:.3g}" if flops else "",
        f"{per_weight:.2f}" if per_weight else "",
        seconds(max(row["limit_s"], row.get("flop_limit_s", 0.0))),
        f"{row['ratio']:.2f}" if row["ratio"] < 1000 else "",  # `peak` moves nothing
        f"{row['of_limit']:.0%} {row['bound']}",
        note(row),
    )


def note(row: Row) -> str:
    """What a row says of itself: what was done, memory, and what it is not told from."""
    parts = [row["note"]] if row.get("note") else []
    if "member_images_per_s" in row:
        parts.append(f"{row['member_images_per_s']:.0f} member-images/s")
    if "peak_bytes" in row:
        parts.append(f"peak {row['peak_bytes'] / row['floor_bytes']:.1f} x floor")
    if row.get("ties"):
        parts.append(f"not told from {', '.join(row['ties'])}")
    return "; ".join(parts)


def seconds(value: float) -> str:
    """Writes a time with three digits."""
    if value >= 1:
        return f"{value:.2f} s"
    return f"{value * 1e3:.2f} ms" if value >= 1e-3 else f"{value * 1e6:.1f} us"


def size_of(value: float) -> str:
    """Writes bytes, in powers of ten."""
    return f"{value / 1e9:.2f} GB" if value >= 1e7 else f"{value / 1e3:.1f} kB"
