"""Files of a run besides its journal: initial checkpoints, evolved weights, metrics."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save

from deevo_ext.errors import DeevoError
from deevo_ext.files import write_whole
from deevo_ext.population import checkpoints
from deevo_ext.population.naming import Naming
from deevo_ext.population.population import Population

INITIAL = "initial"
EVOLVED = "evolved.safetensors"
TENSORS = "returned_tensors.safetensors"
"""Tensors of the returned network that are no average of members': the journal has its SHA-256."""


def serialise(state: dict[str, torch.Tensor], provenance: dict[str, Any]) -> bytes:
    """Returns a state dict as .safetensors, with where it came from as metadata."""
    contiguous = {name: tensor.contiguous() for name, tensor in state.items()}
    return save(contiguous, metadata={"deevo": json.dumps(provenance)})


def write_weights(
    naming: Naming, state: dict[str, torch.Tensor], provenance: dict[str, Any], folder: Path
) -> None:
    """Writes the evolved weights as .safetensors and .pth, named as in the first checkpoint."""
    write_whole(folder / EVOLVED, serialise(naming.named(state), provenance))
    write_whole((folder / EVOLVED).with_suffix(".pth"), naming.pickled(state))


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
    (run_dir / INITIAL).mkdir(exist_ok=True)
    for i, (name, expected) in enumerate(files):
        path = run_dir / name
        if not path.exists() or checkpoints.sha256(path) != expected:
            write_whole(path, _member(population, i))


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
        self._file = path.open("w", newline="", encoding="utf-8")
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
