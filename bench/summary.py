"""Notes in summary.json what bench/gpu.sh ran, and packs the results that there are.

    summary.py FILE FOLDER STEP OUTCOME SECONDS

FOLDER's files become results.tgz beside FILE. Steps that end at the same time take turns.
"""

from __future__ import annotations

import datetime
import fcntl
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tarfile
from collections.abc import Callable
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
    """The commit that is checked out there, with "-dirty" where files differ from it.

    The environment's DEEVO_COMMIT goes before: a copy without .git cannot say what it is of.
    """
    if named := os.environ.get("DEEVO_COMMIT"):
        return named
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


def main(file: str, folder: str, step: str, outcome: str, seconds: str) -> None:
    """Adds an outcome to the file, in place of an older one of the same step, and packs."""
    path, work = Path(file), Path(folder)
    with (work / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        summary: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
        known = work / ".machine"
        if not known.exists():
            known.write_text(json.dumps(facts()))
        machine = json.loads(known.read_text())
        if summary.get("machine") != machine:  # what another commit or machine gave is not kept
            summary = {"machine": machine, "steps": {}}
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        summary["steps"][step] = {"outcome": outcome, "seconds": int(seconds), "date": now}
        replace(path, lambda draft: draft.write_text(json.dumps(summary, indent=1) + "\n"))
        replace(path.with_name("results.tgz"), lambda draft: pack(work, draft))


def replace(path: Path, write: Callable[[Path], object]) -> None:
    """Writes a file whole, or leaves it as it was."""
    draft = path.with_name(path.name + ".new")
    write(draft)
    os.replace(draft, path)


def pack(folder: Path, target: Path) -> None:
    """Packs a folder's files; hidden ones stay behind."""
    with tarfile.open(target, "w:gz") as archive:
        for file in sorted(folder.iterdir()):
            if not file.name.startswith("."):
                archive.add(file, f"results/{file.name}")


if __name__ == "__main__":
    main(*sys.argv[1:])
