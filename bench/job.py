"""What is asked to be measured."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from deevo_ext import backends

# Trials as one would write them in torch, on a GPU.
PEERS = ("torch", "torch.compile")


@dataclass(frozen=True)
class Job:
    """One row of the table to be."""

    case: str
    backend: str
    dtype: torch.dtype
    members: int
    weights: int
    threads: int
    repetitions: int

    @property
    def device(self) -> str:
        """Type of the device that the backend's tensors lie on."""
        return "cuda" if self.backend in PEERS else backends.DEVICES[self.backend][0]
