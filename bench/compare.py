"""A run beside an older one: what became slower by more than both runs' noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.row import Row, identity, spread

LEAST = 0.05
RULE = (
    "changed: by more than 5 % and more than the two rows' spreads, (p80 - p20) / median, together"
)


def read_rows(path: Path) -> list[Row]:
    """The rows of a --json file; SystemExit where it holds something else."""
    import json

    try:
        rows: Any = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise SystemExit(f"bench: --compare {path}: {error}") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise SystemExit(f"bench: --compare {path}: expected a list of rows, as --json writes them")
    return rows


def changes(old: list[Row], new: list[Row]) -> tuple[list[tuple[float, Row]], int]:
    """(new / old median, row) of rows that changed by the rule; and how many could be compared."""
    before = {identity(row): row for row in old if "median_s" in row}
    changed, compared = [], 0
    for row in new:
        other = before.get(identity(row))
        if other is None or "median_s" not in row:
            continue
        compared += 1
        change = row["median_s"] / other["median_s"]
        if abs(change - 1) > max(LEAST, spread(row) + spread(other)):
            changed.append((change, row))
    return sorted(changed, key=lambda pair: -pair[0]), compared


def report(old: list[Row], new: list[Row]) -> tuple[str, int]:
    """Text, and the number of regressions."""
    changed, compared = changes(old, new)
    slower = sum(change > 1 for change, _ in changed)
    timed = sum("median_s" in row for row in new)
    lines = [
        f"{compared} of {timed} rows have a counterpart; {slower} slower, "
        f"{len(changed) - slower} faster ({RULE})"
    ]
    for change, row in changed:
        word = "SLOWER" if change > 1 else "faster"
        names = ("case", "backend", "instruction_set", "dtype", "size", "np", "threads")
        what = " ".join(str(row[name]) for name in names if row[name] not in ("", None))
        lines.append(f"{word} {change:.2f} x: {what}")
    return "\n".join(lines), slower
