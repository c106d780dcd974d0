"""linear_scores: against float64 within what float32 sums allow, and what is exact in it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import nn

from deevo_ext import backends
from deevo_ext.errors import DeevoError
from support.operators import (
    INTERPRETED,
    OPERATORS,
    flush_denormal,
    instruction_set,
    instruction_sets,
    num_threads,
    same_bits,
    serving,
)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SETS = instruction_sets()
ROUNDING = 2.0**-24  # float32, relative

Scores = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]

SERVING = serving("linear_scores")


@dataclass
class Model:
    """A linear model of logits, and candidates."""

    z0: torch.Tensor
    slopes: torch.Tensor
    coefficients: torch.Tensor
    labels: torch.Tensor
    smoothing: float = 0.0

    def outputs(self) -> Scores:
        """Rows of larger matrices, filled with 7."""
        shape = self.coefficients.shape[0], self.labels.numel() + 3
        numbers, integers = torch.full(shape, 7.0), torch.full(shape, 7, dtype=torch.int32)
        four = (t.to(self.z0.device, copy=True) for t in (numbers, integers, integers, numbers))
        losses, ranks, predicted, probability = (t[:, 1:-2] for t in four)
        return losses, ranks, predicted, probability

    def arguments(self, outputs: Scores) -> tuple[Any, ...]:
        return (self.z0, self.slopes, self.coefficients, self.labels, self.smoothing, *outputs)

    def scores(self) -> Scores:
        outputs = self.outputs()
        OPERATORS.linear_scores(*self.arguments(outputs))
        for output in outputs:
            if output.numel():
                outer = output.as_strided((output.shape[0], output.shape[1] + 3),
                                          output.stride(), output.storage_offset() - 1)  # fmt: skip
                assert bool((outer[:, 0] == 7).all()) and bool((outer[:, -2:] == 7).all())
        losses, ranks, predicted, probability = (output.contiguous() for output in outputs)
        return losses, ranks, predicted, probability


def random_model(
    candidates: int = 5,
    directions: int = 12,
    images: int = 37,
    classes: int = 10,
    dtype: torch.dtype = torch.float32,
    smoothing: float = 0.0,
) -> Model:
    draw = torch.Generator().manual_seed(candidates + 1000 * directions + images)
    return Model(
        torch.randn(images, classes, generator=draw) * 3.0,
        torch.randn(directions, images, classes, generator=draw).to(dtype),
        torch.randn(candidates, directions, generator=draw) * 0.4,
        torch.randint(0, classes, (images,), generator=draw),
        smoothing,
    )


def assert_close(m: Model, scores: Scores, backend: str = "cpu") -> None:
    """Against float64. A float32 logit of d terms has at most d + 1 roundings of any of them, in
    any order, so it is off by at most e = (d + 1) 2^-24 (1 + 1 %) (|z0| + sum |c J|); a loss by 2 e
    of its image's worst class (log-sum-exp by e, what is subtracted by e), by the fixed point of
    loss_and_rank's sums and by its rounding to float32; ranks where logits are within 2 e.

    Triton's are further off by `triton_parts`, its sums of exponentials by `triton_sum`, relative.
    """
    losses, ranks, predicted, probability = scores
    z0, slopes, c = m.z0.double(), m.slopes.double(), m.coefficients.double()
    z = z0 + torch.einsum("pd,dnc->pnc", c, slopes)
    size = z0.abs() + torch.einsum("pd,dnc->pnc", c.abs(), slopes.abs())
    e = (c.shape[1] + 1) * ROUNDING * 1.01 * size.amax(2)
    classes = z.shape[2]
    relative = 0.0
    if backend == "triton":
        e = e * (4.0 if m.z0.is_cuda else 1.0)  # tensor cores cut off where float32 rounds
        e += triton_parts(m, size)
        relative = triton_sum(classes)
    for p in range(c.shape[0]):
        expected = nn.functional.cross_entropy(
            z[p], m.labels, reduction="none", label_smoothing=m.smoothing
        )
        bound = 2.0 * e[p] + classes * 2.0**-40 + m.smoothing * 2.0**-31 + 2.0 * ROUNDING * expected
        bound += relative + m.smoothing * relative * z[p].abs().amax(1)
        assert bool(((losses[p] - expected).abs() <= bound).all())
    labels = m.labels.expand(c.shape[0], -1)[:, :, None]
    own, slack = z.gather(2, labels), 2.0 * e[:, :, None]
    others = torch.arange(classes, device=labels.device) != labels
    assert bool((ranks >= (others & (z > own + slack)).sum(2)).all())
    assert bool((ranks <= (others & (z >= own - slack)).sum(2)).all())
    largest = z.amax(2)
    found = z.gather(2, predicted.long()[:, :, None])[:, :, 0]
    assert bool((found >= largest - 2.0 * e).all())
    assert bool(((ranks == 0) == (predicted == m.labels)).all())
    share = torch.exp(largest - z.logsumexp(2))
    bound = share * (torch.expm1(2.0 * e) + relative) + 2.0**-22
    assert bool(((probability - share).abs() <= bound).all())


def triton_parts(m: Model, size: torch.Tensor) -> torch.Tensor:
    """Products of float32 are three of tf32, which leave out 2^-20 of them; a coefficient beside
    slopes of float16 is two numbers, which leave out 2^-23 of it, or 2^-39 of the largest.
    """
    if m.slopes.dtype == torch.float32:
        return 2.0**-20 * size.amax(2)
    if m.slopes.dtype == torch.bfloat16 or m.slopes.shape[0] == 0:
        return torch.zeros_like(size[:, :, 0])
    floor = m.coefficients.abs().amax(1).double()[:, None] * m.slopes.double().abs().sum(0).amax(1)
    return 2.0**-23 * size.amax(2) + 2.0**-39 * floor


def triton_sum(classes: int) -> float:
    """Up to 64 roundings of sums in a part of the classes, of which there are at least 32, three
    from part to part; an exponential's error 2^-21 and that of its argument, at most log classes on
    the softmax's average.
    """
    roundings = 64 + 3 * (classes / 32 + 2) + 8 + 2 * math.log(classes)
    return roundings * ROUNDING


SHAPES = [
    (5, 12, 37, 10),
    (1, 1, 1, 1),
    (1, 3, 5, 2),
    (8, 88, 33, 10),
    (9, 7, 3, 1000),
    (64, 30, 13, 129),
    (130, 40, 3, 150),
    (2, 33, 9, 33),
    (17, 0, 5, 10),
    (3, 5, 700, 3),
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_scores_are_right(backend: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    if backend == "triton" and dtype == torch.bfloat16:
        m = random_model(*shape, dtype=dtype)
        with pytest.raises(DeevoError, match="interpreter converts it wrongly"):
            m.scores()
        return
    for smoothing in (0.0, 0.1):
        m = random_model(*shape, dtype=dtype, smoothing=smoothing)
        assert_close(m, m.scores(), backend)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_scores_are_right_on_a_gpu(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    m = random_model(*shape, dtype=dtype, smoothing=0.1)
    on_gpu = replace(m, **{k: v.cuda() for k, v in vars(m).items() if torch.is_tensor(v)})
    assert_close(on_gpu, on_gpu.scores(), "triton")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_cpu_is_the_same_on_all_instruction_sets(
    dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    """And on any number of threads."""
    m = random_model(*shape, dtype=dtype, smoothing=0.1)
    with instruction_set("baseline"), num_threads(1):
        expected = m.scores()
    for name in ("avx2", "avx512"):
        if any(name == p.values[0] and p.marks[0].args[0] for p in SETS):
            continue
        with instruction_set(name), num_threads(3):
            assert all(same_bits(a, b) for a, b in zip(m.scores(), expected, strict=True))


def test_cpu_does_not_depend_on_other_candidates_or_images() -> None:
    m = random_model(37, 20, 50, 10, torch.float16)
    whole = m.scores()
    for some in (slice(0, 1), slice(5, 14), slice(36, 37)):
        part = replace(m, coefficients=m.coefficients[some]).scores()
        assert all(same_bits(a, b[some]) for a, b in zip(part, whole, strict=True))
    for some in (slice(0, 1), slice(13, 45)):
        images = replace(m, z0=m.z0[some], slopes=m.slopes[:, some], labels=m.labels[some])
        pairs = zip(images.scores(), whole, strict=True)
        assert all(same_bits(a, b[:, some].contiguous()) for a, b in pairs)


@pytest.mark.skipif(not INTERPRETED, reason="this process compiles Triton's kernels")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_triton_does_not_depend_on_other_candidates_or_images(dtype: torch.dtype) -> None:
    """One shape of product, however many candidates and images there are and whichever they are.

    (The interpreter's own products depend on where in a matrix a row and column are.)
    """
    for m in (random_model(70, 9, 13, 7, dtype, 0.1), random_model(70, 40, 3, 150, dtype)):
        with backends.use("triton"):
            together = m.scores()
            for count in (1, 64, 65):
                some = m.coefficients[:count].clone()
                some[:-1] = 1.0
                pairs = zip(replace(m, coefficients=some).scores(), together, strict=True)
                assert all(same_bits(a[-1], b[count - 1]) for a, b in pairs)
            images = replace(m, z0=m.z0[:2], slopes=m.slopes[:, :2], labels=m.labels[:2])
            pairs = zip(images.scores(), together, strict=True)
            assert all(same_bits(a, b[:, :2].contiguous()) for a, b in pairs)


@pytest.mark.skipif(not INTERPRETED, reason="this process compiles Triton's kernels")
def test_small_coefficients_beside_large_ones_keep_their_bits_in_float16() -> None:
    """Each candidate's are scaled by a power of two, from the least to the largest there are."""
    m = random_model(8, 12, 9, 10, torch.float16)
    m.coefficients *= 2.0 ** torch.tensor([-140.0, -100, -40, -15, 0, 15, 60, 100])[:, None]
    m.coefficients[:, 3] *= 2.0**-12
    with backends.use("triton"):
        assert_close(m, m.scores(), "triton")


def test_coefficients_of_zero_give_the_losses_of_z0() -> None:
    m = random_model(4, 6, 30, 10, smoothing=0.1)
    m.coefficients.zero_()
    losses, ranks = torch.zeros(1, 30), torch.zeros(1, 30, dtype=torch.int32)
    OPERATORS.loss_and_rank(m.z0[None], m.labels, 0.1, losses, ranks)
    found = m.scores()
    assert same_bits(found[0], losses.expand(4, 30).contiguous())
    assert same_bits(found[1], ranks.expand(4, 30).contiguous())


def test_ties_go_to_the_lower_class(backend: str) -> None:
    """Sums that are exact: 2 of class 1, 2 and 3, from z0 and from slopes."""
    z0 = torch.tensor([[1.0, 2.0, 0.0, 1.0, 0.0]]).expand(5, 5).contiguous()
    slopes = torch.tensor([[0.0, 0.0, 4.0, 2.0, 0.0]]).expand(1, 5, 5).contiguous()
    losses, ranks, predicted, probability = Model(
        z0, slopes, torch.tensor([[0.5], [0.0]]), torch.arange(5)
    ).scores()
    assert ranks.tolist() == [[3, 0, 1, 2, 4], [1, 0, 3, 2, 4]]
    assert predicted.tolist() == [[1] * 5, [1] * 5]
    share = 1.0 / (3.0 + math.exp(-1.0) + math.exp(-2.0))
    assert probability[0].tolist() == pytest.approx([share] * 5, rel=1e-6)
    assert losses[0, 1].item() == pytest.approx(-math.log(share), rel=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["z0", "slopes", "coefficients"])
def test_a_logit_that_is_not_finite(backend: str, where: str, bad: float) -> None:
    m = random_model(3, 4, 6, 5)
    clean = m.scores()
    getattr(m, where)[(1, 3) if where == "z0" else (1, 2, 4)[: 2 + (where == "slopes")]] = bad
    losses, ranks, predicted, probability = m.scores()
    wrong = torch.zeros(3, 6, dtype=torch.bool)
    if where == "z0":
        wrong[:, 1] = True
    elif where == "slopes":
        wrong[:, 2] = True
    else:
        wrong[1] = True
    assert torch.equal(losses == math.inf, wrong)
    assert bool((ranks[wrong] == 5).all()) and bool((predicted[wrong] == -1).all())
    assert bool((probability[wrong] == 0.0).all())
    for found, before in zip((losses, ranks, predicted, probability), clean, strict=True):
        assert same_bits(found[~wrong], before[~wrong])


def test_sums_that_float32_does_not_hold(backend: str) -> None:
    m = random_model(2, 2, 4, 3)
    m.slopes[0] = 3e38
    m.coefficients[0], m.coefficients[1] = torch.tensor([2.0, 0.0]), torch.tensor([1.0, 0.0])
    losses, ranks, predicted, _ = m.scores()
    assert losses[0].tolist() == [math.inf] * 4 and ranks[0].tolist() == [3] * 4
    assert predicted[0].tolist() == [-1] * 4
    assert losses[1].isfinite().all()


def test_a_loss_that_float32_does_not_hold(backend: str) -> None:
    z0 = torch.tensor([[3e38, -3e38]])
    m = Model(z0, torch.zeros(1, 1, 2), torch.zeros(1, 1), torch.tensor([1]))
    assert [t.item() for t in m.scores()] == [math.inf, 2, -1, 0.0]


def test_empty_calls(backend: str) -> None:
    assert [t.shape for t in random_model(0, 3, 4, 5).scores()] == [(0, 4)] * 4
    assert [t.shape for t in random_model(2, 3, 0, 5).scores()] == [(2, 0)] * 4


def test_cpu_keeps_subnormals() -> None:
    m = random_model(2, 3, 4, 5)
    m.z0 *= 1e-42
    m.slopes *= 1e-42
    expected = m.scores()
    with flush_denormal():
        assert all(same_bits(a, b) for a, b in zip(m.scores(), expected, strict=True))


Change = Callable[[Model], Model]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: replace(m, z0=m.z0.half()), "z0 is torch.float16"),
        (lambda m: replace(m, z0=m.z0[0]), "z0 is of shape"),
        (lambda m: replace(m, z0=m.z0[:, :-1]), "z0 is of strides"),
        (lambda m: replace(m, slopes=m.slopes.double()), "slopes is torch.float64"),
        (lambda m: replace(m, slopes=m.slopes[:, :-1]), "slopes is of shape"),
        (lambda m: replace(m, slopes=m.slopes.mT.contiguous().mT), "slopes is of strides"),
        (lambda m: replace(m, coefficients=m.coefficients[:, 1:]), "coefficients is of shape"),
        (lambda m: replace(m, coefficients=m.coefficients[1:]), "losses is of shape"),
        (lambda m: replace(m, labels=m.labels.int()), "labels is torch.int32"),
        (lambda m: replace(m, labels=m.labels + 10), "labels is values from"),
        (lambda m: replace(m, labels=m.labels - 10), "labels is values from -"),
        (lambda m: replace(m, smoothing=1.0), "smoothing is 1.0"),
        (lambda m: replace(m, z0=m.z0.requires_grad_()), "z0 is a tensor that requires grad"),
        (lambda m: replace(m, slopes=m.slopes.to("meta")), "slopes is on meta"),
    ],
)
def test_wrong_arguments_are_refused(change: Change, message: str) -> None:
    m = random_model()
    outputs = m.outputs()
    with pytest.raises(DeevoError, match=f"^deevo::linear_scores: {message}"):
        OPERATORS.linear_scores(*change(m).arguments(outputs))
    assert all(bool((output == 7).all()) for output in outputs)


@pytest.mark.parametrize("place", range(4))
def test_wrong_outputs_are_refused(place: int) -> None:
    m = random_model()
    name = ("losses", "ranks", "predicted", "probability")[place]
    outputs = list(m.outputs())
    right = outputs[place]
    for wrong in (right.double(), right[:, 1:], right[:, :1].expand(5, 37)):
        outputs[place] = wrong
        with pytest.raises(DeevoError, match=f"^deevo::linear_scores: {name} is"):
            OPERATORS.linear_scores(*m.arguments(tuple(outputs)))  # type: ignore[arg-type]
    outputs[0] = outputs[3] = torch.zeros(5, 37)
    outputs[1:3] = m.outputs()[1:3]
    with pytest.raises(DeevoError, match="overlaps"):
        OPERATORS.linear_scores(*m.arguments(tuple(outputs)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "check",
    ["test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic"],
)
def test_opcheck(check: str) -> None:
    m = random_model()
    torch.library.opcheck(
        OPERATORS.linear_scores.default, m.arguments(m.outputs()), test_utils=check
    )
