"""The journal: a run as its recipe, one JSON line a generation, flushed to the disk.

Line 1 is the header (contract version, configuration, seed, population, checkpoints); each further
line one generation's fitness values as hex floats; the last one names the returned candidate. With
the initial checkpoints it gives every weight of the run again.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from deevo_ext.errors import DeevoError
from deevo_ext.ops.tables import CONTRACT_VERSION

FILE_NAME = "journal.jsonl"
Record = dict[str, Any]


def to_hex(values: Iterable[float]) -> list[str]:
    """Floats as hex text, which loses no bit."""
    return [float(value).hex() for value in values]


def from_hex(values: Iterable[str]) -> list[float]:
    """The inverse of `to_hex`."""
    return [float.fromhex(value) for value in values]


def read(path: Path) -> tuple[list[Record], int]:
    """The journal's records (header first) and the length in bytes of what is whole.

    A torn last line, as a crash leaves it, is left out. Damage anywhere else raises DeevoError that
    names file and line. A journal of another contract is refused.
    """
    data = path.read_bytes()
    records: list[Record] = []
    whole = 0
    for number, line in enumerate(data.splitlines(keepends=True), start=1):
        last = whole + len(line) == len(data)
        try:
            if not line.endswith(b"\n"):
                raise ValueError("no end of line")
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError("not an object")
        except ValueError as error:
            if last:
                break
            raise DeevoError(
                f"{path}, line {number} is damaged ({error}): restore the journal from a backup or "
                "start a new run folder"
            ) from None
        records.append(record)
        whole += len(line)
    if records and records[0].get("contract") != CONTRACT_VERSION:
        raise DeevoError(
            f"{path} was written under contract version {records[0].get('contract')!r}; this "
            f"version of deevo_ext replays contract {CONTRACT_VERSION} only: use the one that "
            "wrote it"
        )
    return records, whole


def first_difference(own: Any, other: Any, where: str = "") -> str | None:
    """Where two JSON values differ first, as "a.b: x, not y"; None when they are equal."""
    if isinstance(own, dict) and isinstance(other, dict):
        # The layout's hash follows from the rest, which says more.
        for key in sorted(set(own) | set(other), key=lambda key: (key == "layout", key)):
            name = f"{where}.{key}" if where else key
            if key not in own or key not in other:
                return f"{name} is only in the {'journal' if key in other else 'present run'}"
            found = first_difference(own[key], other[key], name)
            if found:
                return found
        return None
    if isinstance(own, list) and isinstance(other, list) and len(own) == len(other):
        for i, (a, b) in enumerate(zip(own, other, strict=True)):
            found = first_difference(a, b, f"{where}[{i}]")
            if found:
                return found
        return None
    if isinstance(own, list) and isinstance(other, list):
        return f"{where} has {len(other)} entries in the journal, {len(own)} now"
    if own == other or (_is_nan(own) and _is_nan(other)):
        return None
    return f"{where} is {_short(other)} in the journal, {_short(own)} now"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


@contextlib.contextmanager
def line_of(path: Path, number: int) -> Iterator[None]:
    """Errors inside the block, which uses line `number`, name file, line and what to do."""
    try:
        yield
    except DeevoError as error:
        raise DeevoError(f"{path}, line {number}: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise DeevoError(
            f"{path}, line {number} is damaged ({error!r}): restore the journal from a backup or "
            "start a new run folder"
        ) from None


class Journal:
    """An open journal, locked against a second process.

    Records are appended whole: after a failed write (a full disk) the file is cut back to its last
    whole line, so that the run can be resumed once there is space.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._end = 0
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._file)
            raise DeevoError(
                f"{path} is in use by another process: wait for it or choose another run folder"
            ) from None

    @classmethod
    def open(cls, folder: Path, header: Record) -> tuple[Journal, list[Record]]:
        """Opens a run folder's journal: (journal, records after the header to resume from).

        Raises DeevoError naming the first difference when the folder holds another run.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DeevoError(
                f"run_dir {folder} cannot be a folder: {error.strerror or error}; choose another"
            ) from None
        journal = cls(folder / FILE_NAME)  # locked from here on, so nobody appends meanwhile
        try:
            records, journal._end = read(journal.path)
            if records:
                with line_of(journal.path, 1):
                    difference = first_difference(_comparable(header), _comparable(records[0]))
                if difference:
                    raise DeevoError(
                        f"run folder {folder} holds a run of another configuration: {difference}. "
                        "Choose another folder, or give the parameters of that run to resume it"
                    )
            os.ftruncate(journal._file, journal._end)
            if not records:
                journal.append(header)
        except BaseException:
            journal.close()
            raise
        return journal, records[1:]

    def append(self, record: Record) -> None:
        """Writes one line and waits until it is on the disk; raises DeevoError if it cannot."""
        line = (json.dumps(record) + "\n").encode()
        try:
            done = 0
            while done < len(line):
                done += os.pwrite(self._file, line[done:], self._end + done)
            os.fsync(self._file)
        except OSError as error:
            os.ftruncate(self._file, self._end)
            raise DeevoError(
                f"cannot write {self.path}: {error.strerror or error}. The run is safe up to the "
                "generation before; free some space and start it again with the same run folder"
            ) from error
        self._end += len(line)

    def close(self) -> None:
        """Closes the file and gives up the lock."""
        os.close(self._file)


def _comparable(header: Record) -> Record:
    """A header without what may differ between starts: where files lie now."""
    header = json.loads(json.dumps(header))
    header["checkpoints"] = [sha for _, sha in header["checkpoints"]]
    header.pop("deevo_ext")  # the contract's version decides, not the package's
    return header
