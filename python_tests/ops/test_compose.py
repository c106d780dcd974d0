"""compose: against a NumPy oracle, cpu against reference, and what a recipe may never do."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from deevo_ext import backends
from deevo_ext.errors import DeevoError
from support.operators import (
    OPERATORS,
    flush_denormal,
    instruction_set,
    instruction_sets,
    num_threads,
    same_bits,
    serving,
)
from support.oracles import bfloat16_nearest, float16_nearest, numpy_rows
from support.recipes import Recipes, random_recipes

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SETS = instruction_sets()
OTHER_SHAPE = r"out is of shape \(3, 700\); expected shape \({}, {}\)"
# Around vectors and tiles of every instruction set.
COLUMNS = (1, 3, 15, 16, 17, 31, 33, 64, 1023, 1024, 1025, 1055, 1057, 2047, 2079, 2**16 + 1)

SERVING = serving("compose")


def oracle(r: Recipes) -> torch.Tensor:
    """The contract in NumPy's float32: block by block, then rounding weight by weight."""
    x = numpy_rows(r.population)
    blocks = r.blocks().numpy()
    nearest = {torch.bfloat16: bfloat16_nearest, torch.float16: float16_nearest}
    out = r.population[:1].repeat(r.recipes.shape[0], 1)
    for k, recipe in enumerate(r.recipes.numpy()):
        v = x[0].copy()
        with np.errstate(all="ignore"):
            for b, row in enumerate(recipe):
                at = blocks == b
                for m in range(1, len(x)):
                    if row[m] != 0.0:
                        difference = x[m][at] - x[0][at]
                        v[at] = v[at] + row[m] * difference
            assert v.dtype == np.float32
            half = np.float32(0.5) * x.min(axis=0)
        for j, value in enumerate(v):
            if j >= r.nonneg_start and not value > 0:
                value = half[j]
            if not np.isfinite(value):
                continue
            if out.dtype == torch.float32:
                out[k, j] = float(value)
                continue
            pattern = nearest[out.dtype](float(value))
            stored = np.array([pattern], dtype=np.uint16).view(np.int16)
            rounded = torch.from_numpy(stored).view(out.dtype)[0]
            if bool(torch.isfinite(rounded)):
                out[k, j] = rounded
    return out


def by_hand(
    rows: list[list[float]],
    coefficients: list[float],
    dtype: torch.dtype = torch.float32,
    nonneg_start: int = 10**6,
) -> torch.Tensor:
    """One recipe of one block."""
    recipes = torch.tensor(coefficients)[None, None]
    starts, block_of = torch.tensor([0]), torch.tensor([0], dtype=torch.int32)
    population = torch.tensor(rows, dtype=dtype)
    return Recipes(population, recipes, starts, block_of, nonneg_start).rows()[0]


# Oracle, backends


@pytest.mark.parametrize("dtype", DTYPES)
def test_reference_follows_the_oracle(dtype: torch.dtype) -> None:
    for draw, columns in enumerate((1, 2, 17, 129, 400)):
        r = random_recipes(4, columns, dtype, draw=draw)
        with backends.use("reference"):
            assert same_bits(r.rows(), oracle(r)), columns


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_backends_agree(dtype: torch.dtype, name: str, threads: int) -> None:
    sizes = [(5, columns, 3, 9) for columns in COLUMNS]
    sizes += [(members, 2100, 9, 40) for members in (1, 2, 4, 16, 63, 64)]
    sizes += [(3, 2100, recipes, 2100) for recipes in (0, 1, 2, 7, 8, 17)]
    for draw, (members, columns, recipes, segments) in enumerate(sizes):
        r = random_recipes(members, columns, dtype, recipes, segments, draw)
        with backends.use("reference"):
            expected = r.rows()
        with instruction_set(name), num_threads(threads):
            assert same_bits(r.rows(), expected), (members, columns, recipes, segments)


def test_backends_agree_where_output_streams_past_the_caches() -> None:
    r = random_recipes(2, 2_100_000, torch.bfloat16, recipes=17, segments=70)
    with backends.use("reference"):
        expected = r.rows()
    out = torch.zeros(17, 2_100_032, dtype=torch.bfloat16)[:, :2_100_000]  # rows at cache lines
    OPERATORS.compose(*r.arguments(out))
    assert same_bits(out.contiguous(), expected)
    assert same_bits(r.rows(), expected)


# Arithmetic by hand


def test_operations_are_rounded_one_by_one(backend: str) -> None:
    """a (x - x_0) = -(1 + 2^-11 + 2^-24), a tie, is rounded before it is added."""
    a = 1.0 + 2.0**-12
    assert by_hand([[1.0 + 2.0**-11], [2.0**-12]], [1.0 - a, a]).item() == 0.0  # fused: -2^-24


def test_members_come_in_order(backend: str) -> None:
    """1 + 2^-24 - 1 is 0 in float32, 1 - 1 + 2^-24 is not."""
    rows = [[0.0], [1.0], [2.0**-24], [-1.0]]
    assert by_hand(rows, [-2.0, 1.0, 1.0, 1.0]).item() == 0.0
    rows[2], rows[3] = rows[3], rows[2]
    assert by_hand(rows, [-2.0, 1.0, 1.0, 1.0]).item() == 2.0**-24


@pytest.mark.parametrize("dtype", DTYPES)
def test_member_0_alone_is_member_0(backend: str, dtype: torch.dtype) -> None:
    """All its bits: -0 too, which a term of 0 would change."""
    r = random_recipes(6, 700, dtype)
    r.recipes.zero_()
    r.recipes[:, :, 0] = 1.0
    r.nonneg_start = 700
    assert same_bits(r.rows(), r.population[:1].expand(3, -1).contiguous())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("member", [1, 4])
def test_one_member_on_one_block(backend: str, dtype: torch.dtype, member: int) -> None:
    """x_0 + (x_m - x_0) there, which is x_m where the difference is exact; else member 0."""
    r = random_recipes(5, 700, dtype)
    r.nonneg_start = 700
    whole = torch.randint(-99, 99, r.population.shape, generator=torch.Generator().manual_seed(1))
    r.population.copy_(whole.to(dtype))
    r.recipes.zero_()
    r.recipes[:, :, 0] = 1.0
    r.recipes[1, 2] = torch.nn.functional.one_hot(torch.tensor(member), 5).float()
    found, inside = r.rows(), r.blocks() == 2
    assert 0 < int(inside.sum()) < 700
    assert same_bits(found[1], torch.where(inside, r.population[member], r.population[0]))
    assert same_bits(found[0], r.population[0].contiguous())


def test_blocks_of_several_segments_are_one_block(backend: str) -> None:
    """Columns of equal coefficients do not show how they were cut."""
    r = random_recipes(4, 900, segments=40)
    one = replace(r, recipes=r.recipes[:, :1].contiguous(), block_of=torch.zeros_like(r.block_of))
    whole = replace(one, starts=torch.tensor([0]), block_of=torch.zeros(1, dtype=torch.int32))
    assert same_bits(one.rows(), whole.rows())
    beyond = torch.cat([one.starts, torch.tensor([900, 5000])])
    more = replace(one, starts=beyond, block_of=torch.zeros(42, dtype=torch.int32))
    assert same_bits(more.rows(), whole.rows())


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_recipe_alone_is_a_recipe_among_others(backend: str, dtype: torch.dtype) -> None:
    """Zeros of other recipes, equal recipes and their number change nothing."""
    r = random_recipes(6, 1100, dtype, recipes=11)
    r.recipes[7] = r.recipes[2]
    r.recipes[5] = 1.0 / 6.0
    together = r.rows()
    assert same_bits(together[7], together[2])
    for k in (0, 2, 5, 10):
        alone = replace(r, recipes=r.recipes[k : k + 1].contiguous()).rows()
        assert same_bits(alone[0], together[k])
        pair = replace(r, recipes=r.recipes[[k, 5]].contiguous()).rows()
        assert same_bits(pair[0], together[k])


def test_equal_members_are_a_fixed_point(backend: str) -> None:
    r = random_recipes(6, 700)
    r.population.copy_(r.population[:1].clone().where(r.population[:1] != 0.0, torch.tensor(0.0)))
    r.recipes.abs_().clamp_(max=1e30)
    assert same_bits(r.rows(), r.population[:1].expand(3, -1).contiguous())


def test_a_coefficient_of_zero_leaves_its_term_out(backend: str) -> None:
    """Also where the term is NaN, 0 times infinity, and where it would turn -0 into 0."""
    big = 2.0**127
    rows = [[-big, -0.0], [big, 3.0], [-big / 2, 1.0]]
    for zero in (0.0, -0.0):
        found = by_hand(rows, [1.0, zero, 0.0])
        assert same_bits(found, torch.tensor([-big, -0.0]))
        assert by_hand(rows, [0.5, zero, 0.5]).tolist() == [-big * 0.75, 0.5]


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_finite_takes_member_0(backend: str, dtype: torch.dtype) -> None:
    big = torch.finfo(dtype).max
    rows = [[1.0, -2.0, 3.0, 4.0], [big, -big, 3.0, 5.0]]
    assert by_hand(rows, [-1.0, 2.0], dtype).tolist() == [1.0, -2.0, 3.0, 6.0]
    assert by_hand(rows, [0.0, math.inf], dtype).tolist() == [1.0, -2.0, 3.0, 4.0]
    assert by_hand(rows, [0.0, math.nan], dtype).tolist() == [1.0, -2.0, 3.0, 4.0]


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize(
    ("dtype", "tie"),
    [(torch.bfloat16, (2.0 - 2.0**-8) * 2.0**127), (torch.float16, 65520.0)],
)
def test_where_storage_overflows(name: str, dtype: torch.dtype, tie: float) -> None:
    """Half way between the largest number and the next power of two: up, to infinity."""
    below = np.nextafter(np.float32(tie), np.float32(0))
    with instruction_set(name):
        for factor, expected in ((tie, 0.0), (float(below), torch.finfo(dtype).max)):
            found = by_hand([[0.0, 0.0], [1.0, -1.0]], [1.0, factor], dtype)
            assert found.tolist() == [expected, -expected]


def test_non_negative_tail(backend: str) -> None:
    """Not above zero: half the least of the members' values; the body may be negative."""
    rows = [[4.0, 4.0, 4.0, 0.0, 1e-45], [8.0, 6.0, 3.0, 1.0, 1.0], [9.0, 2.0, 9.0, 1.0, 1.0]]
    found = by_hand(rows, [4.0, -3.0, 0.0], nonneg_start=1)
    assert found.tolist() == [-8.0, 1.0, 7.0, 0.0, 0.0]
    assert by_hand(rows, [0.0, math.nan, 0.0], nonneg_start=1).tolist() == [4.0, 1.0, 1.5, 0.0, 0.0]


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("start", [0, 1, 1023, 1024, 1025, 1500, 10**12])
def test_non_negative_tail_from_anywhere(start: int, name: str) -> None:
    r = random_recipes(6, 1500)
    r.population.abs_()
    r.nonneg_start = start
    with backends.use("reference"):
        expected = r.rows()
    with instruction_set(name):
        assert same_bits(r.rows(), expected)
    assert bool((expected[:, start:] >= 0.0).all()) and bool(expected.isfinite().all())


@pytest.mark.parametrize("dtype", DTYPES)
def test_pads_stay_plus_zero(backend: str, dtype: torch.dtype) -> None:
    """Under any coefficients, in the tail and before it."""
    r = random_recipes(5, 700, dtype)
    pads = torch.arange(700) % 7 == 3
    r.population[:, pads] = 0.0
    r.recipes[0] = math.inf
    r.recipes[1] = -1e30
    found = r.rows()[:, pads]
    assert same_bits(found, torch.zeros_like(found))


def test_compose_changes_nothing_else(backend: str) -> None:
    r, state = random_recipes(), torch.get_rng_state()
    before = [t.clone() for t in (r.population, r.recipes, r.starts, r.block_of)]
    out = torch.zeros(3, 700)
    version = out._version
    OPERATORS.compose(*r.arguments(out))
    assert out._version > version
    after = (r.population, r.recipes, r.starts, r.block_of)
    assert all(same_bits(a, b) for a, b in zip(before, after, strict=True))
    assert torch.equal(torch.get_rng_state(), state)


def test_subnormals_are_kept() -> None:
    r = random_recipes(4, 3000)
    expected = r.rows()
    with flush_denormal():
        found = r.rows()
        with backends.use("reference"), pytest.raises(DeevoError, match="needs subnormal numbers"):
            r.rows()
    assert same_bits(found, expected)


# Refusals

Change = Callable[[Recipes], Recipes]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: replace(r, population=r.population.double()), "population is torch.float64"),
        (lambda r: replace(r, population=r.population[0]), "population is of shape"),
        (lambda r: replace(r, population=r.population[:0]), "population is of shape"),
        (lambda r: replace(r, population=r.population.half()), "out is torch.float32"),
        (
            lambda r: replace(r, population=r.population[:, :-1]),
            OTHER_SHAPE.format(3, 699),
        ),
        (lambda r: replace(r, population=r.population.expand(5, 700)[:, ::2]), "unit stride"),
        (
            lambda r: replace(r, population=r.population.to("meta")),
            "is on cpu; expected device meta",
        ),
        (lambda r: replace(r, recipes=r.recipes.double()), "recipes is torch.float64"),
        (lambda r: replace(r, recipes=r.recipes[:, :, :-1]), "recipes is of shape"),
        (
            lambda r: replace(r, recipes=r.recipes[:2].contiguous()),
            OTHER_SHAPE.format(2, 700),
        ),
        (lambda r: replace(r, recipes=r.recipes[:, ::2]), "recipes is of strides"),
        (lambda r: replace(r, recipes=r.recipes.requires_grad_()), "recipes is a tensor that req"),
        (lambda r: replace(r, starts=r.starts.int()), "starts is torch.int32"),
        (lambda r: replace(r, starts=r.starts[:0]), "starts is empty"),
        (lambda r: replace(r, starts=r.starts[1:]), "block_of is of shape"),
        (lambda r: replace(r, block_of=r.block_of.long()), "block_of is torch.int64"),
        (lambda r: replace(r, nonneg_start=-1), "nonneg_start is -1"),
    ],
)
def test_wrong_arguments_are_refused(change: Change, message: str) -> None:
    out = torch.full((3, 700), 7.0)
    with pytest.raises(DeevoError, match=f"^deevo::compose: .*{message}"):
        OPERATORS.compose(*change(random_recipes()).arguments(out))
    assert bool((out == 7.0).all())


@pytest.mark.parametrize(
    ("name", "place", "value", "message"),
    [
        ("starts", 0, 1, "starts are not ascending starts of segments, the first at 0"),
        ("starts", 0, -1, "starts are not ascending"),
        ("starts", 4, 0, "starts are not ascending"),
        ("block_of", 3, 5, "block_of names a block that does not exist"),
        ("block_of", 8, -1, "block_of names a block that does not exist"),
    ],
)
def test_wrong_values_are_refused(
    backend: str, name: str, place: int, value: int, message: str
) -> None:
    r, out = random_recipes(), torch.full((3, 700), 7.0)
    getattr(r, name)[place] = value
    with pytest.raises(DeevoError, match=f"deevo::compose: {message}"):
        OPERATORS.compose(*r.arguments(out))
    assert bool((out == 7.0).all())


def test_overlap_is_refused() -> None:
    r = random_recipes(4, 700)
    r.population = torch.zeros(7, 700)[:4]
    base = r.population._base
    assert base is not None
    OPERATORS.compose(*r.arguments(base[4:]))
    with pytest.raises(DeevoError, match="memory that population overlaps"):
        OPERATORS.compose(*r.arguments(base[3:6]))


# Registration


@pytest.mark.parametrize(
    "check",
    ["test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic"],
)
def test_opcheck(check: str) -> None:
    arguments = random_recipes().arguments(torch.zeros(3, 700))
    torch.library.opcheck(OPERATORS.compose.default, arguments, test_utils=check)


def test_fake_tensors() -> None:
    arguments = random_recipes().arguments(torch.zeros(3, 700))
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in arguments]
        assert OPERATORS.compose(*fakes) is None
