"""Runs of the search of coefficients: journal, kill and resume, budgets, recipe.yaml, replay."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import deevo_ext as deevo
from deevo_ext.distributed.slices import Slices
from deevo_ext.errors import DeevoError
from deevo_ext.fitness import probing
from deevo_ext.fitness import refit as refit_module
from deevo_ext.fitness.metrics import Metric
from deevo_ext.fitness.refit import FOLDS
from deevo_ext.fitness.sampling import fold_numbers
from deevo_ext.population.recipes import uniform
from deevo_ext.runs import journal, kept_probes, recipe_run
from deevo_ext.runs.few_rounds import FewRounds
from deevo_ext.runs.folder import TENSORS, VIRTUAL
from deevo_ext.runs.kept_probes import KeptProbes
from deevo_ext.runs.old_images import Keep
from deevo_ext.runs.recipe_run import RECIPE_FILE, Budget
from deevo_ext.runs.recipe_state import RecipeState
from deevo_ext.runs.records import (
    GenerationRecord,
    to_json,
)
from support.killed import run_killed
from support.rounds import Normed, Plain, Problem, copies, labelled, off_centre, teacher

GAINS = {"seed": 1, "generations": 4}  # of a problem where round 1 takes a step
TWO_STEPS: dict[str, Any] = {"seed": 2, "images": 300, "spread": 0.6}  # with few labels
NORMED: dict[str, Any] = {**GAINS, "seed": 3, "spread": 0.3, "batchnorm": "recalibrate"}


def problem(factory: Callable[[], nn.Module] = Plain, **values: Any) -> Problem:
    return Problem(factory, **{**(NORMED if factory is Normed else GAINS), **values})


def lines(run_dir: Path) -> list[dict[str, Any]]:
    """A journal's lines without what a clock decides."""
    text = (run_dir / journal.FILE_NAME).read_text().splitlines()
    return [
        {k: v for k, v in json.loads(line).items() if k not in ("seconds", "check")}
        for line in text
    ]


def files(run_dir: Path) -> dict[str, bytes]:
    """What a run leaves beside its journal and its metrics, which hold times."""
    paths = [path for path in run_dir.rglob("*") if path.is_file()]
    names = {path.relative_to(run_dir).as_posix(): path.read_bytes() for path in paths}
    return {n: data for n, data in names.items() if n not in (journal.FILE_NAME, "metrics.csv")}


# Journal, resumption, replay


@pytest.mark.parametrize("few", [False, True])
@pytest.mark.parametrize("factory", [Plain, Normed])
def test_every_prefix_of_the_journal_resumes_to_the_same_bits(
    tmp_path: Path, factory: Callable[[], nn.Module], few: bool
) -> None:
    """Few: the second step starts, for each fold, where the first one without it has led."""
    whole = tmp_path / "whole"
    values = TWO_STEPS if few else {}
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


# Probes of long rounds


@pytest.mark.parametrize("elsewhere", [False, True])
def test_long_rounds_go_on_without_the_blocks_that_were_probed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, elsewhere: bool
) -> None:
    """On another device all are probed anew: its last bits are others."""
    monkeypatch.setattr(kept_probes, "LONG_SECONDS", -1.0)
    monkeypatch.setattr(probing, "_TOGETHER", 1)  # a block at a time
    whole, folder = tmp_path / "whole", tmp_path / "run"
    chosen = problem().run(whole).run()
    assert not (whole / kept_probes.FOLDER).exists()
    run, computed = problem().run(folder), []
    keep = KeptProbes.__call__

    def interrupted(
        kept: KeptProbes, blocks: range, slices: Slices, compute: Callable[[], Tensor]
    ) -> Tensor:
        if 2 in blocks:
            raise KeyboardInterrupt
        return keep(kept, blocks, slices, compute)

    def counted(
        kept: KeptProbes, blocks: range, slices: Slices, compute: Callable[[], Tensor]
    ) -> Tensor:
        def noted() -> Tensor:
            computed.extend(blocks)
            return compute()

        return keep(kept, blocks, slices, noted)

    monkeypatch.setattr(KeptProbes, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run.run()
    assert len(list((folder / kept_probes.FOLDER).iterdir())) == 2
    monkeypatch.setattr(KeptProbes, "__call__", counted)
    if elsewhere:
        monkeypatch.setattr(recipe_run, "device_name", lambda _: "another")
    again = problem().run(folder)
    assert again.run().digest == chosen.digest
    first = [0, 1, 2] if elsewhere else [2]
    assert computed == [*first, 0, 1, 2]  # of round 1 what was not kept, then round 2
    saved = lines(whole)[2]["forward_passes"] - lines(folder)[2]["forward_passes"]
    assert saved == 200 * (3 - len(first)) * 3  # images of the model, probes of two blocks
    assert files(folder) == files(whole)


def test_only_whole_files_of_the_same_round_of_the_same_run_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_probes, "LONG_SECONDS", -1.0)
    first, second = torch.ones(3, 5, 4), torch.full((3, 5, 4), 2.0)

    def kept(check: str, some: range, new: Tensor) -> Tensor:
        return KeptProbes(tmp_path, check, 7)(some, Slices((0, 5)), lambda: new)

    assert torch.equal(kept("ab", range(1, 2), first), first)
    [path] = (tmp_path / kept_probes.FOLDER).iterdir()
    assert torch.equal(kept("ab", range(1, 2), second), first)
    assert torch.equal(kept("ab", range(2, 3), second), second)  # another block
    data = path.read_bytes()
    for broken in (data[:-1], data[:20], b"", b"\xff" * 100):
        path.write_bytes(broken)
        assert torch.equal(kept("ab", range(1, 2), second), second)
        path.write_bytes(data)
    assert torch.equal(kept("ac", range(1, 2), second), second)
    assert torch.equal(kept("ac", range(1, 2), first), second)
    kept_probes.remove_kept(tmp_path)
    kept_probes.remove_kept(tmp_path)
    monkeypatch.setattr(kept_probes, "LONG_SECONDS", 600.0)
    assert torch.equal(kept("ab", range(1, 2), first), first)
    assert list(tmp_path.iterdir()) == []  # a short round keeps nothing


# When a run ends


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
    one = problem(factory, **TWO_STEPS)
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


def test_re_estimated_statistics_are_judged_by_folds_too() -> None:
    one = problem(Normed, **TWO_STEPS, batchnorm="evolve")
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


def test_a_metric_without_a_finite_score_is_named_before_any_round() -> None:
    def broken(logits: Tensor, labels: Tensor) -> Tensor:
        return torch.full_like(labels, torch.nan, dtype=torch.float32)

    one = problem(metric=Metric.of(broken))
    with pytest.raises(DeevoError, match=r"finite score by metric .*broken: mend the metric"):
        one.run().run()
