"""Benchmarks of deevo_ext's operators, run from a checkout: `python -m bench --help`.

What the columns mean and what was measured: `bench/results/README.md`.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def prefer_installed() -> None:
    """Puts the checkout last on sys.path, unless it leads there and is built in place.

    `python -m bench` puts the checkout first, where a source tree without compiled code would hide
    the installed package. Last, it lets child processes import `bench`. Call this before deevo_ext
    is imported.
    """
    others = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]
    built = any((ROOT / "deevo_ext").glob("_C*.so"))
    if len(others) == len(sys.path) or not built:
        sys.path[:] = [*others, str(ROOT)]
