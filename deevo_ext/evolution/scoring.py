"""Fitness values for a generation: whole evaluations, or races that losing trials leave early."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

import torch

from deevo_ext.errors import DeevoError
from deevo_ext.evolution.generation import Generation
from deevo_ext.evolution.optimizer import DifferentialEvolution
from deevo_ext.evolution.trials import Trials
from deevo_ext.fitness.racing import Racing
from deevo_ext.fitness.statistics import Used


class Fitness(Protocol):
    """What scores trials; `fitness.classification.ClassificationFitness` is the one for image sets.

    An attribute ``device``, where there is one, says where it wants its rows.
    """

    def describe(self) -> dict[str, Any]:
        """Plain values that decide the scores; a run is resumed only where they are the same."""
        ...

    def batch_of(self, generation: int) -> int:
        """The batch a generation is scored on; scores of two batches are never compared."""
        ...

    def __call__(self, rows: torch.Tensor, members: torch.Tensor, batch: int) -> Sequence[float]:
        """Fitness, minimised, of rows [E, D] that stand for members [E]."""
        ...


class RacingFitness(Fitness, Protocol):
    """A Fitness that can be had in parts, which its attribute ``racing`` asks for.

    A fitness is `reduce` of an image's scores each; a member's scores depend on its row and
    statistics alone.
    """

    racing: Racing | None

    def looks(self, batch: int) -> list[int]:
        """Images seen at the end of each part; the last is all of them."""
        ...

    def statistics(self, rows: torch.Tensor, members: torch.Tensor) -> Used | None:
        """BatchNorm statistics [E, S] for the rows; None: the rows have them."""
        ...

    def part(
        self, rows: torch.Tensor, batch: int, look: int, statistics: Used | None
    ) -> torch.Tensor:
        """Scores [E, n] on the images of one part."""
        ...

    def reduce(self, scores: torch.Tensor) -> float:
        """The fitness, from the scores [N] of all images."""
        ...


class FunctionFitness:
    """A plain function of one row, `evaluate(row) -> float`, as a Fitness on one fixed batch."""

    def __init__(self, evaluate: Callable[[torch.Tensor], float]) -> None:
        self.evaluate = evaluate
        kind = evaluate if hasattr(evaluate, "__qualname__") else type(evaluate)
        self.name = f"{kind.__module__}.{kind.__qualname__}"

    def describe(self) -> dict[str, Any]:
        """The function's name, all that is known of it."""
        return {"function": self.name}

    def batch_of(self, generation: int) -> int:
        """Always batch 0."""
        return 0

    def __call__(self, rows: torch.Tensor, members: torch.Tensor, batch: int) -> Sequence[float]:
        """The function's values."""
        return [float(self.evaluate(row)) for row in rows]


def as_fitness(fitness: Fitness | Callable[[torch.Tensor], float]) -> Fitness:
    """A Fitness from itself or from a function of one row."""
    if hasattr(fitness, "batch_of"):
        return cast(Fitness, fitness)
    if not callable(fitness):
        raise DeevoError(f"fitness is {fitness!r}; expected a Fitness or a function of one row")
    return FunctionFitness(fitness)


class Scoring:
    """Asks a DifferentialEvolution for rows, `chunk` at a time, and a Fitness for their scores.

    With racing, parents' scores image by image are kept for the current batch ([NP, N] float32 on
    the host); those of a trial that is accepted take its parent's place. They are no state: after
    an interruption `resume` has the same again from the same rows.
    """

    def __init__(self, de: DifferentialEvolution, fitness: Fitness, chunk: int) -> None:
        self.de, self.fitness, self.chunk = de, fitness, chunk
        self._parents: dict[int, torch.Tensor] = {}
        self._trials: dict[int, torch.Tensor] = {}

    @property
    def races(self) -> bool:
        """Whether losing trials are dropped early."""
        return getattr(self.fitness, "racing", None) is not None

    def prepare(self) -> None:
        """Lets a fitness look at the initial population, before the first generation.

        A resumed run calls it before its past is applied.
        """
        if hasattr(self.fitness, "prepare"):
            self.fitness.prepare()

    def parents(self, batch: int) -> list[float]:
        """Fitness of all members on a batch; +inf for those that population reduction took out."""
        self.prepare()
        waiting = self.de.ask_parents()
        if not self.races:
            return self._whole(waiting, batch)
        values, self._parents, _ = self._in_parts(waiting, batch, None)
        return values

    def trials(self, batch: int) -> tuple[list[float], dict[str, Any] | None]:
        """Fitness of the next generation's trials, and the journal's note of the race if it is one.

        The note: "of", the images of a full evaluation; "images", those each living member's trial
        was evaluated on; "non_finite", trials with a score that is not finite. A dropped trial has
        fitness +inf.
        """
        waiting = self.de.ask()
        if not self.races:
            return self._whole(waiting, batch), None
        values, self._trials, note = self._in_parts(
            waiting, batch, cast(RacingFitness, self.fitness).racing
        )
        return values, note

    def settle(self, generation: Generation) -> None:
        """Scores of accepted trials become those of the parents they are now."""
        for member in generation.members[generation.accepted].tolist():
            if member in self._trials:
                self._parents[member] = self._trials[member]
        self._trials = {}

    def resume(self, batch: int | None) -> None:
        """After an interruption: the present parents' scores on the batch that is under way."""
        if self.races and batch is not None:
            self.parents(batch)

    def _whole(self, waiting: Trials, batch: int) -> list[float]:
        values = [math.inf] * waiting.size
        for members, rows in waiting.chunks(self.chunk, getattr(self.fitness, "device", None)):
            scores = self.fitness(rows, members, batch)
            for member, score in zip(members.tolist(), scores, strict=True):
                values[member] = float(score)
        return values

    def _in_parts(
        self, waiting: Trials, batch: int, racing: Racing | None
    ) -> tuple[list[float], dict[int, torch.Tensor], dict[str, Any]]:
        """All members part by part; with `racing`, losers are left out of the parts that follow.

        Those left are made again for each part, in full chunks.
        """
        fitness = cast(RacingFitness, self.fitness)
        looks, device = fitness.looks(batch), getattr(fitness, "device", None)
        scores: dict[int, torch.Tensor] = {}
        seen = dict.fromkeys(waiting.members.tolist(), 0)
        statistics: dict[int, torch.Tensor] = {}
        racers, non_finite = waiting.members, 0
        for look, end in enumerate(looks):
            for members, rows in waiting.chunks(self.chunk, device, members=racers):
                names = members.tolist()
                if look == 0:
                    own = fitness.statistics(rows, members)
                    statistics.update(zip(names, own, strict=True) if own is not None else ())
                used = Used(torch.stack([statistics[m] for m in names])) if statistics else None
                found = fitness.part(rows, batch, look, used).cpu()
                for member, part in zip(names, found, strict=True):
                    scores[member] = torch.cat([scores[member], part]) if look else part.clone()
                    seen[member] = end
            if racing is not None and look < len(looks) - 1:
                known = torch.stack([self._parents[m] for m in waiting.members.tolist()])
                at = racing.look(known, end, len(looks) - 1)
                lost = {
                    m
                    for m in racers.tolist()
                    if at.loses(scores[m], self._parents[m][:end])
                    or (look == 0 and self._is_its_parent(waiting, m, scores[m]))
                }
                non_finite += sum(not bool(scores[m].isfinite().all()) for m in lost)
                racers = torch.tensor([m for m in racers.tolist() if m not in lost])
            if not racers.numel():
                break
        values = [math.inf] * waiting.size
        for member in racers.tolist():
            values[member] = fitness.reduce(scores[member])
            non_finite += math.isinf(values[member])
        kept = {member: scores[member] for member in racers.tolist()}
        note = {"of": looks[-1], "images": list(seen.values()), "non_finite": non_finite}
        return values, kept, note

    def _is_its_parent(self, waiting: Trials, member: int, scores: torch.Tensor) -> bool:
        """Whether a trial is its parent bit for bit, as a population that has converged makes them.

        Its scores are then the parent's, and no success. Rows are only looked at when scores agree.
        """
        if not torch.equal(scores, self._parents[member][: scores.numel()]):
            return False
        return torch.equal(waiting.rows([member])[0], self.de.population.rows[member])
