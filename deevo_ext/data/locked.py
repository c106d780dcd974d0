"""A file that one process at a time fills, while others that want it wait."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from deevo_ext.errors import DeevoError

log = logging.getLogger("deevo_ext")


@contextlib.contextmanager
def locked(partial: Path) -> Iterator[int]:
    """Opens the partial file, made if need be, and keeps it for this process alone.

    Yields its descriptor. Raises DeevoError: it cannot be written or locked, or is no file.
    """
    while True:
        file = _opened(partial)
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log.info("waiting for another process, which writes %s", partial)
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError as error:  # some file systems of clusters have no locks
                raise DeevoError(
                    f"cannot lock {partial}: {error.strerror}; choose a folder of another file "
                    "system"
                ) from error
            # The process that had it has renamed it by now, or removed it for want of room.
            if _is_there(file, partial):
                yield file
                return
        finally:
            os.close(file)


def _opened(partial: Path) -> int:
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        # A link there, which others may have put into a shared folder, is not followed.
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        file = os.open(partial, flags, 0o666)
    except OSError as error:
        reason = "it is a link; remove it" if error.errno == errno.ELOOP else error.strerror
        raise DeevoError(f"cannot write {partial}: {reason}") from error
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise DeevoError(
            f"cannot write {partial}: it is no file, but a pipe or device; remove it, or "
            "choose another place"
        )
    return file


def _is_there(file: int, path: Path) -> bool:
    """Whether an open file is still the one of this name."""
    try:
        return os.path.samestat(os.fstat(file), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False
