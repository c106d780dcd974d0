"""The journal: a run as its records, one JSON line a generation, flushed to the disk.

Line 1 is the header (contract version, configuration, seed, population, checkpoints); each further
line one generation's fitness values as hex floats; the last one names the returned candidate. With
the initial checkpoints it gives every weight of the run again. How records become lines is known
here and in `records` alone.

From version 2 of the contract on, a line ends with a checksum of itself and the line before:
`"check"`, 32 hex digits of the SHA-256 of the last line's check and this line without its own.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deevo_ext.distributed.ranks import RankError
from deevo_ext.errors import DeevoError
from deevo_ext.files import read_regular
from deevo_ext.ops.tables import CONTRACT_VERSION, CONTRACTS
from deevo_ext.runs.difference import first_difference
from deevo_ext.runs.records import (
    End,
    GenerationRecord,
    Header,
    Returned,
    RoundRecord,
    from_json,
    require,
    to_json,
)

FILE_NAME = "journal.jsonl"
_BEGINNING = b'{"contract": '
# By a key that no other has.
_RECORDS = {"generation": GenerationRecord, "round": RoundRecord, "returned": End}


@dataclass(frozen=True)
class Recording:
    """What a journal holds in its first `whole` bytes, which end with the last whole line.

    header: None for an empty journal. rounds: those of a search of coefficients, which follow its
    generation 0. check: the last line's; empty in version 1. before: `whole` and `check` without
    the line of the end; the same where there is none.
    """

    path: Path
    header: Header | None
    generations: list[GenerationRecord]
    rounds: list[RoundRecord]
    returned: Returned | None
    whole: int
    check: str
    before: tuple[int, str]

    @property
    def schedule(self) -> int:
        """The number of generations of a search of weights, as it was last."""
        assert self.header is not None
        lengths = [g.generations for g in self.generations if g.generations is not None]
        return lengths[-1] if lengths else require(self.header.configuration["generations"], int)

    @property
    def records(self) -> list[GenerationRecord | RoundRecord]:
        """Generations and rounds, in the order of their lines."""
        return [*self.generations, *self.rounds]

    def line_of(self, index: int) -> contextlib.AbstractContextManager[None]:
        """Returns `line_of` for record `index` after the header: generations, rounds, the end."""
        return line_of(self.path, index + 2)


def read(path: Path) -> Recording:
    """Reads a journal.

    A torn last line, one without its end as a crash leaves it, is left out. Damage anywhere else
    raises DeevoError that names file and line, as does a journal of an unknown contract.
    """
    return parse(path, read_regular(path))


def parse(path: Path, data: bytes) -> Recording:
    """Reads the bytes of a journal at a path; see `read`."""
    lines = data.split(b"\n")  # the last one is torn, or empty
    if data[: len(_BEGINNING)] != _BEGINNING[: len(data)]:
        raise DeevoError(
            f"{path} is no journal: it begins with {data[:20]!r}. It is left as it is; move it "
            "away, or choose another run folder"
        )
    if len(lines) == 1:
        return Recording(path, None, [], [], None, 0, "", (0, ""))
    with line_of(path, 1):
        contract = require(_values(lines[0])["contract"], int)
        if contract not in CONTRACTS:
            raise DeevoError(
                f"the journal was written under contract version {contract}; this version of "
                f"deevo_ext reads {' and '.join(map(str, CONTRACTS))}: use the one that wrote it"
            )
        text, check = _verified(contract, lines[0], "")
        header: Header = _as_written(Header, text)
    generations: list[GenerationRecord] = []
    rounds: list[RoundRecord] = []
    returned, whole = None, len(data) - len(lines[-1])
    before = whole, check
    for number, line in enumerate(lines[1:-1], start=2):
        with line_of(path, number):
            if returned is not None:
                raise ValueError("it follows the end of the run")
            text, check = _verified(contract, line, check)
            record = _as_written(None, text)
            if isinstance(record, End):
                returned = record.returned
                before = whole - len(line) - 1, before[1]
            elif isinstance(record, RoundRecord):
                if header.search != "coefficients" or record.round != number - 2:
                    raise ValueError(f"round {record.round} has no place here")
                rounds.append(record)
            elif header.search == "coefficients" and record.generation:
                raise ValueError(f"generation {record.generation} has no place here")
            elif rounds or record.generation != len(generations):
                raise ValueError(
                    f"the journal goes from generation {len(generations) - 1} to "
                    f"{record.generation}: lines are missing or there twice"
                )
            else:
                generations.append(record)
            if returned is None:
                before = whole, check
    return Recording(path, header, generations, rounds, returned, whole, check, before)


def _verified(contract: int, line: bytes, before: str) -> tuple[bytes, str]:
    """Returns a line without its check, and its check, verified; version 1 has none."""
    if contract == 1:
        return line, ""
    text = line[: -len(_with_check(b"{}", "")[0]) + 1] + b"}"
    expected, check = _with_check(text, before)
    if line != expected:
        raise ValueError("its checksum does not fit it and the line before")
    return text, check


def _with_check(text: bytes, before: str) -> tuple[bytes, str]:
    """Returns a line, a JSON object, with its check as last value; and the check."""
    check = hashlib.sha256(before.encode() + text).hexdigest()[:32]
    return text[:-1] + f', "check": "{check}"}}'.encode(), check


def _values(text: bytes) -> dict[str, Any]:
    """Returns the JSON object that a line is."""
    try:
        values: dict[str, Any] = require(json.loads(text.decode("ascii")), dict)
    except RecursionError:
        raise ValueError("too many brackets") from None
    return values


def _as_written(kind: type[Any] | None, text: bytes) -> Any:
    """Reads a record, by default of the kind that its keys say.

    Raises ValueError where no record is written as this text.
    """
    values = _values(text)
    if kind is None:
        kind = next((kind for key, kind in _RECORDS.items() if key in values), None)
        if kind is None:
            raise ValueError(f"it has none of {', '.join(_RECORDS)}")
    record = from_json(kind, values)
    if json.dumps(to_json(record)).encode() != text:
        raise ValueError("no run writes it like this")
    return record


@contextlib.contextmanager
def line_of(path: Path, number: int) -> Iterator[None]:
    """Makes errors inside the block, which uses line `number`, name file, line and what to do."""
    try:
        yield
    except RankError:  # which says itself what happened on another rank
        raise
    except DeevoError as error:
        raise DeevoError(f"{path}, line {number}: {error}") from None
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DeevoError(
            f"{path}, line {number} is damaged ({repr(error)[:300]}): restore the journal from a "
            "backup, delete this line and all after it, so that the run goes on from the one "
            "before, or start a new run folder"
        ) from None


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
        text, check = _with_check(json.dumps(to_json(record)).encode(), self._check)
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
