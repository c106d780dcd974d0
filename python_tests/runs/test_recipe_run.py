"""Runs of the search of coefficients: what they begin with, when they end, what they return."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import deevo_ext as deevo
from deevo_ext.errors import DeevoError
from deevo_ext.fitness.metrics import Metric
from deevo_ext.population.recipes import uniform
from deevo_ext.runs.recipe_run import RECIPE_FILE, Budget
from support.rounds import Normed, copies, labelled, off_centre, problem, teacher


def test_initial_candidates_are_scored_as_their_recipes_make_them() -> None:
    one = problem(members=5)
    run = one.run(budget=Budget(1, seconds=0.0))
    run.run()
    for candidate in run.state.initial.values():
        recipe = uniform(3, 5, candidate.members)
        row = one.blocks.blocks.compose(one.population, recipe[None])[0]
        assert torch.equal(candidate.row, row)
        assert candidate.score == one.evaluator.score(row, one.held_out)
    best = min(run.state.initial.values(), key=lambda candidate: candidate.score)
    assert torch.equal(run.state.recipe, uniform(3, 5, best.members))


class Outputs(Normed):
    """Returns its logits within an output, as networks of transformers do."""

    def forward(self, x: Tensor) -> Any:
        return types.SimpleNamespace(logits=super().forward(x), hidden_states=None)


def test_logits_within_an_output_are_searched_as_plain_ones(tmp_path: Path) -> None:
    model = teacher(Normed, 0)
    for i, state in enumerate(off_centre(copies(model, 4, 1), model)):
        torch.save(state, tmp_path / f"{i}.pth")
    images, held_out = labelled(model, 300, 2), labelled(model, 200, 3)
    plain, within = (
        deevo.evolve(net, tmp_path, images, held_out, rounds=1, engine="eager", progress=False)
        for net in (Normed(), Outputs())
    )
    assert plain.history[0]["accepted"] and plain.candidate.digest == within.candidate.digest
    for name, tensor in plain.state_dict.items():
        assert torch.equal(tensor, within.state_dict[name]), name


def test_budgets_of_passes_and_seconds_end_a_run() -> None:
    run = problem().run(budget=Budget(5))
    run.run()
    assert run.history[0]["accepted"] == 1.0
    costs = [m["round_passes"] for m in run.history]
    initial = run.initial_forward_passes
    assert len(costs) > 2  # without a budget it ends after two rounds without a step
    passes = int(initial + 2 * costs[0])
    short = problem().run(budget=Budget(5, passes=passes))
    short.run()
    assert [m["round_passes"] for m in short.history] == costs[
        :2
    ] and short.forward_passes <= passes
    less = problem().run(budget=Budget(5, passes=passes - 1))
    less.run()
    assert len(less.history) == 1  # another one like it would not have its passes
    none = problem().run(budget=Budget(5, seconds=0.0))
    chosen = none.run()
    assert none.history == [] and chosen.generation == 0


def test_rounds_without_a_step_end_a_run_and_the_best_initial_network_is_returned(
    tmp_path: Path,
) -> None:
    for few, ends in ((False, 4), (True, 1)):
        folder = tmp_path / f"run{few}"
        run = problem(seed=5, centred=True, spread=0.2).run(folder, budget=Budget(6), few=few)
        chosen = run.run()
        assert [m["accepted"] for m in run.history] == [0.0] * ends
        assert [m["radius"] for m in run.history] == [1.0, 1.0, 0.5, 0.5][:ends]
        assert [m["by_channel"] for m in run.history] == [0.0, 1.0, 0.0, 1.0][:ends]
        assert not run.state.evolved and chosen.generation == 0
        scores = [*run.state.initial.values(), *run.state.treated]
        assert chosen.score == min(one.score for one in scores)
        made = deevo.merge(folder / RECIPE_FILE, tmp_path / f"out{few}.safetensors")
        assert made.as_recorded
        assert deevo.replay(folder).candidate.digest == chosen.digest


def test_a_metric_without_a_finite_score_is_named_before_any_round() -> None:
    def broken(logits: Tensor, labels: Tensor) -> Tensor:
        return torch.full_like(labels, torch.nan, dtype=torch.float32)

    one = problem(metric=Metric.of(broken))
    with pytest.raises(DeevoError, match=r"finite score by metric .*broken: mend the metric"):
        one.run().run()
