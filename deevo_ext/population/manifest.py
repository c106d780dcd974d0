"""The manifest of a population: how its members' files were read, as plain JSON values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from deevo_ext.errors import DeevoError
from deevo_ext.population.inventory import Inventory
from deevo_ext.population.tensors import dtype_name, dtype_of

_VERSION = 1


@dataclass(frozen=True)
class Manifest:
    """What it takes, beside the files, to read a population again.

    Attributes:
        inventory: the model's tensors.
        dtype: of the rows.
        checkpoint_key: the key of the weights in each file, None where they are found without one.
        names: the members' names, in the order of the files.
        averages: name and members of each average that was appended, in this order.
    """

    inventory: Inventory
    dtype: torch.dtype
    checkpoint_key: str | None
    names: tuple[str, ...]
    averages: tuple[tuple[str, list[int]], ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, which `from_json` reads."""
        record: dict[str, Any] = {
            "version": _VERSION,
            "architecture": self.inventory.to_json(),
            "dtype": dtype_name(self.dtype),
            "checkpoint_key": self.checkpoint_key,
            "members": list(self.names),
        }
        if self.averages:
            record["averages"] = [
                {"name": name, "members": members} for name, members in self.averages
            ]
        return record

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Manifest:
        """Reads what `to_json` returned; raises DeevoError for anything else."""
        try:
            if record["version"] != _VERSION:
                raise DeevoError(
                    f"the population's manifest has version {record['version']!r}; this package "
                    f"reads version {_VERSION}: use the deevo_ext that wrote it"
                )
            return cls(
                inventory=Inventory.from_json(record["architecture"]),
                dtype=dtype_of(record["dtype"]),
                checkpoint_key=record["checkpoint_key"],
                names=tuple(str(name) for name in record["members"]),
                averages=tuple(
                    (str(average["name"]), [int(i) for i in average["members"]])
                    for average in record.get("averages", [])
                ),
            )
        except (TypeError, KeyError, ValueError) as error:
            raise DeevoError(f"not the manifest of a population: {error!r}") from error
