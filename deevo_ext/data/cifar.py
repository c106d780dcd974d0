"""CIFAR-10 and CIFAR-100 in their Python version, read without letting a pickle run code.

Format (https://www.cs.toronto.edu/~kriz/cifar.html): pickled dictionaries; `data` is uint8
[N, 3072], channel by channel, rows first; `labels` or `fine_labels` are lists of N whole numbers.
"""

from __future__ import annotations

import importlib
import pickle
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from deevo_ext.errors import DeevoError

_FOLDERS = (".", "cifar-10-batches-py", "cifar-100-python")
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
"""What an array needs to be unpickled, under its old and new names."""


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Only what builds arrays."""
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not an array")
        home, own = _ALLOWED[module, name]
        return getattr(importlib.import_module(home), own)


def read_arrays(file: BinaryIO) -> Any:
    """A pickle of plain values and NumPy arrays; UnpicklingError for anything else."""
    return _ArraysOnly(file, encoding="bytes").load()


def find_cifar(root: Path) -> Path | None:
    """The folder with the batches, `root` or one below it; None if there is none."""
    for name in _FOLDERS:
        folder = root / name
        if (folder / "data_batch_1").is_file():
            return folder
        if all((folder / part).is_file() for part in ("train", "test", "meta")):
            return folder
    return None


def load_cifar(
    folder: Path,
) -> tuple[np.ndarray, np.ndarray, dict[str, tuple[int, int]], list[str]]:
    """uint8 [N, 32, 32, 3], int64 [N], the parts train and val (its test set), the class names.

    Raises DeevoError that names the file that is missing, damaged, or holds more than arrays.
    """
    ten = (folder / "data_batch_1").is_file()
    train = [f"data_batch_{i}" for i in range(1, 6)] if ten else ["train"]
    key = b"labels" if ten else b"fine_labels"
    meta = folder / ("batches.meta" if ten else "meta")
    names = _dictionary(meta, [b"label_names" if ten else b"fine_label_names"])
    class_names = [name.decode() for name in names[0]]
    images, labels = [], []
    for name in (*train, "test_batch" if ten else "test"):
        path = folder / name
        data, own = _dictionary(path, [b"data", key])
        good = isinstance(data, np.ndarray) and data.dtype == np.uint8
        if not good or data.shape != (len(own), 3072) or not len(own):
            raise DeevoError(f"{path}: expected uint8 [N, 3072] with a label each")
        if not 0 <= min(own) <= max(own) < len(class_names):
            raise DeevoError(f"{path}: has label {max(own)}, but {meta} {len(class_names)} classes")
        images.append(data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        labels.append(np.array(own, np.int64))
    learned = sum(map(len, labels[:-1]))
    parts = {"train": (0, learned), "val": (learned, learned + len(labels[-1]))}
    return np.concatenate(images), np.concatenate(labels), parts, class_names


def _dictionary(path: Path, keys: list[bytes]) -> list[Any]:
    try:
        with path.open("rb") as file:
            found = read_arrays(file)
        return [found[key] if key in found else found[key.decode()] for key in keys]
    except FileNotFoundError as error:
        raise DeevoError(f"{path}: missing; unpack CIFAR's Python version anew") from error
    except Exception as error:  # a damaged pickle raises nearly anything
        raise DeevoError(f"{path}: not a batch of CIFAR ({type(error).__name__}: {error})") from (
            error
        )
