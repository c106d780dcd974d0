"""The linear model of logits: fits against L-BFGS, corrections, folds, 16-bit slopes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from deevo_ext.search.held_out import LENGTHS, RIDGES, held_out
from deevo_ext.search.linear_model import LinearModel

ROUNDING = 2.0**-24  # float32, relative


def drawn(
    d: int = 6, n: int = 80, classes: int = 4, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """z0, slopes of very different sizes, labels that prefer some q, and that q."""
    generator = torch.Generator().manual_seed(seed)
    z0 = 1.5 * torch.randn(n, classes, generator=generator)
    slopes = torch.randn(d, n, classes, generator=generator)
    slopes *= torch.logspace(-2, 1, d)[:, None, None]
    q = torch.randn(d, generator=generator) / torch.logspace(-2, 1, d)
    odds = torch.softmax(z0 + torch.einsum("d,dnc->nc", q, slopes), dim=1)
    return z0, slopes, torch.multinomial(odds, 1, generator=generator)[:, 0], q


def model_of(
    z0: Tensor, slopes: Tensor, labels: Tensor, dtype: torch.dtype = torch.float32
) -> LinearModel:
    model = LinearModel(z0, labels, len(slopes), dtype)
    for k, slope in enumerate(slopes):
        model.put({k: slope})
    return model


def objective(
    model: LinearModel, ridge: float, weights: Tensor, q: Tensor
) -> tuple[Tensor, float, float]:
    """The least q and value of weighted cross-entropy plus ridge, by L-BFGS; the value at `q`.

    All in float64.
    """
    share = (weights / weights.sum()).double()
    z0, slopes = model.z0.double(), model.slopes.double()
    x = torch.zeros(model.directions, dtype=torch.float64, requires_grad=True)

    def value(at: Tensor) -> Tensor:
        z = z0 + torch.einsum("d,dnc->nc", at, slopes)
        losses = cross_entropy(z, model.labels, reduction="none")
        return (losses * share).sum() + ridge * at @ at

    search = torch.optim.LBFGS(
        [x], max_iter=2000, tolerance_grad=1e-10, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        search.zero_grad()
        loss = value(x)
        loss.backward()
        return loss

    search.step(closure)
    assert x.grad is not None and float(x.grad.abs().max()) < 1e-8
    least = x.detach()
    return least, value(least).item(), value(q).item()


@pytest.mark.parametrize("ridge", [1.0, 1e-2, 1e-4])
@pytest.mark.parametrize("weighted", [False, True])
def test_fit_is_the_least_of_cross_entropy_and_ridge(ridge: float, weighted: bool) -> None:
    z0, slopes, labels, _ = drawn()
    model = model_of(z0, slopes, labels)
    weights = torch.ones(len(labels))
    if weighted:
        weights[::3] = 0.0
    q = model.fit(ridge, weights=weights if weighted else None)
    best, value, found = objective(model, ridge, weights, q)
    # Newton's method ends where a step gains less than 1e-6; the error after it is of second order.
    assert value - 1e-9 <= found <= value + 2e-6
    # Curvature is at least 2 ridge: what is left to gain bounds how far the least may lie.
    assert float((q - best).norm()) <= ((found - value + 1e-9) / ridge) ** 0.5


def test_more_directions_than_logits_are_fitted_too() -> None:
    z0, slopes, labels, _ = drawn(d=60, n=10, classes=3)
    model = model_of(z0, slopes, labels)
    q = model.fit(1e-2)
    _, value, found = objective(model, 1e-2, torch.ones(10), q)
    assert found <= value + 2e-6


def test_directions_may_have_any_length() -> None:
    z0, slopes, labels, _ = drawn()
    one = model_of(z0, slopes, labels)
    factors = torch.tensor([2.0, 0.25, 16.0, 1.0, 0.5, 4.0])  # exact in every product
    other = model_of(z0, slopes * factors[:, None, None], labels)
    step, scaled = (model.step_of(model.fit(1e-2)) for model in (one, other))
    torch.testing.assert_close(scaled * factors, step, rtol=1e-6, atol=1e-9)
    sizes = slopes.double().square().mean(dim=(1, 2)).sqrt()
    torch.testing.assert_close(one.scale, sizes, rtol=1e-6, atol=0)
    assert torch.equal(one.step_of(one.coordinates_of(step)), one.step_of(step * one.scale))
    torch.testing.assert_close(one.coordinates_of(step), step * sizes, rtol=1e-6, atol=1e-12)


def test_directions_that_show_nothing_are_left_out() -> None:
    z0, slopes, labels, _ = drawn()
    slopes[1], slopes[2, 3, 1], slopes[4] = 0.0, torch.nan, torch.inf
    model = LinearModel(z0, labels, 6)
    for k, slope in enumerate(slopes):
        model.put({k: slope}, least=0.02)  # the first has slopes of some 0.01
    assert (model.scale == 0).tolist() == [True, True, True, False, True, False]
    model.leave_out(3)
    step = model.step_of(torch.ones(6))
    assert (step != 0).tolist() == [False] * 5 + [True]
    assert torch.equal(model.fit(1e-3)[:5], torch.zeros(5, dtype=torch.float64))
    kept = model_of(z0, slopes[5:], labels)
    torch.testing.assert_close(model.fit(1e-3)[5:], kept.fit(1e-3), rtol=1e-6, atol=1e-9)


def test_losses_and_ranks_are_those_of_torch() -> None:
    z0, slopes, labels, _ = drawn()
    model = model_of(z0, slopes, labels)
    q = torch.randn(7, 6, generator=torch.Generator().manual_seed(3))
    losses, ranks = model.losses_and_ranks(q)
    exact = z0.double() + torch.einsum("pd,dnc->pnc", q.double(), model.slopes.double())
    expected = torch.stack([cross_entropy(z, labels, reduction="none") for z in exact])
    # Logits are float32 sums of d + 1 terms; a loss moves by at most twice what they do.
    terms = z0.abs().double() + torch.einsum(
        "pd,dnc->pnc", q.abs().double(), model.slopes.abs().double()
    )
    error = 8 * ROUNDING * terms.amax(dim=2)
    assert bool(((losses - expected).abs() <= 2 * error + ROUNDING * expected).all())
    true = exact.gather(2, labels.expand(7, -1)[..., None])
    assert bool(
        (exact - true).abs().sub(2 * error[..., None]).sort(dim=2).values[..., 1:].gt(0).all()
    )
    assert torch.equal(ranks, (exact > true).sum(dim=2).int())
    assert torch.equal(model.logits(q)[:, 5:9], model.logits(q, slice(5, 9)))


def test_a_correction_is_exact_where_it_was_made_and_changes_nothing_across() -> None:
    z0, slopes, labels, _ = drawn()
    model = model_of(z0, slopes, labels)
    model.leave_out(2)
    generator = torch.Generator().manual_seed(5)
    q, across = torch.randn(2, 6, dtype=torch.float64, generator=generator)
    q[2] = across[2] = 0.0
    across -= (across @ q) / (q @ q) * q
    before = model.logits(across[None])[0]
    real = z0 + torch.randn(z0.shape, generator=generator)
    model.correct(q, real)
    size = float(model.slopes.abs().max() * q.abs().sum() + z0.abs().max())
    bound = 20 * ROUNDING * size * max(1.0, float(across.abs().sum() / q.abs().max()))
    assert float((model.logits(q[None])[0] - real).abs().max()) <= bound
    assert float((model.logits(across[None])[0] - before).abs().max()) <= bound
    assert not model.slopes[2].any()
    kept = model.slopes.clone()
    model.correct(q, torch.full_like(z0, torch.nan))
    model.correct(torch.zeros(6), real)
    assert torch.equal(model.slopes, kept)


def test_folds_score_what_a_fit_has_not_seen() -> None:
    z0, slopes, labels, _ = drawn(n=60)
    model = model_of(z0, slopes, labels)
    folds = [torch.arange(k, 60, 5) for k in range(5)]

    def wrong(q: Tensor) -> Tensor:
        return (model.logits(q).argmax(dim=2) != labels).float()

    def paired(before: Tensor, after: Tensor) -> list[tuple[float, float]]:
        falls = (before - after).double()
        return [(float(fall.mean()), float(fall.std()) / len(fall) ** 0.5) for fall in falls]

    found = held_out(model, folds, wrong, paired)
    assert [(fit.ridge, fit.length) for fit in found] == [(r, s) for r in RIDGES for s in LENGTHS]
    for ridge in (RIDGES[0], RIDGES[-1]):
        fits = {}
        for k in range(5):
            rest = torch.tensor([i for i in range(60) if i % 5 != k])
            part = LinearModel(z0[rest], labels[rest], 6)
            # The whole model's coordinates: the part's slopes have another root mean square.
            part.slopes.copy_(model.slopes[:, rest])
            part.scale.copy_(model.scale)
            fits[k] = part.fit(ridge)
        for length in LENGTHS:
            loss, gain = torch.empty(60), torch.empty(60)
            for k, fold in enumerate(folds):
                start, z = z0[fold], model.logits(length * fits[k][None])[0][fold]
                loss[fold] = cross_entropy(start, labels[fold], reduction="none")
                loss[fold] -= cross_entropy(z, labels[fold], reduction="none")
                before, after = (x.argmax(dim=1) != labels[fold] for x in (start, z))
                gain[fold] = before.float() - after.float()
            one = next(f for f in found if (f.ridge, f.length) == (ridge, length))
            # Two fits, each within 2e-6 of the least, differ by 2e-3 / sqrt(ridge / 1e-4) at most.
            tolerance = 2e-3 * max(1.0, (1e-4 / ridge) ** 0.5)
            assert one.loss == pytest.approx(float(loss.mean()), abs=tolerance)
            assert one.gain == pytest.approx(float(gain.mean()), abs=2 / 60)
            if one.gain == pytest.approx(float(gain.mean()), abs=1e-9):
                expected = float(gain.double().std()) / 60**0.5
                assert one.standard_error == pytest.approx(expected, rel=1e-5)


def test_the_same_slopes_serve_another_network() -> None:
    z0, slopes, labels, _ = drawn(n=60)
    model = model_of(z0, slopes, labels)
    z = z0 + torch.randn(z0.shape, generator=torch.Generator().manual_seed(1))
    fit = model.at(z).fit(0.1)
    assert torch.equal(model.z0, z0) and not torch.equal(fit, model.fit(0.1))
    assert torch.equal(fit, model_of(z, slopes, labels).fit(0.1))


@pytest.mark.parametrize(("dtype", "share"), [(torch.float16, 2.0**-11), (torch.bfloat16, 2.0**-8)])
def test_slopes_of_16_bits_are_rounded_once_and_after_they_are_scaled(
    dtype: torch.dtype, share: float
) -> None:
    z0, slopes, labels, _ = drawn()
    slopes *= 1e-6  # float16 has no such numbers but a few
    exact, rounded = model_of(z0, slopes, labels), model_of(z0, slopes, labels, dtype)
    assert torch.equal(exact.scale, rounded.scale)
    error = (rounded.slopes.double() - exact.slopes.double()).abs()
    # float16 is subnormal below 2^-14, where its numbers lie 2^-24 apart.
    assert bool((error <= share * exact.slopes.abs().double() + 2.0**-25).all())
    q = torch.randn(1, 6, generator=torch.Generator().manual_seed(1))
    bound = torch.einsum("d,dnc->nc", q[0].abs(), share * exact.slopes.abs() + 2.0**-25)
    missed = (rounded.logits(q) - exact.logits(q))[0].abs()
    assert bool((missed <= bound + 20 * ROUNDING * (1 + exact.logits(q)[0].abs())).all())


def test_directions_together_are_their_sum() -> None:
    z0, slopes, labels, _ = drawn()
    model = model_of(z0, slopes, labels)
    model.leave_out(3)
    together = model.together(torch.tensor([0, 1, 0, 1, 1, 0]))
    assert together.directions == 2 and model.directions == 6
    q = torch.tensor([[0.3, -0.2]], dtype=torch.float64)
    a, b = together.step_of(q)[0].float().tolist()
    expected = z0 + a * (slopes[0] + slopes[2] + slopes[5]) + b * (slopes[1] + slopes[4])
    assert torch.allclose(together.logits(q)[0], expected, atol=1e-4)
