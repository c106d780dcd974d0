"""The CUDA kernels that evaluate networks, on machines played on the CPU, against reference.

Their other tests run them too, as backend cuda-on-host with its default machine.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch

from deevo_ext import backends
from deevo_ext.errors import DeevoError
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


HEADS: dict[str, dict[str, Any]] = {
    **MACHINES,
    "tiles of classes": {"shared_bytes": 5_500, "order": "shuffled"},
    "a sample at a time": {"shared_bytes": 1_100, "order": "shuffled"},
}


@pytest.mark.parametrize("machine", HEADS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_machine_has_the_same_heads(dtype: torch.dtype, machine: str) -> None:
    """Channels in vectors and not, samples and classes that fill no block."""
    draw = torch.Generator().manual_seed(2)
    for samples, positions, channels, classes in ((17, 3, 40, 133), (9, 1, 33, 70), (3, 49, 8, 2)):
        features = torch.randn(2, samples, positions, channels, generator=draw).to(dtype)
        features[1, 2, 0, 5] = float("inf")
        weight = torch.randn(2, classes, channels, generator=draw).to(dtype)
        bias = torch.randn(2, classes, generator=draw)
        labels = torch.randint(0, classes, (samples,), generator=draw)
        results = []
        for played in (False, True):
            losses = torch.full((2, samples), 7.0)
            ranks = torch.full((2, samples), 7, dtype=torch.int32)
            on = cuda_on_host.play(**HEADS[machine]) if played else backends.use("reference")
            with on:
                OPERATORS.head(features, weight, bias, labels, 0.1, losses, ranks)
            results.append((losses, ranks))
        for wanted, ours in zip(*results, strict=True):
            assert same_bits(ours, wanted)
        assert torch.isinf(results[0][0][1, 2])


def test_head_refuses_channels_that_no_block_holds() -> None:
    losses, ranks = torch.zeros(1, 1), torch.zeros(1, 1, dtype=torch.int32)
    arguments = (torch.ones(1, 1, 1, 600), torch.ones(1, 3, 600), torch.ones(1, 3))
    labels = torch.zeros(1, dtype=torch.int64)
    match = "head: features has 600 channels; expected at most the 493 "
    with cuda_on_host.play(shared_bytes=2_496), pytest.raises(DeevoError, match=match):
        OPERATORS.head(*arguments, labels, 0.0, losses, ranks)
    arguments = tuple(t[..., :493].contiguous() if t.dim() > 2 else t for t in arguments)
    with cuda_on_host.play(shared_bytes=2_496):
        OPERATORS.head(*arguments, labels, 0.0, losses, ranks)
    assert losses[0, 0] == torch.tensor(math.log(3.0))
