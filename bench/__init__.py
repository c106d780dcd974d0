"""Benchmarks of deevo_ext's operators, run from a checkout: `python -m bench --help`.

What the columns mean and what was measured: `bench/results/README.md`.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def prefer_installed() -> None:
    """Makes `import deevo_ext` find the installed package unless this checkout is built in place.

    `python -m bench` puts the checkout first on sys.path, where a source tree without compiled
    code would hide the installed package. Call this before deevo_ext is imported.
    """
    if any((ROOT / "deevo_ext").glob("_C*.so")):
        return
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]
