"""The classifier's refit: against an independent solver, on unseen images, and in a network."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import deevo_ext as deevo
from deevo_ext.data.images import ImageSet
from deevo_ext.fitness.classifier import (
    Classifier,
    changes_of,
    features,
    find_classifier,
)
from deevo_ext.fitness.metrics import Metric
from deevo_ext.fitness.refit import FOLDS, refit, why_no_refit
from deevo_ext.fitness.ridge import Basis, LogisticFit
from deevo_ext.fitness.sampling import fold_numbers
from deevo_ext.population.composed import changed
from support.evolution import images, population
from support.networks import Net, Tail, members

LOSS = Metric("loss")


def task(count: int, width: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Features, logits of a classifier that knows half of what they tell, and labels."""
    generator = torch.Generator().manual_seed(seed)
    true = torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    found = 3.0 * torch.randn(count, width, generator=generator).relu()
    logits = found @ true.T / math.sqrt(width)
    gumbel = -torch.empty_like(logits).exponential_(generator=generator).log()
    labels = (logits + 2.0 * torch.arange(classes) / classes + gumbel).argmax(dim=1)
    return found, found[:, : width // 2] @ true[:, : width // 2].T / math.sqrt(width), labels


def converged(
    found: Tensor, logits: Tensor, labels: Tensor, ridge: float, smoothing: float
) -> tuple[float, np.ndarray, np.ndarray]:
    """The least objective, weight and bias by scipy, in float64 on features divided by their rms.

    Written with probabilities and one-hot labels, not with a basis or a cross-entropy function.
    """
    from scipy.optimize import minimize

    x, z = found.double().numpy(), logits.double().numpy()
    n, classes = z.shape
    x = np.hstack([x / np.sqrt((x**2).mean()), np.ones((n, 1))])
    targets = np.full((n, classes), smoothing / classes)
    targets[np.arange(n), labels.numpy()] += 1.0 - smoothing

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        change = flat.reshape(classes, -1)
        scores = z + x @ change.T
        scores -= scores.max(axis=1, keepdims=True)
        odds = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
        value = -(targets * np.log(odds)).sum() / n + ridge * (flat**2).sum()
        return value, ((odds - targets).T @ x / n + 2 * ridge * change).reshape(-1)

    start = np.zeros(classes * x.shape[1])
    options = {"maxiter": 5000, "ftol": 1e-15, "gtol": 1e-9}
    result = minimize(objective, start, jac=True, method="L-BFGS-B", options=options)
    change = result.x.reshape(classes, -1)
    rms = float(found.double().square().mean().sqrt())
    return result.fun, change[:, :-1] / rms, change[:, -1]


@pytest.mark.parametrize("count, width", [(300, 12), (40, 100)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("ridge", [1.0, 1e-2, 1e-4])
def test_the_fit_is_the_convex_optimum(
    count: int, width: int, smoothing: float, ridge: float
) -> None:
    found, logits, labels = task(count, width, 4)
    basis = Basis.of(found, bias=True)
    fit = LogisticFit(basis.coordinates, logits, labels, basis.variances, smoothing)
    start = torch.zeros(basis.coordinates.shape[1], 4)
    weight, bias = basis.weights(fit.solve(ridge, start))
    least, _, _ = converged(found, logits, labels, ridge, smoothing)
    scale = found.double().square().mean()
    after = logits.double() + found.double() @ weight.double().T + bias.double()
    penalty = scale * weight.double().square().sum() + bias.double().square().sum()
    value = cross_entropy(after, labels, label_smoothing=smoothing) + ridge * penalty
    # The promised 1e-5 nats, and a tenth of that for float32's rounding of the result.
    assert -1e-9 <= float(value) - least <= 1.1e-5


def falls_of(
    apart: list[tuple[Tensor, Tensor]], labels: Tensor, fold: Tensor, ridge: float
) -> Tensor:
    """What the cross-entropy of each image falls by, by the fit to each fold's others."""
    falls = torch.zeros(len(labels), dtype=torch.float64)
    for k, (found, logits) in enumerate(apart):
        rest, out = fold != k, fold == k
        _, weight, bias = converged(found[rest], logits[rest], labels[rest], ridge, 0.0)
        before = logits[out].double()
        after = before + found[out].double() @ torch.from_numpy(weight).T + torch.from_numpy(bias)
        falls[out] = cross_entropy(before, labels[out], reduction="none")
        falls[out] -= cross_entropy(after, labels[out], reduction="none")
    return falls


def test_gain_is_what_fits_without_each_fold_gain_on_it() -> None:
    found, logits, labels = task(300, 12, 4)
    result = refit(found, logits, labels, LOSS, 5)
    assert result.ridge is not None and result.accepted
    fold = fold_numbers(labels, FOLDS, 5)
    for k in range(FOLDS):
        # The basis divides by the rms of all images: so does the ridge here.
        ratio = float(found.square().mean() / found[fold != k].square().mean())
        assert abs(ratio - 1.0) < 0.1
    falls = falls_of([(found, logits)] * FOLDS, labels, fold, result.ridge)
    # The ridge differs by a few per cent between the two, as the rms does.
    assert result.gain == pytest.approx(float(falls.mean()), rel=0.02)
    assert result.standard_error == pytest.approx(float(falls.std()) / math.sqrt(300), rel=0.05)
    again = refit(found, logits, labels, LOSS, 5)
    assert torch.equal(again.weight, result.weight) and again.gain == result.gain


def test_a_network_that_knows_the_images_is_judged_by_those_that_do_not() -> None:
    """What a refit gains is what it gains on each of five networks, where it has no label."""
    found, logits, labels = task(300, 12, 4)
    noise = torch.randn(5, *logits.shape, generator=torch.Generator().manual_seed(1))
    apart = [(found * (1.0 + 0.05 * k), logits + noise[k]) for k in range(FOLDS)]
    known = logits + 3.0 * torch.nn.functional.one_hot(labels, 4)  # of a network that learnt them
    result = refit(found, known, labels, LOSS, 5, apart=apart)
    assert result.ridge is not None and result.gain > 0.1
    falls = falls_of(apart, labels, fold_numbers(labels, FOLDS, 5), result.ridge)
    # As above: features are divided by the rms of all images, not of four folds.
    assert result.gain == pytest.approx(float(falls.mean()), rel=0.02)
    # The change itself is the known network's, whose objective is the least there is.
    least, _, _ = converged(found, known, labels, result.ridge, 0.0)
    scale = found.double().square().mean()
    weight, bias = result.weight.double(), result.bias.double()
    value = cross_entropy(known.double() + found.double() @ weight.T + bias, labels)
    value += result.ridge * (scale * weight.square().sum() + bias.square().sum())
    assert -1e-9 <= float(value) - least <= 1.1e-5


@pytest.mark.parametrize("metric", ["loss", "costly"])
def test_a_network_beside_itself_is_itself(metric: str) -> None:
    found, logits, labels = task(200, 12, 4)
    asked = LOSS if metric == "loss" else Metric.of(costly)
    one = refit(found, logits, labels, asked, 5)
    other = refit(found, logits, labels, asked, 5, apart=[(found, logits)] * FOLDS)
    assert torch.equal(one.weight, other.weight) and torch.equal(one.bias, other.bias)
    assert (one.ridge, one.gain) == (other.ridge, other.gain)
    broken = logits.clone()
    broken[3, 0] = math.nan
    with pytest.raises(deevo.DeevoError, match="1 of 200 images are not finite"):
        refit(found, logits, labels, asked, 5, apart=[(found, broken)] * FOLDS)


def test_a_refit_helps_unseen_images_where_there_is_something_to_learn() -> None:
    found, logits, labels = task(600, 12, 4)
    unseen, before, true = task(4000, 12, 4, seed=1)
    result = refit(found, logits, labels, LOSS, 0)
    after = before + unseen @ result.weight.T + result.bias
    real = float(cross_entropy(before, true) - cross_entropy(after, true))
    # Folds see a fifth fewer images; four standard errors of both estimates.
    assert real > 0.1 and abs(real - result.gain) < 4 * result.standard_error + 0.02
    plain = refit(found, logits, labels, LOSS, 0, bias=False)
    assert not plain.bias.any() and plain.weight.any()


def test_nothing_is_accepted_where_the_logits_know_all_already() -> None:
    wins = 0
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        logits = 2.0 * torch.randn(200, 4, generator=generator)
        labels = logits.softmax(dim=1).multinomial(1, generator=generator)[:, 0]
        noise = torch.randn(200, 30, generator=generator)
        wins += refit(noise, logits, labels, LOSS, seed).accepted
    # A gain above one standard error by chance: at most 16 % of the time, so 2 of 10 and one more.
    assert wins <= 3


def costly(logits: Tensor, labels: Tensor) -> Tensor:
    """1 for an error, and 10 for one on the last class."""
    wrong = (logits.argmax(dim=1) != labels).float()
    return wrong * torch.where(labels == logits.shape[1] - 1, 10.0, 1.0)


def test_biases_serve_a_metric_that_has_no_gradient() -> None:
    metric = Metric.of(costly)
    found, logits, labels = task(600, 12, 4)
    unseen, before, true = task(4000, 12, 4, seed=1)
    by_loss = refit(found, logits, labels, LOSS, 0)
    result = refit(found, logits, labels, metric, 0)
    assert result.ridge is None and not result.weight.any() and result.accepted
    fitted = costly(before + unseen @ by_loss.weight.T + by_loss.bias, true).mean()
    tuned = costly(before + result.bias, true).mean()
    assert float(tuned) < float(fitted) < float(costly(before, true).mean())


def test_folds_are_equal_shares_of_each_class() -> None:
    labels = torch.randint(0, 7, (503,), generator=torch.Generator().manual_seed(1))
    labels[0] = 7  # a class of one image
    fold = fold_numbers(labels, 5, 3)
    assert fold.bincount().tolist() == [101, 101, 101, 100, 100]
    for label in range(8):
        counts = fold[labels == label].bincount(minlength=5)
        assert int(counts.max() - counts.min()) <= 1
    assert torch.equal(fold, fold_numbers(labels, 5, 3))
    assert not torch.equal(fold, fold_numbers(labels, 5, 4))


def test_features_that_are_all_0_change_nothing() -> None:
    _, logits, labels = task(60, 5, 3)
    fit = refit(torch.zeros(60, 4), logits, labels, LOSS, 0, bias=False)
    assert not fit.accepted or not fit.weight.any()


def test_labels_that_no_refit_can_learn_from() -> None:
    assert why_no_refit(torch.tensor([0] * 30 + [1]), 2) == ""  # a class of one image will do
    assert "class 1, have no image" in why_no_refit(torch.tensor([0] * 30 + [2] * 30), 3)
    assert "go up to 2" in why_no_refit(torch.tensor([0, 1, 2] * 10), 2)
    assert "too few for 5 folds" in why_no_refit(torch.tensor([0, 1, 2]), 3)
    found, logits, labels = task(60, 5, 3)
    with pytest.raises(deevo.DeevoError, match="cannot be refitted: 1 of 3 classes"):
        refit(found, logits, labels.clamp_max(1), LOSS, 0)
    logits[7, 1] = math.nan
    with pytest.raises(deevo.DeevoError, match="1 of 60 images are not finite"):
        refit(found, logits, labels, LOSS, 0)


@pytest.mark.parametrize("batchnorm", ["evolve", "inherit"])
def test_refit_of_a_network(batchnorm: str) -> None:
    pop, data = population(4, batchnorm=batchnorm), images(150, 3)
    evaluator = deevo.Evaluator(Net(), pop, micro_batch=32)
    row = pop.rows[1].clone()
    used = evaluator.used_statistics(row, pop.statistics[1] if batchnorm == "inherit" else None)
    classifier = find_classifier(evaluator, row, data, used)
    assert classifier == Classifier("fc", "fc.weight", "fc.bias")
    assert evaluator.forward_passes == 0
    found, logits = features(evaluator, classifier, row, data, used)
    assert evaluator.forward_passes == 150

    model = Net().eval()
    model.load_state_dict(pop.state_dict(1))
    with torch.no_grad():
        read = torch.relu(model.bn(model.conv(data.images))).mean(dim=(2, 3))
        torch.testing.assert_close(found, read)
        torch.testing.assert_close(logits, model(data.images))
    result = refit(found, logits, data.labels, LOSS, 0)
    changes = changes_of(classifier, result)
    after = changed(pop, row, changes)
    assert torch.equal(row, pop.rows[1])
    # Few sums of order 1 in float32.
    expected = logits + found @ result.weight.T + result.bias
    torch.testing.assert_close(evaluator.logits(after, data, used), expected, rtol=1e-4, atol=1e-5)
    places = {entry.name: slice(entry.offset, entry.end) for entry in pop.layout.entries}
    for name, change in changes.items():
        sums = row[places[name]] + change.reshape(-1)
        assert torch.equal(after[places[name]], sums)
        after[places[name]] = row[places[name]]
    assert torch.equal(after, row)
    with pytest.raises(deevo.DeevoError, match=r"change of 'fc.bias' has shape \[4\]"):
        changed(pop, row, {"fc.bias": torch.zeros(4)})


class Halved(Net):
    """A network that does something to its classifier's output."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 0.5


class InPlace(Net):
    """Likewise, in the same memory."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).mul_(0.5)


class Wrapped(nn.Module):
    """A network inside another one, with a linear layer that is no classifier after it."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.other = Net(), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def convolutional() -> nn.Module:
    return Tail(nn.Conv2d(8, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())


@pytest.mark.filterwarnings("ignore:fixed tensors differ")
@pytest.mark.parametrize(
    "factory, frozen, expected",
    [
        (Halved, (), "no linear layer's output"),
        (InPlace, (), "no linear layer's output"),
        (convolutional, (), "no linear layer's output"),
        (Net, "fc.*", "fc.weight is not evolved"),
        (Wrapped, (), Classifier("body.fc", "body.fc.weight", "body.fc.bias")),
    ],
)
def test_which_networks_have_a_classifier(
    factory: type[nn.Module], frozen: str, expected: object
) -> None:
    pop = deevo.Population.from_state_dicts(factory(), members(factory, 3), frozen=frozen)
    channels = 3 if factory is convolutional else 1
    data = ImageSet(torch.randn(8, channels, 10, 10), torch.arange(8) % 3, "images")
    evaluator = deevo.Evaluator(factory(), pop, micro_batch=8)
    found = find_classifier(evaluator, pop.rows[0], data)
    if isinstance(expected, str):
        assert isinstance(found, str) and expected in found
    else:
        assert found == expected
