"""The cache file: uint8 pixels, labels and digests of decoded pictures, to be memory-mapped.

A safetensors file of three tensors, N slots each: labels int64 [N] (-1: no picture there), digests
uint8 [N, 32] (SHA-256 of a slot's pixels and its label), pixels uint8 [N, H, W, C]. Its metadata
says what was done to which source. While it is built it is called FILE.partial and slots fill in
any order: pixels first, then label, then digest, so that a slot whose digest is right is whole,
whatever interrupted. No header changes after the first; its metadata have a checksum.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
import struct
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from deevo_ext.arguments import check_arguments
from deevo_ext.data.cached import CachedImages, image_digest
from deevo_ext.data.transform import Transform
from deevo_ext.errors import DeevoError

FORMAT = "deevo-images"
VERSION = 2
"""Of the file and of what its pixels are: before 2, 16-bit grey pictures became white."""
_PAGE = 4096
DIGEST_BYTES = 32


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

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Bytes of labels, digests and pixels, which follow the header in this order."""
        count = self.shape[0]
        return 8 * count, DIGEST_BYTES * count, math.prod(self.shape)

    def header(self) -> bytes:
        """Returns the safetensors header, padded so that tensors begin on a page."""
        count = self.shape[0]
        metadata = {
            "format": FORMAT,
            "version": str(VERSION),
            "name": self.name,
            "source": self.source,
            "pixels": json.dumps(self.pixels),
            "parts": json.dumps(self.parts),
            "class_names": json.dumps(self.class_names),
        }
        metadata["check"] = _check_of(metadata, self.shape)
        entries: dict[str, Any] = {"__metadata__": metadata}
        tensors = {
            "labels": ("I64", (count,)),
            "digests": ("U8", (count, DIGEST_BYTES)),
            "pixels": ("U8", self.shape),
        }
        start = 0
        for (name, (dtype, shape)), size in zip(tensors.items(), self.sizes, strict=True):
            offsets = (start, start + size)
            entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
            start += size
        text = json.dumps(entries).encode()
        text += b" " * (-(8 + len(text)) % _PAGE)
        return struct.pack("<Q", len(text)) + text


def _check_of(metadata: Mapping[str, str], shape: Sequence[int]) -> str:
    """The SHA-256 of a header: a digest vouches for pixels and label, not for what these mean."""
    said = {name: text for name, text in metadata.items() if name != "check"}
    return hashlib.sha256(repr((sorted(said.items()), *shape)).encode()).hexdigest()


class Slots:
    """Random access to the slots of a file that is being built, from any process."""

    def __init__(self, path: Path, description: Description) -> None:
        self.file = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        self.shape = description.shape[1:]
        self.image_bytes = math.prod(self.shape)
        labels, digests, _ = description.sizes
        self.labels = len(description.header())
        self.digests = self.labels + labels
        self.pixels = self.digests + digests

    def holds(self, index: int, label: int | None = None) -> bool:
        """Returns whether the slot is whole, and has this label if one is named."""
        digest = os.pread(self.file, DIGEST_BYTES, self.digests + DIGEST_BYTES * index)
        if digest == bytes(DIGEST_BYTES):
            return False
        (written,) = struct.unpack("<q", os.pread(self.file, 8, self.labels + 8 * index))
        pixels = os.pread(self.file, self.image_bytes, self.pixels + self.image_bytes * index)
        return digest == image_digest(pixels, written) and label in (None, written)

    def write(self, index: int, pixels: np.ndarray, label: int) -> None:
        """Fills a slot with uint8 [H, W, C] and its label."""
        data = np.ascontiguousarray(pixels).tobytes()
        _write(self.file, data, self.pixels + self.image_bytes * index)
        _write(self.file, struct.pack("<q", label), self.labels + 8 * index)
        _write(self.file, image_digest(data, label), self.digests + DIGEST_BYTES * index)

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
    """An open cache file.

    labels: int64 [N], in memory, -1 where there is no picture. digests: uint8 [N, 32] and pixels:
    uint8 [N, H, W, C], memory-mapped. verified: bool [N], whether pixels and label were found to
    have their digest, which is looked at when an image is first read.
    """

    path: Path
    description: Description
    labels: Tensor
    digests: Tensor
    pixels: Tensor
    verified: Tensor

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, in the labels' order."""
        return self.description.class_names

    @property
    def skipped(self) -> int:
        """Number of slots without a picture."""
        return int((self.labels < 0).sum())

    def require(self, transform: Transform) -> None:
        """Raises DeevoError where another transform made the pixels."""
        if transform.pixels() != self.description.pixels:
            made, expected = (
                ", ".join(f"{key} {value}" for key, value in pixels.items())
                for pixels in (self.description.pixels, transform.pixels())
            )
            raise DeevoError(
                f"{self.path}: its pixels were made by {made}, but {expected} is expected; make "
                "another cache (deevo cache SOURCE --out FILE), or give the transform it was made "
                "with"
            )

    def images(self, part: str, transform: Transform) -> CachedImages:
        """Returns the images of a part, normalised by `transform`, which must be the cache's.

        Raises DeevoError: no such part, no image in it, or another transform.
        """
        check_arguments(Cache.images, locals())
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
            self.pixels[start:stop],
            labels if whole else labels[present],
            transform.mean,
            transform.std,
            f"{self.description.name}/{part}",
            digests=self.digests[start:stop],
            verified=self.verified[start:stop],
            indices=None if whole else present,
            in_memory=False,
        )

    def part(self, part: str, transform: Transform) -> CachedImages:
        """Returns the images of a part, or, where there is no such part, of the first one."""
        check_arguments(Cache.part, locals())
        parts = self.description.parts
        return self.images(part if part in parts else next(iter(parts)), transform)


def open_cache(path: str | Path) -> Cache:
    """Opens a cache file; pixels stay on disk until they are read.

    Raises DeevoError: missing, truncated, not a cache, or of another version.
    """
    check_arguments(open_cache, locals())
    path = Path(path)
    if os.path.lexists(path) and not os.path.isfile(path):
        raise DeevoError(f"{path}: no file, so no cache; expected one that deevo cache made")
    if not os.path.isfile(path):
        raise DeevoError(f"{path}: no such cache; make it with deevo cache SOURCE --out {path}")
    try:
        if zipfile.is_zipfile(path) or tarfile.is_tarfile(path):
            raise DeevoError(
                f"{path}: an archive, which is not read: unpack it, and give its folder"
            )
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise DeevoError(f"{path}: a safetensors file, but not a cache of images")
            if metadata.get("version") != str(VERSION):
                raise DeevoError(
                    f"{path}: a cache of version {metadata.get('version')}, not {VERSION}; make it "
                    "anew with deevo cache"
                )
            labels = file.get_tensor("labels").clone()
            digests, pixels = file.get_tensor("digests"), file.get_tensor("pixels")
        if metadata["check"] != _check_of(metadata, pixels.shape):
            raise ValueError("its header was changed")
        if digests.shape != (len(pixels), DIGEST_BYTES) or labels.shape != (len(pixels),):
            raise ValueError("it has not a label and a digest for each image")
        parts = {name: tuple(ends) for name, ends in json.loads(metadata["parts"]).items()}
        description = Description(
            metadata["name"],
            metadata["source"],
            json.loads(metadata["pixels"]),
            parts,
            json.loads(metadata["class_names"]),
            tuple(pixels.shape),
        )
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        if isinstance(error, DeevoError):
            raise
        raise DeevoError(
            f"{path}: not a whole cache file ({error}); expected one that deevo cache made (make a "
            "damaged one anew), or a folder of pictures"
        ) from error
    verified = torch.zeros(len(labels), dtype=torch.bool)
    return Cache(path, description, labels, digests, pixels, verified)


def require_own(path: Path) -> None:
    """Raises DeevoError for a file that others may have put or changed there.

    That is one of another user but root, or one that everyone may write. A file that is named by
    its user is taken as it is.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        return
    if status.st_uid not in (os.geteuid(), 0) or status.st_mode & stat.S_IWOTH:
        raise DeevoError(
            f"{path}: a cache of another user, or one that everyone may write; delete it, choose "
            "another DEEVO_CACHE_DIR, or give the file itself as the data if you trust it"
        )
