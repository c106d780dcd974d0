"""Files of a run besides its journal: initial checkpoints, evolved weights, metrics."""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load

from deevo_ext.errors import DeevoError
from deevo_ext.files import remove_partial, require_place, write_whole
from deevo_ext.population.finding import is_checkpoint, sha256
from deevo_ext.population.naming import Naming
from deevo_ext.population.population import Population
from deevo_ext.population.saving import serialise

INITIAL = "initial"
EVOLVED = "evolved.safetensors"
TENSORS = "returned_tensors.safetensors"
"""Tensors of the returned network that are no average of members': the journal has its SHA-256."""

VIRTUAL = "virtual"
"""The folder of the virtual evolutions of a search of coefficients: a file a round."""


def write_weights(
    naming: Naming, state: dict[str, torch.Tensor], provenance: dict[str, Any], folder: Path
) -> None:
    """Writes the evolved weights as .safetensors and .pth, named as in the first checkpoint."""
    for suffix in (".safetensors", ".pth"):
        write_network((folder / EVOLVED).with_suffix(suffix), naming, state, provenance)


def require_writable(naming: Naming, population: Population) -> None:
    """Raises DeevoError where the first member, and so a run's result, cannot be written."""
    first = population.state_dict_of(population.rows[0].cpu(), population.statistics[0])
    serialise(naming.named(first), {})


def read_tensors(folder: Path, expected: str | None) -> dict[str, torch.Tensor]:
    """Reads the run folder's file of tensors, whose SHA-256 the journal gives; {} where it is None.

    Raises DeevoError for a file that is missing or another one.
    """
    if expected is None:
        return {}
    path = folder / TENSORS
    data = path.read_bytes() if path.exists() else None
    actual = None if data is None else hashlib.sha256(data).hexdigest()
    if data is None or actual != expected:
        what = "is missing" if data is None else f"has SHA-256 {actual}"
        raise DeevoError(
            f"{path} {what}, the journal expects {expected}: restore the file from a backup"
        )
    return load(data)


def initial_checkpoints(population: Population, run_dir: Path | None) -> list[list[str]]:
    """Returns [path, SHA-256] of each initial checkpoint, relative to the run folder if inside it.

    A population made from state dicts has no files: its members get one in the run folder, which
    `write_initial` makes.
    """
    if population.sources is not None:
        return [[_relative(path, run_dir), sha] for path, sha in population.sources]
    return [
        [
            f"{INITIAL}/member_{i:03d}.safetensors",
            hashlib.sha256(_member(population, i)).hexdigest(),
        ]
        for i in range(population.initial_size)
    ]


def write_initial(population: Population, run_dir: Path, files: list[list[str]]) -> None:
    """Writes the members that were read from no file, as `initial_checkpoints` named them.

    Without them the journal could not be replayed. Files that are there already are kept: the
    journal's header has been compared with the population by now.
    """
    if population.sources is not None:
        return
    try:
        (run_dir / INITIAL).mkdir(exist_ok=True)
    except OSError as error:
        raise DeevoError(
            f"{run_dir / INITIAL} cannot be a folder ({error}); choose another run folder"
        ) from error
    remove_partial(run_dir / INITIAL)
    for i, (name, expected) in enumerate(files):
        path = run_dir / name
        if not path.exists() or sha256(path) != expected:
            write_whole(path, _member(population, i))


def locate_checkpoints(
    sources: Sequence[tuple[str, str]], folder: Path, checkpoint_dir: str | Path | None, said: str
) -> list[Path]:
    """Finds checkpoints by [name, SHA-256], where the names say, or anywhere below checkpoint_dir.

    folder: what relative names start from; said: what speaks of them, such as "the journal". Raises
    DeevoError naming a file that is missing or another one.
    """
    if checkpoint_dir is None:
        files = [folder / name for name, _ in sources]  # an absolute name stays what it is
        for path, (_, expected) in zip(files, sources, strict=True):
            check_digest(path, expected, said, "say where it is with --checkpoints DIR")
        return files
    below = [p for p in Path(checkpoint_dir).rglob("*") if is_checkpoint(p)]
    by_digest: dict[str, Path] = {}
    unread: list[str] = []
    for path in sorted(below):
        if path.is_file():
            try:
                by_digest[sha256(path)] = path
            except (DeevoError, OSError) as error:  # another network's, perhaps
                unread.append(f"; not looked at: {error}")
    for name, expected in sources:
        if expected not in by_digest:
            raise DeevoError(
                f"no file below {checkpoint_dir} has the SHA-256 {expected} that {said} expects "
                f"of checkpoint {name}{''.join(unread[:1])}"
            )
    return [by_digest[expected] for _, expected in sources]


def check_digest(path: Path, expected: str, said: str, mend: str) -> None:
    """Raises DeevoError where the file is missing or has another SHA-256 than is said."""
    if not os.path.isfile(path):
        raise DeevoError(f"{path} is missing: {mend}")
    actual = sha256(path)
    if actual != expected:
        raise DeevoError(
            f"{path} has SHA-256 {actual}, {said} expects {expected}: it was changed or is another "
            f"file; {mend}"
        )


def check_network_path(path: Path, sources: Iterable[str | Path] = ()) -> None:
    """Raises DeevoError for a name that a network cannot be written to.

    sources: the files that it is made from, which are not written over.
    """
    if path.suffix not in (".safetensors", ".pth"):
        raise DeevoError(
            f"the output file is {path}; expected a name that ends in .safetensors or .pth"
        )
    require_place(path, "the output file")
    present = filter(os.path.exists, sources)
    if os.path.exists(path) and any(path.samefile(each) for each in present):
        raise DeevoError(
            f"the output file {path} is a part of what it is made from; choose another name"
        )


def write_network(
    path: Path, naming: Naming, state: dict[str, torch.Tensor], provenance: dict[str, Any]
) -> str:
    """Writes a state dict as .safetensors or .pth by the path's suffix; returns its SHA-256."""
    if path.suffix == ".pth":
        data = naming.pickled(state)
    else:
        data = serialise(naming.named(state), provenance)
    write_whole(path, data)
    return hashlib.sha256(data).hexdigest()


def _member(population: Population, i: int) -> bytes:
    return serialise(population.state_dict(i), {"member": population.names[i]})


def _relative(path: str, run_dir: Path | None) -> str:
    absolute = Path(path).resolve()
    if run_dir is not None and absolute.is_relative_to(run_dir.resolve()):
        return absolute.relative_to(run_dir.resolve()).as_posix()
    return str(absolute)


class MetricsFile:
    """Metrics as a CSV file, written anew by a resumed run, which replays its past."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.unlink(missing_ok=True)  # what a link points to is not written
            self._file = path.open("x", newline="", encoding="utf-8")
        except OSError as error:
            raise DeevoError(
                f"cannot write {path}: {error.strerror or error}; mend that or choose another run "
                "folder"
            ) from error
        self._writer: csv.DictWriter[str] | None = None

    def append(self, metrics: dict[str, float]) -> None:
        """Adds a generation's metrics; the first ones decide the columns."""
        try:
            if self._writer is None:
                self._writer = csv.DictWriter(self._file, list(metrics))
                self._writer.writeheader()
            self._writer.writerow(metrics)
            self._file.flush()
        except OSError as error:
            raise DeevoError(
                f"cannot write {self.path}: {error.strerror or error}. The journal is whole; free "
                "some space and start the run again with the same run folder"
            ) from error

    def close(self) -> None:
        """Closes the file; what a full disk refused was reported by `append` already."""
        try:
            self._file.close()
        except OSError:
            if self._writer is not None and not self._file.closed:
                raise
