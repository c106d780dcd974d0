"""The CUDA backend: passes device addresses and the current stream to `deevo_ext._C`.

Nothing here allocates, waits or reads a value off the device, so calls can be captured in a CUDA
graph. Shapes and dtypes are checked in `ops`; values lie on the device and are checked by the
kernels, where a failed check is a device-side assert, as for an index in torch.
"""

from __future__ import annotations

import torch

from deevo_ext.ops.tables import NUM_STRATEGY_COLUMNS

# Relative, so that the kernels' sources on the CPU can be called through the same files.
from .calls import call, dtype_of, genes_of, rows_of
from .inference import fold, fold_trials, head, loss_and_rank

__all__ = ["commit", "fold", "fold_trials", "head", "loss_and_rank", "plan", "tell", "trials"]


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
    """As `deevo_ext.backends.reference.plan`; the generation is read on the device."""
    call(
        "plan",
        settings,
        settings.data_ptr(),
        strategies.data_ptr(),
        strategies.numel() // NUM_STRATEGY_COLUMNS,
        state.data_ptr(),
        state.numel(),
        fitness.data_ptr(),
        alive.data_ptr(),
        fitness.numel(),
        generation.data_ptr(),
        seed,
        choices.data_ptr(),
        parameters.data_ptr(),
        coefficients.data_ptr(),
        gene_mask.data_ptr(),
        gene_mask.shape[1],
    )


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
    """As `deevo_ext.backends.reference.tell`; the generation is read and advanced on the device."""
    call(
        "tell",
        settings,
        settings.data_ptr(),
        strategies.data_ptr(),
        strategies.numel() // NUM_STRATEGY_COLUMNS,
        trial_fitness.data_ptr(),
        choices.data_ptr(),
        parameters.data_ptr(),
        fitness.numel(),
        seed,
        state.data_ptr(),
        state.numel(),
        fitness.data_ptr(),
        alive.data_ptr(),
        generation.data_ptr(),
        accepted.data_ptr(),
        archive_slot.data_ptr(),
    )


def trials(
    population: torch.Tensor,
    archive: torch.Tensor,
    choices: torch.Tensor,
    coefficients: torch.Tensor,
    genes: torch.Tensor,
    gene_mask: torch.Tensor,
    members: torch.Tensor,
    seed: int,
    nonneg_start: int,
    first_weight: int,
    lower: float,
    upper: float,
    out: torch.Tensor,
) -> None:
    """As `deevo_ext.backends.reference.trials`."""
    call(
        "trials",
        population,
        dtype_of(population),
        rows_of(population),
        rows_of(archive),
        population.shape[1],
        nonneg_start,
        first_weight,
        choices.data_ptr(),
        coefficients.data_ptr(),
        genes_of(genes, gene_mask),
        lower,
        upper,
        seed,
        members.data_ptr(),
        members.numel(),
        rows_of(out),
    )


def commit(
    population: torch.Tensor,
    archive: torch.Tensor,
    choices: torch.Tensor,
    coefficients: torch.Tensor,
    genes: torch.Tensor,
    gene_mask: torch.Tensor,
    accepted: torch.Tensor,
    archive_slot: torch.Tensor,
    seed: int,
    nonneg_start: int,
    first_weight: int,
    lower: float,
    upper: float,
) -> None:
    """As `deevo_ext.backends.reference.commit`; populations too tall for tiles are refused."""
    call(
        "commit",
        population,
        dtype_of(population),
        rows_of(population),
        rows_of(archive),
        population.shape[1],
        nonneg_start,
        first_weight,
        choices.data_ptr(),
        coefficients.data_ptr(),
        genes_of(genes, gene_mask),
        lower,
        upper,
        seed,
        accepted.data_ptr(),
        archive_slot.data_ptr(),
    )
