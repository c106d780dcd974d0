"""The run of the weights' search: fitness, validation, generations."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from deevo_ext.arguments import check_arguments
from deevo_ext.distributed.ranks import ranks
from deevo_ext.errors import DeevoError
from deevo_ext.fitness.base import Fitness, as_fitness
from deevo_ext.fitness.classification import ClassificationFitness
from deevo_ext.fitness.dataset import DatasetFitness
from deevo_ext.fitness.evaluator import Evaluator
from deevo_ext.fitness.metrics import label_of
from deevo_ext.fitness.scoring import Scoring
from deevo_ext.progress import begin_at, progress_bar
from deevo_ext.runs.base import Run, evaluators_of
from deevo_ext.runs.journal import Journal
from deevo_ext.runs.recording import Recording, line_of
from deevo_ext.runs.records import GenerationRecord
from deevo_ext.runs.state import KINDS, RunState
from deevo_ext.runs.treatments import Treatments
from deevo_ext.runs.validation import FitnessValidation, Validation
from deevo_ext.search.generation import Generation, diversity
from deevo_ext.search.optimizer import Callback, DifferentialEvolution

_GENERATIONS_A_CHECK = 10  # after so many, ranks compare their members


class Evolution(Run):
    """Runs a DifferentialEvolution to the end of its schedule, of any model by any fitness.

        de = deevo.DifferentialEvolution(population, generations=100)
        run = deevo.Evolution(de, fitness, run_dir="evolved")
        model.load_state_dict(run.run().state_dict(population))

    de: must be fresh, its population just loaded.
    fitness: a `DatasetFitness` of a model, data and a loss, another Fitness, or a function of one
        row, float32 [D], which `population.views` gives the tensors of.
    run_dir: the folder for journal.jsonl, metrics.csv, evolved.safetensors and evolved.pth. A
        folder that holds this run's journal is resumed, with the result of an uninterrupted run. It
        goes on where `de` has more generations now, the schedule stretched from there.
    validation: a `FitnessValidation`, or a `runs.validation.Validation` of labelled images; it
        chooses the returned candidate: the best member, the mean, the greedy soup or a treated one
        (`runs.treatments`), evolved or initial. Without it that is the best member of the last
        generation.
    patience: the number of validations in a row without a better evolved network after which the
        run ends, before its last generation; None: it never does.
    chunk: the number of rows evaluated at a time, the E of peak memory NP + E rows. Validation adds
        the ten candidates of the comparison.
    callbacks: functions that are called with each generation's metrics, those of a resumed run's
        past too; one that returns True stops the run, as `stop` does.
    initial: the record of generation 0, where `soups.append_soups` has made it already.
    journal: the run folder's, where it is open already; it stays open.
    """

    search = "weights"
    state: RunState

    def __init__(
        self,
        de: DifferentialEvolution,
        fitness: Fitness | Callable[[torch.Tensor], float],
        *,
        run_dir: str | Path | None = None,
        validation: Validation | FitnessValidation | None = None,
        patience: int | None = None,
        chunk: int = 8,
        progress: bool = True,
        callbacks: Sequence[Callback] = (),
        initial: GenerationRecord | None = None,
        journal: Journal | None = None,
    ) -> None:
        check_arguments(Evolution.__init__, locals())
        if chunk < 1:
            raise DeevoError(f"chunk is {chunk}; expected at least 1")
        if patience is not None and patience < 1:
            raise DeevoError(f"patience is {patience}; expected at least 1 validation, or None")
        if patience is not None and validation is None:
            raise DeevoError(
                f"patience is {patience}, but there is no validation that could lose it; give "
                "validation=, or leave patience out"
            )
        super().__init__(de.population, run_dir, validation, progress, callbacks, journal)
        self.de, self.configuration, self.seed = de, de.configuration, de.seed
        self.fitness = as_fitness(fitness)
        self.scoring = Scoring(de, self.fitness, chunk)
        self.initial = initial
        self.patience, self._target = patience, de.configuration.generations
        self._waited, self._least = 0, math.inf  # validations since the best evolved score
        self.state = RunState(de, self.evaluator.used_statistics if self.evaluator else None)
        chosen_by = validation.fitness if isinstance(validation, FitnessValidation) else None
        on_data = [one for one in (self.fitness, chosen_by) if isinstance(one, DatasetFitness)]
        scorers: list[Evaluator | DatasetFitness] = [*self.evaluators(), *on_data]
        for scorer in scorers:
            if scorer.population is not de.population:
                kind = type(scorer).__name__
                raise DeevoError(
                    f"the {kind} was made for another population than de's, whose statistics and "
                    f"frozen tensors it would take: make it with {kind}(model, de.population, ...)"
                )
        if isinstance(validation, Validation) and isinstance(self.fitness, ClassificationFitness):
            self.treatments = Treatments(validation, self.fitness.images, self.fitness.seed)
        self._batch: int | None = None
        self.require_fresh()

    def describe_fitness(self) -> dict[str, Any]:
        """Returns what decides the fitness, as JSON values."""
        return self.fitness.describe()

    def evaluators(self) -> list[Evaluator]:
        """Returns the evaluators of validation and fitness, which may be one."""
        return evaluators_of(self.evaluator, self.fitness.evaluator)

    def advance(self, recording: Recording | None) -> None:
        """Runs, or resumes, up to the last generation."""
        with progress_bar(self._target, unit="generation", shown=self.progress) as bar:
            if recording is not None and recording.header is not None:
                self._reschedule(recording)
            if recording is not None and recording.generations:
                self._resume(recording)
                self.say_resumed(self._target, self.done())
            self.new_passes()
            if recording is None or not recording.generations:
                self._first()
            begin_at(bar, self.de.generation)
            while not self.done():
                record, generation = self._generation(self.de.generation + 1)
                self._require_same_population()
                self._keep(record)
                bar.set_postfix_str(self._observe(generation, record), refresh=False)
                bar.update(1)
                if self.stops():
                    if self.validation is not None and not (record.validation or self.done()):
                        self.state.validate(self.validation.score)  # for what is returned now
                    break

    def done(self) -> bool:
        """Whether the last generation is done, or patience at its end."""
        out_of_patience = self.patience is not None and self._waited >= self.patience
        return self.de.generation >= self._target or out_of_patience

    def _reschedule(self, recording: Recording) -> None:
        """Begins with the schedule that the journal begins with, whatever it is to be now."""
        assert recording.header is not None
        with line_of(recording.path, 1):
            schedule = recording.schedule
            self.de.reschedule(recording.header.configuration["generations"])
        if self._target < schedule:
            raise DeevoError(
                f"generations is {self._target}, but {recording.path} is of a run of {schedule}; "
                "expected at least that (stop() or patience end a run before)"
            )

    def _resume(self, recording: Recording) -> None:
        """Applies what the journal holds, and scores again what it does not keep of a race."""
        self.use_engines(recording)
        self._resuming = True
        if any(record.trials is not None for record in recording.generations):
            self.fitness.prepare()  # it has been accounted for in the first generation
        for i, record in enumerate(recording.generations):
            with recording.line_of(i):
                self.account(record)
                self._note(record)
                generation = self.state.apply(record)
            if generation is not None:
                self._observe(generation, record)
        self._resuming = False
        if not self.done():
            due = self.fitness.batch_of(self.de.generation + 1)
            self.scoring.resume(self._batch if self._batch == due else None)

    def require_fresh(self) -> None:
        """Raises DeevoError where optimizer or population has been used already."""
        if self.de.generation != 0 or self.de.scored or not self.de.population.pristine:
            raise DeevoError(
                "de or its population has been used already; give Evolution a fresh "
                "DifferentialEvolution on a population that was just loaded (a run folder's "
                "journal brings it back to where it was)"
            )

    def _first(self) -> None:
        """Scores the initial candidates as generation 0, before anything is changed."""
        if self.initial is not None:
            own = replace(self.initial, engines=self.new_engines())
            record = ranks().lead(lambda: own)
            self.state.apply(record)
        else:
            started, validation = time.perf_counter(), None
            if self.validation is not None:
                validation = self.state.validate(self.validation.score)
            record = GenerationRecord(
                generation=0, validation=validation, forward_passes=0, seconds=0.0
            )
            record = self.with_costs(record, started)
        self._keep(record)

    def _generation(self, number: int) -> tuple[GenerationRecord, Generation]:
        started, parents, generations = time.perf_counter(), None, None
        if self.de.configuration.generations != self._target:
            generations = self._target
            self.de.reschedule(generations)
        batch = self.fitness.batch_of(number)
        if batch != self._batch:
            parents = self.scoring.parents(batch)
            if all(math.isnan(value) or value == math.inf for value in parents):
                raise DeevoError(
                    "no member of the population has a finite fitness: check images, labels and "
                    "preprocessing against the model"
                )
            self.state.score_parents(parents)
        trials, race = self.scoring.trials(batch)
        generation = self.state.advance(trials)
        self.scoring.settle(generation)
        validation = None
        if self.validation is not None:
            last = number == self._target
            if last or number % self.validation.every == 0:
                validation = self.state.validate(self.validation.score)
        record = GenerationRecord(
            generation=number,
            generations=generations,
            batch=batch,
            parents=parents,
            trials=trials,
            racing=race,
            validation=validation,
            forward_passes=0,
            seconds=0.0,
        )
        return self.with_costs(record, started), generation

    def _require_same_population(self) -> None:
        """Raises RankError, from time to time, where ranks hold other members than rank 0."""
        last = self.de.generation == self.de.configuration.generations
        if ranks().count > 1 and (last or self.de.generation % _GENERATIONS_A_CHECK == 0):
            ranks().require_same(f"generation {self.de.generation}", checksums_of(self.de))

    def _keep(self, record: GenerationRecord) -> None:
        self.keep(record)
        self._note(record)

    def _note(self, record: GenerationRecord) -> None:
        """Notes the batch of a record, and whether its validation found a better network."""
        if record.batch is not None:
            self._batch = record.batch
        if record.validation is not None and record.generation:
            least = min(one.score for one in record.validation.candidates.values())
            self._waited = 0 if least < self._least else self._waited + 1
            self._least = min(least, self._least)

    def _observe(self, generation: Generation, record: GenerationRecord) -> str:
        """Keeps a generation's metrics; returns what the progress says of it."""
        metrics = generation.metrics()
        metrics["batch"] = float(record.batch or 0)
        metrics["diversity"] = diversity(self.de.population.rows, self.de.living)
        said = [f"best {self._shown(metrics['best_fitness'])}"]
        if record.parents is not None and record.generation > 1:
            said[0] += " (on a new batch of images)"
        said.append(f"accepted {metrics['success_rate']:.0%}")
        if record.forward_passes:
            rate = record.forward_passes / max(record.seconds, 1e-9)
            said.append(f"{rate:,.0f} member-images/s")
        if record.racing is not None:
            race = record.racing
            metrics["non_finite"] = float(race.non_finite)  # dropped trials have +inf, too
            metrics["racing/images"] = sum(race.images) / (race.of * len(race.images))
            metrics["racing/dropped"] = float(sum(n < race.of for n in race.images))
            said.append(f"{metrics['racing/images']:.0%} evaluated")
        metrics["traffic"] = float(record.traffic or 0)
        metrics["forward_passes"] = float(self.forward_passes)
        metrics["seconds"] = self.seconds
        candidates = {} if record.validation is None else record.validation.candidates
        for kind in KINDS:
            score = candidates[kind].score if kind in candidates else math.nan
            shown = score if self.validation is None else self.validation.shown(score)
            metrics[f"validation/{kind}"] = shown
        self.observe(metrics)
        return ", ".join(said)

    def _shown(self, fitness: float) -> str:
        if not isinstance(self.fitness, ClassificationFitness):
            return f"{fitness:.4g}"
        metric = self.fitness.metric
        return f"{label_of(metric.name)} {metric.shown(fitness):.4g}"


def checksums_of(de: DifferentialEvolution) -> dict[str, str]:
    """Returns a text by member that differs where its weights or its fitness do.

    The sum of the bits of all weights as whole numbers: any one that differs shows.
    """
    rows = de.population.rows
    whole = torch.int32 if rows.dtype == torch.float32 else torch.int16
    sums = rows.view(whole).sum(dim=1, dtype=torch.int64).tolist()
    each = zip(sums, de.fitness.tolist(), strict=True)
    return {f"member {i}": f"{total} {value.hex()}" for i, (total, value) in enumerate(each)}
