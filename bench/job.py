"""What is asked to be measured."""

from __future__ import annotations

from dataclasses import dataclass

import torch


class WrongResult(Exception):
    """A result differs from what it must be: its speed means nothing."""


class Skipped(Exception):
    """A row that cannot be measured here; the message says why."""


def check_close(what: str, found: torch.Tensor, expected: torch.Tensor, deviation: float) -> None:
    """Raises WrongResult where a value is farther off than this share of the largest one."""
    error = float((found - expected).abs().max() / expected.abs().max())
    if not error <= deviation:
        raise WrongResult(f"{what}: off by {error:.2g}")


@dataclass(frozen=True)
class Job:
    """One row of the table to be.

    size: a name or a number of weights, "-" where there are none. weights: as many as the size has.
    isa: instruction set of backend cpu, empty for the best. budget_s: seconds after which no more
    repetitions are begun, once there are five. batch: images, where networks are run.
    """

    case: str
    backend: str
    device: str
    dtype_name: str
    size: str
    members: int
    weights: int
    threads: int
    isa: str
    repetitions: int
    budget_s: float
    seed: int
    batch: int
    quick: bool

    @property
    def dtype(self) -> torch.dtype:
        """Of the population, or what a network is computed in."""
        return getattr(torch, {"tf32": "float32"}.get(self.dtype_name, self.dtype_name))

    @property
    def command(self) -> str:
        """What measures this row again, from a checkout."""
        options = [
            ("case", self.case),
            ("backend", self.backend),
            ("device", self.device if self.device != "cpu" else ""),
            ("size", self.size if self.size != "-" else ""),
            ("np", self.members),
            ("dtype", self.dtype_name if self.dtype_name != "float64" else ""),
            ("batch", self.batch or ""),
            ("threads", self.threads),
            ("isa", self.isa),
            ("repetitions", self.repetitions),
            ("budget", f"{self.budget_s:g}"),
            ("seed", self.seed),
        ]
        given = " ".join(f"--{name} {value}" for name, value in options if value != "")
        return f"python -m bench {given}{' --quick' if self.quick else ''}"
