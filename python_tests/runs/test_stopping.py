"""Runs that end early, by `stop` or by patience, and runs that go on with more to do."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import deevo_ext as deevo
from deevo_ext.errors import DeevoError
from deevo_ext.runs import journal
from deevo_ext.runs.recipe_run import Budget
from deevo_ext.runs.run import Evolution
from deevo_ext.runs.validation import Validation
from support.evolution import images, population, save_members, sphere
from support.journals import lines
from support.networks import Net
from support.rounds import Problem

GENERATIONS = 10


def evolution(
    folder: Path | None, generations: int = GENERATIONS, every: int = 4, **options: Any
) -> Evolution:
    """A run of tiny networks towards a point, chosen by their loss on images."""
    members = population()
    evaluator = deevo.Evaluator(Net(), members, engine="eager")
    validation = Validation(evaluator, images(60, 2), deevo.Metric("loss"), every)
    de = deevo.DifferentialEvolution(members, generations=generations, seed=5)
    given: dict[str, Any] = {"validation": validation, "progress": False, **options}
    return Evolution(de, sphere, run_dir=folder, **given)


def rounds(folder: Path | None, generations: int = GENERATIONS, **options: Any) -> deevo.Evolution:
    """A run of rounds, a fifth of as many as there would be generations."""
    budget = Budget(generations // 5)
    return Problem(seed=1, generations=4).run(folder, budget=budget, **options)  # type: ignore[return-value]


@pytest.mark.parametrize("make", [evolution, rounds])
@pytest.mark.parametrize("by_callback", [False, True])
def test_a_stopped_run_goes_on_to_the_bits_of_a_whole_one(
    make: Callable[..., Evolution], by_callback: bool, tmp_path: Path
) -> None:
    whole = make(tmp_path / "whole")
    expected = whole.run()
    assert not whole.stopped
    folder, at = tmp_path / "stopped", len(whole.history) // 2

    def stop(_: dict[str, float]) -> bool:
        if len(run.history) >= at and not by_callback:
            run.stop()
        return by_callback and len(run.history) >= at

    run = make(folder, callbacks=[stop])
    chosen = run.run()
    assert run.stopped and len(run.history) == at
    assert lines(folder) == lines(whole.run_dir)[: at + 2]  # type: ignore[arg-type]
    evolved = folder / "evolved.safetensors"
    assert evolved.exists() and not deevo.replay(folder).finished
    initial = min(one.score for one in run.state.initial.values())
    assert chosen.score <= initial  # also between two validations
    run = make(folder, callbacks=[stop])  # which says so of the past, too
    run.run()
    assert len(run.history) == at + 1
    run = make(folder)
    assert run.run().digest == expected.digest and not run.stopped
    assert lines(folder) == lines(whole.run_dir)  # type: ignore[arg-type]
    assert evolved.read_bytes() == (tmp_path / "whole" / "evolved.safetensors").read_bytes()


@pytest.mark.parametrize("said", [np.bool_(True), np.bool_(False), 1, "yes"])
def test_a_callback_stops_by_numpys_true_and_by_no_other_value(said: object) -> None:
    run = evolution(None, generations=3, callbacks=[lambda _: said])
    run.run()
    assert run.stopped == (isinstance(said, np.bool_) and bool(said))


def test_a_run_of_a_call_stops_and_has_a_table(tmp_path: Path) -> None:
    states = [population(6).state_dict(i) for i in range(6)]
    for i, state in enumerate(states):
        torch.save(state, tmp_path / f"{i}.pth")
    result = deevo.evolve(
        Net(),
        tmp_path,
        images(80, 1),
        images(60, 2),
        images(50, 3),
        search="weights",
        engine="eager",
        progress=False,
        basin="ignore",
        callbacks=[lambda metrics: metrics["generation"] == 2],
    )
    assert result.run.stopped and len(result.history) == 2
    assert result.comparison is not None and len(result.comparison.networks) > 5


def test_a_schedule_that_grows_is_that_of_an_optimizer_of_this_length(tmp_path: Path) -> None:
    """Half a run, then an optimizer that was made with more generations and loaded its state."""

    def advance(de: deevo.DifferentialEvolution, until: int) -> None:
        while de.generation < until or not de.scored:
            de.ask()
            rows = de.pending.rows(range(8))  # type: ignore[union-attr]
            de.tell([sphere(row) for row in rows])

    options: dict[str, Any] = {"seed": 5, "population_min": 4}
    short = deevo.DifferentialEvolution(population(), generations=6, **options)
    advance(short, 6)
    state = short.state_dict()
    state["configuration"]["generations"] = 15
    long = deevo.DifferentialEvolution(population(), generations=15, **options)
    long.load_state_dict(state)
    advance(long, 15)
    folder = tmp_path / "run"
    for generations in (6, 15, 15):
        de = deevo.DifferentialEvolution(population(), generations=generations, **options)
        Evolution(de, sphere, run_dir=folder, progress=False).run()
        assert de.generation == generations
        assert lines(folder)[-1].keys() == {"returned"} and len(lines(folder)) == generations + 3
    assert torch.equal(de.population.rows, long.population.rows)
    assert torch.equal(de.fitness, long.fitness) and de.living.numel() == 4
    again = deevo.replay(folder)
    assert again.finished and torch.equal(again.state.population.rows, long.population.rows)
    short.reschedule(15)
    advance(short, 15)
    assert torch.equal(short.population.rows, long.population.rows)
    straight = deevo.DifferentialEvolution(population(), generations=15, **options)
    advance(straight, 15)
    assert not torch.equal(straight.population.rows, long.population.rows)


def test_a_run_grows_twice_and_after_an_interruption(tmp_path: Path) -> None:
    def kill(metrics: dict[str, float]) -> None:
        if metrics["generation"] == 7:
            raise KeyboardInterrupt

    chosen = {}
    for name in ("cut", "whole"):
        folder = tmp_path / name
        evolution(folder, 5).run()
        if name == "cut":
            with pytest.raises(KeyboardInterrupt):
                evolution(folder, 9, callbacks=[kill]).run()
        evolution(folder, 9).run()
        chosen[name] = evolution(folder, 12).run().digest
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")
    assert chosen["cut"] == chosen["whole"] == deevo.replay(tmp_path / "cut").candidate.digest
    assert [line.get("generations") for line in lines(tmp_path / "cut")[1:-1]] == [
        {6: 9, 10: 12}.get(generation) for generation in range(13)
    ]
    kept = (tmp_path / "cut" / journal.FILE_NAME).read_bytes()
    with pytest.raises(DeevoError, match=r"generations is 9, but .*of a run of 12; expected at"):
        evolution(tmp_path / "cut", 9).run()
    assert (tmp_path / "cut" / journal.FILE_NAME).read_bytes() == kept


def test_more_rounds_are_those_of_a_longer_run(tmp_path: Path) -> None:
    long = rounds(tmp_path / "long", 15).run()
    rounds(tmp_path / "grown", 5).run()
    assert rounds(tmp_path / "grown", 15).run().digest == long.digest
    assert lines(tmp_path / "grown")[1:] == lines(tmp_path / "long")[1:]
    kept = (tmp_path / "grown" / journal.FILE_NAME).read_bytes()
    assert rounds(tmp_path / "grown", 10).run().digest == long.digest  # what there is stays
    assert (tmp_path / "grown" / journal.FILE_NAME).read_bytes() == kept


def test_patience_ends_a_run_after_so_many_validations_without_a_better_network(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "run"
    run = evolution(folder, 60, every=2, patience=3)
    run.run()
    scores = [
        min(metrics[f"validation/{kind}"] for kind in ("member", "mean", "soup"))
        for metrics in run.history
        if not math.isnan(metrics["validation/soup"])
    ]
    waited = [i - scores.index(min(scores[: i + 1])) for i in range(len(scores))]
    assert len(run.history) < 60 and waited[-1] == 3 and max(waited[:-1]) < 3
    assert deevo.replay(folder).finished and not run.stopped
    ended = lines(folder)
    evolution(folder, 60, every=2, patience=3).run()
    assert lines(folder) == ended
    on = evolution(folder, 60, every=2)
    on.run()
    assert len(on.history) == 60 and lines(folder)[: len(ended) - 1] == ended[:-1]


def test_evolve_has_patience_with_a_search_of_weights(tmp_path: Path) -> None:
    checkpoints = save_members(tmp_path / "members", 6)
    result = deevo.evolve(
        Net(),
        checkpoints,
        images(150, 1),
        images(90, 2),
        search="weights",
        generations=200,
        validate_every=1,
        patience=2,
        images_per_batch=60,
        engine="eager",
        progress=False,
    )
    scores = [
        min(metrics[f"validation/{kind}"] for kind in ("member", "mean", "soup"))
        for metrics in result.history
    ]
    assert len(scores) < 200 and scores.index(min(scores)) == len(scores) - 1 - 2
    with pytest.raises(DeevoError, match="patience belongs to search='weights'"):
        deevo.evolve(Net(), checkpoints, images(150, 1), patience=2)


def test_what_cannot_be_waited_for_or_rescheduled_is_refused() -> None:
    with pytest.raises(DeevoError, match="patience is 0; expected at least 1"):
        evolution(None, patience=0)
    with pytest.raises(DeevoError, match="patience is 2, but there is no validation"):
        evolution(None, validation=None, patience=2)
    de = deevo.DifferentialEvolution(population(), generations=4)
    for _ in range(3):
        de.ask()
        de.tell([1.0] * 8)
    with pytest.raises(DeevoError, match="generations is 1, but 2 are done"):
        de.reschedule(1)
    with pytest.raises(DeevoError, match="generations is 2147483647"):
        de.reschedule(2**31 - 1)
    waiting = de.ask()
    de.reschedule(8)
    with pytest.raises(DeevoError, match="are over"):
        waiting.rows([0])
