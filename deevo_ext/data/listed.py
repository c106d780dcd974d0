"""Pictures whose labels are in a table: a CSV beside a flat folder, or Hugging Face's metadata.

    labels.csv                      train/metadata.csv, val/metadata.jsonl
    file,label,split                file_name,label
    0001.jpg,cat,train              0001.jpg,3
    0002.jpg,dog,val

A table has a header. Its columns are found by their names. Where every label is a whole number, it
is the class's; else classes are numbered as folders of their names would be.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deevo_ext.data.classes import ClassOrder, ordered
from deevo_ext.data.pictures import PARTS, FolderPictures
from deevo_ext.data.tree import SUFFIXES
from deevo_ext.errors import DeevoError

METADATA = ("metadata.csv", "metadata.jsonl")
_FILE = ("file_name", "file", "filename", "path", "image", "image_id", "id")
_LABEL = ("label", "class", "target", "labels", "category")
_PART = ("split", "part", "subset")
_WHOLE = re.compile(r"[0-9]+(\.0+)?")
"""A whole number, also as a table of floating-point numbers has it: 3.0."""


@dataclass
class ListedPictures(FolderPictures):
    """Pictures of a table, which may change its labels and leave the files as they are."""

    def digest(self) -> str:
        """Returns the SHA-256 of the files, as of a folder's, and of the labels."""
        assert self.labels is not None
        facts = super().digest().encode() + self.labels.tobytes()
        return hashlib.sha256(facts).hexdigest()


def open_metadata(root: Path, class_order: ClassOrder) -> ListedPictures | None:
    """Returns the pictures of a folder, or of its parts' folders, with metadata that has labels."""
    tables = {
        part: table
        for part, names in PARTS.items()
        if (table := next(filter(None, (_metadata(root / name) for name in names)), None))
    }
    if not tables and (table := _metadata(root)):
        tables = {"": table}
    rows: list[tuple[str, Path, str]] = []
    for part, table in tables.items():
        rows += [(own or part, file, label) for own, file, label in _rows(table, table.parent)]
    return _pictures(root, rows, class_order, str(root)) if rows else None


def open_listed(root: Path, table: Path, class_order: ClassOrder) -> ListedPictures:
    """Returns the pictures below `root` that a CSV or JSON lines file lists with their labels.

    Raises DeevoError for a table that cannot be read, lacks a column or names files that are not
    there.
    """
    return _pictures(root, _rows(table, root), class_order, str(table))


def _metadata(folder: Path) -> Path | None:
    """Returns a folder's metadata, if it says labels: it may hold captions."""
    table = next((folder / name for name in METADATA if (folder / name).is_file()), None)
    if table is None or not any(name in _records(table)[0] for name in _LABEL):
        return None
    return table


def _records(table: Path) -> list[dict[str, Any]]:
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            if table.suffix == ".jsonl":
                records: list[dict[str, Any]] = [json.loads(line) for line in file if line.strip()]
            else:
                records = list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error, RecursionError) as error:
        raise DeevoError(
            f"{table}: cannot be read ({error}); expected CSV with a header, or JSON lines (.jsonl)"
        ) from None
    if not records or not all(isinstance(record, dict) for record in records):
        raise DeevoError(f"{table}: lists no pictures; expected a header and a line for each")
    return records


def _rows(table: Path, folder: Path) -> list[tuple[str, Path, str]]:
    """Reads part ("" for none said), path and label of each picture."""
    records = _records(table)
    file_column = _column(records[0], _FILE, table, "files")
    label_column = _column(records[0], _LABEL, table, "labels")
    part_column = next((name for name in _PART if name in records[0]), None)
    rows = []
    for number, record in enumerate(records, 1):
        name, label = record.get(file_column), record.get(label_column)
        if (
            not isinstance(name, str)
            or not name
            or not isinstance(label, (str, int))
            or label == ""
        ):
            raise DeevoError(
                f"{table}: picture {number} has file {name!r} and label {label!r}; expected a name "
                "and one class"
            )
        part = "" if part_column is None else _part(str(record.get(part_column)), table, number)
        rows.append((part, _found(folder / str(name), table), str(label)))
    return rows


def _column(record: Mapping[str, Any], names: Sequence[str], table: Path, what: str) -> str:
    found = [name for name in names if name in record]
    if not found:
        raise DeevoError(
            f"{table}: no column of {what}; it has {', '.join(map(str, record))}; expected one of "
            f"{', '.join(names)}"
        )
    return found[0]


def _part(said: str, table: Path, number: int) -> str:
    for part, names in PARTS.items():
        if said.lower() in names:
            return part
    raise DeevoError(
        f"{table}: picture {number} is of {said!r}; expected one of "
        f"{', '.join(name for names in PARTS.values() for name in names)}"
    )


def _found(path: Path, table: Path) -> Path:
    """Returns a listed file, or the one that has its name and a picture's suffix."""
    if path.is_file():
        return path
    for suffix in sorted(SUFFIXES):
        if (own := path.with_name(path.name + suffix)).is_file():
            return own
    raise DeevoError(f"{table}: lists {path}, which is not there; correct the names of its files")


def _pictures(
    root: Path, rows: list[tuple[str, Path, str]], class_order: ClassOrder, source: str
) -> ListedPictures:
    said = {part for part, _, _ in rows}
    if said == {"test", "train"}:  # as in a tree
        rows = [("val" if part == "test" else part, file, label) for part, file, label in rows]
    if "" in said and len(said) > 1:
        raise DeevoError(f"{source}: some pictures are of a part and some of none; say all of them")
    texts = {label for _, _, label in rows}
    if all(_WHOLE.fullmatch(text) for text in texts):
        numbers = {text: int(text.partition(".")[0]) for text in texts}
        count = max(numbers.values()) + 1
        names = list(map(str, range(count)))
        if not isinstance(class_order, str):
            names = list(class_order)
        if count > len(names):
            raise DeevoError(f"{source}: label {count - 1}, but the class order has {len(names)}")
    else:
        names = ordered(texts, class_order, source)
        numbers = {name: number for number, name in enumerate(names)}
    parts: dict[str, tuple[int, int]] = {}
    files: list[str] = []
    labels: list[int] = []
    for part in ("", *PARTS):
        own = sorted((file, label) for of, file, label in rows if of == part)
        if own:
            parts[part or "all"] = (len(files), len(files) + len(own))
            files += [os.path.relpath(file, root) for file, _ in own]
            labels += [numbers[label] for _, label in own]
    twice = len(files) - len(set(files))
    if twice:
        raise DeevoError(f"{source}: {twice} files are listed more than once; list each once")
    return ListedPictures(
        root.name, root, parts, names, np.array(labels, np.int64), files, problems=[]
    )
