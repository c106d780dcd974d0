"""Checkpoint files: from a path to a flat `dict[str, Tensor]` on the CPU.

Training scripts wrap the weights. Where the file's top level is not itself a state dict, the
first of the keys `state_dict`, `model`, `model_state_dict`, `model_ema` that is present is
taken, in this fixed order: so the raw weights come before their moving average, with a warning that
says which were taken. `checkpoint_key` chooses another.
"""

from __future__ import annotations

import fnmatch
import glob
import hashlib
import os
import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from torch import Tensor

from deevo_ext.errors import DeevoError
from deevo_ext.population.checkpoint_file import FOLDER_SUFFIXES, SUFFIXES, read_wrapped

PathLike: TypeAlias = str | os.PathLike[str]

WRAPPERS = ("state_dict", "model", "model_state_dict", "model_ema")
"""Keys under which training scripts keep the weights, in order of preference."""
PREFIXES = ("module.", "_orig_mod.")
"""Prefixes that DataParallel, AveragedModel and the like, and torch.compile put before a name."""


def expand_paths(paths: PathLike | Sequence[PathLike]) -> list[Path]:
    """Returns the checkpoint files that `paths` names: a list, one file, a folder or a glob.

    A list keeps its order. A folder gives its `*.safetensors`, `*.pth` and `*.pt` files and
    a glob its files, sorted by path (as text: `epoch_10` comes before `epoch_9`). Raises
    DeevoError when a listed file does not exist, or there is no file at all.
    """
    if not isinstance(paths, (str, os.PathLike)):
        if isinstance(paths, Mapping) or not isinstance(paths, Sequence):
            raise _no_paths(paths)
        for path in paths:
            if not isinstance(path, (str, os.PathLike)):
                raise _no_paths(path)
        files = [Path(os.path.expanduser(path)) for path in paths]
        for file in files:
            if not os.path.isfile(file):
                raise DeevoError(f"checkpoint {file} does not exist or is not a file")
        if not files:
            raise DeevoError("the list of checkpoints is empty; give at least two files")
        return files
    path = Path(os.path.expanduser(paths))
    if os.path.isfile(path):
        return [path]
    if os.path.isdir(path):
        files = sorted(p for p in path.iterdir() if p.suffix in FOLDER_SUFFIXES and p.is_file())
        if not files:
            raise DeevoError(
                f"folder {path} holds no checkpoint; expected files ending in "
                f"{', '.join(FOLDER_SUFFIXES)} (name others one by one or by a glob)"
            )
        return files
    files = sorted(p for p in map(Path, glob.glob(str(path), recursive=True)) if p.is_file())
    if not files:
        raise DeevoError(
            f"no file, folder or glob match at {path}; expected checkpoints ending in "
            f"{', '.join(SUFFIXES)}"
        )
    return files


def _no_paths(given: object) -> DeevoError:
    return DeevoError(
        f"checkpoints are a {type(given).__name__}; expected a path, a folder, a glob or a list of "
        "paths (Population.from_state_dicts takes state dicts)"
    )


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


def sha256(path: PathLike) -> str:
    """Returns the SHA-256 of a file's bytes, as 64 hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_checkpoint(
    path: PathLike,
    *,
    checkpoint_key: str | None = None,
    expected: Collection[str] | None = None,
    mapped: bool = False,
) -> dict[str, Tensor]:
    """Reads one file to a flat state dict of CPU tensors with the dtypes of the file.

    `checkpoint_key` names the wrapper that holds the weights; `expected` are the model's
    tensor names, which settle whether `module.` is a wrapper's prefix or the model's own (see
    `strip_prefixes`). mapped: as in `read_wrapped`, for those who ask for shapes alone. Raises
    DeevoError, naming the file, when it cannot be read, holds pickled objects other than tensors,
    or has no state dict where it was looked for.
    """
    path = Path(path)
    state, _ = unwrap(read_wrapped(path, mapped=mapped), checkpoint_key, path)
    return strip_prefixes({name: tensor.detach() for name, tensor in state.items()}, expected)


def strip_prefixes(
    state: Mapping[str, Tensor], expected: Collection[str] | None = None
) -> dict[str, Tensor]:
    """Drops `module.` and `_orig_mod.` prefixes, repeated or nested ones too.

    Without `expected` a prefix is dropped while all names carry it. With `expected` as many are
    dropped as make the most names agree; prefixes that only some names carry, or that stand inside
    a name (a compiled submodule), are dropped only if all the resulting names are expected.
    `n_averaged`, which torch's AveragedModel keeps beside its `module.`, goes with the prefix.
    """
    common, scattered = _stripped(state)
    if expected is None:
        return common[-1]
    names = set(expected)
    candidates = [*common, *(renamed for renamed in scattered if renamed.keys() <= names)]
    return max(candidates, key=lambda state: len(names.intersection(state)))  # first of equals


def strip_by_patterns(state: Mapping[str, Tensor], patterns: Collection[str]) -> dict[str, Tensor]:
    """Drops prefixes as most of some names and fnmatch patterns of the model's tensors want it.

    Where several ways to do so match as many, it is the one of `strip_prefixes` without `expected`.
    """
    common, scattered = _stripped(state)
    return max(
        [*reversed(common), *scattered],
        key=lambda state: sum(p in state or bool(fnmatch.filter(state, p)) for p in patterns),
    )


def _stripped(
    state: Mapping[str, Tensor],
) -> tuple[list[dict[str, Tensor]], list[dict[str, Tensor]]]:
    """Lists what a state dict may be meant to be.

    First with 0, 1, 2, ... prefixes dropped that all names carry; then with all prefixes dropped
    that some names carry, and with those inside names.
    """
    common = [dict(state)]
    body = {name: t for name, t in state.items() if name != "n_averaged"}
    while prefix := next((p for p in PREFIXES if body and all(n.startswith(p) for n in body)), ""):
        body = {name.removeprefix(prefix): tensor for name, tensor in body.items()}
        common.append(body)
    renamed = [
        {rename(name): tensor for name, tensor in body.items()}
        for rename in (_without_prefixes, _without_components)
    ]
    return common, [state for state in renamed if len(state) == len(body)]


def _without_prefixes(name: str) -> str:
    while prefix := next((p for p in PREFIXES if name.startswith(p)), ""):
        name = name.removeprefix(prefix)
    return name


def _without_components(name: str) -> str:
    return ".".join(part for part in name.split(".") if f"{part}." not in PREFIXES)


def _is_state_dict(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())
    )


def unwrap(
    value: Any, checkpoint_key: str | None, path: Path
) -> tuple[Mapping[str, Tensor], tuple[str, ...]]:
    """Returns the state dict inside `value`, what `path` holds, and the keys that lead to it."""
    keys: list[str] = []
    inside: list[int] = []  # what the weights are wrapped in, to notice one that holds itself
    if checkpoint_key is not None:
        if not isinstance(value, Mapping) or checkpoint_key not in value:
            raise DeevoError(
                f"{path}: checkpoint_key {checkpoint_key!r} is absent; {_describe(value)}"
            )
        value = value[checkpoint_key]
        keys.append(checkpoint_key)
    while not _is_state_dict(value):
        if id(value) in inside:
            raise DeevoError(f"{path}: what it holds under {', '.join(keys)} holds itself")
        inside.append(id(value))
        present: list[str] = []
        if isinstance(value, Mapping):
            present = [k for k in WRAPPERS if isinstance(value.get(k), Mapping)]
        key = present[0] if present else None
        if len(present) > 1:
            warnings.warn(
                f"checkpoints hold weights as {' and '.join(map(repr, present))}; {key!r} is "
                "taken: name another with checkpoint_key= (--checkpoint-key)",
                stacklevel=2,
            )
        if key is None:
            where = "" if checkpoint_key is None else f" under checkpoint_key {checkpoint_key!r}"
            raise DeevoError(
                f"{path}: no state dict (names to tensors){where}; {_describe(value)}; "
                f"looked for {', '.join(WRAPPERS)}: name the right one with checkpoint_key="
            )
        value = value[key]
        keys.append(key)
    return value, tuple(keys)


def _describe(value: Any) -> str:
    """Says what a file holds in place of a state dict, for error messages."""
    if not isinstance(value, Mapping):
        return f"it holds a {type(value).__name__}"
    if _is_state_dict(value):
        return "it is a state dict itself, so leave checkpoint_key out"
    keys = [f"{key!r} ({type(item).__name__})" for key, item in value.items()]
    first = ", ".join(keys[:12]) + (f" and {len(keys) - 12} more" if len(keys) > 12 else "")
    return f"available keys: {first or 'none'}"
