"""A run folder's journal for all ranks: rank 0 reads and writes it, the others know its content."""

from __future__ import annotations

from pathlib import Path

from deevo_ext.distributed.ranks import ranks
from deevo_ext.runs.journal import FILE_NAME, Journal
from deevo_ext.runs.recording import Recording, parse, read_journal
from deevo_ext.runs.records import End, GenerationRecord, Header, RoundRecord


class FollowedJournal(Journal):
    """What rank 0 has read, for a rank that need not reach the run folder; nothing is written."""

    def __init__(self, folder: Path, content: bytes) -> None:
        self.folder = folder.absolute()
        self.path = self.folder / FILE_NAME
        self.recording = parse(self.path, content)
        self._check = self.recording.check

    def begin(self, header: Header) -> Recording:
        """Returns what the journal holds; raises as rank 0's does."""
        self._require_same_run(header)
        return self.recording

    def append(self, record: Header | GenerationRecord | RoundRecord | End) -> None:
        """Leaves the record to rank 0."""

    def close(self) -> None:
        """Leaves that to rank 0, too."""


def holds_run(folder: str | Path | None) -> bool:
    """Returns whether a run has begun in a folder, by the journal that rank 0 finds there."""
    path = None if folder is None else Path(folder) / FILE_NAME
    return ranks().lead(
        lambda: path is not None and path.exists() and read_journal(path).header is not None
    )


def open_journal(folder: Path) -> Journal:
    """Opens a run folder's journal on rank 0, and what it holds on the others."""
    own = Journal(folder) if ranks().leads else None
    content = ranks().lead(lambda: b"" if own is None else own.content())
    return FollowedJournal(folder, content) if own is None else own
