"""What is to be measured, and the two ways in which it may not be."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from bench.measure import LEAST_REPETITIONS, Effort


class WrongResult(Exception):
    """A result differs from what it must be: its speed means nothing."""


class Skipped(Exception):
    """A row that cannot be measured here; the message says why."""


def check_close(what: str, values: torch.Tensor, expected: torch.Tensor, deviation: float) -> None:
    """Raises WrongResult where a value is farther off than this share of the largest one."""
    error = float((values - expected).abs().max() / expected.abs().max())
    if not error <= deviation:
        raise WrongResult(f"{what}: off by {error:.2g}")


@dataclass(frozen=True)
class Job:
    """What one row of the table measures.

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
        """The dtype of the population, or that in which a network is computed."""
        return getattr(torch, {"tf32": "float32"}.get(self.dtype_name, self.dtype_name))

    def effort(self, least: int = LEAST_REPETITIONS) -> Effort:
        """How often the row is timed; least: repetitions, whatever they take."""
        return Effort(self.repetitions, self.device, self.budget_s, least)

    @property
    def command(self) -> str:
        """The command that measures this row again, from a checkout."""
        options = {
            "case": self.case,
            "backend": self.backend,
            "device": self.device.replace("cpu", ""),
            "size": "" if self.size == "-" else self.size,
            "np": self.members,
            "dtype": self.dtype_name.replace("float64", ""),
            "batch": self.batch or "",
            "threads": self.threads,
            "isa": self.isa,
            "repetitions": self.repetitions,
            "budget": f"{self.budget_s:g}",
            "seed": self.seed,
        }
        words = " ".join(f"--{name} {value}" for name, value in options.items() if value != "")
        return f"python -m bench {words}{' --quick' if self.quick else ''}"
