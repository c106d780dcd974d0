"""The journal of a run folder: locked, and written line by line, each flushed to the disk."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deevo_ext.errors import DeevoError
from deevo_ext.ops.tables import CONTRACT_VERSION
from deevo_ext.runs.difference import first_difference
from deevo_ext.runs.recording import Recording, parse, with_check
from deevo_ext.runs.records import End, GenerationRecord, Header, RoundRecord, to_json

FILE_NAME = "journal.jsonl"


class Journal:
    """A run folder's journal, open and locked against a second process until it is closed.

    The folder is made where there is none. Records are appended whole: after a failed write (a full
    disk) the file is cut back to its last whole line, so that the run can be resumed once there is
    space. recording: what the journal held when it was opened; a run of this version of the
    contract, or nothing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()  # whatever the working directory becomes
        self.path = self.folder / FILE_NAME
        self._made = not folder.exists()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = self._locked()
        except OSError as error:
            raise DeevoError(
                f"run_dir {folder} cannot be the folder of a run ({error}); choose another"
            ) from None
        try:
            self.recording = parse(self.path, os.pread(self._file, os.fstat(self._file).st_size, 0))
            self._end, self._check = self.recording.whole, self.recording.check
            self._finished = self.recording.returned is not None
            header = self.recording.header
            if header is not None and header.contract != CONTRACT_VERSION:
                raise DeevoError(
                    f"run folder {folder} holds a run of contract version {header.contract}, which "
                    "is replayed (deevo replay) but not resumed: choose another folder, or resume "
                    f"it with deevo_ext {header.deevo_ext}"
                )
        except OSError as error:
            os.close(self._file)
            raise DeevoError(f"cannot read {self.path}: {error.strerror or error}") from error
        except BaseException:
            os.close(self._file)
            raise

    @property
    def check(self) -> str:
        """The check of the last line, which tells it and all before it."""
        return self._check

    def _locked(self) -> int:
        """Opens and locks the file, made where there is none."""
        file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o644)
        try:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise DeevoError(f"{self.path} is no file; choose another run folder")
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self._in_place(file):  # another process may have removed it, see `close`
                    return file
            raise DeevoError(
                f"{self.path} is in use by another process: wait for it or choose another run "
                "folder"
            )
        except BaseException:
            os.close(file)
            raise

    def _in_place(self, file: int) -> bool:
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(file))
        except OSError:
            return False

    def begin(self, header: Header) -> Recording:
        """Begins a run, or resumes the one that the folder holds; returns what it holds of it.

        Raises DeevoError naming the first difference where the folder holds another run.
        """
        self._require_same_run(header)
        with self._writing():
            os.ftruncate(self._file, self._end)
        if self.recording.header is None:
            self.append(header)
        return self.recording

    def _require_same_run(self, header: Header) -> None:
        recorded = self.recording.header
        if recorded is not None:
            difference = first_difference(_resumable(header), _resumable(recorded))
            if difference:
                of_metric = ".metric" in difference
                way = "; metric_name= names a function's version, too" if of_metric else ""
                raise DeevoError(
                    f"run folder {self.folder} holds a run of another configuration: {difference}. "
                    f"Choose another folder, or give the parameters of that run to resume it{way}"
                )

    def content(self) -> bytes:
        """Returns the whole lines that it held when it was opened."""
        return os.pread(self._file, self.recording.whole, 0)

    def append(self, record: Header | GenerationRecord | RoundRecord | End) -> None:
        """Writes one line and waits until it is on the disk; raises DeevoError if it cannot.

        A run that goes on after its end, for it has more generations or rounds now, loses the line
        that said it was finished.
        """
        if self._finished:
            self._end, self._check = self.recording.before
            with self._writing():
                os.ftruncate(self._file, self._end)
        self._finished = isinstance(record, End)
        text, check = with_check(json.dumps(to_json(record)).encode(), self._check)
        line = text + b"\n"
        with self._writing():
            done = 0
            while done < len(line):
                done += os.pwrite(self._file, line[done:], self._end + done)
            os.fsync(self._file)
        if not self._in_place(self._file):
            raise DeevoError(
                f"{self.path} was moved, replaced or deleted while the run was under way: put it "
                "back and start the run again, or begin a new run folder"
            )
        self._end, self._check = self._end + len(line), check

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Cuts the file back to its last whole line where writing fails, and says so."""
        try:
            yield
        except OSError as error:
            with contextlib.suppress(OSError):  # then a torn line is left, as by a crash
                os.ftruncate(self._file, self._end)
            raise DeevoError(
                f"cannot write {self.path}: {error.strerror or error}. The run is safe up to the "
                "generation before; free some space and start it again with the same run folder"
            ) from error

    def close(self) -> None:
        """Closes the file and gives up the lock; where no run was begun, nothing is left."""
        with contextlib.suppress(OSError):
            if not os.fstat(self._file).st_size and self._in_place(self._file):
                self.path.unlink()
                if self._made:
                    self.folder.rmdir()
        os.close(self._file)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _resumable(header: Header) -> dict[str, Any]:
    """Returns a header without what may differ between starts: it is comparable, and may grow."""
    values = comparable(header)
    if header.search == "coefficients":
        for name in ("rounds", "passes", "seconds"):
            values["fitness"].pop(name, None)
    else:
        values["configuration"].pop("generations", None)
    return values


def comparable(header: Header) -> dict[str, Any]:
    """Returns a header without what may differ between processes, such as where files lie now."""
    values = json.loads(json.dumps(to_json(header)))
    values["checkpoints"] = [sha for _, sha in values["checkpoints"]]
    values.pop("deevo_ext")  # the contract's version decides, not the package's
    return values
