"""compose's CUDA kernel on machines played on the CPU, against reference.

Its other tests run it too, as backend cuda-on-host with its default machine.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from deevo_ext import backends
from deevo_ext.errors import DeevoError
from support import cuda_on_host
from support.operators import OPERATORS, same_bits
from support.recipes import Recipes, aligned, random_recipes

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MACHINES: dict[str, dict[str, Any]] = {
    "forward": {},
    "reverse": {"order": "reverse", "threads": 96},
    "shuffled": {"order": "shuffled", "threads": 32},
    "bulk": {"bulk": True, "multiprocessors": 1},
    "bulk shuffled": {"bulk": True, "order": "shuffled", "multiprocessors": 7},
    "little shared memory": {"shared_bytes": 16_384, "bulk": True},
}


def assert_composed_alike(r: Recipes, offset: int = 2, **machine: Any) -> None:
    """reference's bits in rows that begin `offset` weights into memory, nothing beside them."""
    with backends.use("reference"):
        expected = r.rows()
    count, columns = r.recipes.shape[0], r.population.shape[1]
    wide = r.population.new_full((count, -(-(columns + 16) // 8) * 8), 7.0)
    out = wide[:, offset : offset + columns]
    with cuda_on_host.play(**machine) as played:
        before = played.launches()
        OPERATORS.compose(*r.arguments(out))
        assert played.launches() == before + 1
    assert same_bits(out.contiguous(), expected)
    assert bool((wide[:, :offset] == 7.0).all()) and bool(
        (wide[:, offset + columns :] == 7.0).all()
    )


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_machine_composes_alike(dtype: torch.dtype, machine: str) -> None:
    """Whole chunks of one block, chunks of several, and vectors of several; one recipe and many."""
    sizes = ((5, 9000, 1, 6), (6, 20_000, 4, 9), (3, 5003, 9, 400), (2, 41, 5, 7), (1, 3000, 3, 2))
    for draw, (members, columns, recipes, segments) in enumerate(sizes):
        r = random_recipes(members, columns, dtype, recipes, segments, draw)
        assert_composed_alike(r, **MACHINES[machine])
        assert_composed_alike(aligned(r), 8, **MACHINES[machine])


@pytest.mark.parametrize("start", [0, 1, 4095, 4096, 4097, 10**12])
def test_the_tail_begins_anywhere(start: int) -> None:
    r = aligned(random_recipes(5, 9000, torch.bfloat16, 5))
    r.population.abs_()
    r.nonneg_start = start
    assert_composed_alike(r, 8, bulk=True)


def test_many_members_narrow_the_tile() -> None:
    r = random_recipes(300, 700, torch.float16, 5)
    assert_composed_alike(r, shared_bytes=120_000)


def test_more_members_than_a_block_holds_are_refused() -> None:
    r = random_recipes(300, 64)
    out = torch.zeros(3, 64)
    match = "compose: population has 300 rows; expected at most about"
    with cuda_on_host.play(shared_bytes=50_000), pytest.raises(DeevoError, match=match):
        OPERATORS.compose(*r.arguments(out))


@pytest.mark.parametrize("wrong", ["order", "block"])
def test_segments_that_are_wrong_stop_the_kernel(wrong: str) -> None:
    r = random_recipes()
    if wrong == "order":
        r.starts[2] = r.starts[1]
    else:
        r.block_of[3] = r.recipes.shape[1]
    match = "not ascending" if wrong == "order" else "block that does not exist"
    with cuda_on_host.play(), pytest.raises(DeevoError, match=match):
        OPERATORS.compose(*r.arguments(torch.zeros(3, 700)))
