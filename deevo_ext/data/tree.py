"""Pictures below class folders: each file and folder once, whatever links there are.

Real folders come first. A link is followed where it leads to a file or folder that no class has
already; loops, repeats and what is no file are named and left out. Hidden names, and folders that
systems leave behind, are left out.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

SUFFIXES = frozenset(
    (
        *(".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"),
        *(".jfif", ".gif", ".avif"),
    )
)
"""Files taken as pictures, in any case: those of torchvision's ImageFolder, and .jfif, .gif, .avif.

Of a moving picture it is the first frame.
"""

_SYSTEMS = frozenset(
    ("__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "Thumbs.db", "desktop.ini")
)
_Identity = tuple[int, int]
"""Device and inode of a file or folder."""


def class_folders(folder: Path) -> list[str]:
    """Returns the names of a folder's class folders, sorted."""
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not _is_hidden(e.name))


class Trees:
    """Finds the pictures below class folders.

    roots: the class folders by a key of the caller's. files: paths of the pictures by the same key,
    sorted. problems: sentences about what was left out, and folders that cannot be read. others:
    how many files have names that are no picture's, by suffix.
    """

    def __init__(self, parents: list[Path], roots: Mapping[tuple[str, str], Path]) -> None:
        self.problems: list[str] = []
        self.files: dict[tuple[str, str], list[str]] = {key: [] for key in roots}
        self.others: Counter[str] = Counter()
        self._seen: dict[_Identity, str] = {}
        for parent in parents:  # a link to one of these would hold every class
            status = os.stat(parent)
            self._seen[status.st_dev, status.st_ino] = str(parent)
        links: list[tuple[tuple[str, str], str]] = []
        found = [key for key, root in roots.items() if self._is_new(str(root), os.stat(root))]
        for key in found:
            links += [(key, path) for path in self._walk(key, str(roots[key]))]
        while links:
            key, path = links.pop(0)
            try:
                status = os.stat(path)
            except OSError as error:
                if is_picture(path):
                    self.problems.append(f"{path}: cannot be read ({error.strerror})")
                continue
            if os.path.isdir(path):
                if self._is_new(path, status):
                    links += [(key, below) for below in self._walk(key, path)]
            elif is_picture(path) and self._is_file(path) and self._is_new(path, status):
                self.files[key].append(path)
        for files in self.files.values():
            files.sort()

    def _walk(self, key: tuple[str, str], root: str) -> list[str]:
        """Takes what is really below a folder that is new; returns the links there, in order."""
        links: list[str] = []
        folders = [root]
        while folders:
            folder = folders.pop()
            try:
                device = os.stat(folder).st_dev
                with os.scandir(folder) as entries:
                    ordered = sorted(entries, key=lambda entry: entry.name)
            except OSError as error:
                self.problems.append(f"{folder}: cannot be read ({error.strerror})")
                continue
            for entry in ordered:
                if _is_hidden(entry.name):
                    continue
                if entry.is_symlink():
                    links.append(entry.path)
                elif entry.is_dir():
                    if self._is_new(entry.path, entry.stat()):  # bind mounts make loops, too
                        folders.append(entry.path)
                elif not is_picture(entry.name):
                    self.others[os.path.splitext(entry.name)[1].lower() or "no suffix"] += 1
                elif self._is_file(entry.path) and self._is_first(
                    entry.path, (device, entry.inode())
                ):
                    self.files[key].append(entry.path)
        return links

    def _is_new(self, path: str, status: os.stat_result) -> bool:
        return self._is_first(path, (status.st_dev, status.st_ino))

    def _is_first(self, path: str, identity: _Identity) -> bool:
        """Whether nothing seen so far is the same file or folder; says so otherwise."""
        other = self._seen.setdefault(identity, path)
        if other != path:
            self.problems.append(f"{path}: the same as {other}, by a link")
        return other == path

    def _is_file(self, path: str) -> bool:
        if os.path.isfile(path):
            return True
        self.problems.append(f"{path}: no file, but a pipe, socket or device")
        return False


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in _SYSTEMS


def is_picture(name: str) -> bool:
    """Whether a file of this name is taken for a picture."""
    return os.path.splitext(name)[1].lower() in SUFFIXES
