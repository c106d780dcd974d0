"""The run loop: fitness, validation, journal, metrics; resumable after a kill at any moment."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch

from deevo_ext import _version
from deevo_ext.data.labelled import LabelledImages
from deevo_ext.errors import DeevoError
from deevo_ext.evolution.course import Candidate, Course, as_returned
from deevo_ext.evolution.generation import Generation, diversity
from deevo_ext.evolution.injection import Initial
from deevo_ext.evolution.journal import Journal, Record, line_of, to_hex
from deevo_ext.evolution.metrics import MetricsFile
from deevo_ext.evolution.optimizer import Callback, DifferentialEvolution
from deevo_ext.evolution.scoring import Fitness, Scoring, as_fitness
from deevo_ext.evolution.storage import (
    encode_statistics,
    initial_checkpoints,
    write_initial,
    write_weights,
)
from deevo_ext.fitness.evaluator import Evaluator
from deevo_ext.fitness.metrics import ImageScores, Metric
from deevo_ext.key_layout import KeyLayout
from deevo_ext.networks.engines.choose import ENGINES_FILE
from deevo_ext.tables import CONTRACT_VERSION


class Evolution:
    """Runs a DifferentialEvolution to the end of its schedule.

    de: fresh, its population just loaded. fitness: a Fitness, or a function of one row. run_dir:
    where journal.jsonl, metrics.csv, evolved.safetensors and evolved.pth go; a folder that holds
    this run's journal is resumed with the result of an uninterrupted run. evaluator and validation:
    images that choose the returned candidate (best member, mean, greedy soup) every
    `validate_every` generations, by `metric` ("loss", "top1" or a function, see
    `fitness.metrics`); without them it is the best member of the last generation. chunk: rows
    evaluated at a time, the E of peak memory NP + E rows; validation adds the six candidates of the
    comparison. callbacks: called with each generation's metrics, those of a resumed run's past too.
    initial: the initial candidates where they have been found already, as `injection.inject_soups`
    does.
    """

    def __init__(
        self,
        de: DifferentialEvolution,
        fitness: Fitness | Callable[[torch.Tensor], float],
        *,
        run_dir: str | Path | None = None,
        evaluator: Evaluator | None = None,
        validation: LabelledImages | None = None,
        validate_every: int = 10,
        metric: str | ImageScores | Metric = "loss",
        chunk: int = 8,
        progress: bool = True,
        callbacks: Sequence[Callback] = (),
        initial: Initial | None = None,
    ) -> None:
        if (validation is None) != (evaluator is None):
            raise DeevoError("evaluator and validation belong together: give both or neither")
        if validate_every < 1 or chunk < 1:
            raise DeevoError(
                f"validate_every is {validate_every} and chunk {chunk}; expected at least 1"
            )
        self.de = de
        self.fitness = as_fitness(fitness)
        self.scoring = Scoring(de, self.fitness, chunk)
        self.run_dir = None if run_dir is None else Path(run_dir)
        self.evaluator = evaluator
        self.validation = validation
        self.validate_every = validate_every
        self.metric = Metric.of(metric)
        self.progress = progress
        self.callbacks = list(callbacks)
        self.initial = initial
        self.course = Course(de, evaluator.statistics_of if evaluator else None)
        for user in (evaluator, self._own_evaluator()):
            if user is not None and user.population is not de.population:
                raise DeevoError(
                    "an evaluator was made for another population than de's; make it with "
                    "Evaluator(model, de.population)"
                )
        self._require_fresh()
        self.history: list[dict[str, float]] = []
        self.forward_passes = 0  # of the whole run, resumed parts included
        self.initial_forward_passes = 0  # of those, for the initial candidates
        self.seconds = 0.0
        self.initial_seconds = 0.0
        self._batch: int | None = None
        self._passes_before = 0
        self._keys: KeyLayout | None = None
        self._journal: Journal | None = None
        self._metrics: MetricsFile | None = None

    def header(self) -> Record:
        """The journal's first line: everything that decides the run."""
        population = self.de.population
        return {
            "contract": CONTRACT_VERSION,
            "deevo_ext": _version.__version__,
            "configuration": self.de.configuration.to_json(),
            "seed": self.de.seed,
            "layout": population.layout.hash,
            "population": population.recipe(),
            "checkpoints": initial_checkpoints(population, self.run_dir),
            "fitness": self.fitness.describe(),
            "validation": None
            if self.validation is None
            else {
                "images": len(self.validation),
                "sha256": self.validation.digest(),
                "every": self.validate_every,
                **self.metric.describe(),
                "evaluator": None if self.evaluator is None else self.evaluator.describe(),
            },
        }

    def run(self) -> Candidate:
        """Runs, or resumes, to the end; returns the chosen candidate.

        With a run folder its weights are there too, evolved.safetensors and evolved.pth, under the
        names (and in the .pth the wrappers) of the first checkpoint. After an interruption make a
        new Evolution on a freshly loaded population: the run folder resumes it.
        """
        self._require_fresh()
        records: list[Record] = []
        if self.run_dir is not None:
            header = self.header()
            self._keys = KeyLayout.of_population(self.de.population)  # while its files are there
            self._journal, records = Journal.open(self.run_dir, header)
        try:
            if self.run_dir is not None:
                self._keep_engines(self.run_dir, resumed=len(records) > 0)
                write_initial(self.de.population, self.run_dir, header["checkpoints"])
                self._metrics = MetricsFile(self.run_dir / "metrics.csv")
            return self._run(records)
        finally:
            if self._metrics is not None:
                self._metrics.close()
            if self._journal is not None:
                self._journal.close()

    def _run(self, records: list[Record]) -> Candidate:
        from tqdm.auto import tqdm  # not needed by an import of the package

        total = self.de.configuration.generations
        with tqdm(total=total, disable=not self.progress, unit="generation") as bar:
            done = [record for record in records if "returned" not in record]
            if any("trials" in record for record in done):
                self.scoring.prepare()  # it has been accounted for in the first generation
            for number, record in enumerate(done, start=2):
                with line_of(cast(Journal, self._journal).path, number):
                    self._account(record)
                    generation = self.course.apply(record)
                self._observe(generation, record, bar)
            if done and self.de.generation < total:
                due = self.fitness.batch_of(self.de.generation + 1)
                self.scoring.resume(self._batch if self._batch == due else None)
            self._passes_before = self._passes()
            if not done:
                self._first()
            while self.de.generation < total:
                record, generation = self._generation(self.de.generation + 1)
                self._account(record)
                self._observe(generation, record, bar)
        chosen = self.course.chosen()
        if self._journal is not None:
            if len(done) < len(records):
                with line_of(self._journal.path, len(records) + 1):
                    chosen = as_returned(chosen, records[-1]["returned"])
            else:
                last = {"returned": chosen.record()}
                if self.evaluator is not None and self.evaluator.policy.recalibrates:
                    last["returned"]["statistics"] = encode_statistics(chosen.statistics)
                self._journal.append(last)
        if self.run_dir is not None and self._keys is not None:
            write_weights(self._keys, chosen.state_dict(self.de), chosen.record(), self.run_dir)
        return chosen

    def _require_fresh(self) -> None:
        if self.de.generation != 0 or self.de.scored or not self.de.population.pristine:
            raise DeevoError(
                "de or its population has been used already; give Evolution a fresh "
                "DifferentialEvolution on a population that was just loaded (a run folder's "
                "journal brings it back to where it was)"
            )

    def _first(self) -> None:
        """Generation 0: the initial candidates by validation, before anything is changed."""
        started = time.perf_counter()
        record: Record = {"generation": 0}
        if self.validation is not None:
            record["validation"] = self._validate(self.initial.found if self.initial else None)
        if self.initial is not None:
            self._passes_before -= self.initial.forward_passes
            started -= self.initial.seconds
        self._finish(record, started)
        self._account(record)

    def _generation(self, number: int) -> tuple[Record, Generation]:
        started = time.perf_counter()
        batch = self.fitness.batch_of(number)
        record: Record = {"generation": number, "batch": batch}
        if batch != self._batch:
            parents = self.scoring.parents(batch)
            if all(math.isnan(value) or value == math.inf for value in parents):
                raise DeevoError(
                    "no member of the population has a finite fitness: check images, labels and "
                    "preprocessing against the model"
                )
            record["parents"] = to_hex(parents)
            self.course.score_parents(parents)
        trials, race = self.scoring.trials(batch)
        record["trials"] = to_hex(trials)
        if race is not None:
            record["racing"] = race
        generation = self.course.advance(trials)
        self.scoring.settle(generation)
        due = number % self.validate_every == 0 or number == self.de.configuration.generations
        if self.validation is not None and due:
            record["validation"] = self._validate()
        self._finish(record, started)
        return record, generation

    def _validate(self, found: dict[str, Any] | None = None) -> dict[str, Any]:
        assert self.evaluator is not None and self.validation is not None
        evaluator, images = self.evaluator, self.validation
        return self.course.validate(
            lambda row, s: evaluator.score_by(row, images, self.metric, s), found
        )

    def _finish(self, record: Record, started: float) -> None:
        """Costs into the record, the record into the journal."""
        passes = self._passes()
        record["forward_passes"] = passes - self._passes_before
        record["seconds"] = round(time.perf_counter() - started, 6)
        self._passes_before = passes
        if self._journal is not None:
            self._journal.append(record)

    def _passes(self) -> int:
        evaluators = {id(e): e for e in (self.evaluator, self._own_evaluator()) if e is not None}
        return sum(evaluator.forward_passes for evaluator in evaluators.values())

    def _keep_engines(self, folder: Path, resumed: bool) -> None:
        """Engines are chosen once a run; evaluators of their own have tables of their own."""
        own = self._own_evaluator()
        if self.evaluator is not None:
            self.evaluator.keep_engines(folder / ENGINES_FILE, resumed=resumed)
        if own is not None and own is not self.evaluator:
            own.keep_engines(folder / f"fitness-{ENGINES_FILE}", resumed=resumed)

    def _own_evaluator(self) -> Evaluator | None:
        own = getattr(self.fitness, "evaluator", None)
        return own if isinstance(own, Evaluator) else None

    def _account(self, record: Record) -> None:
        self.forward_passes += record["forward_passes"]
        self.seconds += record["seconds"]
        if record["generation"] == 0:
            self.initial_forward_passes = self.forward_passes
            self.initial_seconds = self.seconds
        self._batch = record.get("batch", self._batch)

    def _observe(self, generation: Generation | None, record: Record, bar: Any) -> None:
        if generation is None:
            return
        metrics = generation.metrics()
        metrics["diversity"] = diversity(self.de.population.rows, self.de.living)
        if "racing" in record:
            race = record["racing"]
            metrics["non_finite"] = float(race["non_finite"])  # dropped trials have +inf, too
            metrics["racing/images"] = sum(race["images"]) / (race["of"] * len(race["images"]))
            metrics["racing/dropped"] = float(sum(n < race["of"] for n in race["images"]))
        metrics["forward_passes"] = float(self.forward_passes)
        metrics["seconds"] = self.seconds
        for kind in ("member", "mean", "soup"):
            found = record.get("validation", {}).get(kind)
            metrics[f"validation/{kind}"] = float.fromhex(found["score"]) if found else float("nan")
        self.history.append(metrics)
        if self._metrics is not None:
            self._metrics.append(metrics)
        for callback in self.callbacks:
            callback(metrics)
        bar.update(1)
        rate = record["forward_passes"] / max(record["seconds"], 1e-9)
        saved = f", {metrics['racing/images']:.0%} evaluated" if "racing" in record else ""
        bar.set_postfix_str(
            f"best {metrics['best_fitness']:.4g}, accepted {metrics['success_rate']:.0%}, "
            f"{rate:,.0f} member-images/s{saved}"
        )
