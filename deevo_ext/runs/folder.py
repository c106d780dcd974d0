"""Files of a run besides its journal: initial checkpoints, evolved weights."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from deevo_ext.files import write_whole
from deevo_ext.population import checkpoints
from deevo_ext.population.naming import Naming
from deevo_ext.population.population import Population

INITIAL = "initial"
EVOLVED = "evolved.safetensors"


def serialise(state: dict[str, torch.Tensor], provenance: dict[str, Any]) -> bytes:
    """A state dict as .safetensors, with where it came from as metadata."""
    contiguous = {name: tensor.contiguous() for name, tensor in state.items()}
    return save(contiguous, metadata={"deevo": json.dumps(provenance)})


def write_weights(
    keys: Naming, state: dict[str, torch.Tensor], provenance: dict[str, Any], folder: Path
) -> None:
    """The evolved weights as .safetensors and .pth, under the names of the first checkpoint."""
    write_whole(folder / EVOLVED, serialise(keys.named(state), provenance))
    write_whole((folder / EVOLVED).with_suffix(".pth"), keys.pickled(state))


def initial_checkpoints(population: Population, run_dir: Path | None) -> list[list[str]]:
    """[path, SHA-256] of each initial checkpoint; paths inside the run folder are relative to it.

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


def write_initial(population: Population, run_dir: Path, named: list[list[str]]) -> None:
    """Writes the members that were read from no file, as `initial_checkpoints` named them.

    Without them the journal could not be replayed. Files that are there already are kept: the
    journal's header has been compared with the population by now.
    """
    if population.sources is not None:
        return
    (run_dir / INITIAL).mkdir(exist_ok=True)
    for i, (name, expected) in enumerate(named):
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
