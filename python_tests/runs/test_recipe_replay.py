"""A search of coefficients, its replay and the merge of its recipe give the same bits."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

import deevo_ext as deevo
from deevo_ext.runs import journal
from deevo_ext.runs.recipe_state import RecipeState
from deevo_ext.runs.replay import write_candidate, write_trials
from deevo_ext.runs.state import Candidate
from support.networks import Net
from support.recipe_runs import (
    PlainNet,
    assert_all_give_the_same_bits,
    recipe_run,
    save_checkpoints,
)

RETURNED = {
    "recalibrate": (
        "evolved recipe",
        "evolved and refitted",
        "classifier refitted",
        "initial greedy soup, averaged statistics",
    ),
    "evolve": (
        "evolved, statistics re-estimated",
        "evolved and refitted",
        "initial weight average",
    ),
    "plain": ("evolved recipe", "evolved and refitted"),
}
NETWORKS: dict[str, type[nn.Module]] = {"recalibrate": Net, "evolve": Net, "plain": PlainNet}


def cut(run_dir: Path, folder: Path, lines: int) -> Path:
    """A copy of a run folder whose journal was cut after so many lines."""
    shutil.copytree(run_dir, folder)
    text = (run_dir / journal.FILE_NAME).read_bytes().splitlines(keepends=True)
    (folder / journal.FILE_NAME).write_bytes(b"".join(text[:lines]))
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("policy", list(RETURNED))
def test_run_replay_and_merge_give_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str, dtype: torch.dtype
) -> None:
    """Whatever is returned: the end of one run is repeated with each candidate as the best."""
    factory = NETWORKS[policy]
    checkpoints = save_checkpoints(tmp_path / "members", factory)
    batchnorm = "recalibrate" if policy == "recalibrate" else "evolve"

    def start(folder: Path) -> Candidate:
        count = 2400 if policy == "plain" else 300  # so that a step is taken
        run = recipe_run(
            checkpoints, folder, factory, dtype=dtype, batchnorm=batchnorm, count=count
        )
        return run.run()

    start(tmp_path / "run")
    whole = len((tmp_path / "run" / journal.FILE_NAME).read_bytes().splitlines())
    for i, name in enumerate(RETURNED[policy]):

        def chosen(state: RecipeState, name: str = name) -> Candidate:
            every = [*state.initial.values(), *state.evolved.values(), *state.treated]
            return next(one for one in every if one.name == name)

        folder = cut(tmp_path / "run", tmp_path / f"run{i}", whole - 1)
        monkeypatch.setattr(RecipeState, "chosen", chosen)
        returned = start(folder)
        monkeypatch.undo()
        assert returned.name == name
        assert_all_give_the_same_bits(folder, returned)
        model = factory()
        model.load_state_dict(torch.load(folder / "evolved.pth", weights_only=True))


@pytest.mark.parametrize("batchnorm", ["evolve", "recalibrate"])
def test_an_unfinished_run_gives_its_best_network_so_far(tmp_path: Path, batchnorm: str) -> None:
    checkpoints = save_checkpoints(tmp_path / "members")
    run = recipe_run(checkpoints, tmp_path / "run", batchnorm=batchnorm)
    run.run()
    assert run.history[0]["accepted"]
    # Header, initial candidates, a round; and without the round.
    after_one = deevo.replay(cut(tmp_path / "run", tmp_path / "one", 3))
    shorter = recipe_run(checkpoints, None, batchnorm=batchnorm, rounds=1)
    shorter.run()
    assert not after_one.finished and len(after_one.rounds) == 1
    assert after_one.candidate.name == "evolved recipe"
    assert torch.equal(after_one.candidate.row, shorter.state.evolved["recipe"].row)
    before = deevo.replay(cut(tmp_path / "run", tmp_path / "none", 2))
    best = min(run.state.initial.values(), key=lambda one: one.score)
    assert before.rounds == [] and torch.equal(before.candidate.row, best.row)
    if batchnorm == "recalibrate":
        with pytest.raises(deevo.DeevoError, match="unfinished"):
            write_candidate(after_one, tmp_path / "out.safetensors")
    else:
        write_candidate(after_one, tmp_path / "out.safetensors")
    with pytest.raises(deevo.DeevoError, match="holds no generation yet"):
        deevo.replay(cut(tmp_path / "run", tmp_path / "empty", 1))
    with pytest.raises(deevo.DeevoError, match=r"virtual.*virtual/\*\.csv"):
        write_trials(after_one, tmp_path / "trials.csv")
    assert list((tmp_path / "run" / "virtual").glob("*.csv"))
    assert not (tmp_path / "trials.csv").exists()


def test_a_members_file_may_be_moved_while_a_run_goes_on(tmp_path: Path) -> None:
    checkpoints = save_checkpoints(tmp_path / "members")
    first, away = checkpoints / "m0.safetensors", tmp_path / "away"

    def moved(_: object) -> None:
        first.rename(away)

    run = recipe_run(checkpoints, tmp_path / "run", rounds=1, callbacks=(moved,))
    returned = run.run()
    away.rename(first)
    assert_all_give_the_same_bits(tmp_path / "run", returned)
