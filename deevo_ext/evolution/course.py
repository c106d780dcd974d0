"""The course of a run: its records applied to an optimizer, and the candidates found on the way.

A record is what the journal keeps of a generation. The run loop makes records and applies them;
replay applies them alone. Both give the same bits, because fitness values are inputs.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from deevo_ext.errors import DeevoError
from deevo_ext.evolution.generation import Generation
from deevo_ext.evolution.journal import Record, from_hex, to_hex
from deevo_ext.evolution.optimizer import DifferentialEvolution
from deevo_ext.evolution.soup import ScoreRow, average, greedy_soup
from deevo_ext.evolution.storage import decode_statistics
from deevo_ext.fitness.statistics import Inherited, Used
from deevo_ext.population import Population

KINDS = ("member", "mean", "soup")
StatisticsOf = Callable[[torch.Tensor, Inherited | None], Used | None]


@dataclass(frozen=True)
class Candidate:
    """A network that validation considered.

    kind: "member" (the best by validation), "mean" (of the whole population) or "soup" (greedy);
    members: what it is the average of; score: on the validation images by the run's metric, or the
    fitness where there are none; less is better; row [D] float32 and statistics [S] (None unless
    held apart): its weights.
    """

    kind: str
    generation: int
    members: tuple[int, ...]
    score: float
    row: torch.Tensor
    statistics: Used | None

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of row and statistics."""
        digest = hashlib.sha256(self.row.cpu().contiguous().numpy().data)
        if self.statistics is not None:
            digest.update(self.statistics.cpu().contiguous().numpy().data)
        return digest.hexdigest()

    def state_dict(self, de: DifferentialEvolution) -> dict[str, torch.Tensor]:
        """The network's full state dict."""
        return de.population.state_dict_of(self.row, self.statistics)

    def record(self) -> Record:
        """What the journal keeps of it."""
        return {
            "generation": self.generation,
            "kind": self.kind,
            "members": list(self.members),
            "score": self.score.hex(),
            "weights_sha256": self.digest,
        }


def as_returned(candidate: Candidate, returned: Record) -> Candidate:
    """A replayed candidate, checked against the journal's last line and with its statistics."""
    if "statistics" in returned:
        candidate = replace(candidate, statistics=Used(decode_statistics(returned["statistics"])))
    if candidate.digest != returned["weights_sha256"]:
        raise DeevoError(
            f"the replayed weights have SHA-256 {candidate.digest}, the journal says "
            f"{returned['weights_sha256']}: journal or package differ from those of the run"
        )
    return candidate


def candidates_of(population: Population, everyone: list[int], score: ScoreRow) -> dict[str, Any]:
    """A record's "validation" part: the candidates among members `everyone` (ascending), and all
    scores up to the last one's.
    """
    scores = [math.inf] * (everyone[-1] + 1)
    for i in everyone:
        scores[i] = score(population.rows[i], Inherited(population.statistics[i]))
    member = min(everyone, key=scores.__getitem__)
    soup, soup_score = greedy_soup(population, everyone, scores, score)
    mean_score = score(*average(population, everyone))
    return {
        "member": {"members": [member], "score": scores[member].hex()},
        "mean": {"members": everyone, "score": mean_score.hex()},
        "soup": {"members": soup, "score": soup_score.hex()},
        "scores": to_hex(scores),
    }


class Course:
    """An optimizer and the candidates of its run so far.

    initial: the candidates of the initial population by kind (generation 0); evolved: for each kind
    the best by validation of generation 1 and later. `statistics_of(row, inherited)` gives the
    statistics a row is to be used with (the evaluator's).
    """

    def __init__(
        self,
        de: DifferentialEvolution,
        statistics_of: StatisticsOf | None = None,
    ) -> None:
        self.de = de
        self.initial: dict[str, Candidate] = {}
        self.evolved: dict[str, Candidate] = {}
        self._statistics_of = statistics_of or _as_inherited

    def score_parents(self, fitness: list[float]) -> None:
        """Applies the parents' (re-)scores; a live run has asked for them already, a replay not."""
        if self.de.pending is None or not self.de.pending.parents:
            self.de.ask_parents()
        self.de.tell(fitness)

    def advance(self, fitness: list[float]) -> Generation:
        """Applies the trials' fitness of the next generation, asked for like the parents'."""
        if self.de.pending is None or self.de.pending.parents:
            self.de.ask()
        generation = self.de.tell(fitness)
        assert generation is not None
        return generation

    def apply(self, record: Record) -> Generation | None:
        """Applies one record of a journal; the generation it made, if any."""
        trials = "trials" in record
        expected = self.de.generation + 1 if trials else 0
        scored = self.de.scored or "parents" in record
        if record["generation"] != expected or (trials and not scored):
            raise DeevoError(
                f"the journal goes from generation {self.de.generation} to {record['generation']}: "
                "lines are missing; restore it from a backup"
            )
        if "parents" in record:
            self.score_parents(from_hex(record["parents"]))
        generation = self.advance(from_hex(record["trials"])) if trials else None
        if "validation" in record:
            self._consider(record["validation"])
        return generation

    def validate(self, score: ScoreRow, found: dict[str, Any] | None = None) -> dict[str, Any]:
        """Scores the present candidates with `score(row, inherited statistics)`.

        Returns the record's "validation" part after taking it into account. found: that part where
        it is known already.
        """
        if found is not None:
            self._consider(found)
            return found
        population = self.de.population
        first = self.de.generation == 0
        # What was appended to the population is no initial candidate: it was made from them.
        everyone = list(range(population.read)) if first else self.de.living.tolist()
        found = candidates_of(population, everyone, score)
        self._consider(found)
        return found

    def chosen(self) -> Candidate:
        """The evolved candidate of least validation score; the best member when none was taken."""
        if self.evolved:
            return min(self.evolved.values(), key=lambda candidate: candidate.score)
        best = self.de.best
        return self._candidate("member", [best], float(self.de.fitness[best]))

    def _candidate(self, kind: str, members: list[int], score: float) -> Candidate:
        population = self.de.population
        if kind == "member":
            row = population.rows[members[0]].float().clone()
            inherited: Inherited | None = None
            if population.statistics_layout.dim:
                inherited = Inherited(population.statistics[members[0]].clone())
        else:
            row, inherited = average(population, members)
        generation = self.de.generation
        statistics = self._statistics_of(row, inherited)
        return Candidate(kind, generation, tuple(members), score, row, statistics)

    def _consider(self, found: dict[str, Any]) -> None:
        group = self.initial if self.de.generation == 0 else self.evolved
        for kind in KINDS:
            score = float.fromhex(found[kind]["score"])
            if kind not in group or score < group[kind].score:
                group[kind] = self._candidate(kind, list(found[kind]["members"]), score)


def _as_inherited(row: torch.Tensor, inherited: Inherited | None) -> Used | None:
    """Where no evaluator applies a policy, rows are used with what they inherited."""
    return None if inherited is None else Used(inherited)
