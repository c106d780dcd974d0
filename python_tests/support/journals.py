"""What a run leaves in its folder, without what a clock decides."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from deevo_ext.runs import journal


def lines(run_dir: Path) -> list[dict[str, Any]]:
    """A journal's lines without what a clock decides, and without checks, which depend on that."""
    text = (run_dir / journal.FILE_NAME).read_text().splitlines()
    return [
        {k: v for k, v in json.loads(line).items() if k not in ("seconds", "check")}
        for line in text
    ]


def files(run_dir: Path) -> dict[str, bytes]:
    """What a run leaves beside its journal and its metrics, which hold times."""
    paths = [path for path in run_dir.rglob("*") if path.is_file()]
    names = {path.relative_to(run_dir).as_posix(): path.read_bytes() for path in paths}
    return {n: data for n, data in names.items() if n not in (journal.FILE_NAME, "metrics.csv")}
