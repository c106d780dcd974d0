"""The state of a run: an optimizer to which records are applied, and the candidates so far.

A record is what the journal keeps of a generation. The run loop makes records and applies them;
replay only applies them. Both give the same bits, because fitness values are inputs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from safetensors.torch import save

from deevo_ext.errors import DeevoError
from deevo_ext.fitness.statistics import Inherited, Used
from deevo_ext.population.population import Population
from deevo_ext.runs.records import GenerationRecord, Returned, ValidationRecord, to_json
from deevo_ext.runs.soups import ScoreRow, average, candidates_of
from deevo_ext.search.generation import Generation
from deevo_ext.search.optimizer import DifferentialEvolution

KINDS = ("member", "mean", "soup")
PARENT, SOUP = "best parent", "initial greedy soup"
INITIAL_NAMES = {"member": PARENT, "mean": "initial weight average", "soup": SOUP}
TREATED_NAMES = {
    "statistics": ("statistics re-estimated", "evolved, statistics re-estimated"),
    "classifier": ("classifier refitted", "evolved and refitted"),
    "averaged": (f"{SOUP}, averaged statistics", "evolved, averaged statistics"),
    "kept": ("initial, partly kept", "evolved, partly kept"),
}
"""What tables call treated candidates, by treatment: of the initial population, and later."""
StatisticsOf = Callable[[torch.Tensor, Inherited | None], Used | None]


@dataclass(frozen=True)
class Candidate:
    """A network that validation considered.

    kind: "member" (the best by validation), "mean" (of the whole population) or "soup" (greedy);
    members: what it is the average of; score: on the validation images by the run's metric, or the
    fitness where there are none; less is better; row [D] float32 and statistics [S] (None unless
    held apart): its weights. treatment: what was done to it afterwards (`runs.treatments`), "" if
    nothing; tensors: those that this has changed, float32 by name, which images alone could tell.
    """

    kind: str
    generation: int
    members: tuple[int, ...]
    score: float
    row: torch.Tensor = field(repr=False)
    statistics: Used | None = field(repr=False)
    treatment: str = ""
    tensors: dict[str, torch.Tensor] = field(default_factory=dict, repr=False)

    @property
    def name(self) -> str:
        """What tables call it."""
        if self.treatment:
            treated = TREATED_NAMES[self.treatment]
            return treated[1 if self.generation else 0]
        return f"evolved {self.kind}" if self.generation else INITIAL_NAMES[self.kind]

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of row and statistics."""
        digest = hashlib.sha256(self.row.cpu().contiguous().numpy().data)
        if self.statistics is not None:
            digest.update(self.statistics.cpu().contiguous().numpy().data)
        return digest.hexdigest()

    def state_dict(self, population: Population) -> dict[str, torch.Tensor]:
        """Returns the network's full state dict, on the CPU wherever it was evolved."""
        statistics = None if self.statistics is None else self.statistics.cpu()
        return population.state_dict_of(self.row.cpu(), statistics)

    def returned(self) -> Returned:
        """Returns what the journal's last line says of it where a run returns it."""
        tensors = hashlib.sha256(self.file()).hexdigest() if self.tensors else None
        return Returned(
            self.generation,
            self.kind,
            list(self.members),
            self.score,
            self.digest,
            treatment=self.treatment or None,
            tensors_sha256=tensors,
        )

    def file(self) -> bytes:
        """Returns the changed tensors as .safetensors."""
        return save({name: tensor.contiguous() for name, tensor in sorted(self.tensors.items())})

    def record(self) -> dict[str, Any]:
        """Returns the same as JSON values, for files that hold its weights or speak of it."""
        return to_json(self.returned())


def as_returned(candidate: Candidate, returned: Returned) -> Candidate:
    """Checks a replayed candidate against the journal's last line and gives it its statistics."""
    if returned.statistics is not None:
        candidate = replace(candidate, statistics=Used(returned.statistics))
    if candidate.digest != returned.weights_sha256:
        raise DeevoError(
            f"the replayed weights have SHA-256 {candidate.digest}, the journal says "
            f"{returned.weights_sha256}: journal or package differ from those of the run"
        )
    if candidate.record() != to_json(replace(returned, statistics=None)):
        raise DeevoError(
            f"the replayed candidate is {candidate.record()}, the journal says "
            f"{to_json(replace(returned, statistics=None))}: the journal was edited"
        )
    return candidate


def with_tensors(
    population: Population, candidate: Candidate, tensors: dict[str, torch.Tensor]
) -> Candidate:
    """Returns a candidate with some of its tensors replaced, float32 by name.

    Raises DeevoError for a tensor that its row and statistics do not have like this.
    """
    row, statistics = candidate.row.clone(), candidate.statistics
    tensors = {name: tensor.to(row.device) for name, tensor in tensors.items()}
    places = population.layout.views(row)
    if statistics is not None:
        statistics = Used(statistics.clone())
        places = places | population.statistics_layout.views(statistics)
    for name, tensor in tensors.items():
        if name not in places or places[name].shape != tensor.shape:
            raise DeevoError(f"the network has no tensor {name!r} of shape {list(tensor.shape)}")
        places[name].copy_(tensor)
    return replace(
        candidate, row=row, statistics=statistics, tensors={**candidate.tensors, **tensors}
    )


class Candidates:
    """The candidates of a run so far.

    population: of the run. initial: those of the initial population by kind (generation 0);
    members_scores: that of each initial member by itself, where there was a validation; evolved:
    for each kind the best by validation of generation 1 and later; treated: those of
    `runs.treatments`, at the end. `statistics_of(row, inherited)` gives the statistics a row is to
    be used with (the evaluator's).
    """

    def __init__(self, population: Population, statistics_of: StatisticsOf | None = None) -> None:
        self.population = population
        self.initial: dict[str, Candidate] = {}
        self.members_scores: list[float] = []
        self.evolved: dict[str, Candidate] = {}
        self.treated: list[Candidate] = []
        self._statistics_of = statistics_of or _as_inherited

    def chosen(self) -> Candidate:
        """Returns the candidate of least score, evolved or not; of equals the evolved one."""
        considered = [*self.evolved.values(), *self.treated, *self.initial.values()]
        return min(considered, key=lambda candidate: candidate.score)

    def recorded(self, returned: Returned, tensors: dict[str, torch.Tensor]) -> Candidate:
        """Returns the candidate that a journal's last line names, checked against it.

        tensors: what its treatment changed, as `Candidate.file` holds them.
        """
        group = self.evolved if returned.generation else self.initial
        candidate = group[returned.kind] if group else self.chosen()
        if returned.treatment is not None:
            candidate = with_tensors(self.population, candidate, tensors)
            candidate = replace(candidate, treatment=returned.treatment, score=returned.score)
        return as_returned(candidate, returned)

    def apart(self) -> list[Candidate]:
        """Returns the networks whose scores, by folds, are the best evolved candidate's; here none.

        Each was made as the candidate was, but without the labels of a fold, in the folds' order.
        """
        return []

    def keep(self, validation: ValidationRecord, generation: int) -> None:
        """Keeps those of a validation's candidates that are the best of their kind so far."""
        members = {i for candidate in validation.candidates.values() for i in candidate.members}
        if max(members) >= self.population.size:
            raise ValueError(f"there is no member {max(members)}")
        group = self.evolved if generation else self.initial
        if not generation:
            self.members_scores = validation.scores
        for kind, candidate in validation.candidates.items():
            if kind not in group or candidate.score < group[kind].score:
                group[kind] = self._candidate(kind, generation, candidate.members, candidate.score)

    def _candidate(self, kind: str, generation: int, members: list[int], score: float) -> Candidate:
        population = self.population
        if kind == "member":
            row = population.rows[members[0]].float().clone()
            inherited: Inherited | None = None
            if population.statistics_layout.dim:
                inherited = Inherited(population.statistics[members[0]].clone())
        else:
            row, inherited = average(population, members)
        statistics = self._statistics_of(row, inherited)
        return Candidate(kind, generation, tuple(members), score, row, statistics)


class RunState(Candidates):
    """An optimizer, and the candidates of its run so far."""

    def __init__(
        self, de: DifferentialEvolution, statistics_of: StatisticsOf | None = None
    ) -> None:
        super().__init__(de.population, statistics_of)
        self.de = de

    def score_parents(self, fitness: list[float]) -> None:
        """Applies the parents' scores; a replay has not asked for them before, a live run has."""
        if self.de.pending is None or not self.de.pending.parents:
            self.de.ask_parents()
        self.de.tell(fitness)

    def advance(self, fitness: list[float]) -> Generation:
        """Applies the fitness of the next generation's trials, like `score_parents`."""
        if self.de.pending is None or self.de.pending.parents:
            self.de.ask()
        generation = self.de.tell(fitness)
        assert generation is not None
        return generation

    def apply(self, record: GenerationRecord) -> Generation | None:
        """Applies one record of a journal; returns the generation that it made, if any."""
        if record.trials is not None and record.parents is None and not self.de.scored:
            raise ValueError("parents without a score have trials")
        if record.generations is not None:
            self.de.reschedule(record.generations)
        if record.parents is not None:
            self.score_parents(record.parents)
        generation = None if record.trials is None else self.advance(record.trials)
        if record.validation is not None:
            self.keep(record.validation, self.de.generation)
        return generation

    def validate(self, score: ScoreRow) -> ValidationRecord:
        """Scores the present candidates with `score(row, inherited statistics)` and keeps the best.

        Members that were appended to the population are no initial candidates: they were made from
        them.
        """
        population = self.de.population
        first = self.de.generation == 0
        everyone = list(range(population.initial_size)) if first else self.de.living.tolist()
        validation = candidates_of(population, everyone, score)
        self.keep(validation, self.de.generation)
        return validation

    def chosen(self) -> Candidate:
        """Returns the candidate of least score; without validation the best member."""
        if self.evolved:
            return super().chosen()
        best = self.de.best
        score = float(self.de.fitness[best])
        return self._candidate("member", self.de.generation, [best], score)


def _as_inherited(row: torch.Tensor, inherited: Inherited | None) -> Used | None:
    """Uses rows with what they inherited: without an evaluator no policy is applied."""
    return None if inherited is None else Used(inherited)
