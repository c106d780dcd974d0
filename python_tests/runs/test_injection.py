"""Soups as members: what is appended, what it costs, and that runs with them replay and resume."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import deevo_ext as deevo
from deevo_ext.runs import journal
from support.evolution import images, population, short_run
from support.networks import Net


def run(checkpoints: Path, run_dir: Path | None, **options: object) -> deevo.Result:
    few = {"generations": 6, "validate_every": 3, "inject_soups": True}
    return short_run(checkpoints, run_dir, **(few | options))


def header(run_dir: Path) -> dict:
    return json.loads((run_dir / journal.FILE_NAME).read_text().splitlines()[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_average_is_a_member(dtype: torch.dtype) -> None:
    whole = population(6, dtype=dtype, spare=1)
    before = whole.rows.clone()
    whole.append_average("soup", [4, 1])
    assert (whole.size, whole.initial_size, whole.names[-1]) == (7, 6, "soup")
    assert torch.equal(whole.rows[:6], before)
    mean = (before[4].double() + before[1].double()) / 2
    assert torch.equal(whole.rows[6], mean.float().to(dtype))
    assert whole.state_dict(6).keys() == whole.state_dict(0).keys()


def test_what_cannot_be_appended_is_refused() -> None:
    whole = population(6, spare=1)
    with pytest.raises(deevo.DeevoError, match="member0"):
        whole.append_average("member0", [0, 1])
    whole.append_average("soup", [0, 1])
    with pytest.raises(deevo.DeevoError, match="spare="):
        whole.append_average("another", [0, 1])
    evolved = population(6, spare=1)
    de = deevo.DifferentialEvolution(evolved, generations=2)
    for value in (1.0, 0.5):
        de.ask()
        de.tell([value] * 6)
    with pytest.raises(deevo.DeevoError, match="evolved"):
        evolved.append_average("soup", [0, 1])


@pytest.mark.parametrize("batchnorm", ["evolve", "inherit"])
def test_soups_join_and_replay_finds_them(
    checkpoints: Path, tmp_path: Path, batchnorm: str
) -> None:
    folder = tmp_path / "run"
    result = run(checkpoints, folder, batchnorm=batchnorm)
    recorded = header(folder)["population"]["averages"]
    assert recorded[0] == {"name": "uniform_soup", "members": list(range(8))}
    greedy = result.run.state.initial["soup"].members
    expected = [list(greedy)] if 1 < len(greedy) < 8 else []
    assert [each["members"] for each in recorded[1:]] == expected
    assert result.run.de.population.size == 8 + len(recorded)

    replayed = deevo.replay(folder)
    assert replayed.finished
    assert torch.equal(replayed.candidate.row, result.candidate.row)
    assert torch.equal(replayed.state.de.population.rows, result.run.de.population.rows)
    written = load_file(folder / "evolved.safetensors")
    assert all(torch.equal(written[name], tensor) for name, tensor in result.state_dict.items())


def test_initial_candidates_are_those_of_the_files(checkpoints: Path) -> None:
    plain, injected = run(checkpoints, None, inject_soups=False), run(checkpoints, None)
    for kind, candidate in plain.run.state.initial.items():
        assert injected.run.state.initial[kind].members == candidate.members
        assert torch.equal(injected.run.state.initial[kind].row, candidate.row)
    names = [row.name for row in injected.comparison.networks]
    assert names == [row.name for row in plain.comparison.networks]
    # What the initial candidates cost is counted, once.
    assert injected.run.initial_forward_passes == plain.run.initial_forward_passes
    for ours, theirs in zip(
        injected.comparison.networks[:4], plain.comparison.networks[:4], strict=True
    ):
        assert (ours.loss, ours.top1, ours.inference) == (
            theirs.loss,
            theirs.top1,
            theirs.inference,
        )


def test_a_cut_run_goes_on_with_the_same_members(checkpoints: Path, tmp_path: Path) -> None:
    options = {"generations": 4, "validate_every": 2, "engine": "auto"}
    whole = run(checkpoints, tmp_path / "whole", **options)
    lines = (tmp_path / "whole" / journal.FILE_NAME).read_text().splitlines(keepends=True)
    for kept in (1, 2, 4):
        cut = tmp_path / f"cut{kept}"
        shutil.copytree(tmp_path / "whole", cut)
        (cut / "evolved.safetensors").unlink()
        (cut / journal.FILE_NAME).write_text("".join(lines[:kept]))
        resumed = run(checkpoints, cut, **options)
        assert torch.equal(resumed.candidate.row, whole.candidate.row)
        assert resumed.run.forward_passes == whole.run.forward_passes


def test_evolution_begins_no_worse_than_the_soups(checkpoints: Path) -> None:
    """On one fixed batch, of fitness and validation alike, the best member only gets better."""
    same = images(120, 2)
    result = deevo.evolve(
        Net(),
        checkpoints,
        same,
        same,
        search="weights",
        overlap="ignore",
        generations=5,
        images_per_batch=None,
        micro_batch=32,
        validate_every=1,
        progress=False,
        engine="eager",
        inject_soups=True,
    )
    initial = result.run.state.initial
    assert result.candidate.score <= min(initial["soup"].score, initial["mean"].score)


@pytest.mark.parametrize(("preset", "members"), [("sa-shade-tri-ensin", 9), ("paper", 8)])
def test_the_authors_method_has_no_soups_unless_asked(
    checkpoints: Path, preset: str, members: int
) -> None:
    result = run(checkpoints, None, inject_soups=None, preset=preset, generations=1)
    greedy = 1 < len(result.run.state.initial["soup"].members) < 8
    assert result.run.de.population.size == members + (greedy and preset != "paper")
