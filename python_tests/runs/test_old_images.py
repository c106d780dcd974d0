"""Networks between the first and the last of a run, and what is said of the old images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import deevo_ext as deevo
from deevo_ext.data.images import ImageSet
from deevo_ext.errors import DeevoError
from deevo_ext.population.recipes import uniform
from deevo_ext.runs.comparison import Comparison, Measured
from deevo_ext.runs.old_images import what_was_lost
from deevo_ext.runs.paired import Difference
from deevo_ext.runs.recipe_run import RecipeRun
from support.networks import Net
from support.recipe_runs import (
    PlainNet,
    assert_all_give_the_same_bits,
    recipe_run,
    save_checkpoints,
)
from support.rounds import Normed, Plain, copies, labelled, off_centre, teacher


@pytest.mark.parametrize("keep", [0.25, 0.75])
@pytest.mark.parametrize(
    ("factory", "batchnorm"), [(Net, "recalibrate"), (Net, "evolve"), (PlainNet, "evolve")]
)
def test_what_is_returned_lies_between_and_is_replayed_and_merged(
    tmp_path: Path, factory: type[nn.Module], batchnorm: str, keep: float
) -> None:
    checkpoints = save_checkpoints(tmp_path / "members", factory)

    def start(folder: Path, keep: float) -> RecipeRun:
        run = recipe_run(checkpoints, folder, factory, batchnorm=batchnorm, count=2400, keep=keep)
        run.run()
        return run

    plain, run = start(tmp_path / "plain", 0.0), start(tmp_path / "kept", keep)
    last, kept = plain.chosen, run.chosen
    assert last is not None and kept is not None and kept.treatment == "kept"
    assert_all_give_the_same_bits(tmp_path / "kept", kept)
    start_ = min(plain.state.initial.values(), key=lambda one: one.score)
    first = uniform(len(plain.state.blocks), 4, start_.members)
    expected = keep * first.double() + (1 - keep) * plain.recipe.double()
    assert torch.allclose(run.recipe.double(), expected, atol=1e-6)
    middle = keep * start_.row.double() + (1 - keep) * last.row.double()
    unlike = (kept.row.double() - middle).abs()
    # compose rounds each of 4 members' terms; a refit adds one more.
    if last.treatment != "statistics":
        assert float(unlike.max()) <= 1e-5 * float(middle.abs().max())
    if kept.statistics is not None:
        policy = run.rounds.evaluator.policy
        assert run.keeps is not None and policy.calibration is not None
        old, new = (
            policy.reestimated(kept.row, images)[1]
            for images in (run.keeps.images, policy.calibration)
        )
        assert old is not None and new is not None
        assert torch.equal(kept.statistics, keep * old + (1 - keep) * new)
    again = recipe_run(
        checkpoints, tmp_path / "kept", factory, batchnorm=batchnorm, count=2400, keep=keep
    )
    assert again.run().digest == kept.digest and torch.equal(again.recipe, run.recipe)
    with pytest.raises(DeevoError, match=r"another configuration: fitness\.keep"):
        start(tmp_path / "kept", 0.5)


@pytest.mark.parametrize("factory", [Plain, Normed])
def test_keeping_more_loses_less_on_the_old_images(
    tmp_path: Path, factory: type[nn.Module]
) -> None:
    """The network that a search began with labels the old images; it cannot be better there."""
    new = teacher(factory, 1)
    for i, state in enumerate(off_centre(copies(new, 4, 2, 0.3), new)):
        save_file(state, tmp_path / f"m{i}.safetensors")
    fitness, tested = labelled(new, 600, 3), labelled(new, 2000, 5)

    def evolved(old: ImageSet, keep: float) -> deevo.Result:
        images = (fitness, None, tested)
        options = {"old_images": old, "keep": keep, "rounds": 1, "engine": "eager"}
        return deevo.evolve(factory(), tmp_path, *images, progress=False, **options)

    result = evolved(labelled(new, 50, 9), 0.0)
    assert result.candidate.generation or result.candidate.treatment == "classifier"
    first = factory()
    begun = min(result.run.state.initial.values(), key=lambda one: one.score)
    first.load_state_dict(begun.state_dict(result.run.population))
    old = labelled(first.eval(), 4000, 6)
    losses = []
    for keep in (0.0, 0.5):
        tables = evolved(old, keep)
        assert tables.old is not None and tables.comparison is not None
        losses.append(
            [
                next(line.loss for line in table.networks if line.returned)
                for table in (tables.old, tables.comparison)
            ]
        )
    onto_old, onto_new = zip(*losses, strict=True)
    assert sorted(onto_old, reverse=True) == list(onto_old)
    assert onto_new[0] < onto_new[1]


def test_a_share_needs_old_images_and_a_search_of_coefficients(tmp_path: Path) -> None:
    def evolve(**options: object) -> None:
        images = labelled(Plain(), 20, 0)
        deevo.evolve(Plain(), tmp_path, images, **options)  # type: ignore[arg-type]

    with pytest.raises(DeevoError, match=r"keep is 0\.5, but there are no old_images"):
        evolve(keep=0.5)
    for share in (-0.1, 1.0):
        with pytest.raises(DeevoError, match=f"keep is {share}; expected a share from 0"):
            evolve(keep=share)
    with pytest.raises(DeevoError, match="keep belongs to search='coefficients'"):
        evolve(keep=0.5, search="weights")


def line(name: str, top1: float, returned: bool = False) -> Measured:
    return Measured(name, 0.5, top1, 1000, 0, 0, 0, 0.0, 1, returned)


@pytest.mark.parametrize(
    ("top1", "said"),
    [(0.872, "2.8 points are lost there"), (0.91, "1.0 points are gained"), (0.9, "nothing of")],
)
def test_what_was_lost_is_said_against_what_was_there_before(top1: float, said: str) -> None:
    lines = [line("initial greedy soup", 0.5), line("evolved recipe", top1, True)]
    averaged = line("initial greedy soup, averaged statistics", 0.9)
    none = Difference("best parent", 0.0, (0.0, 0.0))
    table = Comparison([*lines, averaged], None, None, none, "loss", "old images")
    assert said in what_was_lost(table)
    bare = replace(table, networks=lines)
    assert "initial greedy soup gets 50.0% right" in what_was_lost(bare)
