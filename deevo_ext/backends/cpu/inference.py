"""fold, head and loss_and_rank of the compiled CPU backend, on torch.get_num_threads() threads."""

from __future__ import annotations

import torch

from deevo_ext import _extension


def _blocks(tensor: torch.Tensor) -> tuple[int, int, int]:
    return tensor.data_ptr(), tensor.shape[0], tensor.stride(0)


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


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
    _extension.load().fold(
        _dtype(rows),
        _dtype(weights),
        _blocks(rows),
        _blocks(statistics),
        constants.data_ptr(),
        table.data_ptr(),
        eps.data_ptr(),
        table.shape[0],
        _blocks(weights),
        _blocks(vectors),
        torch.get_num_threads(),
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
    """As `deevo_ext.backends.reference.head`."""
    _, samples, positions, channels = features.shape
    _extension.load().head(
        _dtype(features),
        _blocks(features),
        _blocks(weight),
        _blocks(bias),
        positions,
        channels,
        labels.data_ptr(),
        samples,
        weight.shape[1],
        smoothing,
        _blocks(losses),
        _blocks(ranks),
        torch.get_num_threads(),
    )


def loss_and_rank(
    logits: torch.Tensor,
    labels: torch.Tensor,
    smoothing: float,
    losses: torch.Tensor,
    ranks: torch.Tensor,
) -> None:
    """As `deevo_ext.backends.reference.head`."""
    _extension.load().loss_and_rank(
        _dtype(logits),
        _blocks(logits),
        labels.data_ptr(),
        logits.shape[1],
        logits.shape[2],
        smoothing,
        _blocks(losses),
        _blocks(ranks),
        torch.get_num_threads(),
    )
