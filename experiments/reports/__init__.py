"""The committed records as Markdown tables and plots."""

from __future__ import annotations

from pathlib import Path

from deevo_ext.files import write_whole

from . import adapted, by_labels, measured, quantised, same, weights, why


def write(records: Path, docs: Path) -> None:
    """Writes `evidence-tables.md` and its pictures."""
    parts = ["<!-- made by `python -m experiments report` -->", ""]
    for chapter in (same, adapted, by_labels, quantised, measured, why, weights):
        if lines := chapter.chapter(records, docs):
            parts += [*lines, ""]
    write_whole(docs / "evidence-tables.md", "\n".join(parts).encode())
