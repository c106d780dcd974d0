"""What rounds make of a recipe and its radius, in which order, and their records."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from deevo_ext.errors import DeevoError
from deevo_ext.population.genes import Drawn
from deevo_ext.population.recipes import after, uniform
from deevo_ext.runs.recipe_state import Progress, RecipeState, recipe_digest
from deevo_ext.runs.records import (
    CandidateRecord,
    GenerationRecord,
    ProposalRecord,
    RoundRecord,
    ValidationRecord,
    from_json,
    to_json,
)
from support.rounds import Problem


def record(
    state: RecipeState, taken: Tensor | None, real: float = -1.0, **values: Any
) -> RoundRecord:
    """A round whose best proposal promised -1 and gave `real`."""
    proposal = ProposalRecord("convex", 0.1, 0.5, -1.0, real)
    recipe = state.recipe if taken is None else after(state.recipe, taken, 0.5)
    options: dict[str, Any] = {
        "round": state.round + 1,
        "images": [10, 5, 5],
        "radius": state.paths["blocks"].radius,
        "left_out": [],
        "held_out": 0.5,
        "proposals": [proposal],
        "best": 0,
        "gain": 1.0,
        "standard_error": 0.1,
        "accepted": taken is not None,
        "step": None if taken is None else taken.flatten(),
        "recipe_sha256": recipe_digest(recipe),
        "score": None if taken is None else 1.0 / (state.round + 2),
        "forward_passes": 7,
        "seconds": 0.5,
    }
    return RoundRecord(**{**options, **values})


def begun() -> RecipeState:
    one = Problem(seed=1, generations=4)
    state = RecipeState(one.population, one.blocks.blocks, seed=7)
    best, everyone = CandidateRecord([2], 2.0), CandidateRecord([0, 1, 2, 3], 1.5)
    state.apply(
        GenerationRecord(
            generation=0,
            validation=ValidationRecord(best, everyone, CandidateRecord([2, 1], 1.25), [2.0] * 4),
            forward_passes=1,
            seconds=0.1,
        )
    )
    return state


def test_the_recipe_and_the_radius_follow_the_rounds() -> None:
    state = begun()
    assert torch.equal(state.recipe, uniform(3, 4, [2, 1]))
    step = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)) * 0.2
    before = state.recipe.double()
    state.apply(record(state, step))
    # A' = (1 - l * sum C) A + l C, by hand in float64.
    made = (1 - 0.5 * step.double().sum(dim=1, keepdim=True)) * before + 0.5 * step.double()
    torch.testing.assert_close(state.recipe.double(), made, rtol=2.0**-23, atol=2.0**-23)
    path = state.paths["blocks"]
    assert (state.round, path) == (1, Progress())
    for radius in (0.5, 0.25):
        state.apply(record(state, None))
        assert path.radius == radius
    assert path.failures == 2
    state.apply(record(state, step, real=-0.7))  # less than 0.75 of the promise: no larger radius
    assert path == Progress(0, 0.25)
    for radius in (0.5, 1.0, 1.0):
        state.apply(record(state, step, real=-0.8))
        assert path.radius == radius
    assert state.round == 7 and torch.equal(state.evolved["recipe"].row, state.row(state.recipe))
    assert state.best is not None and torch.equal(state.best, state.recipe)
    worse = record(state, step, score=9.0)
    state.apply(worse)
    assert state.evolved["recipe"].generation == 7  # the best by validation is kept
    assert not torch.equal(state.best, state.recipe)


def test_a_round_without_a_step_hands_over_to_the_other_directions() -> None:
    state = begun()
    changes = torch.zeros(len(state.genes), 4)

    def round_of(kind: str, taken: bool) -> None:
        assert state.directions == kind
        nonlocal changes
        channels = kind == "channels"
        values: dict[str, Any] = {"radius": state.paths[kind].radius}
        if channels:
            step = torch.ones(5) if taken else None
            if taken:
                drawn = Drawn.of(state.round + 1, 5, len(changes), 4, seed=7)
                changes = drawn.after(changes, torch.ones(5), 0.5)
            values |= {"directions": kind, "accepted": taken, "step": step}
            values["score"] = 1.0 / (state.round + 2) if taken else None
        else:
            step = torch.full((3, 4), 0.1) if taken else None
        recipe = state.recipe if channels or step is None else after(state.recipe, step, 0.5)
        begun_ones = changes if state.changes is not None or (channels and taken) else None
        values["recipe_sha256"] = recipe_digest(recipe, begun_ones)
        state.apply(record(state, None if channels else step, **values))

    for kind, taken in (
        *(("blocks", True), ("blocks", False), ("channels", True), ("channels", False)),
        *(("blocks", True), ("blocks", False), ("channels", True), ("channels", False)),
        *(("blocks", False), ("channels", True), ("channels", False), ("channels", False)),
    ):
        round_of(kind, taken)
    assert state.directions is None  # each has failed twice in a row, and none is asked again
    assert torch.equal(state.begun_changes(), changes)
    best = state.evolved["recipe"]  # its coordinates too
    assert torch.equal(best.row, state.row(state.recipe, changes))


def test_rounds_that_do_not_follow_are_refused() -> None:
    state = begun()
    step = torch.full((3, 4), 0.1)
    with pytest.raises(ValueError, match=r"its radius is 0\.5"):
        state.apply(record(state, None, radius=0.5))
    with pytest.raises(ValueError, match="another size"):
        state.apply(record(state, step, step=step[:2].flatten()))
    with pytest.raises(ValueError, match="not 5 of the recipe's size"):
        state.apply(record(state, step, folds=torch.zeros(4 * 12)))
    with pytest.raises(DeevoError, match="the recipe has SHA-256"):
        state.apply(record(state, step, recipe_sha256="0" * 64))
    with pytest.raises(ValueError, match="no directions 'tensors'"):
        record(state, None, directions="tensors")


def test_records_of_rounds_are_read_as_they_were_written() -> None:
    state = begun()
    for one in (
        record(state, torch.randn(3, 4), folds=torch.randn(60)),
        record(state, torch.randn(3, 4), score=1 / 3, engines=[{"precision": "float32"}]),
        record(state, None, gain=float("nan"), standard_error=float("inf"), left_out=[3, 7]),
        record(state, None, proposals=[], best=None),
    ):
        again = from_json(RoundRecord, json.loads(json.dumps(to_json(one))))
        assert json.dumps(to_json(again)) == json.dumps(to_json(one))
        assert repr(again) == repr(one)  # NaN differs from itself
        assert one.folds is None or torch.equal(again.folds, one.folds)
        assert one.step is None or (again.step is not None and torch.equal(again.step, one.step))
    for values, message in (
        ({"radius": 0.0}, "radius 0.0"),
        ({"radius": 2.0}, "radius 2.0"),
        ({"round": 0}, "round 0"),
        ({"seconds": float("nan")}, "costs of"),
        ({"score": 1.0}, "where it is taken"),
        ({"folds": torch.zeros(60)}, "a step that is not taken"),
        ({"proposals": []}, "no proposal 0"),
    ):
        with pytest.raises(ValueError, match=message):
            record(state, None, **values)
