"""The operators on a GPU: reference's bits, streams, graphs, torch.compile. All need one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from deevo_ext import backends
from deevo_ext.ops.tables import ChoiceColumn
from support.gpu import moved, no_synchronisation, to_cuda
from support.operators import BIG_SEED, OPERATORS, Evolution, configurations, evolution, same_bits
from support.paths import child_environment
from support.registration import NAMES, arguments, generation, inputs, operator
from support.weights import Weights, random_choices, random_weights

pytestmark = pytest.mark.gpu

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "genes": {"genes": 40},
    "forced": {"forced": True},
    "bounds": {"bounds": (-1.0, 2.0)},
}


def trials(w: Weights, members: torch.Tensor | None = None) -> torch.Tensor:
    """Trials of GPU tensors, on the CPU."""
    every = torch.arange(w.population.shape[0])
    return w.trials((every if members is None else members).cuda()).cpu()


def outcome(w: Weights) -> tuple[torch.Tensor, torch.Tensor]:
    """Two thirds accepted, the first of them with archive slots."""
    accepted = (torch.arange(w.population.shape[0]) % 3 != 0).to(torch.uint8)
    slots = torch.full((accepted.numel(),), -1, dtype=torch.int32)
    chosen = accepted.nonzero()[: w.archive.shape[0], 0]
    slots[chosen] = torch.arange(chosen.numel(), dtype=torch.int32).flip(0)
    return accepted, slots


def assert_same_weights(w: Weights, members: torch.Tensor | None = None) -> None:
    """Trials and a commit have reference's bits; w has had the commit afterwards."""
    on_gpu, (accepted, slots) = moved(w, "cuda"), outcome(w)
    with backends.use("reference"):
        expected = w.trials(members)
        w.commit(accepted, slots)
    assert same_bits(trials(on_gpu, members), expected)
    on_gpu.commit(accepted.cuda(), slots.cuda())
    assert same_bits(on_gpu.population.cpu(), w.population)
    assert same_bits(on_gpu.archive.cpu(), w.archive)


# Bits


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_of_every_kind(backend: str, dtype: torch.dtype, variant: str) -> None:
    for members, columns in ((1, 41), (6, 2051), (20, 100_003), (100, 20_000)):
        w = random_weights(members, columns, dtype, 4, BIG_SEED, **VARIANTS[variant])
        assert_same_weights(w)


@pytest.mark.parametrize("dtype", DTYPES)
def test_some_members_in_any_order(backend: str, dtype: torch.dtype) -> None:
    w = random_weights(30, 5000, dtype)
    assert_same_weights(w, torch.tensor([29, 3, 3, 0]))


@pytest.mark.parametrize("members", [300, 2000])
def test_tall_populations(backend: str, members: int) -> None:
    assert_same_weights(random_weights(members, 1030, torch.bfloat16, 50, genes=20))


@pytest.mark.parametrize("offset", [1, 8])
def test_rows_that_start_anywhere(backend: str, offset: int) -> None:
    for dtype in DTYPES:
        w = random_weights(6, 3001, dtype)
        with backends.use("reference"):
            expected = w.trials()
        w = moved(w, "cuda")
        wide = torch.full((6, 3100), 77.0, dtype=dtype, device="cuda")
        wide[:, offset : offset + 3001] = w.population
        w.population = wide[:, offset : offset + 3001]
        out = torch.full((6, 3100), 77.0, dtype=dtype, device="cuda")
        target = out[:, 3 : 3 + 3001]
        OPERATORS.trials(*w.trials_arguments(torch.arange(6).cuda(), target))
        assert same_bits(target.cpu(), expected)
        target.fill_(77.0)
        assert (out == 77.0).all()


@pytest.mark.slow
def test_rows_of_more_than_2_to_the_31_weights(backend: str) -> None:
    """Slices at the start, around 2^31 columns and at the end are reference's."""
    columns, members = 2**31 + 4099, 2
    if torch.cuda.mem_get_info()[0] < 20 * 2**30:
        pytest.skip("needs 20 GiB of GPU memory")
    source = torch.Generator(device="cuda").manual_seed(1)
    population = torch.empty(members, columns, dtype=torch.bfloat16, device="cuda")
    for row in population:
        row.normal_(generator=source)
    choices, coefficients = random_choices(members, members, torch.Generator().manual_seed(2))
    choices[:, ChoiceColumn.THRESHOLD] = 30_000
    w = Weights(
        *(population, population[:0], choices.cuda(), coefficients.cuda(), 3, columns),
        genes=torch.empty(0, dtype=torch.int64, device="cuda"),
        gene_mask=torch.empty(members, 0, dtype=torch.int32, device="cuda"),
    )
    out = torch.empty(1, columns, dtype=torch.bfloat16, device="cuda")
    OPERATORS.trials(*w.trials_arguments(torch.tensor([1]).cuda(), out))
    for first in (0, 2**31 - 2048, columns // 8 * 8 - 4096):
        rows = population[:, first : first + 4099].cpu()
        part = Weights(rows, rows[:0], choices, coefficients, 3, rows.shape[1], first)
        with backends.use("reference"):
            expected = part.trials(torch.tensor([1]))[0]
        assert same_bits(out[0, first : first + 4099].cpu(), expected), first


@pytest.mark.parametrize("name", configurations())
def test_plans_and_lessons(backend: str, name: str) -> None:
    c = configurations()[name]
    for members in (max(9, c.members_needed), 100, 700):
        source = torch.Generator().manual_seed(members)
        run = evolution(c, torch.randn(members, generator=source), BIG_SEED, weights=90, genes=50)
        on_gpu = moved(run, "cuda")
        for _ in range(12):
            losses = torch.randn(members, generator=source).double()
            with backends.use("reference"):
                run.plan()
                run.tell(losses)
            on_gpu.plan()
            on_gpu.tell(losses.cuda())
            run.assert_same(moved(on_gpu, "cpu"))


# Streams and graphs


def start(columns: int = 3000) -> tuple[Evolution, Weights]:
    """A run with genes and an archive, before its first plan, on the CPU."""
    c = configurations()["mixed"]
    w = random_weights(20, columns, torch.bfloat16, c.archive_size, BIG_SEED, genes=40)
    run = evolution(c, torch.rand(20).double() + 1.0, BIG_SEED, weights=columns, genes=40)
    w.choices, w.coefficients = run.choices, run.coefficients
    w.gene_mask = run.gene_mask
    return run, w


def losses(generation: int) -> torch.Tensor:
    return torch.rand(20, generator=torch.Generator().manual_seed(generation)).double() * 2.0


def share_plan(run: Evolution, w: Weights) -> tuple[Evolution, Weights]:
    w.choices, w.coefficients, w.gene_mask = run.choices, run.coefficients, run.gene_mask
    return run, w


def next_generation(run: Evolution, w: Weights, fitness: torch.Tensor) -> None:
    run.tell(fitness)
    w.commit(run.accepted, run.archive_slot)
    run.plan()


@pytest.fixture
def cuda() -> Iterator[None]:
    """Backend cuda alone: plan and tell of triton run on the CPU, and wait for the device."""
    if (reason := backends.why_unavailable("cuda")) is not None:
        pytest.skip(reason)
    with backends.use("cuda"):
        yield


def test_trials_and_commit_neither_wait_nor_allocate(backend: str) -> None:
    w = moved(random_weights(20, 3000, torch.bfloat16, 3, genes=40), "cuda")
    accepted, slots = (t.cuda() for t in outcome(w))
    members, out = torch.arange(20).cuda(), torch.empty_like(w.population)

    def both() -> None:
        OPERATORS.trials(*w.trials_arguments(members, out))
        w.commit(accepted, slots)

    both()  # loads what is loaded once
    torch.cuda.synchronize()
    with no_synchronisation():
        both()
    torch.cuda.synchronize()


def test_a_generation_neither_waits_nor_allocates(cuda: None) -> None:
    run, w = start()
    run, w = share_plan(moved(run, "cuda"), moved(w, "cuda"))
    members, out = torch.arange(20).cuda(), torch.empty_like(w.population)
    fitness = losses(0).cuda()
    run.plan()
    next_generation(run, w, fitness)  # loads what is loaded once
    OPERATORS.trials(*w.trials_arguments(members, out))
    torch.cuda.synchronize()
    with no_synchronisation():
        next_generation(run, w, fitness)
        OPERATORS.trials(*w.trials_arguments(members, out))
    torch.cuda.synchronize()


def test_a_replayed_graph_is_the_next_generation(cuda: None) -> None:
    """The unit to capture: tell, commit and the next plan."""
    run, w = start()
    with backends.use("reference"):
        run.plan()
    on_gpu, weights = share_plan(moved(run, "cuda"), moved(w, "cuda"))
    spare = share_plan(moved(run, "cuda"), moved(w, "cuda"))
    fitness = torch.zeros(20, dtype=torch.float64, device="cuda")
    next_generation(*spare, fitness)  # loads what is loaded once
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        next_generation(on_gpu, weights, fitness)
    for number in range(1, 6):
        fitness.copy_(losses(number))
        graph.replay()
        with backends.use("reference"):
            next_generation(run, w, losses(number))
        run.assert_same(moved(on_gpu, "cpu"))
        assert same_bits(weights.population.cpu(), w.population)
        assert same_bits(weights.archive.cpu(), w.archive)
    assert int(on_gpu.generation) == 6


def test_the_current_stream_is_the_one_used(backend: str) -> None:
    """The population arrives late, on a side stream."""
    w = random_weights(6, 100_000)
    with backends.use("reference"):
        expected = w.trials()
    source = w.population.pin_memory()
    w = moved(w, "cuda")
    w.population.zero_()
    out, members = torch.zeros_like(w.population), torch.arange(6).cuda()
    OPERATORS.trials(*w.trials_arguments(members, out))
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(200_000_000)
        w.population.copy_(source, non_blocking=True)
        OPERATORS.trials(*w.trials_arguments(members, out))
    side.synchronize()
    assert same_bits(out.cpu(), expected)


@pytest.mark.multigpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_tensors_of_a_gpu_that_is_not_current(backend: str) -> None:
    w = random_weights(6, 5000)
    with backends.use("reference"):
        expected = w.trials()
    other = moved(w, "cuda:1")
    assert torch.cuda.current_device() == 0
    assert same_bits(other.trials(torch.arange(6, device="cuda:1")).cpu(), expected)
    assert torch.cuda.current_device() == 0


# torch


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "check",
    ["test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic"],
)
def test_opcheck(backend: str, name: str, check: str) -> None:
    torch.library.opcheck(operator(name), to_cuda(arguments(name)), test_utils=check)


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_compiled_generations_equal_eager_ones(backend: str, compiler: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(generation, fullgraph=True, backend=compiler)
    ours, theirs = to_cuda(inputs()), to_cuda(inputs())
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(3):
            assert torch.allclose(compiled(ours), generation(theirs))
            for name, tensor in theirs.items():
                assert same_bits(ours[name].cpu(), tensor.cpu()), name


BROKEN = """
import torch
from deevo_ext import backends
from support.gpu import moved
from support.weights import random_weights
w = moved(random_weights(6, 100), "cuda")
w.choices[3, 5] = 77
with backends.use("cuda"):
    w.trials(torch.arange(6).cuda())
    torch.cuda.synchronize()
"""


def test_plans_that_name_no_row_end_in_a_device_side_assert() -> None:
    """In a process of its own, since the assert ends the use of its GPU."""
    if (reason := backends.why_unavailable("cuda")) is not None:
        pytest.skip(reason)
    result = subprocess.run(
        [sys.executable, "-P", "-c", BROKEN],
        env=child_environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode != 0
    assert "choices name a row that does not exist" in result.stderr + result.stdout
    assert "device-side assert" in result.stderr
