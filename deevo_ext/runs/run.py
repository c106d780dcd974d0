"""The run loop: fitness, validation, journal, metrics; resumable after a kill at any moment."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from deevo_ext import _version
from deevo_ext.errors import DeevoError
from deevo_ext.files import remove_partial, write_whole
from deevo_ext.fitness.base import Fitness, as_fitness
from deevo_ext.fitness.classification import ClassificationFitness
from deevo_ext.fitness.evaluator import Evaluator
from deevo_ext.fitness.scoring import Scoring
from deevo_ext.ops.tables import CONTRACT_VERSION
from deevo_ext.population.naming import Naming
from deevo_ext.runs.folder import (
    TENSORS,
    MetricsFile,
    initial_checkpoints,
    read_tensors,
    write_initial,
    write_weights,
)
from deevo_ext.runs.journal import Journal, Recording
from deevo_ext.runs.records import End, GenerationRecord, Header
from deevo_ext.runs.state import KINDS, Candidate, RunState
from deevo_ext.runs.switches import torch_switches
from deevo_ext.runs.treatments import Treatments
from deevo_ext.runs.validation import Validation
from deevo_ext.search.generation import Generation, diversity
from deevo_ext.search.optimizer import Callback, DifferentialEvolution


class Evolution:
    """Runs a DifferentialEvolution to the end of its schedule.

    de: must be fresh, its population just loaded.
    fitness: a Fitness, or a function of one row.
    run_dir: the folder for journal.jsonl, metrics.csv, evolved.safetensors and evolved.pth. A
        folder that holds this run's journal is resumed, with the result of an uninterrupted run.
    validation: chooses the returned candidate: the best member, the mean, the greedy soup or a
        treated one (`runs.treatments`), evolved or initial. Without it that is the best member of
        the last generation.
    chunk: the number of rows evaluated at a time, the E of peak memory NP + E rows. Validation adds
        the ten candidates of the comparison.
    callbacks: functions that are called with each generation's metrics, those of a resumed run's
        past too.
    initial: the record of generation 0, where `soups.append_soups` has made it already.
    journal: the run folder's, where it is open already; it stays open.
    """

    def __init__(
        self,
        de: DifferentialEvolution,
        fitness: Fitness | Callable[[torch.Tensor], float],
        *,
        run_dir: str | Path | None = None,
        validation: Validation | None = None,
        chunk: int = 8,
        progress: bool = True,
        callbacks: Sequence[Callback] = (),
        initial: GenerationRecord | None = None,
        journal: Journal | None = None,
    ) -> None:
        if chunk < 1:
            raise DeevoError(f"chunk is {chunk}; expected at least 1")
        self.de = de
        self.fitness = as_fitness(fitness)
        self.scoring = Scoring(de, self.fitness, chunk)
        self.run_dir = None if run_dir is None else Path(run_dir)
        self.validation = validation
        self.evaluator = None if validation is None else validation.evaluator
        self.progress = progress
        self.callbacks = list(callbacks)
        self.initial = initial
        self.state = RunState(de, self.evaluator.used_statistics if self.evaluator else None)
        for evaluator in self._evaluators():
            if evaluator.population is not de.population:
                raise DeevoError(
                    "an evaluator was made for another population than de's; make it with "
                    "Evaluator(model, de.population)"
                )
        self.treatments: Treatments | None = None
        if validation is not None and isinstance(self.fitness, ClassificationFitness):
            self.treatments = Treatments(validation, self.fitness.images, self.fitness.seed)
        self.chosen: Candidate | None = None
        self._require_fresh()
        self.history: list[dict[str, float]] = []
        # Costs of the whole run, resumed parts included, and those of the initial candidates.
        self.forward_passes, self.initial_forward_passes = 0, 0
        self.seconds, self.initial_seconds = 0.0, 0.0
        self._batch: int | None = None
        self._passes_before = 0
        self._naming: Naming | None = None
        self._engines: list[dict[str, Any]] | None = None
        self._journal = journal
        self._metrics: MetricsFile | None = None

    def header(self) -> Header:
        """Returns the journal's first line: everything that decides the run."""
        population = self.de.population
        return Header(
            contract=CONTRACT_VERSION,
            deevo_ext=_version.__version__,
            configuration=self.de.configuration.to_json(),
            seed=self.de.seed,
            layout=population.layout.hash,
            population=population.manifest(),
            checkpoints=initial_checkpoints(population, self.run_dir),
            fitness=self.fitness.describe(),
            validation=None if self.validation is None else self.validation.describe(),
            search="weights",
            switches=torch_switches(),
        )

    def run(self) -> Candidate:
        """Runs, or resumes, to the end; returns the chosen candidate, which is `chosen` from then.

        With a run folder its weights are there too, evolved.safetensors and evolved.pth, under the
        names (and in the .pth the wrappers) of the first checkpoint. After an interruption make a
        new Evolution on a freshly loaded population: the run folder resumes it.
        """
        self._require_fresh()
        recording: Recording | None = None
        with contextlib.ExitStack() as stack:
            if self.run_dir is not None:
                if self._journal is None:
                    self._journal = stack.enter_context(Journal(self.run_dir))
                header = self.header()
                self._naming = Naming.of_population(self.de.population)  # while its files are there
                recording = self._journal.begin(header)
                remove_partial(self.run_dir)
                write_initial(self.de.population, self.run_dir, header.checkpoints)
                self._metrics = MetricsFile(self.run_dir / "metrics.csv")
                stack.callback(self._metrics.close)
            return self._run(recording)

    def _run(self, recording: Recording | None) -> Candidate:
        from tqdm.auto import tqdm  # not needed by an import of the package

        total = self.de.configuration.generations
        with tqdm(total=total, disable=not self.progress, unit="generation") as bar:
            if recording is not None and recording.generations:
                self._resume(recording, bar)
            self._passes_before = self._passes()
            if recording is None or not recording.generations:
                self._first()
            while self.de.generation < total:
                record, generation = self._generation(self.de.generation + 1)
                self._keep(record)
                self._observe(generation, record, bar)
        if recording is not None and recording.returned is not None and self.run_dir is not None:
            with recording.line_of(len(recording.generations)):
                tensors = read_tensors(self.run_dir, recording.returned.tensors_sha256)
                self.chosen = self.state.recorded(recording.returned, tensors)
        else:
            self.treat()
            self.chosen = self._return(self.state.chosen())
        if self.run_dir is not None and self._naming is not None:
            weights, about = self.chosen.state_dict(self.de), self.chosen.record()
            write_weights(self._naming, weights, about, self.run_dir)
        return self.chosen

    def treat(self) -> None:
        """Adds the treated candidates to the state, once, where there are images for that."""
        if self.treatments is not None and not self.state.treated:
            self.state.treated = self.treatments.of(self.state)

    def _return(self, chosen: Candidate) -> Candidate:
        """Writes what is returned to the journal, and first what it alone cannot tell."""
        if self._journal is not None and self.run_dir is not None:
            returned = chosen.returned()
            if self.evaluator is not None and self.evaluator.policy.recalibrates:
                returned = replace(returned, statistics=chosen.statistics)
            if chosen.tensors:
                write_whole(self.run_dir / TENSORS, chosen.file())
            self._journal.append(End(returned))
        return chosen

    def _resume(self, recording: Recording, bar: Any) -> None:
        """Applies what the journal holds, and scores again what it does not keep of a race."""
        for i, record in enumerate(recording.generations):
            if record.engines is not None:
                with recording.line_of(i):
                    for evaluator, engines in zip(self._evaluators(), record.engines, strict=True):
                        evaluator.use_engines(engines)
                self._engines = record.engines
        if any(record.trials is not None for record in recording.generations):
            self.fitness.prepare()  # it has been accounted for in the first generation
        for i, record in enumerate(recording.generations):
            with recording.line_of(i):
                self._account(record)
                generation = self.state.apply(record)
            if generation is not None:
                self._observe(generation, record, bar)
        if self.de.generation < self.de.configuration.generations:
            due = self.fitness.batch_of(self.de.generation + 1)
            self.scoring.resume(self._batch if self._batch == due else None)

    def _require_fresh(self) -> None:
        if self.de.generation != 0 or self.de.scored or not self.de.population.pristine:
            raise DeevoError(
                "de or its population has been used already; give Evolution a fresh "
                "DifferentialEvolution on a population that was just loaded (a run folder's "
                "journal brings it back to where it was)"
            )

    def _first(self) -> None:
        """Scores the initial candidates as generation 0, before anything is changed."""
        if self.initial is not None:
            record = replace(self.initial, engines=self._new_engines())
            self.state.apply(record)
        else:
            started, validation = time.perf_counter(), None
            if self.validation is not None:
                validation = self.state.validate(self.validation.score)
            record = self._record(started, generation=0, validation=validation)
        self._keep(record)

    def _generation(self, number: int) -> tuple[GenerationRecord, Generation]:
        started = time.perf_counter()
        batch = self.fitness.batch_of(number)
        parents = None
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
            last = number == self.de.configuration.generations
            if last or number % self.validation.every == 0:
                validation = self.state.validate(self.validation.score)
        record = self._record(
            started,
            generation=number,
            batch=batch,
            parents=parents,
            trials=trials,
            racing=race,
            validation=validation,
        )
        return record, generation

    def _record(self, started: float, **values: Any) -> GenerationRecord:
        """Makes a generation's record, with its costs and the engines that are new."""
        passes = self._passes()
        record = GenerationRecord(
            **values,
            engines=self._new_engines(),
            forward_passes=passes - self._passes_before,
            seconds=round(time.perf_counter() - started, 6),
        )
        self._passes_before = passes
        return record

    def _keep(self, record: GenerationRecord) -> None:
        """Writes a new record to the journal and accounts for it."""
        if self._journal is not None:
            self._journal.append(record)
        self._account(record)

    def _evaluators(self) -> list[Evaluator]:
        """Returns the evaluators of validation and fitness, which may be one."""
        both = (self.evaluator, self.fitness.evaluator)
        return list({id(one): one for one in both if one is not None}.values())

    def _passes(self) -> int:
        return sum(evaluator.forward_passes for evaluator in self._evaluators())

    def _new_engines(self) -> list[dict[str, Any]] | None:
        """Returns the evaluators' engines, where the journal does not hold them already."""
        engines = [evaluator.engines() for evaluator in self._evaluators()]
        if engines == (self._engines or []):
            return None
        self._engines = engines
        return engines

    def _account(self, record: GenerationRecord) -> None:
        self.forward_passes += record.forward_passes
        self.seconds += record.seconds
        if record.generation == 0:
            self.initial_forward_passes = self.forward_passes
            self.initial_seconds = self.seconds
        if record.batch is not None:
            self._batch = record.batch

    def _observe(self, generation: Generation, record: GenerationRecord, bar: Any) -> None:
        metrics = generation.metrics()
        metrics["diversity"] = diversity(self.de.population.rows, self.de.living)
        saved = ""
        if record.racing is not None:
            race = record.racing
            metrics["non_finite"] = float(race.non_finite)  # dropped trials have +inf, too
            metrics["racing/images"] = sum(race.images) / (race.of * len(race.images))
            metrics["racing/dropped"] = float(sum(n < race.of for n in race.images))
            saved = f", {metrics['racing/images']:.0%} evaluated"
        metrics["forward_passes"] = float(self.forward_passes)
        metrics["seconds"] = self.seconds
        candidates = {} if record.validation is None else record.validation.candidates
        for kind in KINDS:
            score = candidates[kind].score if kind in candidates else math.nan
            metrics[f"validation/{kind}"] = score
        self.history.append(metrics)
        if self._metrics is not None:
            self._metrics.append(metrics)
        for callback in self.callbacks:
            callback(metrics)
        bar.update(1)
        rate = record.forward_passes / max(record.seconds, 1e-9)
        bar.set_postfix_str(
            f"best {metrics['best_fitness']:.4g}, accepted {metrics['success_rate']:.0%}, "
            f"{rate:,.0f} member-images/s{saved}"
        )
