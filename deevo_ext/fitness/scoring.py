"""Fitness values for a generation: whole evaluations, or races that losing trials leave early."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from deevo_ext.distributed.ranks import alone, ranks
from deevo_ext.distributed.shares import Part, edges_of, evaluated, share
from deevo_ext.errors import DeevoError
from deevo_ext.fitness.base import Fitness
from deevo_ext.fitness.classification import ClassificationFitness
from deevo_ext.fitness.racing import Look, Racing
from deevo_ext.fitness.statistics import Used
from deevo_ext.search.generation import Generation
from deevo_ext.search.optimizer import DifferentialEvolution
from deevo_ext.search.trials import Trials


@dataclass(frozen=True)
class Race:
    """What a race of one generation's trials came to.

    of: images of a full evaluation; images: how many each member's trial was evaluated on, in the
    members' order, without members that were taken out; non_finite: trials with a score that is not
    finite.
    """

    of: int
    images: list[int]
    non_finite: int


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
        return self.fitness.racing is not None

    def parents(self, batch: int) -> list[float]:
        """Returns the fitness of all members on a batch; +inf for those that were taken out."""
        self.fitness.prepare()
        waiting = self.de.ask_parents()
        if not self.races:
            return self._whole(waiting, batch)
        values, self._parents, _ = self._in_parts(waiting, batch, None)
        return ranks().lead(lambda: values)

    def trials(self, batch: int) -> tuple[list[float], Race | None]:
        """Returns the fitness of the next generation's trials, and their race if it is one.

        A dropped trial has fitness +inf.
        """
        waiting = self.de.ask()
        if not self.races:
            return self._whole(waiting, batch), None
        values, self._trials, race = self._in_parts(waiting, batch, self.fitness.racing)
        return ranks().lead(lambda: (values, race))

    def settle(self, generation: Generation) -> None:
        """Makes scores of accepted trials those of the parents that they are now."""
        for member in generation.members[generation.accepted].tolist():
            if member in self._trials:
                self._parents[member] = self._trials[member]
        self._trials = {}

    def resume(self, batch: int | None) -> None:
        """Scores the parents again, on the batch that was under way at an interruption."""
        if self.races and batch is not None:
            self.parents(batch)

    def _whole(self, waiting: Trials, batch: int) -> list[float]:
        """The fitness of all members that are waited for.

        Ranks share micro-batches of labelled images; where another fitness scores a row, members.
        """
        values, group, members = [math.inf] * waiting.size, ranks(), waiting.members
        shared = self._share
        if group.count > 1 and shared is not None:
            scores = shared(waiting, members, batch, 0, {})
            reduced = group.lead(lambda: [self.fitness.reduce(one, batch) for one in scores])
            for member, value in zip(members.tolist(), reduced, strict=True):
                values[member] = _score(value, member)
            return values
        if self.fitness.evaluator is not None:
            self._evaluate(waiting, batch, members, values)
            return group.lead(lambda: values)
        own = share(len(members), group.rank, group.count)
        self._evaluate(waiting, batch, members[own.start : own.stop], values)
        found = group.gather([values[m] for m in members[own.start : own.stop].tolist()])
        for member, value in zip(members.tolist(), itertools.chain(*found), strict=True):
            values[member] = value
        return values

    def _evaluate(
        self, waiting: Trials, batch: int, some: torch.Tensor, values: list[float]
    ) -> None:
        """Puts the fitness of some members in its places."""
        if not len(some):  # there are more ranks than members
            return
        begun: tuple[torch.Tensor, Callable[[], list[float]]] | None = None

        def finish() -> None:
            if begun is not None:
                for member, score in zip(begun[0].tolist(), begun[1](), strict=True):
                    values[member] = _score(score, member)

        # A chunk is waited for when the next one has begun: a GPU need not wait for the host.
        for members, rows in waiting.chunks(self.chunk, self.fitness.device, members=some):
            following = members, self._begin(rows, members, batch)
            finish()
            begun = following
        finish()

    def _begin(
        self, rows: torch.Tensor, members: torch.Tensor, batch: int
    ) -> Callable[[], list[float]]:
        """Begins to score rows; a fitness that scores them in a way of its own does it at once."""
        if type(self.fitness).__call__ is not Fitness.__call__:
            # What it returns may be a view of the rows, whose memory the next chunk takes.
            values = self._numbers(self.fitness(rows, members, batch), len(members))
            return lambda: values
        wait = self.fitness.begin(rows, members, batch)
        return lambda: self._numbers(wait(), len(members))

    def _numbers(self, found: Sequence[float], count: int) -> list[float]:
        """Returns what a fitness gave for `count` rows; DeevoError unless a number each."""
        cause: Exception | None = None
        try:
            values = [float(score) for score in found]
            if len(values) == count:
                return values
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            cause = error
        shape = getattr(found, "shape", None)
        what = repr(found) if shape is None else f"values of shape {list(shape)}"
        raise DeevoError(
            f"the fitness {type(self.fitness).__name__} returned {what} for {count} rows; expected "
            f"{count} numbers, the fitness of each row: mend its __call__ or begin"
        ) from cause

    def _in_parts(
        self, waiting: Trials, batch: int, racing: Racing | None
    ) -> tuple[list[float], dict[int, torch.Tensor], Race]:
        """All members part by part; with `racing`, losers are left out of the parts that follow.

        Those left are made again for each part, in full chunks.
        """
        looks = self.fitness.looks(batch)
        scores: dict[int, torch.Tensor] = {}
        seen = dict.fromkeys(waiting.members.tolist(), 0)
        statistics: dict[int, torch.Tensor] = {}
        racers, non_finite = waiting.members, 0
        for look, end in enumerate(looks):
            for member, part in self._scores(waiting, racers, batch, look, statistics):
                scores[member] = torch.cat([scores[member], part]) if look else part.clone()
                seen[member] = end
            if racing is not None and look < len(looks) - 1:
                parents = torch.stack([self._parents[m] for m in waiting.members.tolist()])
                at = Look(racing, parents, end, len(looks) - 1)
                drop = functools.partial(self._lost, waiting, racers, at, scores, end, look)
                lost = ranks().lead(drop)
                non_finite += sum(not bool(scores[m].isfinite().all()) for m in lost)
                racers = torch.tensor([m for m in racers.tolist() if m not in lost])
            if not racers.numel():
                break
        values = [math.inf] * waiting.size
        for member in racers.tolist():
            values[member] = _score(self.fitness.reduce(scores[member], batch), member)
            non_finite += math.isinf(values[member])
        finished = {member: scores[member] for member in racers.tolist()}
        return values, finished, Race(looks[-1], list(seen.values()), non_finite)

    def _scores(
        self,
        waiting: Trials,
        members: torch.Tensor,
        batch: int,
        look: int,
        statistics: dict[int, torch.Tensor],
    ) -> Iterator[tuple[int, torch.Tensor]]:
        """Yields each of some members with its scores [n, ...] on a look's images.

        statistics: what is known already of the members that they are used with.
        """
        if ranks().count > 1 and self._share is not None:
            yield from zip(
                members.tolist(),
                self._share(waiting, members, batch, look, statistics),
                strict=True,
            )
            return
        for some, rows in waiting.chunks(self.chunk, self.fitness.device, members=members):
            used = self._used(some, rows, statistics)
            parts = self.fitness.part(rows, batch, look, used).cpu()
            yield from zip(some.tolist(), parts, strict=True)

    def _used(
        self, members: torch.Tensor, rows: torch.Tensor, known: dict[int, torch.Tensor]
    ) -> Used | None:
        """The statistics of members, which are kept for what comes after."""
        names = members.tolist()
        if not all(name in known for name in names):
            first = self.fitness.statistics(rows, members)
            if first is None:
                return None
            known.update(zip(names, first, strict=True))
        return Used(torch.stack([known[name] for name in names]))

    @property
    def _share(self) -> Callable[..., torch.Tensor] | None:
        """What shares labelled images among ranks; None for another fitness."""
        if type(self.fitness).__call__ is not Fitness.__call__:
            return None
        return self._shared if isinstance(self.fitness, ClassificationFitness) else None

    def _shared(
        self,
        waiting: Trials,
        members: torch.Tensor,
        batch: int,
        look: int,
        statistics: dict[int, torch.Tensor],
    ) -> torch.Tensor:
        """Scores [E, n, ...] on a look's images; each rank makes and evaluates its share of rows.

        The passes that are counted are those of all ranks.
        """
        fitness = self.fitness
        assert isinstance(fitness, ClassificationFitness)
        evaluator, images = fitness.evaluator, fitness.batch(batch).parts[look]
        evaluator.settle(images)
        spent = evaluator.forward_passes + len(members) * len(images)
        if not look:
            spent += len(members) * evaluator.policy.passes

        def some(part: Part) -> list[torch.Tensor]:
            found = []
            with alone():  # inside, nothing is shared
                own = members[part.rows]
                for names, rows in waiting.chunks(self.chunk, fitness.device, members=own):
                    used = self._used(names, rows, statistics)
                    found.append(fitness.part(rows, batch, look, used, part.images))
            return [torch.cat(found)]

        size = evaluator.micro_batch
        first = Part(slice(0, 1), slice(0, min(size, len(images))))
        evaluator.agree(images, self.de.population.rows.dtype, lambda: some(first))
        scores = evaluated(len(members), edges_of(len(images), size), some)[0]
        evaluator.count(spent - evaluator.forward_passes)
        return scores

    def _lost(
        self,
        waiting: Trials,
        racers: torch.Tensor,
        at: Look,
        scores: dict[int, torch.Tensor],
        end: int,
        look: int,
    ) -> set[int]:
        """The racers that a look drops."""
        return {
            m
            for m in racers.tolist()
            if at.loses(scores[m], self._parents[m][:end])
            or (look == 0 and self._is_its_parent(waiting, m, scores[m]))
        }

    def _is_its_parent(self, waiting: Trials, member: int, scores: torch.Tensor) -> bool:
        """Whether a trial is its parent bit for bit, as a population that has converged makes them.

        Its scores are then the parent's, and no success. Rows are only looked at when scores agree.
        """
        if not torch.equal(scores, self._parents[member][: scores.numel()]):
            return False
        return torch.equal(waiting.rows([member])[0], self.de.population.rows[member])


def _score(value: float, member: int) -> float:
    """Returns a fitness; DeevoError for -inf, than which nothing could ever be better."""
    if value == -math.inf:
        raise DeevoError(
            f"the fitness of member {member} or its trial is -inf; expected a number to be "
            "minimised, or +inf or NaN for a network that cannot be scored"
        )
    return value
