"""Metrics: what they come to, what is known of them beforehand, and how far they may be chance."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

import deevo_ext as deevo
from deevo_ext.errors import DeevoError
from deevo_ext.fitness.metric_checks import settled
from deevo_ext.fitness.metrics import METRICS, Metric
from deevo_ext.fitness.racing import Racing
from deevo_ext.fitness.resampling import gain_of, gains_of, resampled_falls, resamples
from deevo_ext.fitness.virtual import virtual_fitness
from deevo_ext.search.linear_model import LinearModel
from support.evolution import images, population, top2
from support.metrics import brier_of_set, gap_of_classes, mean_f1, worst_recall
from support.networks import Net
from support.zoo import torchvision

CLASSES = 7


def case(seed: int = 0, count: int = 400) -> tuple[Tensor, Tensor]:
    """Logits that are often right, and labels, classes of different sizes."""
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.rand(count, generator=generator).square() * CLASSES).long()
    logits = torch.randn(count, CLASSES, generator=generator)
    logits[torch.arange(count), labels] += torch.rand(count, generator=generator) * 3
    return logits, labels


def in_top5(logits: Tensor, labels: Tensor) -> float:
    return float((logits.topk(5).indices == labels[:, None]).any(dim=1).double().mean())


ORACLES: dict[str, Callable[[Tensor, Tensor], float]] = {
    "loss": lambda logits, labels: float(cross_entropy(logits.double(), labels)),
    "top1": lambda logits, labels: float((logits.argmax(dim=1) == labels).double().mean()),
    "top5": in_top5,
    "worst-class": worst_recall,
    "macro-f1": mean_f1,
}


def test_ranks_are_the_operators_own_where_logits_tie() -> None:
    logits, labels = case(6)
    logits = (logits * 2).round()
    losses = torch.empty(1, len(labels))
    ranks = torch.empty(1, len(labels), dtype=torch.int32)
    torch.ops.deevo.loss_and_rank(logits[None], labels, 0.0, losses, ranks)
    for name in ("top1", "top5", "worst-class"):
        metric = Metric.of(name)
        expected = metric.of_results(losses[0], ranks[0])
        assert torch.equal(metric.of_images(logits, labels), expected)


def test_there_is_an_oracle_for_every_metric() -> None:
    assert tuple(ORACLES) == METRICS


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("missing", [False, True])
def test_named_metrics_are_what_others_say_they_are(name: str, missing: bool) -> None:
    logits, labels = case()
    if missing:  # a class without images, for which some are taken
        logits, labels = logits[labels != 2], labels[labels != 2]
    metric, expected = Metric.of(name), ORACLES[name](logits, labels)
    assert metric(logits, labels) == pytest.approx(expected, abs=1e-6)
    assert metric.higher_is_better == (name != "loss")
    outcomes = metric.of_images(logits, labels)
    fitness = float(metric.fitness(outcomes, labels))
    assert fitness == pytest.approx(1 - expected if name != "loss" else expected, abs=1e-6)
    # Better networks have less fitness; one that overflows has none.
    logits[torch.arange(len(labels)), labels] += 9
    better = metric.of_images(logits, labels)
    assert float(metric.fitness(better, labels)) < fitness
    logits[3, 1] = math.inf
    both = torch.stack([better, metric.of_images(logits, labels)])
    assert metric.fitness(both, labels).tolist()[1] == math.inf
    assert float(metric.fitness(both, labels)[0]) == float(metric.fitness(better, labels))


@pytest.mark.parametrize("metric", [*METRICS, top2, brier_of_set, gap_of_classes])
def test_candidates_of_a_linear_model_are_scored_as_one_by_one(metric: Any) -> None:
    logits, labels = case(1, 150)
    model = LinearModel(logits, labels, 5)
    generator = torch.Generator().manual_seed(1)
    for k in range(5):
        model.put({k: torch.randn(logits.shape, generator=generator)})
    q = torch.randn(9, 5, generator=generator)
    one = Metric.of(metric, **({} if isinstance(metric, str) else {"whole": metric is not top2}))
    found = virtual_fitness(model, one, 0.25)(q)
    for value, coordinates, changed in zip(found, q, model.logits(q), strict=True):
        expected = float(one.fitness(one.of_images(changed, labels), labels))
        ridge = 0.25 * float(coordinates.double().square().sum())
        assert float(value) == pytest.approx(expected + ridge, abs=1e-5)


@pytest.mark.parametrize("metric", ["worst-class", "macro-f1", "top1", brier_of_set, top2])
def test_networks_are_scored_as_their_logits_say(metric: Any) -> None:
    pop, data = population(5), images(90, 2)
    evaluator = deevo.Evaluator(Net(), pop, micro_batch=32)
    metric = settled(Metric.of(metric), evaluator, [data])
    fitness = deevo.ClassificationFitness(evaluator, data, metric=metric)
    before = evaluator.forward_passes
    found = list(fitness(pop.rows, torch.arange(5), 0))
    assert evaluator.forward_passes - before == 5 * 90
    for value, row in zip(found, pop.rows, strict=True):
        logits = evaluator.logits(row, data)
        outcomes = metric.of_images(logits, data.labels)
        assert value == pytest.approx(float(metric.fitness(outcomes, data.labels)), abs=1e-6)
        assert evaluator.score(row, data, metric=metric) == value
    overflow = fitness(pop.rows[:1] * 1e25, torch.arange(1), 0)
    assert list(overflow) == [math.inf]


def test_metrics_of_torchmetrics_are_functions_of_probabilities() -> None:
    torchvision()  # which torchmetrics imports where it is installed
    from torchmetrics.classification import (
        BinaryAUROC,
        MulticlassAUROC,
        MulticlassCalibrationError,
        MulticlassConfusionMatrix,
        MulticlassF1Score,
        MulticlassRecall,
        MultilabelAccuracy,
    )

    logits, labels = case(2)
    metric = Metric.of(MulticlassF1Score(CLASSES, average="macro"))
    assert metric(logits, labels) == pytest.approx(mean_f1(logits, labels), abs=1e-6)
    assert metric.higher_is_better and metric.of_whole_sets
    given = MulticlassCalibrationError(CLASSES, n_bins=10)
    metric = Metric.of(given)
    assert not metric.higher_is_better
    expected = float(copy.deepcopy(given)(logits.softmax(dim=1), labels))
    assert metric(logits, labels) == metric(logits, labels) == pytest.approx(expected, abs=1e-6)
    assert given.update_count == 0  # the user's own is left as it is
    two = torch.stack([logits[:, 0], logits[:, 1]], dim=1)
    auroc = Metric.of(BinaryAUROC())
    expected = float(BinaryAUROC()(two.softmax(dim=1)[:, 1], labels % 2))
    assert auroc(two, labels % 2) == pytest.approx(expected, abs=1e-6)
    with pytest.raises(DeevoError, match="is for 2 classes, but the network has 7"):
        auroc(logits, labels)
    # A configuration is told from others, and is the same in the next process.
    micro, macro = (Metric.of(MulticlassRecall(CLASSES, average=a)) for a in ("micro", "macro"))
    assert micro.name == macro.name and micro.describe() != macro.describe()
    assert micro.describe() == Metric.of(MulticlassRecall(CLASSES, average="micro")).describe()
    assert macro.describe()["metric"]["configuration"]["average"] == "macro"
    with pytest.raises(DeevoError, match="does not say whether more of it is better"):
        Metric.of(MulticlassConfusionMatrix(CLASSES))
    with pytest.raises(DeevoError, match="expected a Multiclass metric"):
        Metric.of(MultilabelAccuracy(CLASSES))
    pop, data = population(3), images(60)
    evaluator = deevo.Evaluator(Net(), pop)
    with pytest.raises(DeevoError, match=r"MulticlassAUROC failed on logits float32 \[60, 3\]"):
        settled(Metric.of(MulticlassAUROC(CLASSES)), evaluator, [data])
    per_class = Metric.of(MulticlassRecall(3, average=None))
    with pytest.raises(DeevoError, match=r"gave a tensor \[3\] for logits \[60, 3\]"):
        settled(per_class, evaluator, [data])
    assert settled(Metric.of(MulticlassAUROC(3)), evaluator, [data]).whole


def noisy(logits: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(logits, labels) + torch.rand(())


def of_the_batch(logits: Tensor, labels: Tensor) -> Tensor:
    losses = cross_entropy(logits, labels, reduction="none")
    return losses / losses.sum()


def writes(logits: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(logits.mul_(2), labels, reduction="none")


def fails(logits: Tensor, labels: Tensor) -> Tensor:
    return logits[:, 3]


def not_a_number(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.mean() * math.nan


def two_numbers(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.mean(dim=0)[:2]


@pytest.mark.parametrize(
    ("function", "match"),
    [
        (noisy, "gave another value when it was called with the same logits again"),
        (of_the_batch, "another score when other images are beside it"),
        (writes, "writes into its arguments"),
        (fails, r"failed on logits float32 \[80, 3\] and labels int64 \[80\]: IndexError"),
        (not_a_number, "is NaN or infinite on 80 images, whose logits are finite"),
        (two_numbers, r"gave a tensor \[2\] for logits \[80, 3\]"),
        (lambda logits, labels: "high", "failed on logits"),
    ],
)
def test_functions_that_cannot_be_metrics_are_refused_before_any_pass(
    function: Any, match: str
) -> None:
    pop, data = population(3), images(80)
    evaluator = deevo.Evaluator(Net(), pop)
    with pytest.raises(DeevoError, match=match):
        settled(Metric.of(function), evaluator, [data])
    with pytest.raises(DeevoError, match=match):
        deevo.ClassificationFitness(evaluator, data, metric=function)
    assert evaluator.forward_passes == 0


def test_kinds_are_found_or_declared_and_sets_must_suit_them() -> None:
    pop, data = population(3), images(80)
    evaluator = deevo.Evaluator(Net(), pop)
    assert settled(Metric.of(top2), evaluator, [data]).whole is False
    assert settled(Metric.of(brier_of_set), evaluator, [data]).whole is True
    assert settled(Metric.of(gap_of_classes), evaluator, [data]).of_whole_sets
    with pytest.raises(DeevoError, match="gave one number, but was declared with whole=False"):
        settled(Metric.of(brier_of_set, whole=False), evaluator, [data])
    beyond = deevo.ImageSet(data.images, data.labels + 1, "test images")
    with pytest.raises(DeevoError, match="labels of the test images go up to 3, but the network"):
        settled(Metric.of("loss"), evaluator, [data, beyond])
    some = data.subset((data.labels != 1).nonzero()[:, 0], "validation images")
    settled(Metric.of("top1"), evaluator, [data, some])
    for name in ("worst-class", "macro-f1"):
        with pytest.raises(DeevoError, match=r"1 of 3, as class 1, have none of the \d+ valid"):
            settled(Metric.of(name), evaluator, [data, some])
        with pytest.raises(DeevoError, match="racing is for metrics that are means"):
            deevo.ClassificationFitness(evaluator, data, metric=name, racing=Racing(0.01))
    with pytest.raises(DeevoError, match="sampling is for metrics that are means"):
        deevo.ClassificationFitness(
            evaluator, data, metric=brier_of_set, sampling="importance", images_per_batch=20
        )
    with pytest.raises(DeevoError, match="images_per_batch is 2, but class"):
        deevo.ClassificationFitness(evaluator, data, metric="macro-f1", images_per_batch=2)
    with pytest.raises(DeevoError, match="metric is top5, but the network has 3 classes"):
        settled(Metric.of("top5"), evaluator, [data])
    assert evaluator.forward_passes == 0


def test_a_better_network_in_the_functions_own_direction() -> None:
    def hits(logits: Tensor, labels: Tensor) -> Tensor:
        return (logits.argmax(dim=1) == labels).float()

    logits, labels = case(3)
    declared = Metric.of(hits, whole=False, higher_is_better=True)
    hits.higher_is_better = True  # type: ignore[attr-defined]
    for metric in (declared, Metric.of(hits)):
        outcomes = metric.of_images(logits, labels)
        expected = float((logits.argmax(dim=1) != labels).double().mean())
        assert float(metric.fitness(outcomes, labels)) == pytest.approx(expected)
        assert metric(logits, labels) == pytest.approx(1 - expected)
    for metric, options in (("top1", {"whole": True}), (Metric("loss"), {"name": "mine"})):
        with pytest.raises(DeevoError, match="is for a metric that is a function"):
            Metric.of(metric, **options)  # type: ignore[arg-type]


# Identity


def made(scale: float) -> Callable[..., Tensor]:
    def scaled(logits: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(logits, labels, reduction="none") * scale

    return scaled


def test_a_lambda_has_no_identity_but_a_name_that_is_given() -> None:
    with pytest.raises(DeevoError, match="metric is a lambda, which a run folder cannot tell"):
        Metric.of(lambda logits, labels: logits[:, 0]).describe()
    named = Metric.of(lambda logits, labels: logits[:, 0], name="first, version 2")
    assert named.describe() == {"metric": "first, version 2"}
    with pytest.raises(DeevoError, match="is 'loss', which is another metric's"):
        Metric.of(top2, name="loss")  # tables and fits would take it for the cross-entropy
    assert Metric.of(top2).describe()["metric"].keys() == {"function", "sha256"}
    assert Metric.of(made(2.0)).describe() == Metric.of(made(2.0)).describe()
    # A run that minimised what is to be maximised does not go on as if it had not.
    up = Metric.of(top2, higher_is_better=True).describe()
    assert up == Metric.of(top2).describe() | {"higher_is_better": True}
    assert Metric.of(made(2.0)).describe() != Metric.of(made(3.0)).describe()
    assert Metric.of("macro-f1").describe() == {"metric": "macro-f1"}


# Differences


@pytest.mark.parametrize("metric", [brier_of_set, "worst-class", "macro-f1"])
def test_standard_errors_are_the_spread_over_many_draws(metric: Any) -> None:
    """Networks' differences on 100 sets of images, beside what one set says of their spread."""
    metric = Metric.of(metric, **({} if isinstance(metric, str) else {"whole": True}))
    gains, errors = [], []
    for seed in range(100):
        logits, labels = case(seed, 300)
        generator = torch.Generator().manual_seed(1000 + seed)
        changed = logits + 0.5 * torch.randn(logits.shape, generator=generator)
        both = [metric.of_images(z, labels) for z in (logits, changed)]
        gain = gain_of(metric, *both, labels)
        fitness = [float(metric.fitness(one, labels)) for one in both]
        assert gain.mean == pytest.approx(fitness[0] - fitness[1])
        gains.append(gain.mean)
        errors.append(gain.standard_error)
    spread = float(torch.tensor(gains).std())
    # A spread over 100 draws is known to 7 %, and so is each error. Where classes are nearly the
    # worst alike, the bootstrap says too much of the least of them, not too little.
    assert 0.8 * spread < float(torch.tensor(errors).median())
    assert float(torch.tensor(errors).median()) < (1.6 if metric.of_classes else 1.25) * spread


def test_of_means_the_error_is_that_of_paired_differences() -> None:
    logits, labels = case(4)
    metric = Metric.of("top1")
    before = metric.of_images(logits, labels)
    after = torch.stack([metric.of_images(logits * s, labels) for s in (1.0, -1.0)])
    same, worse = gains_of(metric, before, after, labels)
    assert same == (0.0, 0.0)
    falls = (before - after[1]).double()
    assert worse == pytest.approx((float(falls.mean()), float(falls.std()) / len(falls) ** 0.5))
    broken = torch.full_like(before, math.inf)
    for name in ("top1", "macro-f1"):
        outcomes = Metric.of(name).of_images(logits, labels)
        assert gain_of(Metric.of(name), outcomes, broken, labels) == (-math.inf, math.inf)


def test_resamples_keep_every_class_and_give_unbiased_variances() -> None:
    labels = torch.tensor([3, 0, 0, 3, 3, 5, 0, 3, 3])
    counts = labels.bincount()
    drawn = list(resamples(labels, 4000))
    for places in drawn:
        assert (labels[places].bincount(minlength=6) == torch.tensor([2, 0, 0, 4, 0, 1])).all()
    values = torch.arange(9.0).double().square()
    for label in (0, 3):
        mine = labels == label
        means = torch.stack([values[p][labels[p] == label].mean() for p in drawn])
        expected = float(values[mine].var()) / int(counts[label])
        # A variance over 4,000 draws is known to a few percent.
        assert float(means.var()) == pytest.approx(expected, rel=0.1)
    assert all(torch.equal(a, b) for a, b in zip(resamples(labels, 3), drawn, strict=False))
    metric = Metric.of("top1")
    falls = resampled_falls(metric, values, values[None], labels, 7)
    assert falls.shape == (7, 1) and not falls.any()
