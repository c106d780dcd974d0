"""The compiled CPU backend's operators of an evaluation, on every instruction set."""

from __future__ import annotations

import pytest
import torch

from deevo_ext import backends
from deevo_ext.ops.fold_table import Space
from support.folding import DTYPES, Builder, Problem, check_every_half, varied
from support.heads import check_extreme_logits, head, loss_and_rank, random_head
from support.operators import instruction_set, instruction_sets, num_threads, same_bits

SETS = instruction_sets()


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("target", DTYPES)
@pytest.mark.parametrize("source", DTYPES)
def test_every_instruction_set_folds_alike(
    source: torch.dtype, target: torch.dtype, name: str
) -> None:
    p = varied().problem(source, members=2, seed=3)
    with backends.use("reference"):
        expected = p.fold(target)
    with instruction_set(name):
        for found, wanted in zip(p.fold(target), expected, strict=True):
            assert same_bits(found, wanted)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("target", DTYPES)
@pytest.mark.parametrize("source", DTYPES)
def test_numbers_of_every_kind_in_rows_of_every_length(
    source: torch.dtype, target: torch.dtype, name: str
) -> None:
    """NaN of all patterns, infinities, subnormals, overflow; rows that end anywhere in a vector."""
    draw = torch.Generator().manual_seed(0)
    words = torch.randint(-(2**31), 2**31, (1000,), generator=draw).to(torch.int32)
    words[::3] |= 0x7F800000 if source == torch.float32 else 0x7C007F80  # no numbers
    near = [torch.randn(1000, generator=draw) * x for x in (2.0**15, 2.0**-21, 2.0**-130)]
    values = torch.cat([words.view(source)[:1000], *(x.to(source) for x in near)])
    values = values[torch.randperm(4000, generator=draw)]
    b = Builder()
    for channels in range(1, 68):
        b.add(1, channels, 1, affine=None, statistics=None)
    row = values[: b.sizes[Space.ROWS]][None]
    p = Problem(b.entries, row, torch.empty(1, 0), torch.empty(0), b.weights, b.vectors)
    with backends.use("reference"):
        expected, _ = p.fold(target)
    with instruction_set(name):
        assert same_bits(p.fold(target)[0], expected)


@pytest.mark.parametrize("name", SETS)
def test_every_instruction_set_widens_and_rounds_halves(name: str) -> None:
    with instruction_set(name):
        check_every_half("cpu")


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_instruction_set_has_the_same_heads(dtype: torch.dtype, name: str) -> None:
    """Channels in several pieces, and in none that is whole; samples and classes beyond a tile."""
    for samples, positions, channels, classes in ((37, 2, 1100, 19), (6, 3, 5, 1), (3, 1, 512, 9)):
        arguments = random_head(2, samples, positions, channels, classes, dtype)
        arguments[0][1, 2, 0, 3] = torch.nan
        arguments[1][0, 0, 1] = torch.inf
        with backends.use("reference"):
            expected = head(arguments, 0.1)
        for threads in (1, 3):
            with instruction_set(name), num_threads(threads):
                for found, wanted in zip(head(arguments, 0.1), expected, strict=True):
                    assert same_bits(found, wanted)


@pytest.mark.parametrize("name", SETS)
def test_every_instruction_set_has_the_same_losses(name: str) -> None:
    with instruction_set(name):
        check_extreme_logits("cpu")
    for classes in (1, 2, 15, 16, 17, 100, 1000):
        draw = torch.Generator().manual_seed(classes)
        logits = (torch.randn(2, 9, classes, generator=draw) * 9.0).round() * 0.5
        logits[0, 0] = 0.0
        logits[0, 1, classes // 2] = -0.0
        logits[1, 5, -1], logits[1, 6, 0] = torch.inf, torch.nan
        labels = torch.arange(9) * 7 % classes
        with backends.use("reference"):
            expected = loss_and_rank(logits, labels, 0.2)
        with instruction_set(name):
            for found, wanted in zip(loss_and_rank(logits, labels, 0.2), expected, strict=True):
                assert same_bits(found, wanted)
