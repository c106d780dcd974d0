"""The table of a search of coefficients: its networks, what they cost, and its verdict."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from deevo_ext.runs.comparison import Comparison
from deevo_ext.runs.contenders import compare_run
from support.evolution import images
from support.networks import Net
from support.recipe_runs import recipe_run, save_checkpoints

AVERAGED = "initial greedy soup, averaged statistics"


def averages(checkpoints: Path, members: tuple[int, ...]) -> dict[str, torch.Tensor]:
    states = [load_file(checkpoints / f"m{i}.safetensors") for i in members]
    return {
        name: torch.stack([state[name].double() for state in states]).mean(dim=0).to(first.dtype)
        for name, first in states[0].items()
    }


def test_costs_add_up_and_the_soup_is_shown_as_it_was_too(tmp_path: Path) -> None:
    checkpoints, test = save_checkpoints(tmp_path / "members"), images(90, 3, "test")
    run = recipe_run(checkpoints, None)
    chosen = run.run()
    assert run.treatments is not None and run.validation is not None
    spent = sum(evaluator.forward_passes for evaluator in run.evaluators())
    comparison = compare_run(run, test)
    lines = {line.name: line for line in comparison.networks}
    assert list(lines) == [
        *("best parent", "initial weight average", "initial greedy soup", AVERAGED),
        *("classifier refitted", "logit ensemble", "evolved recipe", "evolved and refitted"),
    ]
    assert [name for name, line in lines.items() if line.returned] == [chosen.name]
    # An evaluation of a candidate: 200 validation images, and 100 for its statistics; 4 members.
    assert lines["best parent"].forward_passes == 4 * 300
    assert lines["initial greedy soup"].forward_passes == 7 * 300
    # Statistics of the three initial candidates are made once more, to be kept with them.
    assert run.initial_forward_passes == 8 * 300 + 3 * 100
    assert lines["evolved recipe"].forward_passes == run.forward_passes
    treated = {
        name: lines[name].forward_passes - lines[of].forward_passes
        for name, of in (
            (AVERAGED, "initial greedy soup"),
            ("classifier refitted", "initial greedy soup"),
            ("evolved and refitted", "evolved recipe"),
        )
    }
    # Validation; for a refit the fitness images, too.
    assert treated == {
        AVERAGED: 200,
        "classifier refitted": 500,
        "evolved and refitted": 500,
    }
    assert run.forward_passes + sum(treated.values()) == spent
    members = run.state.initial["soup"].members
    model = Net()
    model.load_state_dict(averages(checkpoints, members))
    with torch.no_grad():
        loss = nn.functional.cross_entropy(model.eval()(test.pixels(0, 90)), test.labels)
    assert lines[AVERAGED].loss == pytest.approx(float(loss), rel=1e-5)
    assert lines["initial greedy soup"].loss != pytest.approx(float(loss), rel=1e-3)
    assert AVERAGED in comparison.note


def test_a_run_without_a_step_says_so(tmp_path: Path) -> None:
    run = recipe_run(save_checkpoints(tmp_path / "members"), None, rounds=0)
    chosen = run.run()
    comparison = compare_run(run, images(90, 3, "test"))
    assert comparison.evolved is None and comparison.rival is None
    names = [line.name for line in comparison.networks]
    assert names[-1] == "logit ensemble" and not any("evolved" in name for name in names)
    assert comparison.verdict.startswith(
        f"No step of the search was taken; the {chosen.name} is returned, which "
    )
    comparison.save(tmp_path / "table.json")
    assert Comparison.load(tmp_path / "table.json") == comparison


def test_logits_that_are_not_finite_are_right_in_no_network(tmp_path: Path) -> None:
    run = recipe_run(save_checkpoints(tmp_path / "members"), None, rounds=0)
    run.run()
    test = images(90, 3, "test")
    test.images[test.labels == 0] = torch.nan
    for line in compare_run(run, test).networks:
        assert line.top1 <= float((test.labels != 0).double().mean()), line.name
