"""plan and tell of the Triton backend: computed by the compiled CPU backend.

Both move a few kilobytes, whatever the size of the networks, so a kernel would be no faster than
the copies. Tensors on a CUDA device are therefore copied to the CPU, where the compiled operator
runs, and what it changed is copied back in place. Tensors on the CPU are used where they are.

The host waits for the device in every call: unlike those of the backend `cuda`, these calls cannot
be captured in a CUDA graph.
"""

from __future__ import annotations

from typing import Any

import torch

from deevo_ext import backends


def plan(
    settings: torch.Tensor,
    strategies: torch.Tensor,
    state: torch.Tensor,
    fitness: torch.Tensor,
    alive: torch.Tensor,
    generation: torch.Tensor,
    seed: int,
    choices: torch.Tensor,
    parameters: torch.Tensor,
    coefficients: torch.Tensor,
    gene_mask: torch.Tensor,
) -> None:
    """Does what `deevo_ext.backends.reference.plan` does."""
    inputs = (settings, strategies, state, fitness, alive, generation, seed)
    _run_on_cpu("plan", inputs, (choices, parameters, coefficients, gene_mask))


def tell(
    settings: torch.Tensor,
    strategies: torch.Tensor,
    trial_fitness: torch.Tensor,
    choices: torch.Tensor,
    parameters: torch.Tensor,
    seed: int,
    state: torch.Tensor,
    fitness: torch.Tensor,
    alive: torch.Tensor,
    generation: torch.Tensor,
    accepted: torch.Tensor,
    archive_slot: torch.Tensor,
) -> None:
    """Does what `deevo_ext.backends.reference.tell` does."""
    inputs = (settings, strategies, trial_fitness, choices, parameters, seed)
    _run_on_cpu("tell", inputs, (state, fitness, alive, generation, accepted, archive_slot))


def _run_on_cpu(operator: str, inputs: tuple[Any, ...], changed: tuple[torch.Tensor, ...]) -> None:
    """Calls the CPU operator with the inputs, then the tensors that it changes."""
    read = [value.cpu() if isinstance(value, torch.Tensor) else value for value in inputs]
    written = [tensor.cpu() for tensor in changed]
    getattr(backends.compiled_cpu(), operator)(*read, *written)
    for tensor, result in zip(changed, written, strict=True):
        if result is not tensor:
            tensor.data.copy_(result)  # .data: the caller counts the tensor's versions
