"""What a user's own fitness has to say, and what it has by default."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

import deevo_ext as deevo
from deevo_ext.fitness.base import as_fitness
from deevo_ext.fitness.racing import Racing
from deevo_ext.fitness.scoring import Scoring
from support.evolution import population, sphere

CENTRES = torch.linspace(0.2, 0.4, 96)


class Distances(deevo.Fitness):
    """The mean square distance to a number of centres, which stand for images."""

    def describe(self) -> dict[str, Any]:
        return {"centres": len(CENTRES)}

    def looks(self, batch: int) -> list[int]:
        return [48, 96] if self.racing else [96]

    def part(
        self, rows: torch.Tensor, batch: int, look: int, statistics: torch.Tensor | None
    ) -> torch.Tensor:
        assert statistics is None and batch == 0
        ends = [0, *self.looks(batch)]
        centres = CENTRES[ends[look] : ends[look + 1]]
        return (rows[:, None, :] - centres[:, None]).square().mean(dim=2)


class Whole(deevo.Fitness):
    """One that has no parts."""

    racing = Racing(0.1)

    def describe(self) -> dict[str, Any]:
        return {}


@pytest.mark.parametrize("racing", [None, Racing(0.1)])
def test_a_fitness_in_parts_runs_and_races_by_its_defaults(racing: Racing | None) -> None:
    fitness = Distances()
    fitness.racing = racing
    assert (fitness.device, fitness.batch_of(7)) == (None, 0)
    pop = population()
    expected = [sphere(row) + float((CENTRES - 0.3).double().square().mean()) for row in pop.rows]
    assert fitness(pop.rows, torch.arange(8), 0) == pytest.approx(expected, rel=1e-5)
    de = deevo.DifferentialEvolution(pop, generations=4, seed=1)
    run = deevo.Evolution(de, fitness, progress=False)
    assert math.isfinite(run.run().score) and run.forward_passes == 0
    assert ("racing/images" in run.history[0]) == (racing is not None)


def test_what_cannot_race_or_score_is_refused() -> None:
    de = deevo.DifferentialEvolution(population(), generations=2)
    with pytest.raises(deevo.DeevoError, match="Whole scores rows as a whole only"):
        deevo.Evolution(de, Whole(), progress=False).run()
    with pytest.raises(deevo.DeevoError, match="expected a Fitness or a function"):
        as_fitness(3.0)  # type: ignore[arg-type]
    assert as_fitness(sphere).describe()["function"] == "support.evolution.sphere"
    for value in (None, (1.0, 2.0), "one", torch.ones(2), 1j, torch.tensor(1 + 1j), 10**400):
        numbers = as_fitness(lambda row, value=value: value)  # type: ignore[misc]
        with pytest.raises(deevo.DeevoError, match=r"lambda.* returned .*; expected a number"):
            deevo.Evolution(de, numbers, progress=False).run()
    for value in (torch.ones((), dtype=torch.cfloat), "one", None):
        de.ask()
        with pytest.raises(deevo.DeevoError, match="fitness is not a row of numbers"):
            de.tell([value] * 8)  # type: ignore[list-item]
    with pytest.raises(deevo.DeevoError, match="complex"):
        de.tell(torch.ones(8, dtype=torch.cfloat))


GIVEN: list[tuple[Callable[[torch.Tensor], Any], str]] = [
    (lambda rows: None, "None"),
    (lambda rows: 1.0, "1.0"),
    (lambda rows: [0.5] * (len(rows) - 1), r"\[0.5, 0.5\]"),
    (lambda rows: [0.5] * (len(rows) + 1), r"\[0.5, 0.5, 0.5, 0.5\]"),
    (lambda rows: rows.mean(), r"values of shape \[\]"),
    (lambda rows: rows[:, :2], r"values of shape \[3, 2\]"),
    (lambda rows: ["one"] * len(rows), r"\['one', 'one', 'one'\]"),
    (lambda rows: [10**400] * len(rows), r"\[1000"),
]


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize(("scores", "match"), GIVEN)
def test_values_of_another_number_or_kind_than_the_rows_are_refused(
    scores: Callable[[torch.Tensor], Any], match: str, at_once: bool
) -> None:
    class AtOnce(Distances):
        def __call__(self, rows: torch.Tensor, members: torch.Tensor, batch: int) -> Any:
            return scores(rows)

    class Begun(Distances):
        def begin(self, rows: torch.Tensor, members: torch.Tensor, batch: int) -> Any:
            return lambda: scores(rows)

    fitness, pop = AtOnce() if at_once else Begun(), population()
    before = pop.rows.clone()
    de = deevo.DifferentialEvolution(pop, generations=1, seed=1)
    name = type(fitness).__name__
    match = f"the fitness {name} returned {match}.* for 3 rows; expected 3 numbers"
    with pytest.raises(deevo.DeevoError, match=match):
        Scoring(de, fitness, 3).parents(0)
    assert torch.equal(pop.rows, before)


def test_a_chunk_is_waited_for_when_the_next_has_begun() -> None:
    """A device computes one chunk while the rows of the next are made and sent."""
    log: list[str] = []

    class Late(Distances):
        def begin(self, rows: torch.Tensor, members: torch.Tensor, batch: int) -> Any:
            log.append(f"begin {members.tolist()}")
            wait = super().begin(rows, members, batch)

            def finish() -> Any:
                log.append(f"wait {members.tolist()}")
                return wait()

            return finish

    pop = population()
    de = deevo.DifferentialEvolution(pop, generations=1, seed=1)
    found = Scoring(de, Late(), 3).parents(0)
    assert log == [
        "begin [0, 1, 2]",
        "begin [3, 4, 5]",
        "wait [0, 1, 2]",
        "begin [6, 7]",
        "wait [3, 4, 5]",
        "wait [6, 7]",
    ]
    assert found == list(Distances()(pop.rows, torch.arange(8), 0))
