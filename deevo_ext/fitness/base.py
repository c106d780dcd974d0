"""What a fitness is: scores of rows, on batches, in one piece or part by part."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch

from deevo_ext.errors import DeevoError
from deevo_ext.fitness.evaluator import Evaluator
from deevo_ext.fitness.racing import Racing
from deevo_ext.fitness.statistics import Used
from deevo_ext.identity import function_identity


class Fitness(ABC):
    """What scores rows; `ClassificationFitness` is the one for labelled images.

    A subclass says what its scores depend on (`describe`) and gives them: as a whole by
    `__call__`, or part by part by `looks` and `part`, which races need. The rest has defaults.

    racing: when losing trials are dropped; None: all are evaluated in full. evaluator: what puts
    images through networks, where there is one; a run counts its forward passes.
    """

    racing: Racing | None = None
    evaluator: Evaluator | None = None

    @property
    def device(self) -> torch.device | None:
        """The device that rows are scored on; None: where the population lies."""
        return None if self.evaluator is None else self.evaluator.device

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Returns plain values that decide the scores; only where they agree is a run resumed."""

    def prepare(self) -> None:  # noqa: B027 (most have nothing to prepare)
        """Looks at the initial population, while the population still is that."""

    def batch_of(self, generation: int) -> int:
        """Returns the batch that a generation is scored on; two batches are never compared."""
        return 0

    def looks(self, batch: int) -> list[int]:
        """Returns the images seen at the end of each part; the last is all of them."""
        raise DeevoError(f"{type(self).__name__} scores rows as a whole only: it cannot race")

    def statistics(self, rows: torch.Tensor, members: torch.Tensor) -> Used | None:
        """Returns BatchNorm statistics [E, S] for the rows of members; None: rows have them."""
        return None

    def part(
        self, rows: torch.Tensor, batch: int, look: int, statistics: Used | None
    ) -> torch.Tensor:
        """Returns scores [E, n] on the images of one part; those of a row depend on it alone."""
        raise DeevoError(f"{type(self).__name__} scores rows as a whole only: it cannot race")

    def reduce(self, scores: torch.Tensor, batch: int) -> float:
        """Returns the fitness, from the scores [N] of all images of a batch."""
        return float(scores.double().mean())

    def __call__(self, rows: torch.Tensor, members: torch.Tensor, batch: int) -> Sequence[float]:
        """Returns the fitness, minimised, of rows [E, D]: trials of members [E], or members."""
        return self.begin(rows, members, batch)()

    def begin(
        self, rows: torch.Tensor, members: torch.Tensor, batch: int
    ) -> Callable[[], Sequence[float]]:
        """Begins what `__call__` does; the function that is returned waits for the values.

        Between the two a device evaluates, while the rows that follow are made.
        """
        statistics = self.statistics(rows, members)
        parts = [self.part(rows, batch, k, statistics) for k in range(len(self.looks(batch)))]
        whole = torch.cat(parts, dim=1)
        return lambda: [self.reduce(scores, batch) for scores in whole]


class FunctionFitness(Fitness):
    """A plain function of one row, `evaluate(row) -> float`, as a Fitness on one fixed batch."""

    def __init__(self, evaluate: Callable[[torch.Tensor], float]) -> None:
        self.evaluate = evaluate
        self._identity = function_identity(evaluate)

    def describe(self) -> dict[str, Any]:
        """Returns what tells the function from others."""
        return dict(self._identity)

    def __call__(self, rows: torch.Tensor, members: torch.Tensor, batch: int) -> Sequence[float]:
        """Returns the function's values."""
        return [self._number(self.evaluate(row)) for row in rows]

    def _number(self, value: object) -> float:
        try:
            return float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError, RuntimeError, OverflowError):
            name = self._identity["function"]
            raise DeevoError(
                f"the fitness function {name} returned {value!r}; expected a number"
            ) from None


def as_fitness(fitness: Fitness | Callable[[torch.Tensor], float]) -> Fitness:
    """Returns a Fitness as it is, or one made of a function of one row."""
    if isinstance(fitness, Fitness):
        return fitness
    if not callable(fitness):
        raise DeevoError(f"fitness is {fitness!r}; expected a Fitness or a function of one row")
    return FunctionFitness(fitness)
