"""fold, head and loss_and_rank of the CUDA backend."""

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


def head(
    features: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    labels: torch.Tensor,
    smoothing: float,
    losses: torch.Tensor,
    ranks: torch.Tensor,
) -> None:
    """As `deevo_ext.backends.reference.head`; channels that shared memory cannot hold are refused.

    A block keeps one sample's means in float32: on a GPU with 99 KiB of shared memory for a block
    about 25,000 channels.
    """
    _, samples, positions, channels = features.shape
    call(
        "head",
        features,
        dtype_of(features),
        rows_of(features),
        rows_of(weight),
        rows_of(bias),
        positions,
        channels,
        labels.data_ptr(),
        samples,
        weight.shape[1],
        smoothing,
        rows_of(losses),
        rows_of(ranks),
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
