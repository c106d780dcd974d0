"""head and loss_and_rank: against wide arithmetic, against torch, and between backends."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mpmath
import pytest
import torch
from torch import nn

from deevo_ext import _extension, backends
from deevo_ext.backends.reference.head import exact_exp_fixed, logits_of
from deevo_ext.errors import DeevoError
from support import cuda_on_host
from support.folding import DTYPES
from support.heads import check_extreme_logits, head, loss_and_rank, random_head
from support.operators import NATIVE_BACKENDS, OPERATORS, num_threads, same_bits, serving

# test_triton_evaluation.py compares Triton's kernels, which the interpreter runs slowly.
BACKENDS = serving("head", "loss_and_rank", among=NATIVE_BACKENDS)


def test_exponentials() -> None:
    """Within half a unit of 2^-40, and a little for the series, of the true exponential."""
    compiled = _extension.load()
    gaps = torch.cat([torch.linspace(0, 30, 2001), torch.tensor([28.4, 28.42, 33.0, 1e30])])
    gaps = torch.cat([gaps.double(), torch.rand(2000, dtype=torch.float64) ** 4])
    fixed = exact_exp_fixed(-gaps).tolist()
    with mpmath.workdps(40):
        for gap, value in zip(gaps.tolist(), fixed, strict=True):
            assert abs(value - mpmath.exp(-mpmath.mpf(gap)) * 2**40) <= 0.52
            assert compiled.exp_fixed(gap) == value
    assert compiled.exp_fixed(0.0) == 2**40


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("scale", [0.001, 1.0, 30.0, 1e5])
@pytest.mark.parametrize("classes", [1, 2, 10, 1000])
def test_losses_are_right(backend: str, smoothing: float, scale: float, classes: int) -> None:
    """Against 40 digits: n roundings of 2^-41 in the sum, 2^-32 in the smoothing's mean, and the
    half ulp of float32. Much closer than float32 arithmetic would be for small losses."""
    draw = torch.Generator().manual_seed(classes)
    logits = (torch.randn(1, 5, classes, generator=draw) * scale).float()
    labels = torch.tensor([0, classes - 1, classes // 2, int(logits[0, 3].argmax()), 0])
    with backends.use(backend):
        losses, ranks = loss_and_rank(logits, labels, smoothing)
    with mpmath.workdps(40):
        for n, label in enumerate(labels.tolist()):
            z = [mpmath.mpf(x) for x in logits[0, n].tolist()]
            largest = max(z)
            lse = mpmath.log(sum(mpmath.exp(x - largest) for x in z)) + largest
            exact = lse - (1 - smoothing) * z[label] - smoothing * sum(z) / classes
            bound = classes * 2.0**-41 + smoothing * 2.0**-32 + 1e-14 * (1.0 + float(exact))
            assert abs(losses[0, n].item() - exact) <= bound + 2.0**-24 * float(exact), n
            row = logits[0, n].tolist()
            order = sorted(range(classes), key=lambda j: (-row[j], j))
            assert ranks[0, n] == order.index(label)


@pytest.mark.parametrize("backend", BACKENDS)
def test_torch_agrees(backend: str) -> None:
    features, weight, bias, labels = random_head(members=2, samples=8)
    with backends.use(backend):
        losses, ranks = head((features, weight, bias, labels), 0.1)
    for k in range(2):
        logits = nn.functional.linear(
            features[k].double().mean(1), weight[k].double(), bias[k].double()
        )
        expected = nn.functional.cross_entropy(
            logits, labels, reduction="none", label_smoothing=0.1
        )
        # float32 sums of 6 positions, then of 50 / 16 + 4 + 1 levels: at most 15 roundings each.
        size = features[k].double().mean(1) @ weight[k].double().abs().T + bias[k].abs()
        bound = 2 * size.amax(1) * 16 * 2.0**-24 + 2.0**-23 * expected
        assert bool(((losses[k] - expected).abs() <= bound).all())
        top = logits.topk(5).indices
        assert torch.equal(ranks[k] == 0, logits.argmax(1) == labels)
        assert torch.equal(ranks[k] < 5, (top == labels[:, None]).any(1))


@pytest.mark.parametrize("backend", BACKENDS)
def test_ties_go_to_the_lower_class(backend: str) -> None:
    logits = torch.tensor([[[1.0, 2.0, 2.0, 2.0, 0.0], [0.0, -0.0, 0.0, -1.0, 0.0]]])
    with backends.use(backend):
        found = [loss_and_rank(logits, torch.tensor([c, c]))[1][0].tolist() for c in range(5)]
    assert found == [[3, 0], [0, 1], [1, 2], [2, 4], [4, 3]]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 2])
def test_a_logit_that_is_not_finite(backend: str, bad: float, place: int) -> None:
    logits = torch.randn(1, 3, 4)
    logits[0, 1, place] = bad
    labels = torch.tensor([2, 2, 2])
    with backends.use(backend):
        losses, ranks = loss_and_rank(logits, labels)
        clean_losses, clean_ranks = loss_and_rank(
            logits[:, ::2].contiguous(), labels[::2].contiguous()
        )
    assert losses[0, 1] == math.inf and ranks[0, 1] == 4
    assert same_bits(losses[:, ::2].contiguous(), clean_losses)
    assert torch.equal(ranks[:, ::2], clean_ranks)


@pytest.mark.parametrize("backend", BACKENDS)
def test_extreme_logits(backend: str) -> None:
    check_extreme_logits(backend)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1, 1), (2, 17, 49, 33, 5), (3, 5, 1, 16, 3), (1, 40, 4, 128, 130)]
)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_compiled_is_reference(
    dtype: torch.dtype, shape: tuple[int, ...], smoothing: float
) -> None:
    arguments = random_head(*shape, dtype=dtype)
    with backends.use("reference"):
        expected = head(arguments, smoothing)
    for backend, threads in (("cpu", 1), ("cpu", 3), (cuda_on_host.NAME, 1)):
        with backends.use(backend), num_threads(threads):
            for found, wanted in zip(head(arguments, smoothing), expected, strict=True):
                assert same_bits(found, wanted)
    logits = torch.randn(2, 19, shape[-1]).to(dtype)
    labels = torch.arange(19) % shape[-1]
    with backends.use("reference"):
        expected = loss_and_rank(logits, labels, smoothing)
    for backend in BACKENDS[1:]:
        with backends.use(backend):
            for found, wanted in zip(
                loss_and_rank(logits, labels, smoothing), expected, strict=True
            ):
                assert same_bits(found, wanted)


@pytest.mark.parametrize("backend", BACKENDS)
def test_head_is_its_logits_and_their_losses(backend: str) -> None:
    arguments = random_head()
    features, weight, bias, labels = arguments
    logits = torch.stack([logits_of(features[k], weight[k], bias[k]) for k in range(3)])
    with backends.use(backend):
        for found, wanted in zip(head(arguments), loss_and_rank(logits, labels), strict=True):
            assert same_bits(found, wanted)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_sample_alone_is_a_sample_among_others(backend: str) -> None:
    """Neither the other members nor the other samples of a batch change a loss."""
    features, weight, bias, labels = random_head()
    with backends.use(backend):
        together = head((features, weight, bias, labels))
        for k, n in ((0, 0), (1, 20), (2, 16)):
            one = (
                features[k : k + 1, n : n + 1],
                weight[k : k + 1],
                bias[k : k + 1],
                labels[n : n + 1],
            )
            for alone, all_of_them in zip(head(one), together, strict=True):
                assert alone[0, 0] == all_of_them[k, n]


@pytest.mark.parametrize("backend", BACKENDS)
def test_members_may_lie_apart(backend: str) -> None:
    features, weight, bias, labels = random_head(members=2)
    rows = torch.full((2, weight[0].numel() + 24), 9.0)
    apart = rows[:, : weight[0].numel()].view(2, *weight.shape[1:])
    apart.copy_(weight)
    with backends.use(backend):
        expected = head((features, weight, bias, labels))
        for found, wanted in zip(head((features, apart, bias, labels)), expected, strict=True):
            assert same_bits(found, wanted)


def test_the_order_of_classes_does_not_show() -> None:
    """What lets a backend cut the classes into any tiles."""
    logits = torch.randn(1, 50, 1000) * 3
    labels = torch.zeros(50, dtype=torch.int64)
    expected = loss_and_rank(logits, labels, 0.1)[0]
    order = torch.cat([torch.zeros(1, dtype=torch.int64), torch.randperm(999) + 1])
    assert same_bits(loss_and_rank(logits[:, :, order].contiguous(), labels, 0.1)[0], expected)


HeadArguments = tuple[torch.Tensor, ...]


@pytest.mark.parametrize(
    ("position", "replace", "message"),
    [
        (0, lambda t: t.double(), "features is torch.float64"),
        (0, lambda t: t[:, :, 0], "features is of shape"),
        (0, lambda t: t.transpose(1, 2).contiguous().transpose(1, 2), "contiguous data"),
        (0, lambda t: t[:, :, :0], "positions and channels"),
        (1, lambda t: t.half(), "weight is torch.float16"),
        (1, lambda t: t[:, :, :-1], "weight is of shape"),
        (2, lambda t: t[:, :-1], "bias is of shape"),
        (3, lambda t: t.int(), "labels is torch.int32"),
        (3, lambda t: t + 11, "labels is values from 11 .*expected 0..10"),
        (3, lambda t: t - 11, "labels is values from -11"),
    ],
)
def test_bad_arguments_are_refused(
    position: int, replace: Callable[[torch.Tensor], torch.Tensor], message: str
) -> None:
    arguments = list(random_head())
    arguments[position] = replace(arguments[position])
    losses = torch.full((3, 21), 7.0)
    ranks = torch.full((3, 21), 7, dtype=torch.int32)
    with pytest.raises(DeevoError, match=message):
        OPERATORS.head(*arguments, 0.0, losses, ranks)
    assert bool((losses == 7.0).all())


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, math.nan])
def test_bad_smoothing_is_refused(smoothing: float) -> None:
    with pytest.raises(DeevoError, match="smoothing is"):
        head(random_head(), smoothing)


@pytest.mark.parametrize("name", ["head", "loss_and_rank"])
@pytest.mark.parametrize(
    "check",
    ["test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic"],
)
def test_opcheck(name: str, check: str) -> None:
    features, weight, bias, labels = random_head()
    outputs = (torch.zeros(3, 21), torch.zeros(3, 21, dtype=torch.int32))
    arguments: tuple[Any, ...] = (features, weight, bias, labels, 0.1, *outputs)
    if name == "loss_and_rank":
        arguments = (torch.randn(3, 21, 11), labels, 0.1, *outputs)
    torch.library.opcheck(getattr(OPERATORS, name).default, arguments, test_utils=check)
