"""Runs by metrics of whole sets: both searches, resumed and replayed, and what they tell."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import deevo_ext as deevo
from deevo_ext.errors import DeevoError
from deevo_ext.fitness import biases
from deevo_ext.fitness.class_weights import image_weights
from deevo_ext.fitness.metrics import Metric
from deevo_ext.fitness.virtual import guided_fitness, virtual_fitness
from deevo_ext.population.recipes import after, uniform
from deevo_ext.reports.card import CARD, write_documents
from deevo_ext.runs import round_size
from deevo_ext.runs.comparison import Comparison
from deevo_ext.runs.paired import Difference
from deevo_ext.search.linear_model import LinearModel
from support.evolution import images, save_members
from support.metrics import brier_of_set, gap_of_classes, mean_f1, worst_recall
from support.networks import Net
from support.rounds import Problem, labelled


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_members(tmp_path_factory.mktemp("metrics") / "members", 8)


@pytest.fixture(autouse=True)
def short_evolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests ask what is evolved for, not how far."""
    monkeypatch.setattr(round_size, "GENERATIONS", 4)
    monkeypatch.setattr(biases, "_GENERATIONS", 4)


def run(checkpoints: Path, run_dir: Path | None, **options: Any) -> deevo.Result:
    """A run on few images of noise."""
    return deevo.evolve(
        Net(),
        checkpoints,
        images(120, 1, "fitness images"),
        options.pop("validation_images", images(90, 2, "validation images")),
        images(100, 3, "test images"),
        run_dir=run_dir,
        basin="ignore",
        progress=False,
        micro_batch=32,
        engine="eager",
        **options,
    )


SEARCHES: dict[str, dict[str, Any]] = {
    "coefficients": {"rounds": 1},
    "weights": {"generations": 3, "validate_every": 2, "images_per_batch": 60},
}
ORACLES = {"worst-class": worst_recall, "macro-f1": mean_f1, brier_of_set: brier_of_set}


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("metric", ORACLES)
def test_runs_by_metrics_of_whole_sets_resume_replay_and_tell_them(
    search: str, metric: Any, checkpoints: Path, tmp_path: Path
) -> None:
    options = {"search": search, "metric": metric, **SEARCHES[search]}
    result = run(checkpoints, tmp_path / "run", **options)
    comparison, candidate = result.comparison, result.candidate
    assert comparison is not None
    validation = result.run.validation
    assert validation is not None
    # The score by which validation chose, and the table's column, are the metric.
    for images_, told in (
        (validation.images, validation.metric.shown(candidate.score)),
        (images(100, 3, "test images"), next(n.metric for n in comparison.networks if n.returned)),
    ):
        logits = validation.evaluator.logits(candidate.row, images_, candidate.statistics)
        expected = float(ORACLES[metric](logits, images_.labels))
        assert told == pytest.approx(expected, abs=1e-6)
    again = run(checkpoints, tmp_path / "run", **options)
    assert again.candidate.digest == candidate.digest
    assert again.comparison is not None and again.comparison.verdict == comparison.verdict
    assert torch.equal(deevo.replay(tmp_path / "run").candidate.row, candidate.row)
    write_documents(result.run, comparison)
    card = (tmp_path / "run" / CARD).read_text()
    label = {"worst-class": "worst class", "macro-f1": "macro F1"}.get(metric, "brier_of_set")
    assert f"validation {label} {validation.metric.shown(candidate.score):.5g}" in card
    assert Comparison.load(tmp_path / "run" / "table.json") == comparison
    assert comparison.header[3] == label and label in card
    text = json.loads((tmp_path / "run" / "journal.jsonl").read_text().splitlines()[0])
    told = text["fitness"]["metric"]
    assert (told if isinstance(metric, str) else told["function"]).endswith(
        metric if isinstance(metric, str) else "brier_of_set"
    )


def test_a_run_goes_on_by_its_own_metric_only(checkpoints: Path, tmp_path: Path) -> None:
    def scorer(scale: float) -> Any:
        def score(logits: Tensor, labels: Tensor) -> Tensor:
            return scale * brier_of_set(logits, labels)

        return score

    folder = tmp_path / "run"
    run(checkpoints, folder, metric=scorer(1.0), rounds=1)
    run(checkpoints, folder, metric=scorer(1.0), rounds=1)
    with pytest.raises(DeevoError, match=r"fitness\.metric is .*score, whose code.*metric_name="):
        run(checkpoints, folder, metric=scorer(2.0), rounds=1)
    with pytest.raises(DeevoError, match=r"fitness\.metric is .*metric_name="):
        run(checkpoints, folder, metric="loss", rounds=1)
    short = lambda logits, labels: brier_of_set(logits, labels)  # noqa: E731
    with pytest.raises(DeevoError, match="metric is a lambda, which a run folder cannot tell"):
        run(checkpoints, tmp_path / "other", metric=short, rounds=1)
    assert not (tmp_path / "other").exists()
    run(checkpoints, tmp_path / "other", metric=short, metric_name="brier, 1", rounds=1)
    run(checkpoints, tmp_path / "other", metric=scorer(1.0), metric_name="brier, 1", rounds=1)
    with pytest.raises(DeevoError, match="'brier, 1' in the journal, 'brier, 2' now"):
        run(checkpoints, tmp_path / "other", metric=short, metric_name="brier, 2", rounds=1)
    run(checkpoints, None, metric=short, rounds=1)


@pytest.mark.parametrize("search", SEARCHES)
def test_sets_that_a_metric_cannot_judge_are_refused_before_the_run(
    search: str, checkpoints: Path, tmp_path: Path
) -> None:
    some = images(90, 2, "validation images")
    lacking = some.subset((some.labels != 1).nonzero()[:, 0], "validation images")
    options = {"search": search, **SEARCHES[search]}
    with pytest.raises(DeevoError, match=r"as class 1, have none of the .* validation images"):
        run(checkpoints, tmp_path / "run", metric="worst-class", validation_images=lacking)
    beyond = deevo.ImageSet(some.images, some.labels + 1, "validation images")
    with pytest.raises(DeevoError, match="labels of the validation images go up to 3"):
        run(checkpoints, tmp_path / "run", validation_images=beyond, **options)
    assert not (tmp_path / "run").exists()
    if search == "weights":
        for metric in ("macro-f1", brier_of_set):
            with pytest.raises(DeevoError, match="racing is"):
                run(checkpoints, tmp_path / "run", metric=metric, racing=0.01, **options)
        assert not (tmp_path / "run").exists()


def test_label_smoothing_reaches_the_fitness_of_a_run(checkpoints: Path, tmp_path: Path) -> None:
    options = {"search": "weights", **SEARCHES["weights"]}
    run(checkpoints, tmp_path / "run", label_smoothing=0.2, **options)
    text = json.loads((tmp_path / "run" / "journal.jsonl").read_text().splitlines()[0])
    assert text["fitness"]["label_smoothing"] == 0.2
    assert "label_smoothing" not in text["validation"]


def test_a_metric_that_cannot_tell_the_networks_apart_is_said_to_be_saturated(
    checkpoints: Path,
) -> None:
    def always(logits: Tensor, labels: Tensor) -> float:
        return 1.0

    comparison = run(checkpoints, None, metric=always, rounds=1).comparison
    assert comparison is not None
    assert "all networks score 1 on its 90 images, so this metric is saturated" in comparison.note
    comparison = run(checkpoints, None, rounds=1).comparison
    assert comparison is not None and "saturated" not in comparison.note


@pytest.mark.parametrize("metric", ["worst-class", "macro-f1", gap_of_classes])
def test_a_round_gains_in_a_metric_of_whole_sets(metric: Any) -> None:
    one = Metric.of(metric, **({} if isinstance(metric, str) else {"whole": True}))
    problem = Problem(seed=1, metric=one, images=3000)
    recipe = uniform(3, 4, range(4))
    outcome = problem.rounds(size=400).run(recipe, 1, 1.0)
    assert outcome.accepted and outcome.step is not None
    made = after(recipe, outcome.step.view_as(recipe), outcome.proposals[outcome.best].length)
    new = labelled(problem.model, 4000, 77)
    fitness = [
        problem.evaluator.score(
            problem.blocks.blocks.compose(problem.population, r[None])[0], new, metric=one
        )
        for r in (recipe, made)
    ]
    assert fitness[1] < fitness[0]
    assert 0.0 < outcome.standard_error < 0.2


def test_differences_lie_in_the_users_direction() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (600,), generator=generator)
    poor, good = torch.randn(2, 600, 4, generator=generator)
    good[torch.arange(600), labels] += 2
    for name in ("loss", "top1", "worst-class", "macro-f1"):
        metric = Metric.of(name)
        ours, theirs = (metric.of_images(z, labels) for z in (good, poor))
        difference = Difference.of("rival", metric, ours, theirs, labels)
        assert difference.mean == pytest.approx(metric(good, labels) - metric(poor, labels))
        assert difference.interval[0] < difference.mean < difference.interval[1]
        assert (difference.mean > 0) == (name != "loss")
        assert difference.finding == "is better than"
        assert Difference.of("r", metric, theirs, ours, labels).finding == "is worse than"
        assert "no measurable" in Difference.of("r", metric, ours, ours, labels).finding


def model_of(seed: int) -> LinearModel:
    """Two directions: one helps the class that is missed, the other only the rest."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(400) % 4
    z0 = torch.randn(400, 4, generator=generator)
    z0[torch.arange(400), labels] += torch.tensor([2.0, 2.0, 2.0, 0.0])[labels]
    model = LinearModel(z0, labels, 2)
    slopes = torch.zeros(2, 400, 4)
    slopes[0, :, 3] = 1.0
    slopes[1, :, :3] = 1.0
    slopes += 0.1 * torch.randn(slopes.shape, generator=generator)
    model.put(dict(enumerate(slopes)))
    return model


def test_class_weights_raise_the_class_that_is_missed() -> None:
    model, metric = model_of(0), Metric.of("worst-class")
    weights = image_weights(model, metric)
    assert weights is not None and weights.mean() == pytest.approx(1.0)
    per_class = [float(weights[model.labels == c].mean()) for c in range(4)]
    assert per_class[3] == max(per_class) > 1.5
    fits = [model.fit(0.01), model.fit(0.01, weights=weights)]
    plain, weighted = (float(virtual_fitness(model, metric, 0.0)(q[None].float())[0]) for q in fits)
    assert weighted < plain
    assert image_weights(model, Metric.of("macro-f1")) is None


def test_the_cross_entropy_guides_where_it_is_not_the_metric() -> None:
    model, none = model_of(1), torch.zeros(1, 2)
    q = torch.randn(5, 2, generator=torch.Generator().manual_seed(1))
    losses = model.losses_and_ranks(q)[0].double().mean(dim=1)
    for name in ("top1", "macro-f1"):
        plain = virtual_fitness(model, Metric.of(name), 0.1)
        found = guided_fitness(model, Metric.of(name), 0.1, None)(q)
        start = float(plain(none)), float(model.losses_and_ranks(none)[0].mean())
        torch.testing.assert_close(found, plain(q) + 2 * start[0] / start[1] * losses)
    loss = virtual_fitness(model, Metric.of("loss"), 0.1)(q)
    assert torch.equal(guided_fitness(model, Metric.of("loss"), 0.1, None)(q), loss)
    assert math.isfinite(float(loss.sum()))
