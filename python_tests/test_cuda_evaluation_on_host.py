"""The CUDA kernels that evaluate networks, on machines played on the CPU, against reference.

Their other tests run them too, as backend cuda-on-host with its default machine.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from deevo_ext import backends
from support import cuda_on_host
from support.folding import DTYPES, Builder, Problem, varied
from support.operators import OPERATORS, same_bits

MACHINES: dict[str, dict[str, Any]] = {
    "reverse": {"order": "reverse", "threads": 96},
    "shuffled": {"order": "shuffled", "threads": 32},
    "many blocks": {"order": "shuffled", "multiprocessors": 50, "threads": 256},
    "one block": {"multiprocessors": 1, "order": "shuffled"},
}


def moved(p: Problem, offset: int) -> Problem:
    """The same problem with sources that begin `offset` elements later in memory."""
    pieces = []
    for source in (p.rows, p.statistics, p.constants):
        wide = source.new_empty(*source.shape[:-1], source.shape[-1] + 24)
        part = wide[..., offset : offset + source.shape[-1]]
        part.copy_(source)
        pieces.append(part)
    return Problem(p.entries, *pieces, p.weights, p.vectors)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("target", DTYPES)
@pytest.mark.parametrize("source", DTYPES)
def test_every_machine_folds_alike(source: torch.dtype, target: torch.dtype, machine: str) -> None:
    p = varied().problem(source, members=3, seed=5)
    with backends.use("reference"):
        expected = p.fold(target)
    with cuda_on_host.play(**MACHINES[machine]) as played:
        before = played.launches()
        found = p.fold(target)
        assert played.launches() == before + 1
    for ours, wanted in zip(found, expected, strict=True):
        assert same_bits(ours, wanted)


@pytest.mark.parametrize("offset", [1, 2, 7])
def test_sources_may_begin_anywhere(offset: int) -> None:
    """Vectors are read where addresses allow, elements at the ends alone."""
    for source in DTYPES:
        p = varied().problem(source)
        with backends.use("reference"):
            expected = p.fold(torch.float16)
        with cuda_on_host.play(order="shuffled"):
            for ours, wanted in zip(moved(p, offset).fold(torch.float16), expected, strict=True):
                assert same_bits(ours, wanted)


SHAPES = (
    *itertools.product((1, 3, 8, 457), (1, 2, 9), (0, 3, 8, 13, 4101)),
    *itertools.product((4097,), (1, 2), (0, 9000)),
    *itertools.product((1, 3), (4096,), (0, 8)),
)


@pytest.mark.parametrize(("channels", "taps", "padded"), SHAPES)
def test_every_shape_of_a_tile(channels: int, taps: int, padded: int) -> None:
    """Runs shorter than a vector, pads longer than a tile, channels cut at every place."""
    b = Builder().add(3, channels, taps, padded=padded).add(2, 9, 1)
    p = b.problem(members=1)
    for target in (torch.float32, torch.bfloat16):
        with backends.use("reference"):
            expected = p.fold(target)
        with cuda_on_host.play(order="shuffled"):
            for ours, wanted in zip(p.fold(target), expected, strict=True):
                assert same_bits(ours, wanted)


def losses_of(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    losses = torch.full(logits.shape[:2], 7.0)
    ranks = torch.full(logits.shape[:2], 7, dtype=torch.int32)
    OPERATORS.loss_and_rank(logits, labels, 0.1, losses, ranks)
    return losses, ranks


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [1, 2, 3, 10, 33, 1000])
def test_every_machine_has_the_same_losses(classes: int, dtype: torch.dtype, machine: str) -> None:
    """Parts of warps with and without a sample; ties, infinities and NaN among the logits."""
    draw = torch.Generator().manual_seed(classes)
    logits = (torch.randn(3, 37, classes, generator=draw) * 4.0).round()
    logits[0, 5, 0], logits[1, 6, -1], logits[2, 36, classes // 2] = (
        *(float("nan"), float("inf"), float("-inf")),
    )
    labels = torch.randint(0, classes, (37,), generator=draw)
    with backends.use("reference"):
        expected = losses_of(logits.to(dtype), labels)
    with cuda_on_host.play(**MACHINES[machine]):
        found = losses_of(logits.to(dtype), labels)
    for ours, wanted in zip(found, expected, strict=True):
        assert same_bits(ours, wanted)
