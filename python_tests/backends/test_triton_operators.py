"""The Triton operators against `reference`, bit for bit: in Triton's interpreter, or on a GPU.

The files of the operators run the interpreter on their properties and oracles too;
test_triton_operators_compiled.py compiles the kernels.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import tempfile
from typing import Any

import pytest
import torch

from deevo_ext import backends
from support.operators import (
    BIG_SEED,
    INTERPRETED,
    OPERATORS,
    Evolution,
    configurations,
    evolution,
    same_bits,
)
from support.recipes import Recipes, aligned, random_recipes
from support.weights import Weights, random_weights

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
interpreter = pytest.mark.skipif(not INTERPRETED, reason="this process compiles Triton's kernels")

# Odd and even sizes, one and several tiles, programs and steps of members; genes, forced weights
# and bounds alone and together.
SHAPES: dict[str, dict[str, Any]] = {
    "one weight": {"members": 5, "columns": 1},
    "odd": {"members": 6, "columns": 1043, "archive_rows": 3},
    "blocks of 8": {"members": 6, "columns": 2056, "archive_rows": 0},
    "many members": {"members": 40, "columns": 136, "archive_rows": 1},
    "genes": {"members": 9, "columns": 776, "archive_rows": 2, "genes": 70},
    "all": {"members": 7, "columns": 521, "genes": 41, "forced": True, "bounds": (-0.5, 1.25)},
    "forced": {"members": 5, "columns": 1032, "forced": True, "bounds": (-math.inf, 0.5)},
}


def outcome(w: Weights, draw: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Some accepted members, every archive row replaced if there are enough of them."""
    members, rows = w.population.shape[0], w.archive.shape[0]
    generator = torch.Generator().manual_seed(draw)
    accepted = torch.rand(members, generator=generator) < 0.7
    slots = torch.full((members,), -1, dtype=torch.int32)
    kept = accepted.nonzero().flatten()[:rows]
    slots[kept] = torch.randperm(rows, generator=generator, dtype=torch.int32)[: len(kept)]
    return accepted.to(torch.uint8), slots


def on(device: str, w: Weights) -> Weights:
    moved = w.clone()
    for name, value in vars(moved).items():
        if isinstance(value, torch.Tensor):
            setattr(moved, name, value.to(device))
    return moved


def check_weights(w: Weights, device: str, draw: int) -> None:
    """trials of all, of some and of none; commit."""
    accepted, slots = outcome(w, draw)
    members = torch.arange(w.population.shape[0]).flip(0)[::2].contiguous()
    with backends.use("reference"):
        everyone, some = w.trials(), w.trials(members)
        expected = w.clone()
        expected.commit(accepted, slots)
    have = on(device, w)
    with backends.use("triton"):
        assert same_bits(have.trials(torch.arange(len(accepted)).to(device)).cpu(), everyone)
        assert same_bits(have.trials(members.to(device)).cpu(), some)
        have.commit(accepted.to(device), slots.to(device))
    assert same_bits(have.population.cpu(), expected.population)
    assert same_bits(have.archive.cpu(), expected.archive)


@interpreter
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SHAPES)
def test_weights(name: str, dtype: torch.dtype) -> None:
    draw = list(SHAPES).index(name)
    w = random_weights(dtype=dtype, seed=BIG_SEED, draw=draw, **SHAPES[name])
    check_weights(w, "cpu", draw)


@interpreter
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offset", [1, 8])
def test_rows_of_larger_buffers(dtype: torch.dtype, offset: int) -> None:
    """Strides and first columns that 16-byte accesses allow (8), and that they do not (1)."""
    w = random_weights(6, 344, dtype, archive_rows=2, draw=offset)
    columns = w.population.shape[1]
    w.population = torch.nn.functional.pad(w.population, (offset, 48))[:, offset : columns + offset]
    w.archive = torch.nn.functional.pad(w.archive, (offset, 40))[:, offset : columns + offset]
    w.first_weight = 2**33 + 16
    check_weights(w, "cpu", offset)


# Members, columns, recipes and segments: tiles of one segment and of several, one recipe and many.
RECIPES = (
    *((5, 3000, 1, 2), (6, 4104, 4, 3), (3, 1003, 9, 200), (2, 41, 5, 7), (1, 1100, 3, 2)),
    (14, 2049, 2, 1),
)


def check_recipes(r: Recipes, device: str, offset: int) -> None:
    """Composed into rows that begin `offset` weights into memory, nothing beside them."""
    with backends.use("reference"):
        expected = r.rows()
    count, columns = expected.shape
    outer = r.population.new_full((count, -(-(columns + 16) // 8) * 8), 7.0).to(device)
    out = outer[:, offset : offset + columns]
    arguments = [a.to(device) if torch.is_tensor(a) else a for a in r.arguments(out)]
    with backends.use("triton"):
        OPERATORS.compose(*arguments[:-1], out)
    assert same_bits(out.cpu().contiguous(), expected)
    assert bool((outer[:, :offset] == 7.0).all() and (outer[:, offset + columns :] == 7.0).all())


@interpreter
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", RECIPES)
def test_recipes(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    members, columns, recipes, segments = shape
    r = random_recipes(members, columns, dtype, recipes, segments, draw=columns)
    check_recipes(r, "cpu", 2)
    check_recipes(aligned(r), "cpu", 8)


@interpreter
@pytest.mark.parametrize("start", [0, 1, 1023, 1024, 1025, 10**12])
def test_the_tail_begins_anywhere(start: int) -> None:
    r = random_recipes(5, 2080, torch.bfloat16, 5)
    r.population.abs_()
    r.nonneg_start = start
    check_recipes(r, "cpu", 2)


def adaptation(name: str) -> Evolution:
    """A run whose trials have genes, with some losses that are no numbers."""
    generator = torch.Generator().manual_seed(9)
    fitness = torch.randn(9, generator=generator, dtype=torch.float64)
    fitness[1], fitness[3] = math.inf, math.nan
    return evolution(configurations()[name], fitness, seed=BIG_SEED, weights=1000, genes=70)


def check_adaptation(name: str, device: str) -> None:
    """plan and tell give the reference's bits, in the tensors that they were given."""
    expected = adaptation(name)
    run = expected.clone()
    for key, tensor in run.tensors().items():
        setattr(run, key, tensor.to(device))
    given = run.tensors()
    planned = {"choices", "parameters", "coefficients", "gene_mask"}
    told = {"state", "fitness", "alive", "generation", "accepted", "archive_slot"}
    generator = torch.Generator().manual_seed(5)
    for _ in range(4):
        noise = torch.randn(9, generator=generator, dtype=torch.float64)
        losses = expected.fitness.clamp(-1e3, 1e3) + noise
        calls = ((planned, Evolution.plan, ()), (told, Evolution.tell, (losses,)))
        for written, call, arguments in calls:
            addresses = {key: tensor.data_ptr() for key, tensor in given.items()}
            versions = {key: tensor._version for key, tensor in given.items()}
            with backends.use("reference"):
                call(expected, *arguments)
            with backends.use("triton"):
                call(run, *(argument.to(device) for argument in arguments))
            for key, tensor in expected.tensors().items():
                assert same_bits(given[key].cpu(), tensor), key
                assert given[key].data_ptr() == addresses[key], key
                assert given[key]._version == versions[key] + (key in written), key


@pytest.mark.parametrize("name", ["mixed", "reduced"])
@pytest.mark.parametrize("copied", [False, True])
def test_adaptation(name: str, copied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In place, and by copies there and back, as of tensors on a GPU."""
    if copied:
        monkeypatch.setattr(torch.Tensor, "cpu", torch.Tensor.clone)
    check_adaptation(name, "cpu")


def test_cpu_tensors_need_the_interpreter() -> None:
    program = """
import torch, deevo_ext.ops
rows = torch.zeros(4, 8)
choices = torch.zeros(4, 12, dtype=torch.int32)
genes = torch.zeros(0, dtype=torch.int64), torch.zeros(4, 0, dtype=torch.int32)
bounds = -float("inf"), float("inf")
torch.ops.deevo.trials(rows, rows[:0], choices, torch.zeros(4, 5), *genes, torch.arange(4), 1, 8, 0,
                       *bounds, torch.zeros(4, 8))
"""
    result = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "TRITON_INTERPRET": "0", "DEEVO_BACKEND": "triton"},
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tempfile.gettempdir(),
    )
    assert result.returncode != 0
    assert "trials: tensors are on the CPU, where Triton's kernels run in its int" in result.stderr


# On a GPU, where the process compiles the kernels


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SHAPES)
def test_weights_on_a_gpu(name: str, dtype: torch.dtype) -> None:
    draw = list(SHAPES).index(name)
    w = random_weights(dtype=dtype, seed=BIG_SEED, draw=draw, **SHAPES[name])
    check_weights(w, "cuda", draw)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", RECIPES)
def test_recipes_on_a_gpu(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    members, columns, recipes, segments = shape
    r = random_recipes(members, columns, dtype, recipes, segments, draw=columns)
    check_recipes(r, "cuda", 2)
    check_recipes(aligned(r), "cuda", 8)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["mixed", "reduced"])
def test_adaptation_on_a_gpu(name: str) -> None:
    check_adaptation(name, "cuda")
