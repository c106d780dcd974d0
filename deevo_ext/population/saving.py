"""A population as checkpoint files, which everything that reads checkpoints reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save

from deevo_ext.errors import DeevoError
from deevo_ext.files import write_whole
from deevo_ext.population.tensors import dtype_name, wider

if TYPE_CHECKING:
    from deevo_ext.population.population import Population


def serialise(state: dict[str, torch.Tensor], provenance: dict[str, Any]) -> bytes:
    """Returns a state dict as .safetensors, with where it came from as metadata.

    Raises DeevoError as `writable`.
    """
    return save(writable(state), metadata={"deevo": json.dumps(provenance)})


def writable(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns contiguous tensors of which no two share memory, as .safetensors asks.

    Raises DeevoError, naming the tensor, for one that the format does not hold.
    """
    whole: dict[str, torch.Tensor] = {}
    seen: set[tuple[torch.device, int]] = set()
    for name, tensor in state.items():
        try:
            own = tensor.contiguous()
            save({name: own.new_empty(0)})  # knows the dtype or not
        except (KeyError, RuntimeError) as error:
            raise DeevoError(
                f"tensor {name!r} ({dtype_name(tensor.dtype)}) cannot be written as .safetensors "
                f"({error!r}); expected a dense tensor of at most 64 bits a value: save the "
                "checkpoints with such a one, or without it"
            ) from error
        memory = own.device, own.untyped_storage().data_ptr()
        whole[name] = own.clone() if memory in seen else own
        seen.add(memory)
    return whole


def save_members(population: Population, folder: Path) -> list[Path]:
    """Writes each member as a checkpoint of its own; `Population.save` says how."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        taken = next(folder.iterdir(), None)
    except OSError as error:
        raise DeevoError(
            f"{folder} cannot be a folder of checkpoints ({error.strerror or error}); choose "
            "another"
        ) from error
    if taken is not None:
        raise DeevoError(f"{folder} holds {taken.name} already; choose a folder that is new")
    paths = [folder / f"member_{i:03d}.safetensors" for i in range(population.size)]
    for i, path in enumerate(paths):
        write_whole(path, serialise(_exact(population, i), {"member": population.names[i]}))
    return paths


def _exact(population: Population, i: int) -> dict[str, torch.Tensor]:
    """A member's state dict in dtypes that hold every bit of its row and statistics."""
    tensors = population.tensors_of(population.rows[i], population.statistics[i])
    return {
        name: value.to("cpu", wider(dtype, value.dtype), copy=True)
        for name, value, dtype in tensors
    }
