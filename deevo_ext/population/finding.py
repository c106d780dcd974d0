"""Finding checkpoints: from a path, a folder, a glob or a list to one file for each network.

A network is one file, or an index of shards (`model.safetensors.index.json`), as Hugging Face
writes them. A folder may hold networks, or be one: Hugging Face's and OpenCLIP's folders, and the
`checkpoint-*` of its Trainer. What trainers keep beside the weights (optimizer.pt, rng_state.pth,
training_args.bin and the like) and single shards are no networks.
"""

from __future__ import annotations

import fnmatch
import glob
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from deevo_ext.errors import DeevoError

PathLike: TypeAlias = str | os.PathLike[str]

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar")
"""Suffixes of checkpoint files, in folders, globs and lists alike."""
INDEX = ".index.json"
"""How the name of an index ends, which says in which file each tensor of a network is."""
_WHOLE = (
    *("model.safetensors.index.json", "model.safetensors", "pytorch_model.bin.index.json"),
    *("pytorch_model.bin", "open_clip_model.safetensors", "open_clip_pytorch_model.bin"),
)
"""Names of a folder's one network; where there are several, they are the same in other formats."""
_BESIDE = (
    *("optimizer*.pt", "optimizer*.bin", "scheduler*.pt", "scheduler.bin", "scaler.pt"),
    *("rng_state*.pth", "training_args.bin", "*-[0-9][0-9][0-9][0-9][0-9]-of-[0-9]*"),
)


def is_checkpoint(path: Path) -> bool:
    """Whether a file of this name is taken for a checkpoint."""
    return path.suffix in SUFFIXES or path.name.endswith(INDEX)


def expected_names() -> str:
    """Says how checkpoints' names end, for messages."""
    return f"{', '.join(SUFFIXES)} or {INDEX}"


def expand_paths(paths: PathLike | Sequence[PathLike]) -> list[Path]:
    """Returns the checkpoint files that `paths` names: a list, one file, a folder or a glob.

    A list keeps its order; in it, and among what a glob finds, a folder stands for the one network
    that it holds. A folder gives its networks; where it has `checkpoint-*` folders, or no files,
    those of its folders. Folders and globs are sorted by path (as text: `epoch_10` comes before
    `epoch_9`). Raises DeevoError for what does not exist, for a folder with several networks where
    one is wanted, and where there is no file at all.
    """
    if not isinstance(paths, (str, os.PathLike)):
        if isinstance(paths, Mapping) or not isinstance(paths, Sequence):
            raise _no_paths(paths)
        for path in paths:
            if not isinstance(path, (str, os.PathLike)):
                raise _no_paths(path)
        if not paths:
            raise DeevoError("the list of checkpoints is empty; give at least two files")
        return [one_network(Path(os.path.expanduser(path))) for path in paths]
    path = Path(os.path.expanduser(paths))
    if os.path.isfile(path):
        return [path]
    if os.path.isdir(path):
        folders = sorted(each for each in path.iterdir() if each.is_dir())
        saved = [each for each in folders if re.fullmatch(r"checkpoint-\d+", each.name)]
        files = [] if saved else _networks(path)
        files = files or [one_network(each) for each in saved or folders if _networks(each)]
        if not files:
            raise DeevoError(
                f"folder {path} holds no checkpoint, nor do its folders; expected files ending in "
                f"{expected_names()}"
            )
        return files
    found = sorted(map(Path, glob.glob(str(path), recursive=True)))
    files = [file for file in map(_index_of, found) if file.is_file() and not _is_beside(file)]
    for folder in filter(Path.is_dir, found):
        if not set(_networks(folder)).issubset(files):
            files.append(one_network(folder))
    if not files:
        raise DeevoError(
            f"no file, folder or glob match at {path}; expected checkpoints ending in "
            f"{expected_names()}"
        )
    return sorted(set(files))


def _no_paths(given: object) -> DeevoError:
    return DeevoError(
        f"checkpoints are a {type(given).__name__}; expected a path, a folder, a glob or a list of "
        "paths (Population.from_state_dicts takes state dicts)"
    )


def one_network(path: Path) -> Path:
    """Returns a file, or the file of the one network that a folder holds.

    Raises DeevoError where there is none, or several.
    """
    if os.path.isfile(path):
        return path
    files = _networks(path) if os.path.isdir(path) else []
    if not files:
        raise DeevoError(f"checkpoint {path} does not exist, or is a folder without a network")
    if len(files) > 1:
        named = ", ".join(file.name for file in files[:4])
        raise DeevoError(
            f"folder {path} holds {len(files)} networks ({named}{', ...' * (len(files) > 4)}); "
            "expected one a folder: name the files one by one or by a glob"
        )
    return files[0]


def _networks(folder: Path) -> list[Path]:
    """Returns the files of the networks that lie in a folder itself."""
    files = sorted(file for file in folder.iterdir() if is_checkpoint(file) and file.is_file())
    files = [file for file in files if not _is_beside(file)]
    names = [file.name for file in files]
    again = [name for name in _WHOLE if name in names][1:]
    return [file for file in files if file.name not in again]


def _is_beside(file: Path) -> bool:
    return any(fnmatch.fnmatchcase(file.name, pattern) for pattern in _BESIDE)


def _index_of(file: Path) -> Path:
    """Returns the index that a shard belongs to; any other file as it is."""
    whole = re.sub(r"-\d{5}-of-\d{5}(?=\.\w+$)", "", file.name)
    index = file.with_name(whole + INDEX)
    return index if whole != file.name and index.is_file() else file


def shards(index: Path) -> list[Path]:
    """Returns the files of an index, sorted; raises DeevoError where it is none or lacks one."""
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        files = [index.parent / Path(name).name for name in names]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DeevoError(f"{index}: no index of shards ({error!r}); download it again") from error
    for file in files:
        if not os.path.isfile(file):
            raise DeevoError(f"{index}: its shard {file.name} is missing; download it, too")
    return files


def short_names(files: Sequence[Path]) -> list[str]:
    """Returns the files' stems, with as many parent folders as it takes to tell them apart."""
    paths = [file.absolute().with_suffix("") for file in files]
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    # The same file twice, or a.pth beside a.pt: number them.
    stems = [file.stem for file in files]
    return [f"{stem}#{i}" if stems.count(stem) > 1 else stem for i, stem in enumerate(stems)]


def stamp(path: PathLike) -> list[tuple[int, int, int]]:
    """Returns what changes with a file's content, or with that of an index or one of its shards."""
    files = [Path(path), *(shards(Path(path)) if str(path).endswith(INDEX) else [])]
    return [(facts.st_ino, facts.st_size, facts.st_mtime_ns) for facts in map(os.stat, files)]


def sha256(path: PathLike) -> str:
    """Returns the SHA-256 of a file's bytes, as 64 hex digits.

    Of an index of shards it is that of the index and of its shards' own.
    """
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    if str(path).endswith(INDEX):
        for shard in shards(Path(path)):
            digest.update(bytes.fromhex(sha256(shard)))
    return digest.hexdigest()
