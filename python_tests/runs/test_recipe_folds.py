"""Runs of the search of coefficients with few labels, scored by what is made without each fold."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from deevo_ext.fitness import refit as refit_module
from deevo_ext.fitness.refit import FOLDS
from deevo_ext.fitness.sampling import fold_numbers
from deevo_ext.runs.recipe_run import Budget, RecipeRun
from deevo_ext.runs.treatments import Treatments
from deevo_ext.runs.validation import Validation
from support.rounds import TWO_STEPS, Normed, Plain, problem


def regressed(inputs: Tensor, logits: Tensor, labels: Tensor, ridge: float) -> Tensor:
    """The weight [classes, inputs] of least cross-entropy plus ridge times its square, by torch."""
    weight = torch.zeros(logits.shape[1], inputs.shape[1], requires_grad=True)
    solver = torch.optim.LBFGS([weight], max_iter=500, line_search_fn="strong_wolfe")

    def objective() -> Tensor:
        solver.zero_grad()
        value = cross_entropy(logits + inputs @ weight.T, labels) + ridge * weight.square().sum()
        value.backward()
        return value

    solver.step(objective)
    return weight.detach()


@pytest.mark.parametrize("factory", [Plain, Normed])
def test_few_labels_score_what_is_made_without_each_fold(
    factory: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps and refit: by five networks that are put together and refitted here, by torch alone."""
    monkeypatch.setattr(refit_module, "RIDGES", (0.01,))
    one = problem(factory, **TWO_STEPS[factory])
    run = one.run(few=True)
    run.run()
    assert [m["accepted"] for m in run.history] == [1.0, 1.0]
    state, images = run.state, one.images
    assert state.best_folds is not None
    evolved = state.evolved["recipe"]
    treated = next(c for c in state.treated if c.generation and c.treatment == "classifier")
    fold = fold_numbers(images.labels, FOLDS, one.seed)
    plain, refitted = torch.zeros(300), torch.zeros(300)
    for k, recipe in enumerate(state.best_folds):
        row = one.blocks.blocks.compose(one.population, recipe[None])[0]
        used = one.evaluator.used_statistics(row, None)
        model = factory()
        model.load_state_dict(one.population.state_dict_of(row, used))
        read: list[Tensor] = []
        model.eval().head.register_forward_hook(lambda *a, to=read: to.append(a[1][0]))
        with torch.no_grad():
            logits = model(images.images)
        rest, out, labels = fold != k, fold == k, images.labels
        # A ridge means the same for features of root mean square 1, of all images.
        features = read[0] / read[0].square().mean().sqrt()
        inputs = torch.cat([features, torch.ones(300, 1)], dim=1)
        after = logits + inputs @ regressed(inputs[rest], logits[rest], labels[rest], 0.01).T
        plain[out] = cross_entropy(logits[out], labels[out], reduction="none")
        refitted[out] = cross_entropy(after[out], labels[out], reduction="none")
    # Float32 losses; the other way of measuring may have seen more gain.
    assert evolved.score <= float(plain.mean()) + 1e-5
    # Fits end within 1e-5 nats of the least objective; the refit changes a hundred times as much.
    gain = evolved.score - treated.score
    assert gain == pytest.approx(float(plain.mean() - refitted.mean()), abs=1e-4)
    assert abs(gain) > 1e-3


def test_few_labels_whose_slopes_do_not_fit_choose_by_what_tested_images_gain() -> None:
    one = problem()
    validation = Validation(one.evaluator, one.images, one.metric, by_folds=True)
    run = RecipeRun(one.rounds(), validation, Budget(2), unit="layer", progress=False)
    run.run()
    score = min(candidate.score for candidate in run.state.initial.values())
    taken = [m for m in run.history if m["accepted"]]
    assert taken
    for metrics in taken:
        score -= metrics["gain"]
        assert metrics["validation/recipe"] == pytest.approx(score, abs=1e-9)
    assert run.chosen is not None and run.chosen.generation


def test_re_estimated_statistics_are_judged_by_folds_too() -> None:
    one = problem(Normed, **TWO_STEPS[Normed], batchnorm="evolve")
    run = one.run(few=True, budget=Budget(1))
    run.run()
    assert run.state.evolved
    treated = next(c for c in run.state.treated if c.generation and c.treatment == "statistics")
    fold, losses = fold_numbers(one.images.labels, FOLDS, one.seed), torch.zeros(300)
    for k, apart in enumerate(run.state.apart()):
        row, statistics = one.evaluator.policy.reestimated(apart.row, one.images)
        assert statistics is None
        losses[fold == k] = one.evaluator.losses(row, one.images)[0][fold == k]
    assert treated.score == pytest.approx(float(losses.mean()), abs=1e-6)
    assert treated.score != pytest.approx(one.evaluator.score(treated.row, one.images), abs=1e-3)


@pytest.mark.parametrize("after", [1.0, math.inf])
def test_what_had_no_finite_score_by_folds_is_not_best_after(
    after: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = problem(Normed, **TWO_STEPS[Normed], batchnorm="evolve").run(few=True, budget=Budget(1))
    scores = iter([math.inf, after])
    monkeypatch.setattr(Treatments, "_by_folds", lambda *_: next(scores))
    run.run()
    treated = next(c for c in run.state.treated if c.generation and c.treatment == "statistics")
    assert treated.score == math.inf and run.chosen is not None and run.chosen.score < math.inf
