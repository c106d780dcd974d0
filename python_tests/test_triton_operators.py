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
from deevo_ext.search.configuration import Configuration, configure
from support.operators import (
    BIG_SEED,
    INTERPRETED,
    MIXED,
    OPERATORS,
    Evolution,
    Weights,
    configurations,
    evolution,
    random_weights,
    same_bits,
)

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


def adaptation_cases() -> dict[str, tuple[Configuration, int]]:
    """Every configuration, genes and j_rand; the numbers of members are no powers of two."""
    cases = {name: (c, 9) for name, c in configurations().items()}
    cases["two strategies, 130 members"] = configure("paper", generations=24), 130
    return cases


def check_adaptation(a: Evolution, b: Evolution, generations: int, draw: int) -> None:
    """plan and tell from the same start; trial fitness with ties, NaN and infinities."""
    generator = torch.Generator().manual_seed(draw)
    for _ in range(generations):
        with backends.use("reference"):
            a.plan()
        with backends.use("triton"):
            b.plan()
        assert_same(a, b)
        noise = torch.randn(a.members, generator=generator, dtype=torch.float64)
        told = torch.round(8.0 * (a.fitness.clamp(-1e3, 1e3) + 0.3 * noise)) / 8.0
        special = torch.rand(a.members, generator=generator)
        told[special < 0.06] = math.nan
        told[special > 0.98] = math.inf
        with backends.use("reference"):
            a.tell(told)
        with backends.use("triton"):
            b.tell(told.to(b.fitness.device))
        assert_same(a, b)


def assert_same(a: Evolution, b: Evolution) -> None:
    for name, tensor in a.tensors().items():
        assert same_bits(tensor, getattr(b, name).cpu()), name


def start(configuration: Configuration, members: int) -> Evolution:
    generator = torch.Generator().manual_seed(members)
    fitness = torch.randn(members, generator=generator, dtype=torch.float64)
    fitness[1], fitness[3] = math.inf, math.nan
    return evolution(configuration, fitness, seed=BIG_SEED, weights=1000)


@interpreter
@pytest.mark.parametrize("name", adaptation_cases())
def test_adaptation(name: str) -> None:
    configuration, members = adaptation_cases()[name]
    a = start(configuration, members)
    generations = 2 if members > 100 else (8 if configuration.population_min else 4)
    check_adaptation(a, a.clone(), generations, draw=5)


@interpreter
def test_adaptation_with_genes() -> None:
    configuration = configure(
        "paper", strategies=MIXED, generations=9, archive_size=2, population_min=6, j_rand=True
    )
    fitness = torch.linspace(1.0, 2.0, 9, dtype=torch.float64)
    a = evolution(configuration, fitness, seed=3, weights=5000, genes=70)
    check_adaptation(a, a.clone(), 5, draw=6)
    assert a.gene_mask.shape == (9, 3)
    assert not a.alive.all()


@interpreter
def test_a_tall_population_is_told() -> None:
    """1,000 members, one program: the contract's sums over 1,024 lanes."""
    a = start(configure("sa-shade-tri-ensin", generations=24), 1000)
    with backends.use("cpu"):
        a.plan()
    b, told = a.clone(), a.fitness.flip(0).clone()
    with backends.use("reference"):
        a.tell(told)
    with backends.use("triton"):
        b.tell(told)
    assert_same(a, b)
    assert a.accepted.sum() > 300


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


def to_gpu(run: Evolution) -> Evolution:
    moved = run.clone()
    for name, tensor in moved.tensors().items():
        setattr(moved, name, tensor.cuda())
    return moved


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SHAPES)
def test_weights_on_a_gpu(name: str, dtype: torch.dtype) -> None:
    draw = list(SHAPES).index(name)
    w = random_weights(dtype=dtype, seed=BIG_SEED, draw=draw, **SHAPES[name])
    check_weights(w, "cuda", draw)


@pytest.mark.gpu
@pytest.mark.parametrize("name", adaptation_cases())
def test_adaptation_on_a_gpu(name: str) -> None:
    configuration, members = adaptation_cases()[name]
    a = start(configuration, members)
    check_adaptation(a, to_gpu(a), 25, draw=5)


@pytest.mark.gpu
def test_a_generation_is_captured() -> None:
    """tell(g), commit(g), plan(g + 1) as one graph; each replay is the next generation."""
    configuration = configurations()["mixed"]
    a = start(configuration, 9)
    w = random_weights(9, 2048, archive_rows=configuration.archive_size, nonneg=0)
    b, v = to_gpu(a), on("cuda", w)
    told = torch.zeros(9, dtype=torch.float64, device="cuda")

    def generation(run: Evolution, rows: Weights, fitness: torch.Tensor) -> None:
        run.tell(fitness)
        planned = (rows.population, rows.archive, run.choices, run.coefficients)
        rest = (BIG_SEED, 2048, 0, -math.inf, math.inf)
        genes = (rows.genes, run.gene_mask)
        OPERATORS.commit(*planned, *genes, run.accepted, run.archive_slot, *rest)
        run.plan()

    with backends.use("triton"):
        b.plan()
        spare, spare_rows = b.clone(), v.clone()
        generation(spare, spare_rows, told)  # compiles
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            generation(b, v, told)
    with backends.use("reference"):
        a.plan()
    generator = torch.Generator().manual_seed(8)
    for _ in range(6):
        fitness = a.fitness.clamp(-1e3, 1e3) + torch.randn(9, generator=generator).double()
        told.copy_(fitness)
        graph.replay()
        with backends.use("reference"):
            generation(a, w, fitness)
        assert_same(a, b)
        assert same_bits(w.population, v.population.cpu())
        assert same_bits(w.archive, v.archive.cpu())
