"""Writing files that are whole or absent, and where caches lie."""

from __future__ import annotations

import os
from pathlib import Path

from deevo_ext.errors import DeevoError


def cache_folder() -> Path:
    """Returns the folder of engine tables and images: DEEVO_CACHE_DIR or ~/.cache/deevo_ext."""
    if folder := os.environ.get("DEEVO_CACHE_DIR"):
        return Path(folder)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "deevo_ext"


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file so that its name shows the old content or the new, whatever interrupts.

    Raises DeevoError that names the file when it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise DeevoError(
            f"cannot write {path}: {error.strerror or error}; free some space or choose another "
            "folder"
        ) from error
