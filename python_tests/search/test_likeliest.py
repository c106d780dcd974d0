"""Linear models of the likeliest classes, against models of all: what is exact, and what is not."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from deevo_ext.search.likeliest import LikeliestModel, bytes_of_image
from deevo_ext.search.linear_model import LinearModel

ROUNDING = 2.0**-24  # float32, relative
IMAGES, CLASSES, DIRECTIONS = 120, 40, 5


@pytest.fixture
def drawn() -> tuple[Tensor, Tensor, Tensor]:
    """z0, slopes, and labels that are often far from the likeliest class."""
    generator = torch.Generator().manual_seed(0)
    z0 = 2.0 * torch.randn(IMAGES, CLASSES, generator=generator)
    slopes = torch.randn(DIRECTIONS, IMAGES, CLASSES, generator=generator)
    labels = torch.multinomial(torch.softmax(z0, dim=1), 1, generator=generator)[:, 0]
    return z0, slopes, labels


def model_of(
    z0: Tensor,
    slopes: Tensor,
    labels: Tensor,
    likeliest: int,
    dtype: torch.dtype = torch.float32,
) -> LikeliestModel:
    model = LikeliestModel(z0, labels, len(slopes), likeliest, dtype)
    near = model.columns(z0 + slopes) - model.present
    model.put(dict(enumerate(near)))
    return model


def full_logits(z0: Tensor, slopes: Tensor, step: Tensor) -> Tensor:
    """Logits float64 [P, n, classes] of steps [P, d], by the model of all classes."""
    return z0.double() + torch.einsum("pd,dnc->pnc", step.double(), slopes.double())


def test_each_image_keeps_its_class_and_the_likeliest_others(
    drawn: tuple[Tensor, Tensor, Tensor],
) -> None:
    z0, slopes, labels = drawn
    model = model_of(z0, slopes, labels, 6)
    for i, kept in enumerate(model.kept.tolist()):
        true = int(labels[i])
        order = [c for c in z0[i].argsort(descending=True, stable=True).tolist() if c != true]
        assert kept == sorted([true, *order[:6]])
        assert kept[int(model.own[i])] == true
    assert model.classes == CLASSES and model.slopes.shape == (DIRECTIONS, IMAGES, 7)


@pytest.mark.parametrize("likeliest", [1, 3, 10, CLASSES - 2])
def test_losses_and_first_derivatives_at_the_network_are_those_of_all_classes(
    drawn: tuple[Tensor, Tensor, Tensor], likeliest: int
) -> None:
    z0, slopes, labels = drawn
    model = model_of(z0, slopes, labels, likeliest)
    losses, _ = model.losses_and_ranks(torch.zeros(1, DIRECTIONS))
    expected = cross_entropy(z0.double(), labels, reduction="none")
    size = float(z0.abs().max())
    assert float((losses[0] - expected).abs().max()) <= 8 * ROUNDING * size
    # The convex fit under a ridge that leaves next to nothing of a step: -gradient / (2 ridge).
    ridge = 1e5
    gradient = -2 * ridge * model.fit(ridge) * model.scale
    step = torch.zeros(1, DIRECTIONS, dtype=torch.float64, requires_grad=True)
    cross_entropy(full_logits(z0, slopes, step)[0], labels).backward()
    assert step.grad is not None
    # Means of 120 images, whose terms are products of slopes and odds in float32; curvature
    # against the ridge is less than 1e-5 of it.
    bound = 1e-5 * float(step.grad.abs().max()) + 64 * ROUNDING * float(slopes.abs().max())
    assert float((gradient - step.grad[0]).abs().max()) <= bound


@pytest.mark.parametrize("likeliest", [1, 5])
def test_losses_are_those_of_all_classes_to_second_order_in_the_mean(likeliest: int) -> None:
    """One column for the rest would miss what the rest's classes move apart."""
    generator = torch.Generator().manual_seed(0)
    z0 = torch.randn(2000, 100, generator=generator)
    slopes = torch.randn(3, 2000, 100, generator=generator)
    labels = torch.multinomial(torch.softmax(z0, dim=1), 1, generator=generator)[:, 0]
    model = model_of(z0, slopes, labels, likeliest)
    for step in 0.2 * torch.randn(4, 1, 3, generator=generator):
        losses, _ = model.losses_and_ranks(model.coordinates_of(step))
        exact = cross_entropy(full_logits(z0, slopes, step)[0], labels, reduction="none")
        missed = losses[0] - exact
        # What one column would miss is half of the variance of the moves within the rest, in the
        # share that the rest has.
        odds = torch.softmax(z0.double(), dim=1).scatter(1, model.kept, 0.0)
        share = odds.sum(dim=1, keepdim=True)
        moved = full_logits(z0, slopes, step)[0] - z0
        mean = (moved * odds).sum(dim=1, keepdim=True) / share
        one = 0.5 * ((moved - mean).square() * odds).sum(dim=1).mean()
        error = missed.std() / 2000**0.5
        assert float(one) > 10 * float(error)  # so that the mean tells
        assert abs(float(missed.mean())) <= 4 * float(error) + 0.1 * float(one)


def test_classes_of_the_rest_are_drawn_by_their_odds() -> None:
    z0 = torch.log(torch.tensor([8.0, 9.0, 4.0, 1e-6, 2.0, 1.0, 1.0])).expand(5000, -1)
    model = LikeliestModel(z0.contiguous(), torch.zeros(5000, dtype=torch.int64), 1, 1)
    assert torch.equal(model.kept, torch.tensor([[0, 1]]).expand(5000, -1))
    # A class alone moves: what that adds to the rest's logit is of second order the variance of
    # its odds. Draws in order have up to S / (S - 1) times the variance of independent ones.
    step = torch.tensor([[0.3]])
    for c, odds in ((2, 0.5), (3, 0.0), (4, 0.25), (5, 0.125), (6, 0.125)):
        slope = torch.zeros(5000, 7)
        slope[:, c] = 1.0
        model = LikeliestModel(z0.contiguous(), torch.zeros(5000, dtype=torch.int64), 1, 1)
        near = model.columns((z0 + slope)[None]) - model.present
        model.put({0: near[0]})
        losses, _ = model.losses_and_ranks(model.coordinates_of(step))
        exact = math.log((17 + 8 * (1 + odds * math.expm1(0.3))) / 8)
        second = 0.5 * 0.3**2 * odds * (1 - odds) * 8 / 25
        assert abs(float(losses.mean()) - exact) <= 0.15 * second + 2e-6


def test_with_one_class_in_the_rest_nothing_is_lost(drawn: tuple[Tensor, Tensor, Tensor]) -> None:
    z0, slopes, labels = drawn
    model = model_of(z0, slopes, labels, CLASSES - 2)
    step = torch.randn(4, DIRECTIONS, generator=torch.Generator().manual_seed(1))
    q = model.coordinates_of(step)
    exact = full_logits(z0, slopes, step)
    size = float(exact.abs().max() + torch.einsum("pd,dnc->pnc", step.abs(), slopes.abs()).max())
    assert float((model.logits(q) - exact).abs().max()) <= 16 * ROUNDING * size
    losses, ranks = model.losses_and_ranks(q)
    expected = cross_entropy(exact.mT, labels.expand(4, -1), reduction="none")
    assert float((losses - expected).abs().max()) <= 32 * ROUNDING * size
    # The one class of the rest is the least likely at the network, and no competitor.
    rest = torch.ones(IMAGES, CLASSES).scatter(1, model.kept, 0.0).bool()
    true = exact.gather(2, labels.expand(4, -1)[..., None])
    assert torch.equal(ranks, ((exact > true) & ~rest).sum(dim=2).int())


@pytest.mark.parametrize("likeliest", [1, 5])
def test_ranks_at_the_network_are_exact_below_l(
    drawn: tuple[Tensor, Tensor, Tensor], likeliest: int
) -> None:
    z0, slopes, labels = drawn
    z0 = (2 * z0).round() / 2  # many equal logits: ties go to the lower class
    model = model_of(z0, slopes, labels, likeliest)
    _, ranks = model.losses_and_ranks(torch.zeros(1, DIRECTIONS))
    true, lower = z0.gather(1, labels[:, None]), torch.arange(CLASSES) < labels[:, None]
    exact = ((z0 > true) | ((z0 == true) & lower)).sum(dim=1)
    assert 20 < int((exact < likeliest).sum()) < 100  # both kinds are many
    assert torch.equal(ranks[0], exact.clamp(max=likeliest).int())
    _, predicted = model.losses_and_predictions(torch.zeros(2, DIRECTIONS))
    largest = z0 == z0.amax(dim=1, keepdim=True)
    assert bool(largest.gather(1, predicted.long().T).all())


def test_many_classes_that_are_each_less_likely_do_not_beat_the_true_one() -> None:
    z0 = torch.zeros(1, 200)
    z0[0, 7], z0[0, 3] = 1.0, 0.5  # the rest together has exp(5.3)
    model = LikeliestModel(z0, torch.tensor([7]), 1, 4)
    losses, ranks = model.losses_and_ranks(torch.zeros(2, 1))
    assert ranks.flatten().tolist() == [0, 0]
    expected = float(cross_entropy(z0.double(), torch.tensor([7])))
    assert losses[0].tolist() == pytest.approx([expected], abs=1e-6)


def test_logits_of_all_classes_move_the_rest_by_one_amount(
    drawn: tuple[Tensor, Tensor, Tensor],
) -> None:
    z0, slopes, labels = drawn
    model = model_of(z0, slopes, labels, 6)
    assert torch.equal(model.logits(torch.zeros(1, DIRECTIONS))[0], z0)
    q = 0.3 * torch.randn(3, DIRECTIONS, generator=torch.Generator().manual_seed(1))
    found, exact = model.logits(q), full_logits(z0, slopes, model.step_of(q))
    size = float(z0.abs().max() + torch.einsum("pd,dnc->pnc", q.abs(), slopes.abs()).max())
    bound = 32 * ROUNDING * size
    where = model.kept.expand(3, -1, -1)
    assert float((found.gather(2, where) - exact.gather(2, where)).abs().max()) <= bound
    for i in range(IMAGES):
        rest = [c for c in range(CLASSES) if c not in model.kept[i].tolist()]
        moved = (found[:, i] - z0[i])[:, rest]
        assert float((moved - moved[:, :1]).abs().max()) <= bound
    losses, _ = model.losses_and_ranks(q)
    expected = cross_entropy(found.mT, labels.expand(3, -1), reduction="none")
    assert float((losses - expected).abs().max()) <= 2 * bound
    assert torch.equal(found[:, 5:9], model.logits(q, slice(5, 9)))


def test_a_fit_is_the_least_of_its_own_losses(drawn: tuple[Tensor, Tensor, Tensor]) -> None:
    z0, slopes, labels = drawn
    model = model_of(z0, slopes, labels, 4)
    q = model.fit(1e-2)

    def value(at: Tensor) -> Tensor:
        losses = model.losses_and_ranks(at)[0].double().mean(dim=1)
        return losses + 1e-2 * at.square().sum(dim=1)

    near = q + 0.05 * torch.randn(
        200, DIRECTIONS, dtype=torch.float64, generator=torch.Generator().manual_seed(2)
    )
    assert float(q.norm()) > 0.1
    assert float(value(near).min()) >= float(value(q[None])[0]) - 1e-6


def test_a_correction_makes_losses_those_of_the_network_that_was_evaluated(
    drawn: tuple[Tensor, Tensor, Tensor],
) -> None:
    z0, slopes, labels = drawn
    model = model_of(z0, slopes, labels, 4)
    generator = torch.Generator().manual_seed(5)
    q = torch.randn(DIRECTIONS, dtype=torch.float64, generator=generator)
    real = z0 + 2 * torch.randn(z0.shape, generator=generator)
    model.correct(q, real)
    losses, _ = model.losses_and_ranks(q[None])
    expected = cross_entropy(real.double(), labels, reduction="none")
    assert float((losses[0] - expected).abs().max()) <= 1e-4
    assert float((model.logits(q[None])[0] - real).gather(1, model.kept).abs().max()) <= 1e-4


def test_what_is_not_finite_in_the_rest_is_left_out_or_infinite(
    drawn: tuple[Tensor, Tensor, Tensor],
) -> None:
    z0, slopes, labels = drawn
    rest = (z0.scatter(1, labels[:, None], torch.inf)).argmin(dim=1)
    slopes[1, 3, rest[3]] = torch.inf
    slopes[2, 3, rest[3]] = torch.nan
    model = model_of(z0, slopes, labels, 4)
    assert (model.scale == 0).tolist() == [False, True, True, False, False]
    losses, ranks = model.losses_and_ranks(torch.full((1, DIRECTIONS), 3e38))
    assert bool((losses == torch.inf).all()) and bool((ranks >= 5).all())
    _, predicted = model.losses_and_predictions(torch.full((1, DIRECTIONS), 3e38))
    assert bool((predicted == -1).all())
    before = model.logits(torch.ones(1, DIRECTIONS))
    real = z0.clone()
    real[3, rest[3]] = torch.nan
    model.correct(torch.ones(DIRECTIONS), real)
    assert torch.equal(model.logits(torch.ones(1, DIRECTIONS)), before)


@pytest.mark.parametrize(("dtype", "share"), [(torch.float16, 2.0**-11), (torch.bfloat16, 2.0**-8)])
def test_slopes_of_16_bits_are_those_of_float32_rounded(
    drawn: tuple[Tensor, Tensor, Tensor], dtype: torch.dtype, share: float
) -> None:
    exact, rounded = model_of(*drawn, 6), model_of(*drawn, 6, dtype)
    assert torch.equal(exact.scale, rounded.scale)
    for k in range(DIRECTIONS):
        missed = (rounded.slope(k) - exact.slope(k)).abs()
        assert bool((missed <= share * exact.slope(k).abs() + 2.0**-25).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_bytes_are_those_of_slopes_and_logits(
    drawn: tuple[Tensor, Tensor, Tensor], dtype: torch.dtype
) -> None:
    z0, _, labels = drawn
    for likeliest, model in (
        (6, LikeliestModel(z0, labels, 100, 6, dtype)),
        (None, LinearModel(z0, labels, 100, dtype)),
    ):
        tensors = {t.data_ptr(): t.nbytes for t in vars(model).values() if isinstance(t, Tensor)}
        said = IMAGES * bytes_of_image(100, CLASSES, likeliest, dtype.itemsize)
        # Beside them lie z0, or the part of it that is kept, labels, and which classes are kept.
        more = IMAGES * (4 * CLASSES + 12 * 7 + 24) + 800
        assert said <= sum(tensors.values()) <= said + more


def test_predicted_classes_are_the_networks_own_and_the_best_of_those_kept(
    drawn: tuple[Tensor, Tensor, Tensor],
) -> None:
    z0, slopes, labels = drawn
    z0[3] = torch.inf
    model = model_of(z0, slopes, labels, 6)
    steps = torch.randn(9, DIRECTIONS, generator=torch.Generator().manual_seed(1))
    steps[0] = 0.0
    _, predicted = model.losses_and_predictions(steps)
    sound = [i for i in range(IMAGES) if i != 3]
    assert predicted[0, sound].tolist() == z0[sound].argmax(dim=1).tolist()
    kept = model.logits(steps).gather(2, model.kept.expand(9, -1, -1))
    best = model.kept.expand(9, -1, -1).gather(2, kept.argmax(dim=2)[..., None])[..., 0]
    assert predicted[:, sound].tolist() == best[:, sound].tolist()
    assert predicted[:, 3].tolist() == [-1] * 9


@pytest.mark.parametrize("likeliest", [6, None])
def test_directions_that_move_together_are_those_of_equal_steps(
    drawn: tuple[Tensor, Tensor, Tensor], likeliest: int | None
) -> None:
    z0, slopes, labels = drawn
    if likeliest is None:
        whole = LinearModel(z0, labels, DIRECTIONS)
        whole.put(dict(enumerate(slopes)))
    else:
        whole = model_of(z0, slopes, labels, likeliest)
    groups = torch.tensor([0, 1, 0, 1, 1])
    model = whole.together(groups)
    step = torch.tensor([[0.3, -0.2]], dtype=torch.float64)
    found = model.losses_and_ranks(model.coordinates_of(step).float())[0]
    expected = whole.losses_and_ranks(whole.coordinates_of(step[:, groups]).float())[0]
    # Sums of five slopes of size 1 or so, rounded in another order; a loss is 2 logits' difference.
    assert float((found - expected).abs().max()) <= 64 * ROUNDING * float(z0.abs().max())
    assert float((found - model.losses_and_ranks(torch.zeros(1, 2))[0]).abs().max()) > 0.1


def test_another_networks_losses_are_those_of_all_classes(
    drawn: tuple[Tensor, Tensor, Tensor],
) -> None:
    """Whatever is kept: what the rest of the classes come to is known of the network itself."""
    z0, slopes, labels = drawn
    model = model_of(z0, slopes, labels, 6)
    none = torch.zeros(1, DIRECTIONS)
    for logits in (z0, z0 + 0.5 * slopes[0], z0.flip(0)):
        other = model.at(logits)
        losses, ranks = other.losses_and_ranks(none)
        # Float32 logits of some units.
        exact = cross_entropy(logits.double(), labels, reduction="none")
        assert torch.allclose(losses[0].double(), exact, atol=1e-4)
        assert torch.allclose(other.logits(none)[0], logits, atol=1e-5)
        assert torch.equal(other.slopes, model.slopes) and torch.equal(other.kept, model.kept)
        assert ranks.shape == (1, IMAGES)
    assert torch.equal(model.present, model_of(z0, slopes, labels, 6).present)
