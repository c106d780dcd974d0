"""Notes in summary.json what bench/gpu.sh ran: `summary.py FILE VERB STEP OUTCOME`."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any


def answer(*command: str) -> str | None:
    """What a program prints, one line; None if it is not there or fails."""
    try:
        result = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        return None
    lines = result.stdout.strip().splitlines()
    return lines[-1].strip() if result.returncode == 0 and lines else None


def version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def commit(folder: Path) -> str | None:
    """The commit that is checked out there, with "-dirty" where files differ from it."""
    describe = "--no-optional-locks describe --always --abbrev=40 --dirty --exclude=*"
    return answer("git", "-C", str(folder), *describe.split())


def facts() -> dict[str, Any]:
    """The machine and the versions."""
    smi = ("nvidia-smi", "--format=csv,noheader", "--id=0")
    return {
        "gpu": answer(*smi, "--query-gpu=name"),
        "driver": answer(*smi, "--query-gpu=driver_version"),
        "nvcc": answer("nvcc", "--version"),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "triton", "deevo_ext")},
        "commit": commit(Path()),
    }


def main(file: str, verb: str, step: str, outcome: str) -> None:
    """Adds an outcome to the file, in place of an older one of the same step."""
    path = Path(file)
    summary: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    steps = summary.get("steps", {})
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    steps[f"{verb}/{step}"] = {"outcome": outcome, "date": now, **facts()}
    draft = path.with_name(path.name + ".new")
    draft.write_text(json.dumps({"steps": steps}, indent=1) + "\n")
    os.replace(draft, path)


if __name__ == "__main__":
    main(*sys.argv[1:])
