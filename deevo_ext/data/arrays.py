"""Pictures that come as arrays: CIFAR's Python version, and the IDX files of MNIST's relatives."""

from __future__ import annotations

import gzip
import hashlib
import importlib
import math
import pickle
import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from deevo_ext.errors import DeevoError

_CIFAR_FOLDERS = (".", "cifar-10-batches-py", "cifar-100-python")
# An IDX header may claim any size: refuse what no image file of this kind has before allocating it.
_MAX_BYTES = 1 << 33
# What an array needs to be unpickled, under its old and new names.
_ALLOWED = {
    ("numpy", "ndarray"): ("numpy", "ndarray"),
    ("numpy", "dtype"): ("numpy", "dtype"),
    ("_codecs", "encode"): ("_codecs", "encode"),
    **{
        (f"numpy.{core}.{module}", name): (f"numpy._core.{module}", name)
        for core in ("core", "_core")
        for module, name in (("multiarray", "_reconstruct"), ("numeric", "_frombuffer"))
    },
}


@dataclass
class ArrayPictures:
    """Pictures (see `deevo_ext.data.pictures.Pictures`) that lie in memory.

    images: uint8 [N, h, w] or [N, h, w, 3]. labels: int64 [N].
    """

    name: str
    images: np.ndarray
    labels: np.ndarray
    parts: dict[str, tuple[int, int]]
    class_names: list[str]
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.channels = 3 if self.images.ndim == 4 else 1

    def __len__(self) -> int:
        return len(self.images)

    def digest(self) -> str:
        """Returns the SHA-256 (hex) of all pixels and labels, parts and class names."""
        digest = hashlib.sha256(repr((self.images.shape, self.parts, self.class_names)).encode())
        digest.update(np.ascontiguousarray(self.images).data)
        digest.update(np.ascontiguousarray(self.labels).data)
        return digest.hexdigest()

    def read(self, index: int) -> tuple[np.ndarray, int]:
        """Returns a picture uint8 [h, w] or [h, w, 3], and its label."""
        return self.images[index], int(self.labels[index])

    def name_of(self, index: int) -> str:
        """Returns the picture's number."""
        return f"{self.name} image {index}"


def open_arrays(root: Path) -> ArrayPictures | None:
    """Returns the pictures of a folder of CIFAR or IDX files; None where it holds neither.

    CIFAR's folder is `root` or one below it. The parts are train and val, the files' test images.

    Raises DeevoError that names the file: missing, damaged, or with more in it than arrays.
    """
    for name in _CIFAR_FOLDERS:
        folder = root / name
        if (folder / "data_batch_1").is_file():
            return _open_cifar(folder, root.name, ten=True)
        if all((folder / part).is_file() for part in ("train", "test", "meta")):
            return _open_cifar(folder, root.name, ten=False)
    if any(root.glob("train-images*")):
        return open_idx(root)
    return None


def _open_cifar(folder: Path, name: str, *, ten: bool) -> ArrayPictures:
    """CIFAR-10 or CIFAR-100, with its fine labels.

    Format (https://www.cs.toronto.edu/~kriz/cifar.html): pickled dictionaries; `data` is uint8
    [N, 3072], channel by channel, rows first; `labels` or `fine_labels` are lists of N whole
    numbers.
    """
    files = [f"data_batch_{i}" for i in range(1, 6)] if ten else ["train"]
    label_key, names_key = ("labels", "label_names") if ten else ("fine_labels", "fine_label_names")
    meta = folder / ("batches.meta" if ten else "meta")
    names = _values(meta, names_key)[0]
    if not isinstance(names, list) or not all(isinstance(n, (bytes, str)) for n in names):
        raise DeevoError(f"{meta}: its {names_key} are no list of names")
    class_names = [
        label.decode(errors="replace") if isinstance(label, bytes) else label for label in names
    ]
    images, labels = [], []
    for file in (*files, "test_batch" if ten else "test"):
        path = folder / file
        data, numbers = _values(path, "data", label_key)
        if not isinstance(numbers, list) or not all(type(n) is int for n in numbers):
            raise DeevoError(f"{path}: its {label_key} are no list of whole numbers")
        good = isinstance(data, np.ndarray) and data.dtype == np.uint8
        if not good or data.shape != (len(numbers), 3072) or not len(numbers):
            raise DeevoError(f"{path}: expected uint8 [N, 3072] with a label each")
        if not 0 <= min(numbers) <= max(numbers) < len(class_names):
            raise DeevoError(
                f"{path}: has labels {min(numbers)}..{max(numbers)}, but {meta} has "
                f"{len(class_names)} classes"
            )
        images.append(data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        labels.append(np.array(numbers, np.int64))
    train, count = sum(map(len, labels[:-1])), sum(map(len, labels))
    parts = {"train": (0, train), "val": (train, count)}
    return ArrayPictures(name, np.concatenate(images), np.concatenate(labels), parts, class_names)


class _ArraysOnly(pickle.Unpickler):
    """Unpickles plain values and NumPy arrays, so that no file can run code."""

    def find_class(self, module: str, name: str) -> Any:
        """Returns what builds arrays; raises UnpicklingError for anything else."""
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not an array")
        home, attribute = _ALLOWED[module, name]
        return getattr(importlib.import_module(home), attribute)


def _values(path: Path, *keys: str) -> list[Any]:
    """The values of a pickled dictionary, whose keys are text or bytes."""
    try:
        with path.open("rb") as file:
            dictionary = _ArraysOnly(file, encoding="bytes").load()
        named = {k.decode() if isinstance(k, bytes) else k: v for k, v in dictionary.items()}
        return [named[key] for key in keys]
    except FileNotFoundError as error:
        raise DeevoError(f"{path}: missing; unpack CIFAR's Python version anew") from error
    except Exception as error:  # a damaged pickle raises nearly anything
        raise DeevoError(f"{path}: not a batch of CIFAR ({type(error).__name__}: {error})") from (
            error
        )


def open_idx(folder: Path) -> ArrayPictures:
    """Returns the pictures of the train and t10k files of MNIST or a relative of it.

    Names: `train-images-idx3-ubyte` or `train-images.idx3-ubyte`, each with or without `.gz`; so
    too `train-labels-idx1-ubyte`, `t10k-images-idx3-ubyte`, `t10k-labels-idx1-ubyte`. The classes
    are called by their numbers.

    Raises DeevoError: a file is missing (folder and name are named), not readable, or images and
    labels do not fit together.
    """
    images, labels = [], []
    for part in ("train", "t10k"):
        image_path, label_path = _idx_file(folder, part, 3), _idx_file(folder, part, 1)
        images.append(read_idx(image_path, 3))
        labels.append(read_idx(label_path, 1).astype(np.int64))
        if len(images[-1]) != len(labels[-1]):
            raise DeevoError(
                f"{image_path} has {len(images[-1])} images, "
                f"{label_path} has {len(labels[-1])} labels"
            )
    if images[0].shape[1:] != images[1].shape[1:]:
        raise DeevoError(
            f"{folder}: train images are {list(images[0].shape[1:])}, "
            f"t10k images {list(images[1].shape[1:])}"
        )
    train, every = len(labels[0]), np.concatenate(labels)
    parts = {"train": (0, train), "val": (train, len(every))}
    classes = [str(label) for label in range(int(every.max()) + 1)]
    return ArrayPictures(folder.resolve().name, np.concatenate(images), every, parts, classes)


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """Returns one IDX file of bytes, plain or gzip (recognised by content), as uint8.

    Format (http://yann.lecun.com/exdb/mnist/): bytes 0, 0, element type (8 for bytes), number of
    dimensions; then each dimension as a big-endian uint32; then the elements, last dimension
    fastest.

    Raises DeevoError that names the file: unreadable, not IDX or of other dimensions, truncated,
    damaged, empty, or longer than its header says.
    """
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
        stream: BinaryIO | gzip.GzipFile
        with gzip.open(path) if packed else path.open("rb") as stream:
            head = stream.read(4)
            if len(head) < 4 or head[:3] != b"\0\0\x08":
                start = head.hex(" ") or "nothing"
                raise DeevoError(f"{path}: not an IDX file of bytes (it starts with {start})")
            if head[3] != dimensions:
                raise DeevoError(f"{path}: expected {dimensions} dimensions, it has {head[3]}")
            sizes = stream.read(4 * dimensions)
            if len(sizes) < 4 * dimensions:
                raise DeevoError(f"{path}: truncated within its header")
            shape = struct.unpack(f">{dimensions}I", sizes)
            expected = math.prod(shape)
            if not 0 < expected <= _MAX_BYTES:
                raise DeevoError(f"{path}: empty or too large: shape {list(shape)}")
            # One byte more than is due, so that a longer file (and gzip's checksum) is noticed.
            data = stream.read(expected + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DeevoError(f"{path}: cannot be read ({error})") from error
    if len(data) != expected:
        actual = "more" if len(data) > expected else f"only {len(data):,}"
        raise DeevoError(
            f"{path}: its header says {list(shape)}, {expected:,} bytes, but there are {actual}"
        )
    return np.frombuffer(data, np.uint8).reshape(shape)


def _idx_file(folder: Path, part: str, dimensions: int) -> Path:
    stem = f"{part}-{'images' if dimensions == 3 else 'labels'}"
    usual = f"{stem}-idx{dimensions}-ubyte"
    dotted = f"{stem}.idx{dimensions}-ubyte"
    for name in (usual, f"{usual}.gz", dotted, f"{dotted}.gz"):
        if (folder / name).is_file():
            return folder / name
    raise DeevoError(f"{folder}: {usual} (or {usual}.gz) is missing")
