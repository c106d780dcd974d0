"""Calls of head and loss_and_rank, their operands, and a check that several test files make."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from deevo_ext import backends
from support.operators import OPERATORS


def loss_and_rank(
    logits: torch.Tensor, labels: torch.Tensor, smoothing: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs in rows of a larger matrix, with their surroundings checked."""
    members, samples = logits.shape[0], logits.shape[1]
    losses = torch.full((members, samples + 3), 7.0)
    ranks = torch.full((members, samples + 3), 7, dtype=torch.int32)
    OPERATORS.loss_and_rank(logits, labels, smoothing, losses[:, 1:-2], ranks[:, 1:-2])
    for outer in (losses, ranks):
        assert bool((outer[:, 0] == 7).all()) and bool((outer[:, -2:] == 7).all())
    return losses[:, 1:-2].contiguous(), ranks[:, 1:-2].contiguous()


def head(arguments: tuple[Any, ...], smoothing: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses and ranks of (features, weight, bias, labels)."""
    features = arguments[0]
    losses = torch.full(features.shape[:2], 7.0)
    ranks = torch.full(features.shape[:2], 7, dtype=torch.int32)
    OPERATORS.head(*arguments, smoothing, losses, ranks)
    return losses, ranks


def random_head(
    members: int = 3,
    samples: int = 21,
    positions: int = 6,
    channels: int = 50,
    classes: int = 11,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> tuple[Any, ...]:
    """Features, weight, bias and labels of a head."""
    draw = torch.Generator().manual_seed(seed)
    features = torch.randn(members, samples, positions, channels, generator=draw).relu()
    weight = torch.randn(members, classes, channels, generator=draw)
    bias = torch.randn(members, classes, generator=draw)
    labels = torch.randint(0, classes, (samples,), generator=draw)
    return features.to(dtype), weight.to(dtype), bias, labels


def check_extreme_logits(backend: str) -> None:
    """The largest float32 values: a loss beyond float32 is +inf, one that fits is kept."""
    big = torch.finfo(torch.float32).max
    logits = torch.tensor([[[big, -big, 0.0], [big, 0.0, -big], [1e-45, 0.0, -1e-45]]])
    with backends.use(backend):
        losses, ranks = loss_and_rank(logits, torch.tensor([1, 1, 0]))
        smoothed, _ = loss_and_rank(logits, torch.tensor([0, 0, 0]), 0.3)
    assert losses[0].tolist()[:2] == [math.inf, big] and ranks[0].tolist() == [3, 1, 0]
    assert losses[0, 2].item() == pytest.approx(math.log(3), rel=1e-7)
    # Two of three gaps count as 2^20.
    assert smoothed[0, 0].item() == pytest.approx(0.3 * 2.0**20 * 2 / 3, rel=1e-7)
