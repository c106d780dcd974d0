"""fold: against an element-by-element oracle, against torch's own layers, and between backends."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from deevo_ext import _extension, backends
from deevo_ext.errors import DeevoError
from deevo_ext.ops.fold_table import TILE, FoldColumn, Space, check_table, with_tiles
from support.folding import DTYPES, Builder, Problem, bits, check_every_half, oracle, varied
from support.operators import (
    NATIVE_BACKENDS,
    OPERATORS,
    flush_denormal,
    num_threads,
    same_bits,
    serving,
)

# test_triton_evaluation.py compares Triton's kernels, which the interpreter runs slowly.
BACKENDS = serving("fold", among=NATIVE_BACKENDS)


@pytest.mark.parametrize("target", DTYPES)
@pytest.mark.parametrize("source", DTYPES)
def test_every_element(source: torch.dtype, target: torch.dtype) -> None:
    """All that must be written is, bit for bit; all else keeps what was there."""
    p = varied().problem(source)
    with backends.use("reference"):
        weights, vectors = p.fold(target)
    for member in range(2):
        for found, wanted in zip((weights, vectors), oracle(p, member, target), strict=True):
            expected = bits(torch.full_like(found[member], 7.0)).copy()
            expected[list(wanted)] = list(wanted.values())
            different = np.flatnonzero(bits(found[member]) != expected)
            assert len(different) == 0, different[:5]


@pytest.mark.parametrize("target", DTYPES)
@pytest.mark.parametrize("source", DTYPES)
@pytest.mark.parametrize("threads", [1, 3])
def test_compiled_is_reference(source: torch.dtype, target: torch.dtype, threads: int) -> None:
    p = varied().problem(source, members=3, seed=1)
    with backends.use("reference"):
        expected = p.fold(target)
    for backend in BACKENDS[1:]:
        with backends.use(backend), num_threads(threads):
            for found, wanted in zip(p.fold(target), expected, strict=True):
                assert same_bits(found, wanted)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_member_alone_is_a_member_among_others(backend: str) -> None:
    p = varied().problem(members=3)
    with backends.use(backend):
        together = p.fold(torch.float16)
        for k in range(3):
            one = copy.copy(p)
            one.rows, one.statistics = p.rows[k : k + 1], p.statistics[k : k + 1]
            for alone, all_of_them in zip(one.fold(torch.float16), together, strict=True):
                assert same_bits(alone[0], all_of_them[k])


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_half_and_every_rounding(backend: str) -> None:
    check_every_half(backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_convolution_and_batch_norm_become_one(backend: str) -> None:
    """In exact arithmetic folding changes nothing; in float64 only fold's float32 results round."""
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(13, 8, 3, bias=True), nn.BatchNorm2d(8)
    for t in (norm.weight, norm.bias, norm.running_mean):
        nn.init.normal_(t)
    nn.init.uniform_(norm.running_var, 0.3, 3.0)
    b = Builder().add(8, 13, 9, bias=True, padded=16)
    e = b.entries[0]
    row = torch.zeros(1, b.sizes[Space.ROWS])
    for source, tensor in (
        *((e.weight, conv.weight), (e.bias, conv.bias), (e.gamma, norm.weight)),
        *((e.beta, norm.bias), (e.mean, norm.running_mean), (e.var, norm.running_var)),
    ):
        row[0, source[1] : source[1] + tensor.numel()] = tensor.detach().flatten()
    p = Problem(b.entries, row, torch.empty(1, 0), torch.empty(0), b.weights, b.vectors)
    with backends.use(backend):
        weights, vectors = p.fold(torch.float32)
    folded = weights[0, : 8 * 9 * 16].view(8, 3, 3, 16).permute(0, 3, 1, 2).double()
    assert torch.equal(folded[:, 13:], torch.zeros(8, 3, 3, 3, dtype=torch.float64))
    x = torch.randn(2, 13, 6, 6, dtype=torch.float64)
    expected = norm.double().eval()(conv.double()(x))
    found = nn.functional.conv2d(x, folded[:, :13], vectors[0, :8].double())
    # A weight rounds twice (scale, product), a shift once, each by at most half an ulp, 2^-24.
    magnitude = nn.functional.conv2d(x.abs(), folded[:, :13].abs(), vectors[0, :8].abs().double())
    assert bool(((found - expected).abs() <= magnitude * 2.1 * 2.0**-24).all())


def test_a_table_is_cut_into_tiles_that_cover_it() -> None:
    p = varied().problem()
    table = p.table()
    counts = torch.diff(table[:, FoldColumn.FIRST_TILE]).tolist()
    # 5 channels of 147; 16 of 216 ; 2 of 5400 in pieces of 448 inputs; 33 of 130; ...
    assert counts == [1, 1, 2 * 2, 2, 1, 2 * 2, 1, 1, 1]
    assert _extension.load().fold_constants() == (len(FoldColumn), TILE)


def test_empty_and_bad_tables() -> None:
    empty = with_tiles(torch.empty(0, 12, dtype=torch.int64))
    assert empty.shape == (0, 13)
    p = Problem([], torch.ones(1, 8), torch.empty(1, 0), torch.empty(0), 8, 8)
    for backend in BACKENDS:
        with backends.use(backend):
            weights, vectors = p.fold(torch.float32)
        assert bool((weights == 7.0).all()) and bool((vectors == 7.0).all())


Change = Callable[[torch.Tensor], object]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t[0].__setitem__(FoldColumn.OUT_CHANNELS, 0), "0 output channels"),
        (lambda t: t[0].__setitem__(FoldColumn.TO_WEIGHT, -1), "both or neither"),
        (lambda t: t[0].__setitem__(FoldColumn.PADDED, 2), "padded to 2"),
        (lambda t: t[0].__setitem__(FoldColumn.TAPS, 5000), "5000 taps"),
        (lambda t: t[0].__setitem__(FoldColumn.FIRST_TILE, 1), "from with_tiles"),
        (lambda t: t[1].__setitem__(FoldColumn.WEIGHT, 10**6), "whose weight ends beyond"),
        (lambda t: t[1].__setitem__(FoldColumn.VAR, 3 * 2**48), "whose var ends beyond"),
        (lambda t: t[1].__setitem__(FoldColumn.MEAN, 2**48 + 50), "whose mean ends beyond"),
        (lambda t: t[1].__setitem__(FoldColumn.TO_WEIGHT, 0), "some weights twice"),
        (lambda t: t[1].__setitem__(FoldColumn.TO_WEIGHT, 10**6), "at most the"),
        (lambda t: t[1].__setitem__(FoldColumn.TO_SHIFT, 2), "some vectors twice"),
        (lambda t: t[9].__setitem__(FoldColumn.TO_WEIGHT, 10**5 + 1), "multiples of 8|at most"),
    ],
)
def test_bad_entries_are_refused(change: Change, message: str) -> None:
    p = varied().problem()
    arguments = p.arguments(torch.float32)
    check_table(arguments[3], p.rows.shape[1], p.statistics.shape[1], p.constants.numel(),
                p.weights, p.vectors)  # fmt: skip
    change(arguments[3])
    with pytest.raises(DeevoError, match=message):
        OPERATORS.fold(*arguments)
    assert bool((arguments[5] == 7.0).all()), "nothing may be written before the refusal"


@pytest.mark.parametrize(
    ("position", "replace", "message"),
    [
        (0, lambda t: t.double(), "rows is torch.float64"),
        (0, lambda t: t[0], "rows is of shape"),
        (0, lambda t: t.T.contiguous().T, "rows is of strides"),
        (1, lambda t: t[:1], "statistics is of shape"),
        (2, lambda t: t.half(), "constants is torch.float16"),
        (3, lambda t: t[:, :12], "table is of shape"),
        (4, lambda t: t[:-1], "eps is of shape"),
        (5, lambda t: t[:, 1:], "weights is not aligned"),
        (6, lambda t: t.double(), "vectors is torch.float64"),
        (6, lambda t: t.requires_grad_(), "requires grad"),
    ],
)
def test_bad_arguments_are_refused(
    position: int, replace: Callable[[torch.Tensor], torch.Tensor], message: str
) -> None:
    arguments = list(varied().problem().arguments(torch.float32))
    arguments[position] = replace(arguments[position])
    with pytest.raises(DeevoError, match=message):
        OPERATORS.fold(*arguments)


def test_subnormals_are_kept_or_refused() -> None:
    b = Builder().add(1, 64, 1, affine=None, statistics=None)
    tiny = torch.full((1, b.sizes[Space.ROWS]), 1e-42)
    p = Problem(b.entries, tiny, torch.empty(1, 0), torch.empty(0), b.weights, b.vectors)
    with flush_denormal():
        weights, _ = p.fold(torch.float32)
        with backends.use("reference"), pytest.raises(DeevoError, match="subnormal"):
            p.fold(torch.float32)
    assert same_bits(weights[:, :64], tiny[:, :64])


@pytest.mark.parametrize(
    "check",
    ["test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic"],
)
def test_opcheck(check: str) -> None:
    arguments = varied().problem().arguments(torch.float16)
    torch.library.opcheck(OPERATORS.fold.default, arguments, test_utils=check)


def test_fakes_and_version_counters() -> None:
    arguments = varied().problem().arguments(torch.float16)
    with FakeTensorMode() as mode:
        assert OPERATORS.fold(*[mode.from_tensor(a) for a in arguments]) is None
    versions = [a._version for a in arguments]
    OPERATORS.fold(*arguments)
    assert [a._version - v for a, v in zip(arguments, versions, strict=True)] == [0] * 5 + [1] * 2
