"""Runs of the search of coefficients resume and replay from their journals to the same bits."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import deevo_ext as deevo
from deevo_ext.errors import DeevoError
from deevo_ext.fitness.metrics import Metric
from deevo_ext.runs import journal
from deevo_ext.runs.few_rounds import FewRounds
from deevo_ext.runs.folder import TENSORS, VIRTUAL
from deevo_ext.runs.old_images import Keep
from deevo_ext.runs.recipe_run import RECIPE_FILE, Budget
from deevo_ext.runs.recipe_state import RecipeState
from deevo_ext.runs.records import GenerationRecord, to_json
from support.journals import files, lines
from support.killed import run_killed
from support.rounds import TWO_STEPS, Normed, Plain, problem


@pytest.mark.parametrize("few", [False, True])
@pytest.mark.parametrize("factory", [Plain, Normed])
def test_every_prefix_of_the_journal_resumes_to_the_same_bits(
    tmp_path: Path, factory: Callable[[], nn.Module], few: bool
) -> None:
    """Few: the second step starts, for each fold, where the first one without it has led."""
    whole = tmp_path / "whole"
    values = TWO_STEPS[factory] if few else {}
    run = problem(factory, **values).run(whole, few=few)
    chosen = run.run()
    assert run.state.evolved and chosen.treatment == "classifier"
    assert (run.state.folds is not None) == few
    assert not few or all(m["accepted"] for m in run.history)
    assert run.forward_passes == sum(line.get("forward_passes", 0) for line in lines(whole))
    parts = (whole / journal.FILE_NAME).read_bytes().splitlines(keepends=True)
    assert len(parts) == 5  # header, initial candidates, two rounds, end
    for kept in range(len(parts) + 1):
        folder = tmp_path / f"cut{kept}"
        folder.mkdir()
        if kept > 2:
            shutil.copytree(whole / VIRTUAL, folder / VIRTUAL)
        if kept == len(parts):
            shutil.copy(whole / TENSORS, folder)
        torn = parts[kept][: len(parts[kept]) // 2] if kept < len(parts) else b""
        (folder / journal.FILE_NAME).write_bytes(b"".join(parts[:kept]) + torn)
        again = problem(factory, **values).run(folder, few=few)
        assert again.run().digest == chosen.digest
        assert torch.equal(again.recipe, run.recipe) and again.forward_passes == run.forward_passes
        assert lines(folder) == lines(whole)
        assert files(folder) == files(whole)
        for one, other in zip(again.history, run.history, strict=True):
            del one["seconds"], other["seconds"]
            assert json.dumps(one) == json.dumps(other)  # NaN differs from itself
            other["seconds"] = 0.0


@pytest.mark.parametrize("seed, rounds", [(4, 5), (8, 5)])
def test_rounds_of_differences_resume_replay_and_merge_to_the_same_bits(
    tmp_path: Path, seed: int, rounds: int
) -> None:
    """Of seed 4 the refitted network is returned, of seed 8 the evolved one."""
    whole = tmp_path / "whole"
    run = problem(seed=seed).run(whole, budget=Budget(rounds))
    chosen = run.run()
    assert any(m["by_channel"] and m["accepted"] for m in run.history)
    assert run.changes is not None and run.changes.any() and chosen.generation
    made = deevo.merge(whole / RECIPE_FILE, tmp_path / "out.safetensors")
    assert made.as_recorded
    # Without its entry of channels, the recipe is what coordinates have found.
    path = whole / RECIPE_FILE
    text = path.read_text()
    said = [line for line in text.splitlines() if line.startswith("channels:")]
    assert len(said) == 1 and "recipe_channels.safetensors" in said[0]
    path.write_text(text.replace(said[0] + "\n", ""))
    assert deevo.merge(path, tmp_path / "without.safetensors").as_recorded is False
    path.write_text(text)
    moves = whole / "recipe_channels.safetensors"
    data = moves.read_bytes()
    moves.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(DeevoError, match=r"recipe_channels\.safetensors"):
        deevo.merge(path, tmp_path / "damaged.safetensors")
    moves.write_bytes(data)
    replayed = deevo.replay(whole)
    assert replayed.candidate.digest == chosen.digest
    assert isinstance(replayed.state, RecipeState)
    assert torch.equal(replayed.state.begun_changes(), run.state.begun_changes())
    parts = (whole / journal.FILE_NAME).read_bytes().splitlines(keepends=True)
    for kept in range(rounds, len(parts)):
        folder = tmp_path / f"cut{kept}"
        folder.mkdir()
        shutil.copytree(whole / VIRTUAL, folder / VIRTUAL)
        (folder / journal.FILE_NAME).write_bytes(b"".join(parts[:kept]))
        again = problem(seed=seed).run(folder, budget=Budget(rounds))
        assert again.run().digest == chosen.digest
        assert lines(folder) == lines(whole) and files(folder) == files(whole)


def test_half_way_back_keeps_half_of_what_differences_added(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    one = problem(seed=8)
    run = one.run(folder, budget=Budget(5), keep=Keep(0.5, one.held_out))
    chosen = run.run()
    assert chosen.treatment == "kept" and run.changes is not None
    assert run.state.best_changes is not None
    assert torch.equal(2.0 * run.changes, run.state.best_changes)
    assert deevo.merge(folder / RECIPE_FILE, tmp_path / "out.safetensors").as_recorded
    assert deevo.replay(folder).candidate.digest == chosen.digest


KILLED = """
    import os, signal
    from pathlib import Path
    import deevo_ext.fitness.probes, deevo_ext.runs.journal
    from support.rounds import Problem
    calls, kind, name = 0, {kind}, {name!r}
    method = getattr(kind, name)
    def counted(*arguments):
        global calls
        calls += 1
        if calls == {after} and not {done}:
            os.kill(os.getpid(), signal.SIGKILL)
        result = method(*arguments)
        if calls == {after}:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    setattr(kind, name, counted)
    Problem(seed=1, generations=4).run(Path({folder!r})).run()
"""


def test_kill_minus_nine_loses_at_most_the_round_in_flight(tmp_path: Path) -> None:
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    chosen = problem().run(whole).run()
    probe = ("deevo_ext.fitness.probes.ProbeForward", "__call__", False)
    # A round calls it 4 times: at the present network, twice for probes, to correct the model.
    moments = [
        (*probe, 3, 2),  # within round 1: header and initial candidates are there
        ("deevo_ext.runs.journal.Journal", "append", True, 1, 3),  # round 1 was just recorded
        (*probe, 4, 3),  # within round 2
        ("deevo_ext.runs.recipe_run.RecipeRun", "write_more", False, 1, 5),  # at the end
    ]
    for kind, name, done, count, recorded in moments:
        program = KILLED.format(kind=kind, name=name, done=done, after=count, folder=str(folder))
        run_killed(program, tmp_path)
        assert len(lines(folder)) == recorded
    again = problem().run(folder)
    assert again.run().digest == chosen.digest
    assert lines(folder) == lines(whole) and files(folder) == files(whole)
    assert again.evaluators()[0].forward_passes == 0  # of a finished run nothing is done again


# What is refused


def rewritten(path: Path, number: int, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes line `number` and gives all lines the checks that they ask for then."""
    made, check = [], ""
    for i, line in enumerate(path.read_text().splitlines(), start=1):
        values = json.loads(line)
        values.pop("check")
        if i == number:
            change(values)
        text = json.dumps(values)
        check = hashlib.sha256((check + text).encode()).hexdigest()[:32]
        made.append(f'{text[:-1]}, "check": "{check}"}}\n')
    path.write_text("".join(made))


def other_step(line: dict[str, Any]) -> None:
    step = np.frombuffer(base64.b64decode(line["step"]), dtype=np.float32).copy()
    step[0] += 1e-3
    line["step"] = base64.b64encode(step.tobytes()).decode()


def as_generation(line: dict[str, Any]) -> None:
    line.clear()
    line |= to_json(
        GenerationRecord(generation=1, batch=0, trials=[0.5], forward_passes=9, seconds=0.5)
    )


def test_a_damaged_or_edited_round_is_refused_by_its_number(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    problem().run(folder).run()
    path = folder / journal.FILE_NAME
    text = path.read_text()
    assert json.loads(text.splitlines()[2])["accepted"]
    path.write_text(text.replace('"radius": "0x1.0', '"radius": "0x1.1', 1))
    for again in (lambda: problem().run(folder).run(), lambda: deevo.replay(folder)):
        with pytest.raises(DeevoError, match="line 3 is damaged"):
            again()
    path.write_text(text)
    changes: list[tuple[Callable[[dict[str, Any]], None], str]] = [
        (other_step, "line 3: the recipe has SHA-256"),
        (lambda line: line.update(radius=(0.5).hex()), "line 3 is damaged .*its radius is 0.5"),
        (lambda line: line.update(step="AAAA"), "line 3 is damaged"),
        (lambda line: line.update(round=2), "line 3 is damaged .*round 2 has no place"),
        (lambda line: line.update(best=99), "line 3 is damaged .*no proposal 99"),
        (lambda line: line.update(forward_passes=-1), "line 3 is damaged .*costs of -1"),
        (lambda line: line.pop("score"), "line 3 is damaged .*where it is taken"),
        (as_generation, "line 3 is damaged .*generation 1 has no place"),
    ]
    for change, message in changes:
        path.write_text(text)
        rewritten(path, 3, change)
        with pytest.raises(DeevoError, match=message):
            deevo.replay(folder)
    path.write_text(text)
    rewritten(path, 1, lambda line: line["fitness"]["blocks"].pop())
    with pytest.raises(DeevoError, match="line 1: the blocks are not those of this network"):
        deevo.replay(folder)


def test_runs_of_another_configuration_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    problem().run(folder).run()
    kept = (folder / journal.FILE_NAME).read_bytes()
    others = {
        "seed|fitness.sha256|checkpoints": lambda: problem(seed=2).run(folder),
        "fitness.blocks": lambda: problem(unit="tensor").run(folder),
        "fitness.metric": lambda: problem(metric=Metric("top1")).run(folder),
        "generations": lambda: problem(generations=11).run(folder),
    }
    for named, make in others.items():
        with pytest.raises(DeevoError, match=f"another configuration: .*({named})"):
            make().run()
    assert (folder / journal.FILE_NAME).read_bytes() == kept
    used = problem().run()
    used.run()
    with pytest.raises(DeevoError, match="used already"):
        used.run()


def test_a_journal_without_the_folds_is_read_but_not_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = FewRounds.run
    with monkeypatch.context() as before:
        before.setattr(FewRounds, "run", lambda *a: replace(run(*a), folds=None))
        chosen = problem().run(tmp_path, few=True, budget=Budget(1)).run()
    assert "folds" not in lines(tmp_path)[2] and lines(tmp_path)[2]["accepted"]
    assert deevo.replay(tmp_path).candidate.digest == chosen.digest
    with pytest.raises(DeevoError, match="did not keep what a step comes to without each fold"):
        problem().run(tmp_path, few=True).run()
