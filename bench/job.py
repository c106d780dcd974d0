"""What is asked to be measured."""

from __future__ import annotations

from dataclasses import dataclass

import torch


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
