"""Files of a run besides its journal: initial checkpoints, evolved weights, encoded statistics."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from deevo_ext import checkpoints
from deevo_ext.errors import DeevoError
from deevo_ext.population import Population

INITIAL = "initial"


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file so that a crash leaves the old one or the new one, never a part."""
    temporary = path.with_name(path.name + ".part")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise DeevoError(
            f"cannot write {path}: {error.strerror or error}; free some space or choose another "
            "folder"
        ) from error


def save_state_dict(state: dict[str, torch.Tensor], path: Path, provenance: dict[str, Any]) -> None:
    """A state dict as .safetensors, with where it came from as metadata."""
    contiguous = {name: tensor.contiguous() for name, tensor in state.items()}
    write_whole(path, save(contiguous, metadata={"deevo": json.dumps(provenance)}))


def checkpoint_sources(population: Population, run_dir: Path | None) -> list[list[str]]:
    """[path, SHA-256] of each initial checkpoint; paths inside the run folder are relative to it.

    A population made from state dicts has no files, so its members are written to the run folder's
    initial/ first: without them the journal could not be replayed.
    """
    if population.sources is not None:
        return [[_relative(path, run_dir), sha] for path, sha in population.sources]
    if run_dir is None:
        return [["", ""] for _ in range(population.size)]
    folder = run_dir / INITIAL
    folder.mkdir(parents=True, exist_ok=True)
    sources = []
    for i in range(population.size):
        path = folder / f"member_{i:03d}.safetensors"
        if not path.exists():
            save_state_dict(population.state_dict(i), path, {})
        sources.append([_relative(str(path), run_dir), checkpoints.sha256(path)])
    return sources


def _relative(path: str, run_dir: Path | None) -> str:
    absolute = Path(path).resolve()
    if run_dir is not None and absolute.is_relative_to(run_dir.resolve()):
        return absolute.relative_to(run_dir.resolve()).as_posix()
    return str(absolute)


def encode_statistics(statistics: torch.Tensor | None) -> str | None:
    """float32 statistics as base64 text."""
    if statistics is None:
        return None
    return base64.b64encode(statistics.cpu().contiguous().numpy().tobytes()).decode("ascii")


def decode_statistics(text: str) -> torch.Tensor:
    """The inverse of `encode_statistics`."""
    return torch.from_numpy(np.frombuffer(base64.b64decode(text), dtype=np.float32).copy())
