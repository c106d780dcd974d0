"""Labelled pictures before any transform: folder trees, arrays, any torch Dataset."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from deevo_ext.arguments import check_arguments
from deevo_ext.errors import DeevoError

PARTS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
"""Names of a tree's parts, and the folders that may hold them; the first one is taken.

Where there is no val, test is taken for it.
"""


@runtime_checkable
class Pictures(Protocol):
    """N labelled pictures, in parts that follow each other. Worker processes get a copy (pickle).

    parts: name -> (start, stop). labels: int64 [N], or None where only `read` tells. problems:
    sentences about what is wrong already, such as a class without pictures. channels: 3, or 1 for
    grey.
    """

    name: str
    parts: dict[str, tuple[int, int]]
    class_names: list[str]
    problems: list[str]
    channels: int

    @property
    def labels(self) -> np.ndarray | None: ...

    def __len__(self) -> int: ...

    def digest(self) -> str:
        """Returns a SHA-256 (hex) that changes when the pictures do."""
        ...

    def read(self, index: int) -> tuple[Any, int]:
        """Returns a PIL image or uint8 array [h, w] or [h, w, C], and its label.

        Raises any exception where it is damaged.
        """
        ...

    def name_of(self, index: int) -> str:
        """Returns what messages call a picture."""
        ...


@dataclass
class FolderPictures:
    """A folder of class folders, or one with a folder of them each for train, val and test."""

    name: str
    root: Path
    parts: dict[str, tuple[int, int]]
    class_names: list[str]
    labels: np.ndarray | None
    files: list[str]
    problems: list[str]
    channels: int = 3

    def __len__(self) -> int:
        return len(self.files)

    def digest(self) -> str:
        """Returns the SHA-256 of names, sizes and times of change: contents are not read."""
        digest = hashlib.sha256(repr((self.parts, self.class_names)).encode())
        for file in self.files:
            try:
                status = os.stat(self.root / file)
            except OSError:
                continue  # reading it will say what is wrong
            facts = f"\0{status.st_size}\0{status.st_mtime_ns}\n".encode()
            digest.update(os.fsencode(file) + facts)  # names need not be UTF-8
        return digest.hexdigest()

    def read(self, index: int) -> tuple[Any, int]:
        """Returns the decoded file and its label."""
        from PIL import Image

        assert self.labels is not None
        with Image.open(self.root / self.files[index]) as image:
            image.load()
            return image, int(self.labels[index])

    def name_of(self, index: int) -> str:
        """Returns the picture's path."""
        return str(self.root / self.files[index])


class DatasetPictures:
    """A torch Dataset of (PIL image or uint8 array, label); it must be picklable.

    Arrays are [h, w] or [h, w, C]. Class names are its `classes` if it has some. fingerprint: says
    which pictures these are, since a Dataset does not: change it when they change. part: what the
    part that they make up is called.
    """

    def __init__(self, dataset: Any, fingerprint: str, part: str = "all") -> None:
        check_arguments(DatasetPictures.__init__, locals())
        if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
            raise DeevoError(
                f"dataset is a {type(dataset).__name__}; expected a torch Dataset with a length"
            )
        self.dataset, self.fingerprint = dataset, fingerprint
        self.name = type(dataset).__name__
        try:
            self.parts = {part: (0, len(dataset))}
        except TypeError as error:  # a length that it refuses to tell
            raise DeevoError(f"dataset has no length ({error}); expected a torch Dataset") from None
        self.class_names = [str(name) for name in getattr(dataset, "classes", ())]
        self.labels: np.ndarray | None = None
        self.problems: list[str] = []
        self.channels = 3

    def __len__(self) -> int:
        return len(self.dataset)

    def digest(self) -> str:
        """Returns the SHA-256 of type, length, class names and fingerprint."""
        kind = type(self.dataset)
        facts = (kind.__module__, kind.__qualname__, len(self), self.class_names, self.fingerprint)
        return hashlib.sha256(repr(facts).encode()).hexdigest()

    def read(self, index: int) -> tuple[Any, int]:
        """Returns the item of the Dataset; raises TypeError where it is no picture."""
        picture, label = self.dataset[index]
        if not isinstance(picture, np.ndarray) and not hasattr(picture, "convert"):
            raise TypeError(f"a {type(picture).__name__}, not a PIL image or a uint8 array")
        return picture, int(label)

    def name_of(self, index: int) -> str:
        """Returns the item's number."""
        return f"{self.name}[{index}]"


@dataclass
class Selected:
    """Some of the pictures of a source, chosen by ascending indices."""

    source: Pictures
    indices: np.ndarray

    def __post_init__(self) -> None:
        source = self.source
        assert source.labels is not None
        self.name, self.class_names = source.name, source.class_names
        self.problems, self.channels = source.problems, source.channels
        self.labels: np.ndarray | None = source.labels[self.indices]
        self.parts = {
            name: (int(np.searchsorted(self.indices, a)), int(np.searchsorted(self.indices, b)))
            for name, (a, b) in source.parts.items()
        }

    def __len__(self) -> int:
        return len(self.indices)

    def digest(self) -> str:
        """Returns the SHA-256 of the source's digest and the choice."""
        digest = hashlib.sha256(self.source.digest().encode())
        digest.update(self.indices.data)
        return digest.hexdigest()

    def read(self, index: int) -> tuple[Any, int]:
        """Returns what the source reads."""
        return self.source.read(int(self.indices[index]))

    def name_of(self, index: int) -> str:
        """Returns the source's name of the picture."""
        return self.source.name_of(int(self.indices[index]))
