"""What every run has: candidates, a journal, costs, and an end; resumable after a kill."""

from __future__ import annotations

import contextlib
import platform
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from deevo_ext import _version
from deevo_ext.distributed.joining import joined, require_own_gpus
from deevo_ext.distributed.ranks import ranks
from deevo_ext.files import remove_partial, write_whole
from deevo_ext.fitness.evaluator import Evaluator
from deevo_ext.ops.tables import CONTRACT_VERSION
from deevo_ext.population.naming import Naming
from deevo_ext.population.population import Population
from deevo_ext.progress import say
from deevo_ext.runs.folder import (
    TENSORS,
    VIRTUAL,
    MetricsFile,
    initial_checkpoints,
    read_tensors,
    require_writable,
    write_initial,
    write_weights,
)
from deevo_ext.runs.journal import Journal, comparable
from deevo_ext.runs.recording import Recording
from deevo_ext.runs.records import End, GenerationRecord, Header, RoundRecord
from deevo_ext.runs.shared_journal import open_journal
from deevo_ext.runs.state import Candidate, Candidates
from deevo_ext.runs.switches import torch_switches
from deevo_ext.runs.treatments import Treatments
from deevo_ext.runs.validation import FitnessValidation, Validation
from deevo_ext.search.configuration import Configuration
from deevo_ext.search.optimizer import Callback

AnyRecord = TypeVar("AnyRecord", GenerationRecord, RoundRecord)


class Run(ABC):
    """A run of either search; `Evolution` is that of weights, `RecipeRun` that of coefficients.

    population: as it was read. configuration, seed: of the differential evolution. state: its
    candidates. history: the metrics of each generation or round. chosen: what was returned; None
    before the end. traffic: bytes that rank 0 received, where there are several; forward_passes,
    seconds: of the whole run, resumed parts included; initial_forward_passes, initial_seconds:
    those of the initial candidates. stopped: whether the run was stopped before its end.
    """

    search: str
    patience: int | None = None  # of a search of weights alone
    configuration: Configuration
    seed: int
    state: Candidates
    treatments: Treatments | None = None

    def __init__(
        self,
        population: Population,
        run_dir: str | Path | None,
        validation: Validation | FitnessValidation | None,
        progress: bool,
        callbacks: Sequence[Callback],
        journal: Journal | None,
    ) -> None:
        self.population = population
        self.run_dir = None if run_dir is None else Path(run_dir)
        self.validation = validation
        self.evaluator = None if validation is None else validation.evaluator
        self.progress = progress
        self.callbacks = list(callbacks)
        self.chosen: Candidate | None = None
        self.history: list[dict[str, float]] = []
        self.forward_passes, self.initial_forward_passes = 0, 0
        self.seconds, self.initial_seconds = 0.0, 0.0
        self._passes_before, self._traffic_before, self.traffic = 0, ranks().traffic, 0
        self.stopped = False
        self._stopping, self._resuming, self._went_on = False, False, False
        self._engines: list[dict[str, Any]] | None = None
        self._journal = journal
        self._metrics: MetricsFile | None = None

    @abstractmethod
    def describe_fitness(self) -> dict[str, Any]:
        """Returns what decides the fitness, as JSON values."""

    @abstractmethod
    def require_fresh(self) -> None:
        """Raises DeevoError where the run has been used already."""

    @abstractmethod
    def evaluators(self) -> list[Evaluator]:
        """Returns the evaluators of validation and fitness, which may be one."""

    @abstractmethod
    def advance(self, recording: Recording | None) -> None:
        """Runs, or resumes, up to the last generation or round."""

    @abstractmethod
    def done(self) -> bool:
        """Whether no generation or round is left."""

    def stop(self) -> None:
        """Ends the run after the generation or round that is under way.

        For callbacks, signal handlers and other threads. `run` then returns the best network so
        far, and a run folder has its weights; the same call goes on from there, with the result of
        a run that was never stopped. A callback that returns True does the same.
        """
        self._stopping = True

    def stops(self) -> bool:
        """Returns whether any rank has been asked to stop; all ranks ask."""
        self._stopping = any(ranks().gather(self._stopping))
        return self._stopping

    def header(self) -> Header:
        """Returns the journal's first line: everything that decides the run."""
        return Header(
            contract=CONTRACT_VERSION,
            deevo_ext=_version.__version__,
            configuration=self.configuration.to_json(),
            seed=self.seed,
            layout=self.population.layout.hash,
            population=self.population.manifest(),
            checkpoints=initial_checkpoints(self.population, self.run_dir),
            fitness=self.describe_fitness(),
            validation=None if self.validation is None else self.validation.describe(),
            search=self.search,
            switches=torch_switches(),
        )

    def run(self) -> Candidate:
        """Runs, or resumes, to the end; returns the chosen candidate, which is `chosen` from then.

        Where a launcher has started several ranks, all run this; rank 0 alone writes, shows
        progress and calls callbacks.

        With a run folder its weights are there too, evolved.safetensors and evolved.pth, under the
        names (and in the .pth the wrappers) of the first checkpoint. After an interruption make a
        new run on a freshly loaded population: the run folder resumes it, even one that had come to
        its end, where there are more generations or rounds now.
        """
        self.require_fresh()
        recording, naming = None, None
        with joined() as group, contextlib.ExitStack() as stack:
            stack.enter_context(self._told_of_interrupts())
            self.progress = self.progress and group.leads
            require_own_gpus({self.population.rows.device, *(e.device for e in self.evaluators())})
            header = self.header() if self.run_dir is not None or group.count > 1 else None
            if header is not None and group.count > 1:
                given = {**versions(), "run_dir": "none" if self.run_dir is None else "given"}
                given["patience"] = str(self.patience)
                group.require_same("at the start", {**comparable(header), **given})
            if self.run_dir is not None and header is not None:
                if self._journal is None:
                    self._journal = stack.enter_context(open_journal(self.run_dir))
                naming = Naming.of_population(self.population)  # while its files are there
                if group.leads:
                    require_writable(naming, self.population)
                recording = self._journal.begin(header)
            if self.run_dir is not None and header is not None and group.leads:
                for written in (self.run_dir, self.run_dir / VIRTUAL):
                    remove_partial(written)
                write_initial(self.population, self.run_dir, header.checkpoints)
                self._metrics = MetricsFile(self.run_dir / "metrics.csv")
                stack.callback(self._metrics.close)
            self.advance(recording)
            self.stopped = self._stopping and not self.done()
            self.chosen = self._end(recording)
            if self.run_dir is not None and naming is not None and group.leads:
                weights, about = self.chosen.state_dict(self.population), self.chosen.record()
                write_weights(naming, weights, about, self.run_dir)
                self.write_more(self.chosen, naming)
            return self.chosen

    def write_more(self, chosen: Candidate, naming: Naming) -> None:  # noqa: B027 (most have none)
        """Writes further files about what is returned; naming: the first checkpoint's."""

    @property
    def unit_of_work(self) -> str:
        """What is counted: a round or a generation."""
        return "round" if self.search == "coefficients" else "generation"

    def say_resumed(self, total: int, finished: bool) -> None:
        """Says where the run goes on, of so many generations or rounds."""
        done, unit = len(self.history), self.unit_of_work
        what = f"{done} of {total} {unit}s; the run goes on from there"
        if finished:
            count = f"all {done}" if done >= total else f"{done} of {total}"
            what = f"{count} {unit}s and is at its end; nothing is searched again"
        if self.progress:
            say(f"{self.run_dir} holds {what}")

    @contextlib.contextmanager
    def _told_of_interrupts(self) -> Iterator[None]:
        """Says, where the run is interrupted, what is safe and how it goes on."""
        try:
            yield
        except KeyboardInterrupt:
            done = f"after {self.unit_of_work} {len(self.history)}"
            what = f"interrupted {done}: without run_dir= nothing is kept"
            if self.run_dir is not None:
                what = (
                    f"interrupted {done}: all up to it is safe in {self.run_dir}, and the same "
                    "command or call goes on from there, with the result of a run without "
                    "interruption"
                )
            if self.progress:
                say(what)
            raise

    def treat(self) -> None:
        """Adds the treated candidates to the state, once, where there are images for that."""
        if self.treatments is not None and not self.state.treated:
            self.state.treated = self.treatments.of(self.state)

    def choose(self) -> Candidate:
        """Returns what the run returns, by its scores."""
        return self.state.chosen()

    def _end(self, recording: Recording | None) -> Candidate:
        """Returns what the run returns: by its journal where it was finished, else by its scores.

        Then the journal gets its last line, and first what it alone cannot tell.
        """
        returned = None if recording is None or self._went_on else recording.returned
        if recording is not None and returned is not None and self.run_dir is not None:
            with recording.line_of(len(recording.records)):
                folder, digest = self.run_dir, returned.tensors_sha256
                tensors = ranks().lead(lambda: read_tensors(folder, digest))
                return self.state.recorded(returned, tensors)
        self.treat()
        chosen = self.choose()
        if self._journal is not None and self.run_dir is not None and not self.stopped:
            returned = chosen.returned()
            if self.evaluator is not None and self.evaluator.policy.recalibrates:
                returned = replace(returned, statistics=chosen.statistics)
            if chosen.tensors and ranks().leads:
                write_whole(self.run_dir / TENSORS, chosen.file())
            self._journal.append(End(returned))
        return chosen

    def use_engines(self, recording: Recording) -> None:
        """Takes the engines that the journal says."""
        for i, record in enumerate(recording.records):
            if record.engines is not None:
                with recording.line_of(i):
                    for evaluator, engines in zip(self.evaluators(), record.engines, strict=True):
                        evaluator.use_engines(engines)
                self._engines = record.engines

    def new_engines(self) -> list[dict[str, Any]] | None:
        """Returns the evaluators' engines, where the journal does not hold them already."""
        engines = [evaluator.engines() for evaluator in self.evaluators()]
        if engines == (self._engines or []):
            return None
        self._engines = engines
        return engines

    def passes(self) -> int:
        """Forward passes since this start."""
        return sum(evaluator.forward_passes for evaluator in self.evaluators())

    def new_passes(self) -> int:
        """Forward passes since this was asked last."""
        before, self._passes_before = self._passes_before, self.passes()
        return self._passes_before - before

    def new_traffic(self) -> int | None:
        """Bytes that this rank received since this was asked last; None where it is alone."""
        before, self._traffic_before = self._traffic_before, ranks().traffic
        return self._traffic_before - before if ranks().count > 1 else None

    def with_costs(self, record: AnyRecord, started: float) -> AnyRecord:
        """Returns rank 0's record, with what was spent and the engines that are new.

        started: when its work began, as time.perf_counter() has it.
        """
        own = replace(
            record,
            engines=self.new_engines(),
            traffic=self.new_traffic(),
            forward_passes=self.new_passes(),
            seconds=round(time.perf_counter() - started, 6),
        )
        return ranks().lead(lambda: own)

    def account(self, record: GenerationRecord | RoundRecord) -> None:
        """Adds a record's costs."""
        self.forward_passes += record.forward_passes
        self.seconds += record.seconds
        self.traffic += record.traffic or 0
        if isinstance(record, GenerationRecord) and record.generation == 0:
            self.initial_forward_passes = self.forward_passes
            self.initial_seconds = self.seconds

    def keep(self, record: GenerationRecord | RoundRecord) -> None:
        """Writes a new record to the journal and accounts for it."""
        self._went_on = True
        if self._journal is not None:
            self._journal.append(record)
        self.account(record)

    def observe(self, metrics: dict[str, float]) -> None:
        """Keeps metrics, and gives them to the callbacks."""
        self.history.append(metrics)
        if self._metrics is not None:
            self._metrics.append(metrics)
        callbacks = self.callbacks if ranks().leads else ()
        said = [callback(metrics) for callback in callbacks]
        stops = [isinstance(one, (bool, np.bool_)) and bool(one) for one in said]
        if any(stops) and not self._resuming:
            self.stop()


def versions() -> dict[str, str]:
    """Returns the versions that decide bits, by name."""
    return {
        "deevo_ext": _version.__version__,
        "torch": torch.__version__,
        "Python": platform.python_version(),
    }


def evaluators_of(*evaluators: Evaluator | None) -> list[Evaluator]:
    """Returns those that are there, each once."""
    return list({id(one): one for one in evaluators if one is not None}.values())
