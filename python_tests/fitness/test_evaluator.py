"""Evaluator and ClassificationFitness: PyTorch as oracle, batches, BatchNorm policies."""

from __future__ import annotations

import copy
import math
import threading
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import deevo_ext as deevo
from deevo_ext.data.images import image_set
from deevo_ext.fitness.metrics import mean_score
from deevo_ext.fitness.sampling import batch_indices
from deevo_ext.fitness.statistics import group_size
from support.evolution import images, population
from support.networks import Net, members


def plain_losses(state: dict[str, torch.Tensor], data: deevo.ImageSet) -> torch.Tensor:
    model = Net().eval()
    model.load_state_dict(state)
    with torch.no_grad():
        return nn.functional.cross_entropy(model(data.images), data.labels, reduction="none")


@pytest.mark.parametrize("micro_batch", [1, 7, 50, 64])
def test_losses_are_those_of_the_loaded_model(micro_batch: int) -> None:
    pop, data = population(4), images(50)
    evaluator = deevo.Evaluator(Net(), pop, micro_batch=micro_batch)
    for i in range(4):
        found = evaluator.losses(pop.rows[i], data)
        expected = plain_losses(pop.state_dict(i), data)
        # Logits of order 1 from about 50 float32 operations, in an order that depends on the batch.
        assert torch.allclose(found.losses, expected, rtol=0, atol=50 * 2.0**-22)
        (score,) = evaluator.scores(pop.rows[i : i + 1], data)
        assert score.loss == pytest.approx(float(found.losses.double().mean()), rel=1e-12)
        assert score.top1 * 50 == pytest.approx(int((found.ranks == 0).sum()))
    assert evaluator.forward_passes == 4 * 2 * 50


def test_a_score_depends_on_nothing_but_row_and_images() -> None:
    pop, data = population(6), images(70)
    evaluator = deevo.Evaluator(Net(), pop, micro_batch=32)
    alone = [evaluator.score(row, data) for row in pop.rows]
    fitness = deevo.ClassificationFitness(evaluator, data)
    together = fitness(pop.rows, torch.arange(6), 0)
    strided = deevo.ImageSet(
        data.images, data.labels.repeat_interleave(2)[::2], "labels of another stride"
    )
    assert evaluator.score(pop.rows[0], strided) == alone[0]
    backwards = fitness(pop.rows.flip(0), torch.arange(5, -1, -1), 0)
    assert alone == list(together) == list(backwards)[::-1]


def test_the_users_model_is_not_touched() -> None:
    pop, data, model = population(4), images(40), Net().train()
    before = copy.deepcopy(model.state_dict())
    deevo.Evaluator(model, pop).score(pop.rows[0], data)
    assert model.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_overflow_is_infinite_loss() -> None:
    pop, data = population(4), images(20)
    evaluator = deevo.Evaluator(Net(), pop)
    assert evaluator.score(pop.rows[0] * 1e25, data) == math.inf


@pytest.mark.parametrize("count, group", [(60, 60), (1100, 550)])
def test_recalibrated_statistics_are_those_of_the_calibration_images(
    count: int, group: int
) -> None:
    calibration, data = images(count, 5), images(40, 6)
    pop = population(4, batchnorm="recalibrate")
    evaluator = deevo.Evaluator(Net(), pop, micro_batch=30, calibration=calibration)
    state = pop.state_dict(1)
    activations = nn.functional.conv2d(calibration.images, state["conv.weight"])
    groups = activations.split(group)  # torch averages the groups' statistics
    state["bn.running_mean"] = torch.stack([g.mean(dim=(0, 2, 3)) for g in groups]).mean(dim=0)
    state["bn.running_var"] = torch.stack(
        [g.var(dim=(0, 2, 3), unbiased=True) for g in groups]
    ).mean(dim=0)
    used = evaluator.used_statistics(pop.rows[1], None)
    found = evaluator.losses(pop.rows[1], data, used)
    assert torch.allclose(found.losses, plain_losses(state, data), rtol=0, atol=1e-4)
    assert not torch.allclose(
        found.losses, plain_losses(pop.state_dict(1), data), rtol=0, atol=1e-3
    )
    with pytest.raises(deevo.DeevoError, match="calibration is missing"):
        deevo.Evaluator(Net(), pop)


def test_inherited_statistics_are_those_of_the_member_asked_for() -> None:
    data = images(40, 6)
    pop = population(4, batchnorm="inherit")
    evaluator = deevo.Evaluator(Net(), pop)
    fitness = deevo.ClassificationFitness(evaluator, data)
    rows = pop.rows[[0, 0]]
    own, other = fitness(rows, torch.tensor([0, 3]), 0)
    mixed = pop.state_dict(0)
    mixed["bn.running_mean"] = pop.state_dict(3)["bn.running_mean"]
    mixed["bn.running_var"] = pop.state_dict(3)["bn.running_var"]
    assert own == pytest.approx(float(plain_losses(pop.state_dict(0), data).mean()), abs=1e-5)
    assert other == pytest.approx(float(plain_losses(mixed, data).mean()), abs=1e-5)
    assert own != other


def test_batches_are_class_balanced_distinct_and_seeded() -> None:
    labels = torch.tensor([0] * 600 + [1] * 300 + [2] * 100)[torch.randperm(1000)]
    batches = [batch_indices(labels, 100, number, seed=7) for number in range(4)]
    for batch in batches:
        assert batch.numel() == 100 == len(set(batch.tolist()))
        counts = torch.bincount(labels[batch], minlength=3).tolist()
        assert all(abs(have - want) <= 1 for have, want in zip(counts, (60, 30, 10), strict=True))
    assert len({tuple(batch.tolist()) for batch in batches}) == 4
    assert torch.equal(batches[2], batch_indices(labels, 100, 2, seed=7))
    assert not torch.equal(batches[2], batch_indices(labels, 100, 2, seed=8))
    # Over many batches every image gets its share: 200 draws of 1/10 are 20 +- 6 sd (4.2 each).
    drawn = torch.zeros(1000)
    for number in range(200):
        drawn[batch_indices(labels, 100, number, seed=1)] += 1
    assert drawn.min() > 20 - 26 and drawn.min() > 0 and drawn.max() < 20 + 26


def test_rotation_follows_its_schedule() -> None:
    evaluator = deevo.Evaluator(Net(), population(4))
    fixed = deevo.ClassificationFitness(evaluator, images(50), images_per_batch=50)
    assert {fixed.batch_of(g) for g in range(20)} == {0} and [
        len(p) for p in fixed.batch(0).parts
    ] == [50]
    rotating = deevo.ClassificationFitness(
        evaluator, images(50), images_per_batch=20, generations_per_batch=2
    )
    assert [rotating.batch_of(g) for g in range(1, 8)] == [0, 0, 1, 1, 2, 2, 3]
    assert [len(part) for part in rotating.batch(3).parts] == [20]


def test_what_is_no_image_set_device_or_model_is_named() -> None:
    pop = population(4)
    with pytest.raises(deevo.DeevoError, match="fitness images are a str"):
        image_set("images/", "fitness images")  # type: ignore[arg-type]
    with pytest.raises(deevo.DeevoError, match="device is 'gpu'"):
        deevo.Evaluator(Net(), pop, device="gpu")
    with pytest.raises(deevo.DeevoError, match="model is 'resnet18', of type str"):
        deevo.Population.from_state_dicts("resnet18", [])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options", [{"metric": "top3"}, {"images_per_batch": 0}, {"generations_per_batch": 0}]
)
def test_bad_options_are_named(options: dict) -> None:
    evaluator = deevo.Evaluator(Net(), population(4))
    with pytest.raises(deevo.DeevoError, match=next(iter(options))):
        deevo.ClassificationFitness(evaluator, images(10), **options)
    with pytest.raises(deevo.DeevoError, match="micro_batch is 0"):
        deevo.Evaluator(Net(), population(4), micro_batch=0)


def test_a_model_that_returns_no_logits_is_refused() -> None:
    class Features(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.bn(self.conv(x))

    pop = deevo.Population.from_state_dicts(Features(), members(Net, 4))
    with pytest.raises(deevo.DeevoError, match="expected logits"):
        deevo.Evaluator(Features(), pop).score(pop.rows[0], images(10))


def test_mean_score_adds_subtotals_in_float64() -> None:
    losses = torch.full((10_000,), 0.1)
    assert mean_score(losses, 250) == pytest.approx(float(torch.tensor(0.1).double()), rel=1e-14)
    assert mean_score(torch.tensor([1.0, math.nan]), 250) == math.inf


def test_mean_score_asks_a_device_for_no_single_number() -> None:
    """Each would wait for all that the device still has to do."""

    class Reads(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            self.count += func is torch.ops.aten._local_scalar_dense.default
            return func(*args, **(kwargs or {}))

    with Reads() as reads:
        mean_score(torch.rand(1000), 10)
    assert reads.count == 0


def test_scores_do_not_depend_on_the_number_of_threads_and_leave_it_alone() -> None:
    pop, data = population(4), images(150)
    before = torch.get_num_threads()
    seen: list[int] = []
    try:
        scores = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            evaluator = deevo.Evaluator(Net(), pop, micro_batch=32)
            scores.append([evaluator.score(row, data) for row in pop.rows])
            assert torch.get_num_threads() == threads
        other = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        other.start()
        other.join()
    finally:
        torch.set_num_threads(before)
    assert scores[0] == scores[1] and seen == [3]


def test_an_error_inside_the_model_reaches_the_caller() -> None:
    pop = population(4)
    with pytest.raises(deevo.DeevoError, match=r"failed on two of shape \(2, 10, 10\).*channels"):
        deevo.Evaluator(Net(), pop).score(
            pop.rows[0], deevo.ImageSet(torch.zeros(4, 2, 10, 10), torch.zeros(4).long(), "two")
        )


def test_networks_without_finite_loss_are_worst_by_every_metric() -> None:
    pop, data = population(4), images(20)
    row = pop.rows[0].clone()
    row[:] = math.nan
    for metric in ("loss", "top1"):
        evaluator = deevo.Evaluator(Net(), pop)
        fitness = deevo.ClassificationFitness(evaluator, data, metric=metric)
        assert fitness(row[None], torch.tensor([0]), 0) == [math.inf]


def test_bfloat16_rows_are_evaluated_in_float32() -> None:
    pop, data = population(4, dtype=torch.bfloat16), images(50)
    found = deevo.Evaluator(Net(), pop).losses(pop.rows[2], data)
    expected = plain_losses(pop.state_dict(2), data)
    assert torch.allclose(found.losses, expected, rtol=0, atol=50 * 2.0**-22)


def test_recalibration_leaves_frozen_statistics_alone() -> None:
    calibration, data = images(60, 5), images(40, 6)
    pop = population(4, batchnorm="recalibrate", frozen="bn.running_mean")
    kept = pop.fixed["bn.running_mean"].clone()
    evaluator = deevo.Evaluator(Net(), pop, micro_batch=40, calibration=calibration)
    assert evaluator.score(pop.rows[1], data) < 10
    assert torch.equal(pop.fixed["bn.running_mean"], kept)
    assert evaluator.forward_passes == 60 + 40


@pytest.mark.parametrize(
    "count, side, micro_batch, expected",
    [
        (60, 28, 64, 60),  # fewer than a group
        (999, 64, 64, 999),
        (1000, 64, 64, 500),
        (1100, 28, 64, 550),
        (1499, 28, 64, 749),  # one image is left over
        (6400, 224, 8, 40),  # 50,176 pixels are 12.25 times 4,096
        (6400, 224, 64, 64),
    ],
)
def test_groups_of_batch_statistics(count: int, side: int, micro_batch: int, expected: int) -> None:
    pixels = torch.zeros(1, 1, 1, 1).expand(count, 1, side, side)
    data = deevo.ImageSet(pixels, torch.zeros(count, dtype=torch.int64), "images")
    assert group_size(data, micro_batch) == expected


@pytest.mark.parametrize("batchnorm", ["evolve", "inherit"])
def test_statistics_are_reestimated_whatever_the_policy(batchnorm: str) -> None:
    pop, data = population(4, batchnorm=batchnorm), images(60, 5)
    evaluator = deevo.Evaluator(Net(), pop, micro_batch=30)
    reference = population(4, batchnorm="recalibrate")
    expected = deevo.Evaluator(Net(), reference, micro_batch=30, calibration=data)
    used = expected.used_statistics(reference.rows[1], None)
    row, apart = evaluator.policy.reestimated(pop.rows[1], data)
    assert evaluator.forward_passes == 60 and evaluator.policy.any
    assert used is not None
    if batchnorm == "inherit":
        assert apart is not None and torch.equal(apart, used)
        assert torch.equal(row, pop.rows[1])
    else:
        assert apart is None
        changed = reference.state_dict_of(reference.rows[1], used)
        found = pop.state_dict_of(row)
        assert all(torch.equal(found[name], tensor) for name, tensor in changed.items())
        assert not torch.equal(row, pop.rows[1])


def test_labels_beyond_the_models_classes_are_named() -> None:
    pop = population(4)
    wrong = deevo.ImageSet(torch.zeros(4, 1, 10, 10), torch.tensor([0, 1, 2, 7]), "photos")
    with pytest.raises(deevo.DeevoError, match="photos have label 7, but the model has 3 classes"):
        deevo.Evaluator(Net(), pop).score(pop.rows[0], wrong)


def test_images_that_were_learned_are_images_like_others() -> None:
    plain = images(20)
    learned = deevo.ImageSet(plain.images.clone().requires_grad_(), plain.labels)
    assert learned.digest() == plain.digest()
    assert not learned.subset([0, 2]).images.requires_grad
    evaluator = deevo.Evaluator(Net(), (networks := population(4)), engine="eager")
    rows = networks.rows
    assert evaluator.scores(rows, learned) == evaluator.scores(rows, plain)
