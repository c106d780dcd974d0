"""The journal: a run as its records, one JSON line a generation, flushed to the disk.

Line 1 is the header (contract version, configuration, seed, population, checkpoints); each further
line one generation's fitness values as hex floats; the last one names the returned candidate. With
the initial checkpoints it gives every weight of the run again. How records become lines is known
here and in `records` alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deevo_ext.errors import DeevoError
from deevo_ext.ops.tables import CONTRACT_VERSION
from deevo_ext.runs.records import GenerationRecord, Header, Returned, from_json, require, to_json

FILE_NAME = "journal.jsonl"


@dataclass(frozen=True)
class Recording:
    """What a journal holds in its first `whole` bytes, which end with the last whole line.

    header: None for an empty journal.
    """

    path: Path
    header: Header | None
    generations: list[GenerationRecord]
    returned: Returned | None
    whole: int

    def line_of(self, index: int) -> contextlib.AbstractContextManager[None]:
        """Returns `line_of` for generations[index], or for what was returned after the last."""
        return line_of(self.path, index + 2)


def read(path: Path) -> Recording:
    """Reads a journal.

    A torn last line, as a crash leaves it, is left out. Damage anywhere else raises DeevoError that
    names file and line. A journal of another contract is refused.
    """
    data = path.read_bytes()
    lines: list[Any] = []
    whole = 0
    for number, text in enumerate(data.splitlines(keepends=True), start=1):
        try:
            if not text.endswith(b"\n"):
                raise ValueError("no end of line")
            lines.append(require(json.loads(text), dict))
        except (TypeError, ValueError) as error:
            if whole + len(text) == len(data):
                break
            with line_of(path, number):
                raise ValueError(str(error)) from None
        whole += len(text)
    if not lines:
        return Recording(path, None, [], None, whole)
    if lines[0].get("contract") != CONTRACT_VERSION:
        raise DeevoError(
            f"{path} was written under contract version {lines[0].get('contract')!r}; this "
            f"version of deevo_ext replays contract {CONTRACT_VERSION} only: use the one that "
            "wrote it"
        )
    with line_of(path, 1):
        header = from_json(Header, lines[0])
    generations: list[GenerationRecord] = []
    returned = None
    for number, line in enumerate(lines[1:], start=2):
        with line_of(path, number):
            if returned is not None:
                raise ValueError("it follows the end of the run")
            if "returned" in line:
                returned = from_json(Returned, line["returned"])
            else:
                generations.append(from_json(GenerationRecord, line))
    return Recording(path, header, generations, returned, whole)


def read_folder(run_dir: Path | None) -> Recording | None:
    """Reads the journal of a run folder; returns None where no run has begun."""
    if run_dir is None or not (run_dir / FILE_NAME).exists():
        return None
    recording = read(run_dir / FILE_NAME)
    return None if recording.header is None else recording


@contextlib.contextmanager
def line_of(path: Path, number: int) -> Iterator[None]:
    """Makes errors inside the block, which uses line `number`, name file, line and what to do."""
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
    def open(cls, folder: Path, header: Header) -> tuple[Journal, Recording]:
        """Opens a run folder's journal; returns it and what it holds to resume from.

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
            recording = read(journal.path)
            journal._end = recording.whole
            if recording.header is not None:
                difference = _first_difference(_comparable(header), _comparable(recording.header))
                if difference:
                    raise DeevoError(
                        f"run folder {folder} holds a run of another configuration: {difference}. "
                        "Choose another folder, or give the parameters of that run to resume it"
                    )
            os.ftruncate(journal._file, journal._end)
            if recording.header is None:
                journal.append(header)
        except BaseException:
            journal.close()
            raise
        return journal, recording

    def append(self, record: Header | GenerationRecord | Returned) -> None:
        """Writes one line and waits until it is on the disk; raises DeevoError if it cannot."""
        values = to_json(record)
        if isinstance(record, Returned):
            values = {"returned": values}
        line = (json.dumps(values) + "\n").encode()
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


def _comparable(header: Header) -> dict[str, Any]:
    """Returns a header without what may differ between starts, such as where files lie now."""
    values = json.loads(json.dumps(to_json(header)))
    values["checkpoints"] = [sha for _, sha in values["checkpoints"]]
    values.pop("deevo_ext")  # the contract's version decides, not the package's
    return values


def _first_difference(present: Any, recorded: Any, where: str = "") -> str | None:
    """Says where two JSON values differ first, as "a.b: x, not y"; None when they are equal."""
    parts: list[tuple[str, Any, Any]] = []
    if isinstance(present, dict) and isinstance(recorded, dict):
        # The layout's hash comes last: it follows from the rest, which says more.
        for key in sorted(present.keys() | recorded.keys(), key=lambda key: (key == "layout", key)):
            name = f"{where}.{key}" if where else key
            if key not in present or key not in recorded:
                return f"{name} is only in the {'journal' if key in recorded else 'present run'}"
            parts.append((name, present[key], recorded[key]))
    elif isinstance(present, list) and isinstance(recorded, list):
        if len(present) != len(recorded):
            return f"{where} has {len(recorded)} entries in the journal, {len(present)} now"
        for i, (a, b) in enumerate(zip(present, recorded, strict=True)):
            parts.append((f"{where}[{i}]", a, b))
    elif present != recorded and not (_is_nan(present) and _is_nan(recorded)):
        return f"{where} is {_short(recorded)} in the journal, {_short(present)} now"
    differences = (_first_difference(a, b, name) for name, a, b in parts)
    return next(filter(None, differences), None)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)
