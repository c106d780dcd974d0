"""One checkpoint file, and the content that was saved in it, whatever that is.

Two kinds of files are read: `.safetensors`, and what `torch.save` writes (`.pth`, `.pt`, `.bin`,
`.ckpt`, `.tar`), the latter as `pickles` says; and an index of shards of either kind.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deevo_ext.errors import DeevoError
from deevo_ext.population import pickles
from deevo_ext.population.finding import INDEX, expected_names, is_checkpoint, shards
from deevo_ext.population.tensors import PLAIN

# In the messages of torch.load where a file is sound but holds more than can be read.
_CODE_MARKS = ("GLOBAL", "add_safe_globals", "TorchScript", "Can only")


def read_wrapped(path: Path, *, mapped: bool = False) -> Any:
    """Reads the whole content of a checkpoint file, with the wrappers around the weights.

    mapped: leaves the weights in the file, where that can be, and their sums unread.
    """
    if path.name.endswith(INDEX):
        return _read_shards(path, mapped)

    def of_torch(path: Path) -> Any:
        if zipfile.is_zipfile(path) and not mapped:  # older files have no sums
            _check_sums(path)
        return pickles.load(path, mapped=mapped)

    return _read(path, _read_safetensors, of_torch)


def _read_shards(index: Path, mapped: bool) -> dict[str, Any]:
    tensors: dict[str, Any] = {}
    for shard in shards(index):
        content = read_wrapped(shard, mapped=mapped)
        if not isinstance(content, dict):
            raise DeevoError(f"{shard}: a shard of {index.name}, but it holds no mapping of names")
        tensors |= content
    return tensors


def read_around(path: Path) -> Any:
    """Reads what lies around the weights: all but their values, or a .safetensors' metadata."""
    if path.suffix == ".safetensors":
        return _read(path, _read_metadata, _read_metadata)
    return read_wrapped(path, mapped=True)


def _read(
    path: Path, of_safetensors: Callable[[Path], Any], of_torch: Callable[[Path], Any]
) -> Any:
    if not is_checkpoint(path):
        raise DeevoError(
            f"{path}: suffix {path.suffix!r} is not a checkpoint's; expected one of "
            f"{expected_names()}; rename the file if its content is one of these"
        )
    if not path.is_file():
        raise DeevoError(f"checkpoint {path} does not exist or is not a file")
    try:
        return (of_safetensors if path.suffix == ".safetensors" else of_torch)(path)
    except (DeevoError, ImportError, MemoryError):
        raise
    # A broken file surfaces as RuntimeError, UnpicklingError, EOFError, SafetensorError and more,
    # depending on where it breaks: all mean the same to the user.
    except Exception as error:
        if what := _instead(path):
            raise DeevoError(f"{path}: {what}") from error
        if "DTensor" in str(error):
            raise DeevoError(f"{path}: holds DTensors, which {PLAIN}") from error
        if any(mark in str(error) for mark in _CODE_MARKS):
            raise DeevoError(
                f"{path}: holds pickled objects that cannot be read without running their code; "
                f"save model.state_dict() alone ({_reason(error)})"
            ) from error
        raise DeevoError(
            f"{path}: cannot be read; the file is truncated or corrupt, or its suffix is wrong: "
            f"copy, download or save it again ({_reason(error)})"
        ) from error


def _instead(path: Path) -> str:
    """Says what lies in a checkpoint's place, where the first bytes tell."""
    try:
        with open(path, "rb") as file:
            begin = file.read(64).lstrip().lower()
    except OSError:
        return ""
    if begin.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS, not the file itself: fetch that with git lfs pull"
    if begin.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page, as a refused download leaves one: download the file again"
    return "" if begin else "an empty file: copy, download or save it again"


def _read_safetensors(path: Path) -> Any:
    from safetensors.torch import load_file

    return load_file(path, device="cpu")


def _read_metadata(path: Path) -> Any:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return file.metadata() or {}


def _check_sums(path: Path) -> None:
    """Raises BadZipFile where a part of the file is not what its CRC says; torch does not look."""
    with zipfile.ZipFile(path) as archive:
        for part in archive.infolist():
            if part.CRC:  # torch.save writes 0 where it is told to do without
                with archive.open(part) as content:
                    while content.read(1 << 20):
                        pass


def _reason(error: Exception) -> str:
    """Finds the telling line of an error; torch's messages begin with much advice."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if any(mark in line for mark in (*_CODE_MARKS, "operand"))]
    text = (telling or lines or [""])[0].removeprefix("WeightsUnpickler error: ")[:160]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
