"""Where a population lies while it is evolved: on the device that runs networks, if it fits."""

from __future__ import annotations

import torch

from deevo_ext import backends
from deevo_ext.errors import DeevoError
from deevo_ext.population.allocation import available_bytes
from deevo_ext.population.layout import Layout

# Rows of float32 that candidates, the comparison and re-estimated statistics have at a time.
_CANDIDATES = 12
_OPERATORS = {"weights": ("trials", "commit"), "coefficients": ("compose",)}


def default_place(
    layout: Layout,
    dtype: torch.dtype,
    rows: int,
    device: torch.device,
    search: str,
    memory: int | None = None,
) -> torch.device:
    """Returns the device that runs networks, where the rows fit beside them; else the CPU.

    layout, dtype: of the rows. rows: how many there are at a time, the copies that are evaluated
    included. device: where networks run. search: "weights" or "coefficients", whose operators must
    be served there. memory: bytes for the linear model of the latter, by default a quarter of what
    can be had. Another quarter is left for activations.
    """
    cpu = torch.device("cpu")
    if device.type != "cuda" or not all(_is_served(device, name) for name in _OPERATORS[search]):
        return cpu
    available = available_bytes(device)
    rest = available // 4  # for activations, images and the networks' own staging
    if search == "coefficients":
        rest += available // 4 if memory is None else memory
    needed = rows * layout.stride * dtype.itemsize + _CANDIDATES * layout.dim * 4
    return device if needed + rest <= available else cpu


def place_line(population: torch.device, evaluating: torch.device) -> str:
    """Returns where the population lies, as a line of the preliminaries."""
    if population == evaluating:
        return f"The population lies on {population}, where networks run"
    return f"The population lies on {population}; rows go to {evaluating} by chunks"


def _is_served(device: torch.device, operator: str) -> bool:
    try:
        backends.select(device, operator)
    except DeevoError:
        return False
    return True
