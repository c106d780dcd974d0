"""The CUDA kernels' sources on machines of many kinds, played on the CPU, against reference.

The other tests of operators run them too, as backend cuda-on-host with its default machine.
"""

from __future__ import annotations

import itertools
import mmap
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from deevo_ext import backends
from deevo_ext.errors import DeevoError
from deevo_ext.ops.tables import ChoiceColumn
from support import cuda_on_host
from support.operators import BIG_SEED, configurations, evolution, same_bits
from support.weights import Weights, random_weights

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "genes": {"genes": 40},
    "forced": {"forced": True},
    "bounds": {"bounds": (-1.0, 2.0)},
}
MACHINES: dict[str, dict[str, Any]] = {
    "forward": {},
    "reverse": {"order": "reverse", "threads": 96},
    "shuffled": {"order": "shuffled", "threads": 32},
    "bulk": {"bulk": True},
    "bulk shuffled": {"bulk": True, "order": "shuffled", "multiprocessors": 7},
    "one block": {"multiprocessors": 1, "order": "shuffled"},
    "little shared memory": {"shared_bytes": 16_384, "bulk": True},
}


def both(w: Weights, members: torch.Tensor | None = None, **machine: Any) -> None:
    """Trials of both, and the commit of two thirds of them, have the same bits."""
    count, slots = w.population.shape[0], w.archive.shape[0]
    accepted = (torch.arange(count) % 3 != 0).to(torch.uint8)
    archive_slot = torch.full((count,), -1, dtype=torch.int32)
    chosen = accepted.nonzero()[:slots, 0]
    archive_slot[chosen] = torch.arange(chosen.numel(), dtype=torch.int32).flip(0)
    other = w.clone()
    with backends.use("reference"):
        expected = w.trials(members)
        w.commit(accepted, archive_slot)
    with cuda_on_host.play(**machine) as played:
        before = played.launches()
        found = other.trials(members)
        other.commit(accepted, archive_slot)
        assert played.launches() == before + 2
    assert same_bits(found, expected)
    assert same_bits(other.population, w.population)
    assert same_bits(other.archive, w.archive)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_machine_makes_the_same_weights(
    dtype: torch.dtype, variant: str, machine: str
) -> None:
    """Tiles with short ends, many tiles a block, fewer tiles than blocks."""
    for members, columns in ((1, 41), (5, 2051), (11, 5000)):
        w = random_weights(members, columns, dtype, 4, BIG_SEED, **VARIANTS[variant])
        both(w, **MACHINES[machine])


@pytest.mark.parametrize("bulk", [False, True])
def test_weights_that_fill_no_tile(bulk: bool) -> None:
    for dtype in DTYPES:
        for variant in VARIANTS.values():
            w = random_weights(6, 333, dtype, 3, **variant)
            both(w, bulk=bulk, order="shuffled", shared_bytes=30_000)


@pytest.mark.parametrize("machine", ["forward", "bulk shuffled"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_warps_walk_along_whole_tiles(dtype: torch.dtype, machine: str) -> None:
    """Tiles of one and of several chunks, before the tail and in it, with forced weights.

    Beyond 2^32 a weight's index in 32 bits is one that a plan may force nearer the start.
    """
    columns = 16_400 if machine == "forward" else 24_000
    for first_weight in (0, 2**32, 2**34 - 2**13):
        w = random_weights(40, columns, dtype, 3, BIG_SEED, nonneg=columns // 5, forced=True)
        w.first_weight = first_weight
        both(w, **MACHINES[machine])


def test_genes_of_one_weight_and_of_whole_tiles() -> None:
    """More genes than a warp's search and than the steps from one to another are made for."""
    for genes, columns in ((4000, 4001), (2, 30_000), (1100, 30_000)):
        both(random_weights(5, columns, genes=genes), multiprocessors=1, order="shuffled")


@pytest.mark.parametrize("order", cuda_on_host.ORDERS)
@pytest.mark.parametrize("name", configurations())
def test_every_machine_makes_the_same_plans(name: str, order: str) -> None:
    c = configurations()[name]
    for members, threads in ((max(9, c.members_needed), 32), (70, 256)):
        source = torch.Generator().manual_seed(members)
        fitness = torch.randn(members, generator=source).double()
        run = evolution(c, fitness, BIG_SEED, weights=100, genes=50)
        other = run.clone()
        for _ in range(6):
            trials = torch.randn(members, generator=source).double()
            with backends.use("reference"):
                run.plan()
                run.tell(trials)
            with cuda_on_host.play(order=order, threads=threads):
                other.plan()
                other.tell(trials)
            run.assert_same(other)


def test_tell_with_few_warps_for_its_sums() -> None:
    """Shared memory for one warp's sums alone."""
    members = 600
    fitness = torch.rand(members, generator=torch.Generator().manual_seed(1)).double()
    run = evolution(configurations()["mixed"], fitness, 5)
    run.plan()
    other = run.clone()
    trials = fitness.flip(0)
    with backends.use("reference"):
        run.tell(trials)
    with cuda_on_host.play(shared_bytes=18_432):
        other.tell(trials)
    run.assert_same(other)


# Tall populations


@pytest.mark.parametrize("bulk", [False, True])
@pytest.mark.parametrize("members", [300, 700])
def test_tall_populations_narrow_the_tile(members: int, bulk: bool) -> None:
    """More members than records in shared memory; tiles of 32 bytes, one at a time."""
    w = random_weights(members, 200, torch.bfloat16, 50, genes=9)
    shared = 23_552 + (members + 50) * 40
    both(w, shared_bytes=shared, bulk=bulk)


def test_commit_refuses_what_no_tile_holds() -> None:
    w = random_weights(300, 64)
    before = w.clone()
    accepted = torch.ones(300, dtype=torch.uint8)
    slots = torch.full((300,), -1, dtype=torch.int32)
    match = "commit: population and archive have 302 rows; expected at most about"
    with cuda_on_host.play(shared_bytes=30_000), pytest.raises(DeevoError, match=match):
        w.commit(accepted, slots)
    assert same_bits(w.population, before.population)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_trials_gather_what_no_tile_holds(dtype: torch.dtype, variant: str) -> None:
    for columns in (43, 1037):
        w = random_weights(300, columns, dtype, **VARIANTS[variant])
        members = torch.tensor([299, 0, 7, 7, 150])
        every = torch.cat([members, torch.arange(300)])
        with backends.use("reference"):
            expected = w.trials(every)
        with cuda_on_host.play(shared_bytes=30_000, order="reverse"):
            assert same_bits(w.trials(every), expected)


def test_plan_and_tell_refuse_what_a_block_does_not_hold() -> None:
    run = evolution(configurations()["paper"], torch.arange(3000).double())
    with cuda_on_host.play(shared_bytes=40_000):
        with pytest.raises(DeevoError, match="plan: fitness has 3000 members, which need"):
            run.plan()
        with pytest.raises(DeevoError, match="tell: fitness has 3000 members, which need"):
            run.tell(run.fitness.clone())


# Addresses


@pytest.mark.parametrize("offsets", list(itertools.product((0, 1, 8), repeat=2)))
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_that_start_anywhere(dtype: torch.dtype, offsets: tuple[int, int]) -> None:
    """Whole vectors only where all rows allow; nothing beside the rows is touched."""
    plain = random_weights(5, 333, dtype, 3)
    with backends.use("reference"):
        expected = plain.trials()
    left, right = offsets
    wide = torch.full((5, 352 + left), 77.0, dtype=dtype)
    wide[:, left : left + 333] = plain.population
    plain.population = wide[:, left : left + 333]
    out = torch.full((5, 352 + right), 77.0, dtype=dtype)
    target = out[:, right : right + 333]
    with cuda_on_host.play(bulk=left == right):
        torch.ops.deevo.trials(*plain.trials_arguments(torch.arange(5), target))
        assert same_bits(target, expected)
        plain.commit(torch.ones(5, dtype=torch.uint8), torch.full((5,), -1, dtype=torch.int32))
    assert same_bits(plain.population, expected)
    for whole, at in ((out, right), (wide, left)):
        whole[:, at : at + 333] = 77.0
        assert (whole == 77.0).all()


@pytest.mark.skipif(sys.platform != "linux", reason="maps memory that is never backed")
def test_rows_further_apart_than_32_bits_count() -> None:
    """Addresses beyond 2^32 elements and bytes, in memory of which a few pages exist."""
    columns, stride, rows = 70, 2**31 + 64, 4
    plain = random_weights(rows, columns, torch.bfloat16, 0)
    no_reserve = 0x4000  # MAP_NORESERVE, which Python 3.11 does not name
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | no_reserve
    with mmap.mmap(-1, 2 * (stride * (rows - 1) + columns), flags=flags) as memory:
        flat = torch.frombuffer(memory, dtype=torch.bfloat16)
        far = flat.as_strided((rows, columns), (stride, 1))
        far.copy_(plain.population)
        with backends.use("reference"):
            expected = plain.trials()
        plain.population = far
        with cuda_on_host.play(bulk=True):
            found = plain.trials()
            plain.commit(
                torch.ones(rows, dtype=torch.uint8), torch.full((rows,), -1, dtype=torch.int32)
            )
        assert same_bits(found, expected)
        assert same_bits(far.clone(), expected)
        del far, flat, plain


# What is copied


def test_rows_that_no_trial_needs_are_not_read() -> None:
    """Poison in them would show up: they are not even finite."""
    w = random_weights(8, 500, archive_rows=3)
    w.choices[:, ChoiceColumn.BASE_ROW : ChoiceColumn.FORCED] = 1
    w.choices[:, ChoiceColumn.THRESHOLD] = 40000
    members = torch.tensor([2, 5])
    with backends.use("reference"):
        expected = w.trials(members)
    needed = [1, 2, 5]
    others = [row for row in range(8) if row not in needed]
    w.population[others] = torch.nan
    w.archive.fill_(torch.nan)
    with cuda_on_host.play():
        assert same_bits(w.trials(members), expected)


# The machine itself


def test_machine_notices_kernels_that_are_wrong() -> None:
    machine = cuda_on_host.compiled()
    assert machine.mistake("none") is None
    assert "do not reach" in machine.mistake("barrier")
    assert "never waited for" in machine.mistake("copy")
    assert "unaligned" in machine.mistake("alignment")
    assert "more bytes copied" in machine.mistake("bytes")
    assert "takes in turn" in machine.mistake("in turn")
    assert machine.mistake("early read") == "read 255"  # poison: the copy is made at the wait


SANITIZED = (
    "test_cuda_on_host.py::test_weights_that_fill_no_tile",
    "test_cuda_on_host.py::test_warps_walk_along_whole_tiles[dtype1-bulk shuffled]",
    "test_compose_on_host.py::test_every_machine_composes_alike[dtype1-bulk shuffled]",
    "test_cuda_on_host.py::test_trials_gather_what_no_tile_holds[dtype1-genes]",
    "test_cuda_on_host.py::test_tall_populations_narrow_the_tile[300-True]",
    "test_cuda_on_host.py::test_every_machine_makes_the_same_plans[mixed-shuffled]",
    "test_cuda_evaluation_on_host.py::test_every_machine_folds_alike[source1-target2-shuffled]",
    "test_cuda_evaluation_on_host.py::test_sources_may_begin_anywhere",
)


@pytest.mark.slow
def test_kernels_under_address_and_undefined_behaviour_sanitizers(tmp_path: Path) -> None:
    library = subprocess.run(
        ["g++", "-print-file-name=libasan.so"], capture_output=True, text=True
    ).stdout.strip()
    if not shutil.which("g++") or not Path(library).is_absolute():
        pytest.skip("g++ with libasan is not there")
    flags = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g")
    module = cuda_on_host.compile_module(tmp_path, *flags)
    environment = {
        "DEEVO_CUDA_ON_HOST": str(module),
        "LD_PRELOAD": library,
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
    }
    result = subprocess.run(
        [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", *SANITIZED],
        cwd=Path(__file__).parent,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
