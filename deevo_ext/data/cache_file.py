"""The cache file: uint8 pixels, labels and digests of decoded pictures, to be memory-mapped.

A safetensors file of three tensors, N slots each: labels int64 [N] (-1: no picture there), digests
uint8 [N, 32] (SHA-256 of a slot's pixels and its label), pixels uint8 [N, H, W, C]. Its metadata
says what was done to which source. While it is built it is called FILE.partial and slots fill in
any order: pixels first, then label, then digest, so that a slot whose digest is right is whole,
whatever interrupted. No header changes after the first.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from deevo_ext.data.cached import CachedImages
from deevo_ext.data.transform import Transform
from deevo_ext.errors import DeevoError

FORMAT, VERSION = "deevo-images", 1
_PAGE = 4096
DIGEST_BYTES = 32


def slot_digest(pixels: bytes, label: int) -> bytes:
    """SHA-256 of a slot's pixels followed by its label as little-endian int64."""
    digest = hashlib.sha256(pixels)
    digest.update(struct.pack("<q", label))
    return digest.digest()


@dataclass(frozen=True)
class Description:
    """What a cache holds, as its metadata says.

    name: of the source; source: its digest; pixels: of the transform (`Transform.pixels`); parts:
    name -> (start, stop); shape: N, H, W, C.
    """

    name: str
    source: str
    pixels: dict[str, Any]
    parts: dict[str, tuple[int, int]]
    class_names: list[str]
    shape: tuple[int, int, int, int]

    def header(self) -> bytes:
        """The safetensors header, padded so that tensors begin on a page."""
        count, *image = self.shape
        sizes = (8 * count, DIGEST_BYTES * count, count * math.prod(image))
        tensors = (("labels", "I64", [count]), ("digests", "U8", [count, DIGEST_BYTES]))
        entries: dict[str, Any] = {
            "__metadata__": {
                "format": FORMAT,
                "version": str(VERSION),
                "name": self.name,
                "source": self.source,
                "pixels": json.dumps(self.pixels),
                "parts": json.dumps(self.parts),
                "class_names": json.dumps(self.class_names),
            }
        }
        start = 0
        for (name, dtype, shape), size in zip(
            (*tensors, ("pixels", "U8", list(self.shape))), sizes, strict=True
        ):
            offsets = [start, start + size]
            entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
            start += size
        text = json.dumps(entries).encode()
        text += b" " * (-(8 + len(text)) % _PAGE)
        return struct.pack("<Q", len(text)) + text


class Slots:
    """Random access to the slots of a file that is being built, from any process."""

    def __init__(self, path: Path, header: int, shape: tuple[int, int, int, int]) -> None:
        self.file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        count, *image = shape
        self.shape = tuple(image)
        self.image_bytes = math.prod(image)
        self.labels = header
        self.digests = self.labels + 8 * count
        self.pixels = self.digests + DIGEST_BYTES * count

    def holds(self, index: int, label: int | None = None) -> bool:
        """Whether the slot is whole (and has this label)."""
        digest = os.pread(self.file, DIGEST_BYTES, self.digests + DIGEST_BYTES * index)
        if digest == bytes(DIGEST_BYTES):
            return False
        (own,) = struct.unpack("<q", os.pread(self.file, 8, self.labels + 8 * index))
        pixels = os.pread(self.file, self.image_bytes, self.pixels + self.image_bytes * index)
        return digest == slot_digest(pixels, own) and label in (None, own)

    def write(self, index: int, pixels: np.ndarray, label: int) -> None:
        """Fills a slot."""
        data = np.ascontiguousarray(pixels).tobytes()
        _write(self.file, data, self.pixels + self.image_bytes * index)
        _write(self.file, struct.pack("<q", label), self.labels + 8 * index)
        _write(self.file, slot_digest(data, label), self.digests + DIGEST_BYTES * index)

    def skip(self, index: int) -> None:
        """Marks a slot as one without a picture."""
        _write(self.file, struct.pack("<q", -1), self.labels + 8 * index)

    def close(self) -> None:
        """Closes the file."""
        os.close(self.file)


def _write(file: int, data: bytes, offset: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(file, data[done:], offset + done)


@dataclass(frozen=True)
class Cache:
    """An open cache file. labels int64 [N] in memory; digests and store are memory-mapped."""

    path: Path
    description: Description
    labels: Tensor
    digests: Tensor
    store: Tensor

    @property
    def class_names(self) -> list[str]:
        """Of the labels, in order."""
        return self.description.class_names

    @property
    def skipped(self) -> int:
        """Slots without a picture."""
        return int((self.labels < 0).sum())

    def require(self, transform: Transform) -> None:
        """Refuses a cache whose pixels another transform made."""
        asked = transform.pixels()
        if asked != self.description.pixels:
            raise DeevoError(
                f"{self.path}: its pixels were made by {_said(self.description.pixels)}, but "
                f"{_said(asked)} is asked for; make another cache (deevo cache SOURCE --out FILE), "
                "or give the transform it was made with"
            )

    def images(self, part: str, transform: Transform) -> CachedImages:
        """The images of a part, normalised by `transform`, which must be the cache's.

        Raises DeevoError: no such part, no image in it, or another transform.
        """
        self.require(transform)
        if part not in self.description.parts:
            raise DeevoError(
                f"{self.path}: has no part {part!r}; it has {', '.join(self.description.parts)}"
            )
        start, stop = self.description.parts[part]
        labels = self.labels[start:stop]
        present = torch.nonzero(labels >= 0).flatten()
        if not len(present):
            raise DeevoError(f"{self.path}: part {part!r} holds no image")
        whole = len(present) == stop - start
        return CachedImages(
            self.store[start:stop],
            labels if whole else labels[present],
            transform.mean,
            transform.std,
            f"{self.description.name}/{part}",
            digests=self.digests[start:stop],
            indices=None if whole else present,
            in_memory=False,
        )


def _said(pixels: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in pixels.items())


def open_cache(path: str | Path) -> Cache:
    """Opens a cache file; pixels stay on disk until they are read.

    Raises DeevoError: missing, truncated, not a cache, or of another version.
    """
    path = Path(path)
    if not path.is_file():
        raise DeevoError(f"{path}: no such cache; make it with deevo cache SOURCE --out {path}")
    try:
        with safe_open(path, framework="pt") as file:
            found = file.metadata() or {}
            if found.get("format") != FORMAT:
                raise DeevoError(f"{path}: a safetensors file, but not a cache of images")
            if found.get("version") != str(VERSION):
                raise DeevoError(
                    f"{path}: a cache of version {found.get('version')}, not {VERSION}; make it "
                    "anew with deevo cache"
                )
            labels = file.get_tensor("labels").clone()
            digests, store = file.get_tensor("digests"), file.get_tensor("pixels")
        parts = {name: tuple(ends) for name, ends in json.loads(found["parts"]).items()}
        description = Description(
            found["name"],
            found["source"],
            json.loads(found["pixels"]),
            parts,
            json.loads(found["class_names"]),
            tuple(store.shape),
        )
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        if isinstance(error, DeevoError):
            raise
        raise DeevoError(
            f"{path}: not a whole cache file ({error}); delete it and make it anew with deevo cache"
        ) from error
    return Cache(path, description, labels, digests, store)
