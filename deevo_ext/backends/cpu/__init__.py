"""The compiled CPU backend: passes addresses to `deevo_ext._C`. Arguments are checked in `ops`."""

from __future__ import annotations

from typing import Any

import torch

from deevo_ext import _extension
from deevo_ext.backends.cpu.inference import fold, head, loss_and_rank
from deevo_ext.errors import DeevoError
from deevo_ext.ops.tables import NUM_STRATEGY_COLUMNS

__all__ = ["commit", "fold", "fold_trials", "head", "loss_and_rank", "plan", "tell", "trials"]

_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


def _call(operator: str, *arguments: Any) -> None:
    compiled = getattr(_extension.load(), operator)
    try:
        compiled(*arguments)
    except ValueError as error:
        raise DeevoError(f"deevo::{operator}: {error}") from None


def _matrix(rows: torch.Tensor) -> tuple[int, int, int]:
    return rows.data_ptr(), rows.shape[0], rows.stride(0)


def _genes(genes: torch.Tensor, gene_mask: torch.Tensor) -> tuple[int, int, int]:
    return genes.data_ptr(), genes.numel(), gene_mask.data_ptr()


def _dtype(rows: torch.Tensor) -> str:
    return _DTYPES[rows.dtype]


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
    """As `deevo_ext.backends.reference.plan`."""
    _call(
        "plan",
        settings.data_ptr(),
        strategies.data_ptr(),
        strategies.numel() // NUM_STRATEGY_COLUMNS,
        state.data_ptr(),
        fitness.data_ptr(),
        alive.data_ptr(),
        fitness.numel(),
        int(generation.item()),
        seed,
        choices.data_ptr(),
        parameters.data_ptr(),
        coefficients.data_ptr(),
        gene_mask.data_ptr(),
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
    """As `deevo_ext.backends.reference.tell`."""
    _call(
        "tell",
        settings.data_ptr(),
        strategies.data_ptr(),
        strategies.numel() // NUM_STRATEGY_COLUMNS,
        trial_fitness.data_ptr(),
        choices.data_ptr(),
        parameters.data_ptr(),
        fitness.numel(),
        seed,
        state.data_ptr(),
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
    """As `deevo_ext.backends.reference.trials`, on torch.get_num_threads() threads."""
    _call(
        "trials",
        _dtype(population),
        _matrix(population),
        _matrix(archive),
        population.shape[1],
        nonneg_start,
        first_weight,
        choices.data_ptr(),
        coefficients.data_ptr(),
        _genes(genes, gene_mask),
        lower,
        upper,
        seed,
        torch.get_num_threads(),
        members.data_ptr(),
        members.numel(),
        _matrix(out),
    )


def fold_trials(
    population: torch.Tensor,
    archive: torch.Tensor,
    choices: torch.Tensor,
    coefficients: torch.Tensor,
    genes: torch.Tensor,
    gene_mask: torch.Tensor,
    members: torch.Tensor,
    seed: int,
    nonneg_start: int,
    lower: float,
    upper: float,
    statistics: torch.Tensor,
    constants: torch.Tensor,
    table: torch.Tensor,
    eps: torch.Tensor,
    weights: torch.Tensor,
    vectors: torch.Tensor,
) -> None:
    """As `deevo_ext.backends.reference.fold_trials`, on torch.get_num_threads() threads."""
    _call(
        "fold_trials",
        _dtype(population),
        _matrix(population),
        _matrix(archive),
        population.shape[1],
        nonneg_start,
        choices.data_ptr(),
        coefficients.data_ptr(),
        _genes(genes, gene_mask),
        lower,
        upper,
        seed,
        torch.get_num_threads(),
        members.data_ptr(),
        _dtype(weights),
        _matrix(statistics),
        constants.data_ptr(),
        table.data_ptr(),
        eps.data_ptr(),
        table.shape[0],
        _matrix(weights),
        _matrix(vectors),
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
    """As `deevo_ext.backends.reference.commit`, on torch.get_num_threads() threads."""
    _call(
        "commit",
        _dtype(population),
        _matrix(population),
        _matrix(archive),
        population.shape[1],
        nonneg_start,
        first_weight,
        choices.data_ptr(),
        coefficients.data_ptr(),
        _genes(genes, gene_mask),
        lower,
        upper,
        seed,
        torch.get_num_threads(),
        accepted.data_ptr(),
        archive_slot.data_ptr(),
    )
