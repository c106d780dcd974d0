"""Runs of both searches that any number of ranks can do, and what may not depend on it."""

from __future__ import annotations

import errno
import json
import os
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from deevo_ext import DeevoError, evolve
from deevo_ext.distributed.joining import joined
from deevo_ext.distributed.ranks import ranks
from deevo_ext.distributed.scaling import Sizes
from deevo_ext.fitness.classification import ClassificationFitness
from deevo_ext.fitness.evaluator import Evaluator
from deevo_ext.fitness.racing import Racing
from deevo_ext.fitness.scoring import Scoring
from deevo_ext.population.population import Population
from deevo_ext.runs.base import Run
from deevo_ext.runs.recipe_run import RecipeRun
from deevo_ext.runs.run import Evolution
from deevo_ext.runs.validation import Validation
from deevo_ext.search.generation import Generation
from deevo_ext.search.optimizer import DifferentialEvolution
from support.evolution import images, population, sphere
from support.networks import Net
from support.recipe_runs import PlainNet, recipe_run

_VARYING = ("seconds", "check", "traffic")


def weights_run(
    run_dir: Path | None,
    *,
    generations: int = 4,
    batchnorm: str = "evolve",
    metric: str = "loss",
    during: Callable[[dict[str, float]], None] | None = None,
    **options: Any,
) -> Evolution:
    """A search of weights, not begun yet: 7 tiny networks on batches of 60 of 150 images."""
    members = population(7, batchnorm=batchnorm)
    fitness = images(150, 1)
    calibration = fitness.slice(0, 50) if batchnorm == "recalibrate" else None
    evaluator = Evaluator(Net(), members, micro_batch=16, calibration=calibration, engine="eager")
    scored = ClassificationFitness(
        evaluator,
        fitness,
        images_per_batch=60,
        generations_per_batch=2,
        metric=metric,
        **options,
    )
    de = DifferentialEvolution(members, generations=generations, seed=3)
    validation = Validation(evaluator, images(70, 2), scored.metric, every=3)
    return Evolution(
        de,
        scored,
        run_dir=run_dir,
        validation=validation,
        chunk=3,
        progress=False,
        callbacks=() if during is None else (during,),
    )


def function_run(run_dir: Path | None) -> Evolution:
    """A search by a function of one row."""
    members = population(6)
    de = DifferentialEvolution(members, generations=3, seed=1)
    return Evolution(de, sphere, run_dir=run_dir, chunk=2, progress=False)


def runs_of(folder: Path, checkpoints: Path, plain: Path) -> dict[str, Callable[[], Run]]:
    """All kinds of runs, by name, each with a folder of its own below one."""
    return {
        "weights": lambda: weights_run(folder / "weights"),
        "races": lambda: weights_run(folder / "races", racing=Racing(0.3, 0.2)),
        "statistics": lambda: weights_run(
            folder / "statistics", batchnorm="recalibrate", generations=2
        ),
        "function": lambda: function_run(folder / "function"),
        "few": lambda: recipe_run(checkpoints, folder / "few", count=150, by_folds=True, rounds=1),
        # Their probes share what lies before their blocks, in micro-batches and in groups.
        "rounds": lambda: recipe_run(
            plain,
            folder / "rounds",
            PlainNet,
            batchnorm="evolve",
            count=2100,
            rounds=1,
            engine="fused",
        ),
        "groups": lambda: recipe_run(
            checkpoints, folder / "groups", count=2300, rounds=1, engine="auto"
        ),
    }


def lines_of(folder: Path) -> list[dict[str, Any]]:
    """A journal's lines, without what differs from run to run."""
    lines = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in _VARYING} for line in lines]


def outcome_of(run: Run) -> dict[str, Any]:
    """Does a run; what it came to, on any rank."""
    chosen = run.run()
    weights = run.population.rows.view(torch.int32).sum(dtype=torch.int64)
    return {"record": chosen.record(), "population": int(weights), "passes": run.forward_passes}


def do(folder: Path, checkpoints: Path, plain: Path, *names: str) -> dict[str, Any]:
    """Does all kinds of runs, or some; their outcomes, and the bytes received for each."""
    found = {}
    with joined():
        for name, make in runs_of(folder, checkpoints, plain).items():
            if names and name not in names:
                continue
            before = ranks().traffic
            found[name] = outcome_of(make())
            found[name]["traffic"] = ranks().traffic - before
    return found


def twice() -> tuple[int, int, list[str]]:
    """The bytes received for each of two runs that follow each other, and what was warned of."""
    states = [population(2).state_dict(i) for i in range(2)]
    with joined(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        traffic = []
        for _ in range(2):
            Population.from_state_dicts(Net(), [*states, states[0]])
            run = weights_run(None)
            run.run()
            traffic.append(run.traffic)
    return (*traffic, [str(one.message) for one in caught])


def interrupted(folder: Path, checkpoints: Path, plain: Path, name: str, how: str) -> str:
    """Does a run that is interrupted; what the exception of this rank says.

    how: "raise" on rank 1, "kill" rank 1, or "full", the disk of rank 0 from its third line on.
    """
    run = runs_of(folder, checkpoints, plain)[name]()
    rank, calls = int(os.environ["RANK"]), 0

    def struck(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 3 and how == "raise":
            raise ZeroDivisionError("of rank 1")
        if calls == 3 and how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)

    if rank == 1 and isinstance(run, Evolution):
        advance = run.state.advance
        run.state.advance = lambda *some: (struck(), advance(*some))[1]  # type: ignore[method-assign]
    elif rank == 1 and isinstance(run, RecipeRun):
        calls = 2  # its first round
        begin = run._round
        run._round = lambda *some: (struck(), begin(*some))[1]  # type: ignore[method-assign]
    elif how == "full" and rank == 0:
        write, limit = os.pwrite, 3

        def full(file: int, data: bytes, at: int) -> int:
            nonlocal calls
            calls += 1
            if calls >= limit:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return write(file, data, at)

        os.pwrite = full
    try:
        run.run()
    except (ZeroDivisionError, DeevoError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def stopped(folder: Path) -> tuple[bool, int]:
    """Begins a run that rank 1 alone is asked to stop; whether it was, and after which generation.

    The folder is that of `runs_of`.
    """
    run = function_run(folder / "function")
    if os.environ["RANK"] == "1":
        run.stop()
    run.run()
    return run.stopped, run.de.generation


def traffic_of_a_generation() -> tuple[Sizes, int]:
    """A generation's sizes, and the bytes that this rank received for it."""
    members = population(7)
    evaluator = Evaluator(Net(), members, micro_batch=16, engine="eager")
    fitness = ClassificationFitness(evaluator, images(1500, 1))
    scoring = Scoring(DifferentialEvolution(members, generations=2, seed=3), fitness, 3)
    with joined():
        scoring.de.tell(scoring.parents(0))
        before = ranks().traffic
        scoring.trials(0)
        received = ranks().traffic - before
    return Sizes(members.dim, 0, 3, 7, 1500, 16, 3), received


def differing(how: str) -> str:
    """A run in which rank 1 differs; what the exception says.

    how: "images", from the beginning, or "members", whose bits change behind torch's back.
    """
    run = weights_run(None)
    if os.environ["RANK"] == "1":
        if how == "images":
            assert isinstance(run.fitness, ClassificationFitness)
            run.fitness.images = images(150, 9)
        else:
            settle = run.scoring.settle

            def changed(generation: Generation) -> None:
                settle(generation)
                if run.de.generation == 4:
                    run.population.rows.numpy()[5, 3] += 1.0

            run.scoring.settle = changed  # type: ignore[method-assign]
    try:
        run.run()
    except DeevoError as error:
        return str(error)
    return "nothing"


def given_a_folder_apart(folder: Path) -> str:
    """Evolves with a run folder on rank 0 alone; what the exception says."""
    first = os.environ["RANK"] == "0"
    try:
        evolve(Net(), folder, images(60, 1), run_dir=folder / "run" if first else None)
    except DeevoError as error:
        return str(error)
    return "nothing"


def told_of_threads(cores: int) -> list[str]:
    """The warnings of a rank that has one thread by OMP_NUM_THREADS, on so many cores."""
    os.environ["OMP_NUM_THREADS"] = "1"
    os.sched_getaffinity = lambda _: set(range(cores))  # type: ignore[assignment]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with joined():
            pass
    return [str(one.message) for one in caught]
