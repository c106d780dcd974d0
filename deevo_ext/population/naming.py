"""Evolved weights under the names of the checkpoints they come from: prefixes, wrappers and all.

Whatever loads the checkpoints thus loads the evolved weights. Optimizer states, epochs and
arguments stay behind: they belong to one training run.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deevo_ext.population.checkpoint_file import read_wrapped
from deevo_ext.population.checkpoints import unwrap
from deevo_ext.population.matching import NameOptions, match
from deevo_ext.population.population import Population


@dataclass(frozen=True)
class Naming:
    """What a checkpoint file calls the model's tensors, and what it has around them.

    names: the file's name for each of the model's names, in the file's order.
    extra: tensors that only the file has, such as AveragedModel's n_averaged.
    wrappers: the keys around the tensors, outermost first.
    ignored: names of those of `extra` that stand among the model's names, as `Match` has them.
    """

    names: Mapping[str, str]
    extra: Mapping[str, Tensor]
    wrappers: tuple[str, ...]
    ignored: tuple[str, ...] = ()

    @classmethod
    def of_file(cls, path: Path, options: NameOptions, expected: Collection[str]) -> Naming:
        """Reads the naming of a checkpoint file; `expected` are the model's names."""
        state, wrappers = unwrap(read_wrapped(path), options.checkpoint_key, path)
        found = match(state, expected, options, str(path))
        names = {in_model: name for in_model, name in found.names.items() if in_model in expected}
        known = set(names.values())
        extra = {name: tensor for name, tensor in state.items() if name not in known}
        return cls(names, extra, wrappers, found.ignored)

    @classmethod
    def of_population(cls, population: Population) -> Naming:
        """Reads the naming of the first checkpoint; it is the model's where there are no files."""
        expected = population.inventory.order
        if population.sources is None:
            return cls({name: name for name in expected}, {}, ())
        path, _ = population.sources[0]
        return cls.of_file(Path(path), population.options, expected)

    def named(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Renames a state dict as in the file; tensors that the file lacks keep their names."""
        renamed = {self.names[name]: state[name] for name in self.names if name in state}
        kept = {name: tensor for name, tensor in state.items() if name not in self.names}
        return {**renamed, **kept, **self.extra}

    def pickled(self, state: Mapping[str, Tensor]) -> bytes:
        """Returns the renamed state dict in the file's wrappers, as torch.save writes it."""
        value: Any = {name: tensor.contiguous() for name, tensor in self.named(state).items()}
        for key in reversed(self.wrappers):
            value = {key: value}
        buffer = io.BytesIO()
        torch.save(value, buffer)
        return buffer.getvalue()
