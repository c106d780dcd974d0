"""Metrics of every generation as a CSV file in the run folder."""

from __future__ import annotations

import csv
from pathlib import Path

from deevo_ext.errors import DeevoError


class MetricsFile:
    """Writes one row a generation; starts anew each time, since a resumed run replays its past."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("w", newline="", encoding="utf-8")
        self._writer: csv.DictWriter[str] | None = None

    def append(self, metrics: dict[str, float]) -> None:
        """Adds a row; the first decides the columns."""
        try:
            if self._writer is None:
                self._writer = csv.DictWriter(self._file, list(metrics))
                self._writer.writeheader()
            self._writer.writerow(metrics)
            self._file.flush()
        except OSError as error:
            raise DeevoError(
                f"cannot write {self.path}: {error.strerror or error}. The journal is whole; free "
                "some space and start the run again with the same run folder"
            ) from error

    def close(self) -> None:
        """Closes the file; what a full disk refused was reported by `append` already."""
        try:
            self._file.close()
        except OSError:
            if self._writer is not None and not self._file.closed:
                raise
