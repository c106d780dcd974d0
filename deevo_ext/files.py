"""Writing files that are whole or absent, and where caches lie."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import tempfile
from pathlib import Path

from deevo_ext.errors import DeevoError


def cache_folder() -> Path:
    """Returns the folder of engine tables and images: DEEVO_CACHE_DIR or ~/.cache/deevo_ext."""
    if folder := os.environ.get("DEEVO_CACHE_DIR"):
        return Path(folder)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "deevo_ext"


def read_regular(path: Path) -> bytes:
    """Reads a file that is one: no folder, device or pipe, which may never end.

    Raises DeevoError that names the file when it cannot be read.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise OSError(errno.EINVAL, "it is no file")
            return file.read()
    except OSError as error:
        raise DeevoError(
            f"cannot read {path}: {error.strerror or error}; expected a readable file"
        ) from error


def require_place(path: Path, said: str) -> None:
    """Raises DeevoError where no file can be put: at a folder's name, or in none.

    said: what the file is called in the error, such as "the output file".
    """
    if os.path.isdir(path):
        raise DeevoError(f"{said} is {path}, a folder; expected the name of a file")
    if not os.path.isdir(path.absolute().parent):
        raise DeevoError(f"{said} is {path}, but there is no folder {path.parent}; make it")


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file so that its name shows the old content or the new, whatever interrupts.

    A kill may leave `.NAME.XXXXXXXX.partial` beside it, which `remove_partial` removes. A pipe or a
    device is written to as it is. Raises DeevoError that names the file when it cannot be written.
    """
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            path.write_bytes(data)
            return
        handle, temporary = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name}.", suffix=_PARTIAL
        )
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            # mkstemp makes a private file; give it the mode a plain open would have.
            mask = os.umask(0)
            os.umask(mask)
            os.chmod(temporary, 0o666 & ~mask)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise DeevoError(
            f"cannot write {path}: {error.strerror or error}; free some space or choose another "
            "folder"
        ) from error


def remove_partial(folder: Path) -> None:
    """Removes what killed calls of `write_whole` left in a folder that nobody else writes to."""
    for path in folder.glob(f".*.????????{_PARTIAL}"):
        with contextlib.suppress(OSError):
            path.unlink()


_PARTIAL = ".partial"
