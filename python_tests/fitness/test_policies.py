"""What is measured on which images: metrics, sampling, augmentation."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

import deevo_ext as deevo
from deevo_ext.fitness.augmentation import Augmentation, AugmentedImages, image_words
from deevo_ext.fitness.metrics import Metric
from deevo_ext.fitness.sampling import importance_order, inclusion_probabilities
from deevo_ext.runs import journal
from support.evolution import images, population
from support.networks import Net, members


def plain(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return cross_entropy(logits, labels, reduction="none")


def margin(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return logits.max(dim=1).values - logits.gather(1, labels[:, None])[:, 0]


@pytest.mark.parametrize("metric", [plain, margin, "top1", "loss", "smoothed"])
def test_metrics_are_what_torch_says_they_are(metric: object) -> None:
    pop, data = population(4), images(70, 2)
    evaluator = deevo.Evaluator(Net(), pop, micro_batch=32)
    options: dict = {"metric": metric}
    if metric == "smoothed":
        options = {"label_smoothing": 0.2}
    fitness = deevo.ClassificationFitness(evaluator, data, **options)
    found = fitness(pop.rows, torch.arange(4), 0)
    for i, value in enumerate(found):
        model = Net().eval()
        model.load_state_dict(pop.state_dict(i))
        with torch.no_grad():
            logits = model(data.images)
        expected = {
            "loss": plain(logits, data.labels),
            "smoothed": cross_entropy(logits, data.labels, reduction="none", label_smoothing=0.2),
            "top1": (logits.argmax(dim=1) != data.labels).float(),
        }.get(metric if isinstance(metric, str) else "")
        if callable(metric):
            expected = metric(logits, data.labels)
        assert expected is not None
        # Logits of order 1 from some 50 float32 operations; hits are exact.
        limit = 1e-12 if metric == "top1" else 50 * 2.0**-22
        assert abs(value - float(expected.double().mean())) <= limit
    assert evaluator.forward_passes == 4 * 70
    name = fitness.describe()["metric"]
    assert name == (metric if metric in ("top1", "loss") else name)
    assert fitness.describe().get("label_smoothing") == (0.2 if metric == "smoothed" else None)


def test_metrics_that_cannot_be_are_refused() -> None:
    with pytest.raises(deevo.DeevoError, match="metric is 'top3'; expected one of loss, top1"):
        Metric.of("top3")
    with pytest.raises(deevo.DeevoError, match=r"label_smoothing is 1\.0"):
        Metric.of("loss", 1.0)
    with pytest.raises(deevo.DeevoError, match='for metric="loss"'):
        Metric.of(Metric("top1"), 0.1)
    pop, data = population(4), images(20)
    evaluator = deevo.Evaluator(Net(), pop)
    smoothed = deevo.ClassificationFitness(
        evaluator, data, metric=Metric("loss"), label_smoothing=0.1
    )
    assert smoothed.metric == Metric("loss", 0.1)
    overflow = deevo.ClassificationFitness(evaluator, data, metric=margin)
    assert overflow(pop.rows[:1] * 1e25, torch.arange(1), 0) == [math.inf]


def test_inclusion_probabilities_follow_difficulty_up_to_certainty() -> None:
    generator = np.random.default_rng(0)
    difficulty = generator.exponential(size=1000) ** 3 + 0.02
    found = inclusion_probabilities(difficulty, 200)
    assert found.sum() == pytest.approx(200) and found.max() == 1.0 and found.min() > 0
    free = found < 1.0
    ratio = found[free] / difficulty[free]
    assert np.ptp(ratio) < 1e-9 * ratio[0]
    # Nobody is certain who would not be at the others' rate.
    assert (difficulty[~free] * ratio[0] >= 1.0 - 1e-9).all() and 0 < (~free).sum() < 200


def test_weights_make_importance_batches_unbiased() -> None:
    generator = np.random.default_rng(1)
    count, size, batches = 600, 90, 400
    labels = torch.from_numpy(generator.integers(0, 5, count))
    difficulty = generator.uniform(0.02, 1.0, count)
    values = torch.from_numpy(difficulty * generator.uniform(0.5, 1.5, count))
    probabilities = inclusion_probabilities(difficulty, size)
    drawn, estimates = np.zeros(count), []
    for batch in range(batches):
        indices, weights = importance_order(labels, difficulty, size, batch, seed=7)
        assert len(set(indices.tolist())) == size
        drawn[indices.numpy()] += 1
        estimates.append(float((weights * values[indices]).mean()))
        # Where values are in proportion to difficulty the estimate has no error at all.
        exact = (weights * torch.from_numpy(difficulty)[indices]).mean()
        assert float(exact) == pytest.approx(difficulty.mean(), rel=1e-9)
        shares = np.bincount(labels[indices].numpy(), minlength=5)
        wanted = np.bincount(labels.numpy(), weights=probabilities, minlength=5)
        assert np.abs(shares - wanted).max() < 2  # classes get their shares of probability
    # Counts are binomial: 5 standard deviations hold for 600 of them.
    deviation = np.sqrt(batches * probabilities * (1 - probabilities)) + 1e-9
    assert (np.abs(drawn - batches * probabilities) < 5 * deviation).all()
    error = np.std(estimates) / math.sqrt(batches)
    assert abs(np.mean(estimates) - float(values.mean())) < 4 * error
    uniform = [float(values[torch.randperm(count)[:size]].mean()) for _ in range(batches)]
    assert np.std(estimates) < np.std(uniform)
    again = importance_order(labels, difficulty, size, 3, seed=7)
    assert torch.equal(again[0], importance_order(labels, difficulty, size, 3, seed=7)[0])
    assert not torch.equal(again[0], importance_order(labels, difficulty, size, 3, seed=8)[0])


def test_importance_fitness_is_the_weighted_mean_of_scores() -> None:
    pop, data = population(6), images(300, 2)
    evaluator = deevo.Evaluator(Net(), pop, micro_batch=32)
    fitness = deevo.ClassificationFitness(
        evaluator, data, images_per_batch=60, sampling="importance"
    )
    found = fitness(pop.rows, torch.arange(6), 4)
    indices, weights = fitness.indices(4)
    assert indices is not None and weights is not None
    losses = [evaluator.losses(row, data).losses.double() for row in pop.rows]
    unsure = torch.stack([1 - (-one).exp() for one in losses[:4]]).mean(dim=0).clamp(min=0.02)
    share = inclusion_probabilities(unsure.numpy(), 60)
    for value, one in zip(found, losses, strict=True):
        expected = (one[indices] / torch.from_numpy(share)[indices]).sum() / 300
        assert value == pytest.approx(float(expected), rel=1e-5)
    with pytest.raises(deevo.DeevoError, match="images_per_batch below"):
        deevo.ClassificationFitness(evaluator, data, sampling="importance")
    with pytest.raises(deevo.DeevoError, match="sampling is 'hard'"):
        deevo.ClassificationFitness(evaluator, data, sampling="hard")


def ramp(count: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Images whose value is 3 times the column plus 5 times the row, in two channels."""
    rows, columns = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    image = torch.stack([3 * columns + 5 * rows, columns]).to(dtype)
    return image.expand(count, 2, 16, 16).contiguous()


def test_mirror_and_shift_move_pixels_and_nothing_else() -> None:
    count = 400
    words = image_words(torch.arange(count), 3, 11)
    mirrored = Augmentation(mirror=True).apply(ramp(count), words)
    same = (mirrored == ramp(count)).flatten(1).all(dim=1)
    flipped = (mirrored == ramp(count).flip(3)).flatten(1).all(dim=1)
    assert (same ^ flipped).all() and 140 < int(flipped.sum()) < 260  # 200 +- 6 sd of 10
    shifted = Augmentation(shift=2).apply(ramp(count, torch.uint8), words)
    assert shifted.dtype == torch.uint8
    moves = []
    for image in shifted:
        column = int(image[1, 8, 8]) - 8
        row = (int(image[0, 8, 8]) - 3 * (column + 8)) // 5 - 8
        moves.append((row, column))
        source = ramp(1, torch.uint8)[0]
        rows = (torch.arange(16) + row).clamp(0, 15)
        columns = (torch.arange(16) + column).clamp(0, 15)
        assert torch.equal(image, source[:, rows][:, :, columns])
    counts = np.unique(moves, axis=0, return_counts=True)[1]
    assert len(counts) == 25 and counts.max() < 16 + 6 * 4  # 400 / 25 each


def test_crops_are_rectangles_of_the_asked_area_stretched() -> None:
    count, least = 300, 0.3
    found = Augmentation(crop=least).apply(ramp(count), image_words(torch.arange(count), 0, 1))
    inner = found[:, :, 4:12, 4:12]
    # A linear picture stays linear: its slopes tell width and height of the crop.
    width = (inner[:, 1, :, 1:] - inner[:, 1, :, :-1]).mean(dim=(1, 2))
    height = ((inner[:, 0, 1:] - inner[:, 0, :-1]).mean(dim=(1, 2))) / 5
    assert torch.allclose(inner[:, 1, :, 2:] + inner[:, 1, :, :-2], 2 * inner[:, 1, :, 1:-1])
    area, ratio = width * height, width / height
    assert area.min() > least * 0.74 and area.max() <= 1.0 + 1e-5
    assert area.min() < 0.4 and area.max() > 0.85
    assert ratio.min() > 3 / 4 - 1e-4 and ratio.max() < 4 / 3 + 1e-4
    assert ratio.min() < 0.8 and ratio.max() > 1.25
    assert float(found[:, 1].min()) >= 0 and float(found[:, 1].max()) <= 15
    whole = Augmentation(crop=0.3).apply(
        ramp(count, torch.uint8), image_words(torch.arange(count), 0, 1)
    )
    assert (whole.float() - found).abs().max() <= 0.5 + 1e-3


def test_an_image_is_augmented_by_its_number_and_batch_alone() -> None:
    data = images(50, 3)
    augmentation = Augmentation.parse("mirror, shift:2, crop:0.5")
    assert Augmentation.parse(augmentation.describe()) == augmentation
    whole = AugmentedImages(data, augmentation, torch.arange(50), 4, 9)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    shuffled = whole.subset(order)
    assert torch.equal(shuffled.pixels(0, 50), whole.pixels(0, 50)[order])
    assert torch.equal(whole.pixels(20, 30), whole.pixels(0, 50)[20:30])
    assert torch.equal(whole.slice(20, 30).pixels(2, 5), whole.pixels(22, 25))
    assert not torch.equal(whole.pixels(0, 50), data.images)
    other = AugmentedImages(data, augmentation, torch.arange(50), 5, 9)
    assert not torch.equal(other.pixels(0, 50), whole.pixels(0, 50))
    assert len({whole.digest(), other.digest(), data.digest()}) == 3
    for text in ("rotate", "shift:1.5", "shift:-1", "shift:inf", "shift:1e30", "shift:x",
                 "crop:0", "crop:1.2", "mirror:2"):  # fmt: skip
        with pytest.raises(deevo.DeevoError, match="augment is"):
            Augmentation.parse(text)


def test_policies_resume_to_the_same_run(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    (tmp_path / "c").mkdir()
    for i, state in enumerate(members(Net, 8)):
        save_file(state, tmp_path / "c" / f"m{i}.safetensors")

    def run(folder: Path) -> deevo.Result:
        return deevo.evolve(
            Net(),
            tmp_path / "c",
            images(400, 1),
            images(60, 2),
            search="weights",
            run_dir=folder,
            generations=5,
            images_per_batch=96,
            generations_per_batch=2,
            sampling="importance",
            augment="mirror,crop:0.6",
            metric=margin,
            racing=0.1,
            validate_every=3,
            micro_batch=16,
            progress=False,
            engine="eager",
        )

    result = run(tmp_path / "whole")
    header, *lines = (tmp_path / "whole" / journal.FILE_NAME).read_text().splitlines(True)
    about = json.loads(header)["fitness"]
    assert about["sampling"] == "importance" and about["augment"] == "mirror,crop:0.6"
    assert about["metric"]["function"].endswith("test_policies.margin")
    for kept in (1, 3):
        folder = tmp_path / f"cut{kept}"
        folder.mkdir()
        (folder / journal.FILE_NAME).write_text("".join([header, *lines[:kept]]))
        again = run(folder)
        assert again.candidate.digest == result.candidate.digest
        assert again.run.forward_passes == result.run.forward_passes
    assert deevo.replay(tmp_path / "whole").candidate.digest == result.candidate.digest
