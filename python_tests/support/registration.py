"""Arguments of the four operators of a generation, and a generation of plain calls of them."""

from __future__ import annotations

import math
from typing import Any

import torch

from deevo_ext.search.presets import configure
from support.operators import OPERATORS, SHADE, Evolution, evolution
from support.weights import Weights, random_weights

NAMES = ("plan", "trials", "tell", "commit")


def run_and_weights() -> tuple[Evolution, Weights]:
    """A planned run of five members, and weights that its plan fits."""
    c = configure("paper", strategies=SHADE, archive_size=3)
    run = evolution(c, torch.tensor([3.0, 1.0, 2.0, 5.0, 4.0]))
    run.state[c.offsets().archive_count] = 3
    run.plan()
    w = random_weights(5, 40, archive_rows=3)
    w.choices, w.coefficients = run.choices.clone(), run.coefficients.clone()
    return run, w


def arguments(name: str) -> tuple[Any, ...]:
    """An operator's arguments, made anew at every call."""
    run, w = run_and_weights()
    return {
        "plan": run.plan_arguments(),
        "trials": w.trials_arguments(torch.tensor([4, 0, 4]), torch.zeros(3, 40)),
        "tell": run.tell_arguments(torch.tensor([1.0, 2.0, 1.0, 1.0, 9.0], dtype=torch.float64)),
        "commit": w.commit_arguments(
            torch.tensor([1, 0, 1, 1, 0], dtype=torch.uint8),
            torch.tensor([2, -1, -1, 0, -1], dtype=torch.int32),
        ),
    }[name]


def operator(name: str) -> Any:
    """The overload that torch.library.opcheck takes."""
    return getattr(OPERATORS, name).default


ARGUMENTS = {name: [a.name for a in operator(name)._schema.arguments] for name in NAMES}


def call(name: str, tensors: dict[str, torch.Tensor], **values: Any) -> None:
    """An operator on the tensors that have its arguments' names, and values for the rest."""
    named = {**tensors, **values}
    getattr(OPERATORS, name)(*(named[argument] for argument in ARGUMENTS[name]))


def generation(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """plan, trials, a fitness, tell, commit; of torch's own there is one kernel, as each is slow to
    compile.
    """
    place = {"nonneg_start": 30, "first_weight": 0, "lower": -math.inf, "upper": 4.0}
    call("plan", tensors, seed=1)
    call("trials", tensors, seed=1, **place)
    fitness = (tensors["out"] * 2.0).abs().double().amax(1)  # exact in any order of the reduction
    call("tell", tensors, seed=1, trial_fitness=fitness)
    call("commit", tensors, seed=1, **place)
    return fitness


def inputs() -> dict[str, torch.Tensor]:
    """The tensors of `generation`."""
    c = configure("paper", strategies=SHADE, archive_size=3)
    source = torch.Generator().manual_seed(0)
    population = torch.randn(5, 40, generator=source).abs() + 0.1
    run = evolution(c, (population * 2.0).abs().double().amax(1))
    return run.tensors() | {
        "population": population,
        "archive": torch.zeros(3, 40),
        "genes": torch.empty(0, dtype=torch.int64),
        "members": torch.arange(5),
        "out": torch.zeros(5, 40),
    }
