"""fold and loss_and_rank of the CUDA backend."""

from __future__ import annotations

import torch

from .calls import call, dtype_of, rows_of


def fold(
    rows: torch.Tensor,
    statistics: torch.Tensor,
    constants: torch.Tensor,
    table: torch.Tensor,
    eps: torch.Tensor,
    weights: torch.Tensor,
    vectors: torch.Tensor,
) -> None:
    """As `deevo_ext.backends.reference.fold`."""
    call(
        "fold",
        rows,
        dtype_of(rows),
        dtype_of(weights),
        rows_of(rows),
        rows_of(statistics),
        constants.data_ptr(),
        table.data_ptr(),
        eps.data_ptr(),
        table.shape[0],
        rows_of(weights),
        rows_of(vectors),
    )


def loss_and_rank(
    logits: torch.Tensor,
    labels: torch.Tensor,
    smoothing: float,
    losses: torch.Tensor,
    ranks: torch.Tensor,
) -> None:
    """As `deevo_ext.backends.reference.loss_and_rank`."""
    call(
        "loss_and_rank",
        logits,
        dtype_of(logits),
        rows_of(logits),
        labels.data_ptr(),
        logits.shape[1],
        logits.shape[2],
        smoothing,
        rows_of(losses),
        rows_of(ranks),
    )
