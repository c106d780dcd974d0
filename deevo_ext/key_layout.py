"""Evolved weights under the names of the checkpoints they come from: prefixes, wrappers and all.

So what loads the one loads the other. Optimizer states, epochs and arguments stay behind: they are
one training run's.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deevo_ext.checkpoints import read, strip_prefixes, unwrap
from deevo_ext.population import Population


@dataclass(frozen=True)
class KeyLayout:
    """names: the file's name of each of the model's tensors, in the file's order. extra: tensors of
    the file alone, such as AveragedModel's n_averaged. wrappers: keys around them, outermost first.
    """

    names: Mapping[str, str]
    extra: Mapping[str, Tensor]
    wrappers: tuple[str, ...]

    @classmethod
    def of_file(
        cls, path: Path, checkpoint_key: str | None, expected: Collection[str]
    ) -> KeyLayout:
        """That of a checkpoint; expected: the model's names."""
        state, wrappers = unwrap(read(path), checkpoint_key, path)
        stripped = strip_prefixes(state, expected)
        # Stripping keeps the order, and drops at most n_averaged.
        given = [name for name in state if len(stripped) == len(state) or name != "n_averaged"]
        pairs = dict(zip(stripped, given, strict=True))
        names = {own: name for own, name in pairs.items() if own in expected}
        known = set(names.values())
        extra = {name: tensor for name, tensor in state.items() if name not in known}
        return cls(names, extra, wrappers)

    @classmethod
    def of_population(cls, population: Population) -> KeyLayout:
        """That of its first checkpoint, or the model's own where it came from no files."""
        expected = population.architecture.order
        if population.sources is None:
            return cls({name: name for name in expected}, {}, ())
        path, _ = population.sources[0]
        return cls.of_file(Path(path), population.checkpoint_key, expected)

    def named(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A model's state dict under the file's names; tensors that the file lacks keep theirs."""
        found = {name: state[own] for own, name in self.names.items() if own in state}
        found |= {own: tensor for own, tensor in state.items() if own not in self.names}
        return {**found, **self.extra}

    def pickled(self, state: Mapping[str, Tensor]) -> bytes:
        """The same with its wrappers, as torch.save writes it."""
        value: Any = {name: tensor.contiguous() for name, tensor in self.named(state).items()}
        for key in reversed(self.wrappers):
            value = {key: value}
        buffer = io.BytesIO()
        torch.save(value, buffer)
        return buffer.getvalue()
