"""The IDX file format of MNIST and its relatives, plain or gzip-compressed.

Format (http://yann.lecun.com/exdb/mnist/): bytes 0, 0, element type, number of dimensions; then
each dimension as a big-endian uint32; then the elements, big-endian, last dimension fastest.
"""

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import IO, NamedTuple, cast

import numpy as np

from deevo_ext.errors import DeevoError

_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
# A header may claim any size: refuse what no image file of this kind has before allocating it.
_MAX_BYTES = 1 << 33


class IdxFolder(NamedTuple):
    """The four arrays of an MNIST-like folder."""

    train_images: np.ndarray
    """uint8 [N, H, W]"""
    train_labels: np.ndarray
    """uint8 [N]"""
    test_images: np.ndarray
    """uint8 [M, H, W]"""
    test_labels: np.ndarray
    """uint8 [M]"""


def read_idx(path: str | Path) -> np.ndarray:
    """One IDX file as an array of its own type and shape, in native byte order.

    Compression is recognised by content, not by name.

    Raises:
        DeevoError: unreadable, not IDX, truncated, damaged, or longer than its header says; the
            message names the file.
    """
    path = Path(path)
    try:
        with path.open("rb") as raw:
            compressed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            if not compressed:
                return _read_stream(raw, path)
            with gzip.GzipFile(fileobj=raw) as stream:
                return _read_stream(cast("IO[bytes]", stream), path)
    except (OSError, EOFError, zlib.error) as error:
        raise DeevoError(f"{path}: cannot be read ({error})") from error


def _read_stream(stream: IO[bytes], path: Path) -> np.ndarray:
    head = stream.read(4)
    if len(head) < 4 or head[:2] != b"\0\0" or head[2] not in _TYPES or head[3] == 0:
        raise DeevoError(f"{path}: not an IDX file (it starts with {head.hex(' ') or 'nothing'})")
    sizes = stream.read(4 * head[3])
    if len(sizes) < 4 * head[3]:
        raise DeevoError(f"{path}: truncated within its header")
    shape = struct.unpack(f">{head[3]}I", sizes)
    dtype = np.dtype(_TYPES[head[2]])
    expected = math.prod(shape) * dtype.itemsize
    if expected > _MAX_BYTES:
        raise DeevoError(f"{path}: its header claims {expected:,} bytes, shape {list(shape)}")
    # One byte more than is due, so that a longer file (and gzip's checksum) is noticed.
    data = stream.read(expected + 1)
    if len(data) != expected:
        found = "more" if len(data) > expected else f"only {len(data):,}"
        raise DeevoError(
            f"{path}: header says {list(shape)}, {expected:,} bytes, but there are {found}"
        )
    return np.frombuffer(data, dtype).reshape(shape).astype(dtype.newbyteorder("="))


def load_idx_folder(folder: str | Path) -> IdxFolder:
    """The train and t10k images and labels of `folder`.

    Names: `train-images-idx3-ubyte` or `train-images.idx3-ubyte`, each with or without `.gz`; so
    too `train-labels-idx1-ubyte`, `t10k-images-idx3-ubyte`, `t10k-labels-idx1-ubyte`.

    Raises:
        DeevoError: a file is missing (folder and name are given), not readable, or images and
            labels do not fit together.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DeevoError(f"{folder}: no such folder")
    pairs = [_load_pair(folder, part) for part in ("train", "t10k")]
    (train_images, train_labels), (test_images, test_labels) = pairs
    if train_images.shape[1:] != test_images.shape[1:]:
        raise DeevoError(
            f"{folder}: train images are {list(train_images.shape[1:])}, "
            f"t10k images {list(test_images.shape[1:])}"
        )
    return IdxFolder(train_images, train_labels, test_images, test_labels)


def _load_pair(folder: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """uint8 images [N, H, W] and labels [N] of one part."""
    image_path = _find(folder, f"{part}-images", 3)
    label_path = _find(folder, f"{part}-labels", 1)
    images, labels = read_idx(image_path), read_idx(label_path)
    for path, array, dimensions in ((image_path, images, 3), (label_path, labels, 1)):
        if array.ndim != dimensions or array.dtype != np.uint8:
            raise DeevoError(
                f"{path}: expected uint8 with {dimensions} dimensions, "
                f"got {array.dtype} {list(array.shape)}"
            )
        if array.size == 0:
            raise DeevoError(f"{path}: empty, shape {list(array.shape)}")
    if len(images) != len(labels):
        raise DeevoError(
            f"{image_path} has {len(images)} images, {label_path} has {len(labels)} labels"
        )
    return images, labels


def _find(folder: Path, stem: str, dimensions: int) -> Path:
    usual = f"{stem}-idx{dimensions}-ubyte"
    spellings = [usual, f"{usual}.gz", f"{stem}.idx{dimensions}-ubyte"]
    spellings.append(f"{spellings[-1]}.gz")
    for name in spellings:
        if (folder / name).is_file():
            return folder / name
    raise DeevoError(f"{folder}: {usual} (or {usual}.gz) is missing")
